"""Models without our attention layouts answer by transformers' own cache, with the tokens they choose without one."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from instruct_lit.accel.bf16_weights import BF16Weights
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Hook, Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.hf import own_cache
from instruct_lit.hf.files import import_transformers
from instruct_lit.hf.model import HFModel

transformers = pytest.importorskip("transformers")
TOKENIZER: Any = SimpleNamespace(eot_id=7, decode=lambda ids: " ".join(map(str, ids)))
KINDS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "gpt_oss": {"head_dim": 8, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon": {"alibi": True},
    "llama4_text": {"head_dim": 8, "attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 48},
    "deepseek_v32": {  # tokens that it selects; with few heads their scores are equal
        "index_topk": 4, "index_n_heads": 16, "index_head_dim": 16, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "num_key_value_heads": 4,
    },
    "qwen3_5_text": {
        "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
}  # fmt: skip
PROMPTS = [[5, 6, 9, 8, 1, 2, 3, 4, 4, 9, 9], [9, 8, 7], [3], [1] * 14, [2, 3, 2, 3, 2]]
SETTINGS = [SamplingSettings(n, temperature=n % 2, seed=n) for n in (9, 2, 20, 6, 11)]


def model_of(kind: str) -> HFModel:
    import_transformers()
    given = {
        "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 7,
    } | KINDS[kind]  # fmt: skip
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[kind](**given))
    for p in hf.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.1)
    return HFModel(hf, 64).eval()


@pytest.fixture(params=KINDS, scope="module")
def model(request: pytest.FixtureRequest) -> HFModel:
    return model_of(request.param)


def n_read(model: HFModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each forward pass, padding included."""
    found: list[int] = []
    states = model._states

    def counted(**inputs: Any) -> torch.Tensor:
        found.append(inputs["input_ids"].numel())
        return states(**inputs)

    monkeypatch.setattr(model, "_states", counted)
    return found


@pytest.mark.parametrize("worth", [0, own_cache.WORTH_ON_CPU])
def test_answers_are_those_without_a_cache(model: HFModel, worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token is read twice unless that lets all texts share the passes to come."""
    monkeypatch.setattr(own_cache, "WORTH_ON_CPU", worth)
    assert model.own_cache() is not None
    read = n_read(model, monkeypatch)
    found = Engine(model, TOKENIZER, max_rows=3, make_loops=[]).generate(PROMPTS, SETTINGS)
    if model.layout_length == 0:
        n_prefills = sum(n > 3 for n in read)
        assert n_prefills == 3 if worth == 0 else n_prefills > 3
        assert worth or max(read) == 3 * max(map(len, PROMPTS[:3]))
    monkeypatch.setattr(model, "own_cache", lambda: None)
    expected = Engine(model, TOKENIZER, max_rows=3, make_loops=[]).generate(PROMPTS, SETTINGS)
    assert [r.ids for r in found] == [r.ids for r in expected] and len({tuple(r.ids) for r in found}) == len(PROMPTS)


def test_rows_that_end_leave_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = model_of("gemma2"), [SamplingSettings(n) for n in (2, 5, 9)]
    read = n_read(model, monkeypatch)
    engine = Engine(model, SimpleNamespace(eot_id=-1, decode=TOKENIZER.decode))
    engine.generate(PROMPTS[:3], settings)
    measured = 2 * len(own_cache.LENGTHS)
    assert read[-9:] == [33, 3, 2, 2, 2, 1, 1, 1, 1] and measured <= len(read) - 9 <= 2 * measured


class Reads(Hook):
    reads_prompt = True

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []
        self.n_tokens = 0

    def on_prompt(self, ids: Sequence[int], hidden: torch.Tensor, model: Any) -> None:
        self.states.append(hidden)

    def on_token(self, token: int, logits: torch.Tensor) -> None:
        self.n_tokens += 1


def test_a_hook_gets_the_states_of_the_prompt() -> None:
    model, hook = model_of("gemma2"), Reads()
    engine = Engine(model, TOKENIZER)
    expected = engine.generate(PROMPTS[:2], SamplingSettings(6))
    hooked = engine.prepare(PROMPTS[0], SamplingSettings(6), hook)
    other = engine.enqueue(engine.prepare(PROMPTS[1], SamplingSettings(6)))
    engine.enqueue(hooked)
    while engine.n_unfinished:
        engine.step()
    assert [hooked.ids, other.ids] == [r.ids for r in expected] and hook.n_tokens == len(hooked.ids) + hooked.has_eot
    with torch.no_grad():
        torch.testing.assert_close(hook.states, [model.hidden_states(torch.tensor(PROMPTS[:1]))[0]])


def test_in_half_precision_it_is_measured_with_another_tolerance() -> None:
    model = model_of("gemma2")
    engine = Engine(model, TOKENIZER, make_weights=BF16Weights)
    assert len(engine.generate(PROMPTS, SamplingSettings(3))) == 5 and engine._own_cache is not None
    half = HFModel(model_of("gemma2").hf.bfloat16(), 64).eval()
    assert half.own_cache() is not None


@pytest.mark.parametrize("fault", ["sees padding", "does not count", "raises"])
def test_a_model_that_is_not_exact_with_it_reads_whole_texts(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gemma2")
    expected = Engine(model, TOKENIZER).generate(PROMPTS, SETTINGS)
    model, states = model_of("gemma2"), HFModel._states

    def wrong(self: HFModel, **inputs: Any) -> torch.Tensor:
        if inputs.get("use_cache"):
            if fault == "raises":
                raise ValueError("a cache of another kind")
            if fault == "sees padding":
                del inputs["attention_mask"]
            else:
                inputs["position_ids"] = torch.zeros_like(inputs["position_ids"])
        return states(self, **inputs)

    monkeypatch.setattr(HFModel, "_states", wrong)
    assert model.own_cache() is None
    engine = Engine(model, TOKENIZER)
    assert [r.ids for r in engine.generate(PROMPTS, SETTINGS)] == [r.ids for r in expected]
    assert engine._own_cache is None


def test_a_cancelled_request_leaves_the_others_alone() -> None:
    model = model_of("falcon")
    alone = Engine(model, TOKENIZER).generate([PROMPTS[0]], SamplingSettings(8))[0]
    engine = Engine(model, TOKENIZER)
    first, second = (engine.enqueue(engine.prepare(prompt, SamplingSettings(8))) for prompt in (PROMPTS[3], PROMPTS[0]))
    engine.step()
    engine.step()
    engine.cancel(first)
    while engine.n_unfinished:
        engine.step()
    assert second.ids == alone.ids and first.finish_reason == "cancelled"
    cache = engine._own_cache
    assert isinstance(cache, own_cache.OwnCache)
    later = Request([4, 4], SamplingSettings(1))
    with torch.inference_mode():
        cache([later])
    assert [cohort.requests for cohort in cache._cohorts] == [[later]], "what ended is forgotten"
