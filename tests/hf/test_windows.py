"""Layers that attend to the last 8 tokens, or within chunks of 8: the default layout is exact, and says which it is."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from instruct_lit.config.data_builders import chosen_layout
from instruct_lit.core.data.batching import Collator
from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.settings import Batching
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.training.loss import StepAccelerator
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.losses import response_losses
from instruct_lit.hf.files import import_transformers
from instruct_lit.hf.model import HFModel
from instruct_lit.suites.scoring import log_likelihoods

transformers = pytest.importorskip("transformers")
N_VOCAB, WINDOW = 99, 8
DEFAULT = Batching(layout="packed", shared_prefix=True, pad_to_multiple_of=32)
BELOW, ABOVE = (5, 9, 9, 3), (5, 9, 24, 3, 17)


class Tokens:
    """A tokenizer of numbers, whose end-of-text is 0."""

    eot_id = 0
    n_bytes_of = np.ones(N_VOCAB, dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def model_of(kind: str, **more: Any) -> HFModel:
    import_transformers()
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](
        vocab_size=N_VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.2, eos_token_id=0,
        pad_token_id=0, **more,
    )  # fmt: skip
    return HFModel(transformers.AutoModelForCausalLM.from_config(config)).eval()


LOCAL = ["sliding_attention", "sliding_attention", "full_attention"]
KINDS: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": LOCAL},
    "mistral": {"sliding_window": WINDOW},
    "llama4_text": {"attention_chunk_size": WINDOW, "num_local_experts": 2, "intermediate_size_mlp": 48},
}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> HFModel:
    return model_of(request.param, **KINDS[request.param])


@pytest.fixture(scope="module")
def chunked() -> HFModel:
    return model_of("llama4_text", **KINDS["llama4_text"])


def examples(lengths: Sequence[int]) -> list[EncodedExample]:
    random = np.random.default_rng(3)
    made = []
    for index, n in enumerate(lengths):
        ids = np.concatenate([[7, 8], random.integers(1, N_VOCAB, n - 2)])
        made.append(EncodedExample(index, ids, np.arange(n) >= n // 2))
    return made


def choice(model: HFModel, automatic: bool = True) -> partial[Batching]:
    return partial(chosen_layout, limits=(model.layout_length, model.no_layouts or ""), automatic=automatic)


def loss_of_transformers(model: HFModel, example: EncodedExample) -> torch.Tensor:
    """The summed loss of one example by the model's own masks."""
    ids = torch.from_numpy(example.ids)[None]
    logits = model.hf(input_ids=ids[:, :-1], use_cache=False).logits[0]
    targets = torch.where(torch.from_numpy(example.is_response[1:]), ids[0, 1:], -100)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)


@pytest.mark.parametrize("lengths", [BELOW, ABOVE])
def test_the_default_has_the_loss_and_the_gradients_of_transformers(
    model: HFModel, lengths: Sequence[int], capsys: pytest.CaptureFixture[str]
) -> None:
    in_rows = lengths is ABOVE and model.no_layouts is not None
    assert in_rows or lengths is BELOW or not isinstance(model.hf, transformers.Llama4ForCausalLM)
    layout = "padded" if in_rows else "packed"
    batching = choice(model)(DEFAULT, max(lengths) - 1)
    assert batching.layout == layout and (batching.grouping == "length") == (layout == "padded")
    assert f"batching: {layout}" in capsys.readouterr().out
    collate = Collator(
        0, Tokens.n_bytes_of, batching.layout, batching.shared_prefix, pad_to_multiple_of=batching.pad_to_multiple_of
    )
    step, batch, found = StepAccelerator(), collate(examples(lengths)), []
    step.attach(model)
    for loss in (
        lambda: step.loss(batch, batch.loss_weights),
        lambda: torch.stack([loss_of_transformers(model, example) for example in examples(lengths)]).sum(),
    ):
        model.zero_grad()
        value = loss()
        value.backward()
        found.append([value.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)


def test_a_layout_that_is_demanded_and_not_exact_is_refused(chunked: HFModel) -> None:
    with pytest.raises(ConfigError, match=r"batching.layout=packed.*attend within chunks of 8 tokens.*max_length=9"):
        choice(chunked, automatic=False)(DEFAULT, 9)
    assert choice(chunked, automatic=False)(DEFAULT, 8) is DEFAULT
    with pytest.raises(
        ConfigError, match=r"packing is not exact for this model, since it has a cap; .*batching=bucketed$"
    ):
        chosen_layout(DEFAULT, 1, (0, "it has a cap"), automatic=False)


def test_losses_and_scores_are_those_of_transformers(model: HFModel) -> None:
    for lengths in (BELOW, ABOVE):
        for example, (mean, n) in zip(
            examples(lengths), response_losses(model, Tokens(), examples(lengths)), strict=True
        ):
            assert mean * n == pytest.approx(loss_of_transformers(model, example).item(), rel=1e-4)
        pairs = [(e.ids[: len(e.ids) // 2].tolist(), e.ids[len(e.ids) // 2 :].tolist()) for e in examples(lengths)]
        for example, score in zip(examples(lengths), log_likelihoods(model, pairs), strict=True):
            assert -score.log_likelihood == pytest.approx(loss_of_transformers(model, example).item(), rel=1e-4)


def test_a_window_that_the_attention_is_not_told_is_measured() -> None:
    """In the code of Qwen 2 MoE only the mask knows the window; so its texts may not be longer than that."""
    given = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": LOCAL, "num_experts": 4}
    model = model_of("qwen2_moe", **given)
    assert (model.layout_length, model.no_layouts) == (8, "its layers attend to the last 8 tokens only")
    assert model.hf.config.sliding_window == WINDOW, "as it was before it was measured"


def test_answers_are_those_of_transformers(model: HFModel) -> None:
    """Beyond a window from the cache, beyond a chunk without, both in one batch with shorter ones."""
    engine = Engine(model, Tokens(), max_rows=2)
    prompts = [[5, 6], [9, 8, 7, 6, 5, 4], [11, 12, 13], [14, 15]]
    settings = [SamplingSettings(max_new_tokens=n) for n in (4, 20, 3, 6)]
    for request, setting in zip(engine.generate(prompts, settings), settings, strict=True):
        ids = torch.tensor([request.prompt_ids])
        expected = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=setting.max_new_tokens
        )
        assert expected[0, len(request.prompt_ids) :].tolist()[: len(request.ids)] == request.ids
    assert engine._recomputes is (model.no_layouts is not None)
    engine.generate([[5, 6]], SamplingSettings(max_new_tokens=4))
    assert not engine._recomputes, "an empty batch begins with the cache again"
