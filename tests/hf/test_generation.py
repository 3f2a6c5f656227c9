"""The engine on models of transformers: the text of their own `generate`, one by one or together."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from instruct_lit.accel.decode_loop import DeviceLoop
from instruct_lit.core.generation.engine import DECODE_LOOPS, Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.tokenizer import HFTokenizer, load_tokenizer
from tests.accel.emulated_graphs import emulated_cuda
from tests.core.generation.streaming import pieces_of

transformers = pytest.importorskip("transformers")
__all__ = ["emulated_cuda"]
PROMPTS = [[0, 9, 8, 7], [0, 9, 8, 7, 30, 31, 32, 33, 34, 35], [0, 9, 40], [0, 9, 8, 200]]


@pytest.fixture(scope="module")
def tokenizer(llama_directory: Path) -> HFTokenizer:
    return load_tokenizer(str(llama_directory))


def llama(directory: Path) -> HFModel:
    return load_hf(str(directory)).eval()


def mamba(directory: Path) -> HFModel:
    torch.manual_seed(3)
    config = transformers.MambaConfig(vocab_size=300, hidden_size=24, num_hidden_layers=2, initializer_range=0.5)
    return HFModel(transformers.MambaForCausalLM(config), 64).eval()


def gemma2(directory: Path) -> HFModel:
    torch.manual_seed(3)
    config = transformers.Gemma2Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=1, initializer_range=0.3,
    )  # fmt: skip
    return HFModel(transformers.AutoModelForCausalLM.from_config(config), 64).eval()


@pytest.mark.parametrize("make", [llama, mamba, gemma2])
def test_trap_12_batched_is_one_by_one_is_transformers(
    make: Callable[[Path], HFModel], llama_directory: Path, tokenizer: HFTokenizer
) -> None:
    model = make(llama_directory)
    settings = SamplingSettings(max_new_tokens=10)
    together = [r.ids for r in Engine(model, tokenizer, max_rows=3).generate(PROMPTS, settings)]
    alone = [Engine(model, tokenizer).generate([prompt], settings)[0].ids for prompt in PROMPTS]
    theirs = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=tokenizer.eot_id,
            pad_token_id=0,
        )  # fmt: skip
        new = out[0, len(prompt) :].tolist()
        theirs.append(new[: new.index(tokenizer.eot_id)] if tokenizer.eot_id in new else new)
    assert together == alone == theirs
    assert len({tuple(ids) for ids in together}) > 1


FAMILIES = {
    "LlamaConfig": {"num_key_value_heads": 2},
    "Qwen3Config": {"num_key_value_heads": 1, "head_dim": 8},
    "GemmaConfig": {"num_key_value_heads": 1, "head_dim": 16},
    "Gemma3TextConfig": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 16},
    "NanoChatConfig": {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 3.0},
    "DeepseekV3Config": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "first_k_dense_replace": 2,
    },
    "Gemma4TextConfig": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 300,
    },
    "MistralConfig": {"num_key_value_heads": 2, "sliding_window": 8},
}


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.slow), "emulated", pytest.param("cuda", marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loop_with_static_shapes_is_the_plain_decoder(
    family: str, tokenizer: HFTokenizer, device: str, request: pytest.FixtureRequest
) -> None:
    recorded = request.getfixturevalue("emulated_cuda") if device == "emulated" else []
    torch.manual_seed(3)
    config = getattr(transformers, family)(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3, **FAMILIES[family],
    )  # fmt: skip
    model = HFModel(transformers.AutoModelForCausalLM.from_config(config), 64).eval()
    model.to("cuda" if device == "cuda" else "cpu")
    settings = [SamplingSettings(6 + 9 * n, temperature=n % 2, top_p=0.9, seed=n) for n in range(4)]
    loops = DECODE_LOOPS if device == "cuda" else [partial(DeviceLoop, with_graphs=device == "emulated")]
    found, plain = (Engine(model, tokenizer, 3, make_loops=m).generate(PROMPTS, settings) for m in (loops, []))
    assert [r.ids for r in found] == [r.ids for r in plain] and len({tuple(r.ids) for r in found}) == 4
    assert bool(recorded) is (device == "emulated")


def test_streaming_gives_the_same_text(llama_directory: Path, tokenizer: HFTokenizer) -> None:
    model = llama(llama_directory)
    settings = SamplingSettings(max_new_tokens=8)
    whole = Engine(model, tokenizer).generate([PROMPTS[1]], settings)[0].text
    assert "".join(pieces_of(Engine(model, tokenizer), PROMPTS[1], settings)) == whole


def test_the_models_other_ends_end_an_answer_too(llama_directory: Path, tokenizer: HFTokenizer, tmp_path: Path) -> None:
    """As in transformers: models of chats have several, `<|im_end|>` and `<|endoftext|>`, for example."""
    settings = SamplingSettings(max_new_tokens=8, temperature=0.0)
    (whole,) = Engine(llama(llama_directory), tokenizer).generate([PROMPTS[1]], settings)
    hf = load_hf(str(llama_directory)).hf
    hf.generation_config.eos_token_id = [tokenizer.eot_id, whole.ids[2]]
    hf.save_pretrained(tmp_path)
    model = load_hf(str(tmp_path)).eval()
    n_before = whole.ids.index(whole.ids[2])
    (cut,) = Engine(model, tokenizer).generate([PROMPTS[1]], settings)
    assert (cut.ids, cut.finish_reason, cut.has_eot) == (whole.ids[:n_before], "stop", True)
    theirs = hf.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=8, do_sample=False)[0, len(PROMPTS[1]) :]
    assert theirs.tolist() == [*cut.ids, whole.ids[2]]
