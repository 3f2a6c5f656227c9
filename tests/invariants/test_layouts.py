"""The central promise: whatever the layout, loss and gradients are those of the plain padded batch."""

import copy
import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.config.compose import CONF
from instruct_lit.core.data.batching import Collator, pad_shift_mask
from instruct_lit.core.data.encode import EncodedExample, Encoder
from instruct_lit.core.data.example import Example, to_example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.training.loss import StepAccelerator

N_VOCAB = 512
EOT = N_VOCAB - 1


def relabelled(examples: list[EncodedExample]) -> list[EncodedExample]:
    """With ids below `N_VOCAB`, in the order of GPT-2's: a head of 50,257 rows would make these tests slow, no more."""
    *ids, last = np.unique(np.concatenate([example.ids for example in examples]))
    assert last == 50256 and len(ids) < N_VOCAB
    label = {token: number for number, token in enumerate(ids)} | {last: EOT}
    return [replace(example, ids=np.array([label[token] for token in example.ids])) for example in examples]


def random_examples() -> list[EncodedExample]:
    random = np.random.default_rng(0)
    examples = []
    for index in range(12):
        prompt = np.concatenate([[5, 6, 7, 8, 9], random.integers(0, 500, random.integers(1, 20))])
        response = random.integers(0, 500, random.integers(0, 15))
        ids = np.concatenate([prompt, response, [50256]])
        examples.append(EncodedExample(index, ids, np.arange(len(ids)) >= len(prompt)))
    return examples


def real_examples(folder: Path, tokenizer: GPT2Tokenizer) -> list[EncodedExample]:
    records = json.loads((folder / "instructions" / "book-1100.json").read_text())[:12]
    template = Template("alpaca", OmegaConf.load(CONF / "template" / "alpaca.yaml").text)
    return [e for _, e in Encoder(template, tokenizer, 128).encode([to_example(r, "r") for r in records])]


def conversations(tokenizer: GPT2Tokenizer, loss_on: str) -> list[EncodedExample]:
    """Talks of one to four turns that begin alike; one is the beginning of another, so the prefix ends in a response."""
    random = np.random.default_rng(1)
    template = Template(**OmegaConf.load(CONF / "template" / "chatml.yaml"))
    examples = []
    for n_turns in (1, 2, 3, 4, 1, 2, 3, 2, 1, 1, 2, 3):
        turns = [
            ("Hello", "Hi!"),
            *((f"What is {n}?", "It is " + "so " * n) for n in random.integers(1, 9, n_turns - 1)),
        ]
        *history, (instruction, output) = turns
        examples.append(Example(instruction, output, "", {}, "Be short.", tuple(history)))
    return [e for _, e in Encoder(template, tokenizer, 128, "truncate", loss_on).encode(examples)]  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["random", "real", "conversations", "last answers"])
def examples(request: pytest.FixtureRequest, tokenizer: GPT2Tokenizer) -> list[EncodedExample]:
    if request.param == "random":
        return relabelled(random_examples())
    if request.param != "real":
        return relabelled(conversations(tokenizer, "all" if request.param == "conversations" else "last"))
    return relabelled(real_examples(request.getfixturevalue("shared_data"), tokenizer))


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(GPTConfig(N_VOCAB, context_length=128, d_model=24, n_layers=2, n_heads=3))
    model.init_weights(seed=4)
    return model


Plain = Callable[..., tuple[float, dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def plain(model: GPT, examples: list[EncodedExample]) -> Plain:
    """Loss and gradients of the padded batch by torch's own cross-entropy over whole logits, computed once."""

    @functools.cache
    def found(mask_prompt: bool, dtype: torch.dtype = torch.float32) -> tuple[float, dict[str, torch.Tensor]]:
        copied = copy.deepcopy(model).to(dtype)
        inputs, targets = pad_shift_mask(examples, EOT, mask_prompt=mask_prompt)
        loss = torch.nn.functional.cross_entropy(copied(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        return loss.item(), {name: p.grad for name, p in copied.named_parameters()}

    return found


def by_layout(
    model: GPT,
    parts: list[list[EncodedExample]],
    collator: Collator,
    device: str = "cpu",
    step: StepAccelerator | None = None,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Sums over the parts, divided once by all supervised tokens; by default with the accelerated step."""
    model = copy.deepcopy(model).to(device).train()
    step = step or AcceleratedStep()
    step.attach(model)
    batches = [collator(part).to(device) for part in parts]
    n_supervised = sum(batch.n_supervised for batch in batches)
    total = 0.0
    for batch in batches:
        loss = step.loss(batch, batch.loss_weights / n_supervised)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.cpu() for name, p in model.named_parameters()}


SINGLE, DOUBLE = (torch.float32, 1e-5), (torch.float64, 1e-6)
SETTINGS = [
    *itertools.product(["padded", "packed"], [False, True], [True, False], [[12], [8, 4], [1, 2, 3, 6]], [SINGLE]),
    *itertools.product(["padded", "packed"], [False, True], [True, False], [[8, 4]], [DOUBLE]),
]
STEPS = [
    *((*setting, AcceleratedStep) for setting in SETTINGS),
    *((*setting, StepAccelerator) for setting in SETTINGS[1::3]),
]


@pytest.mark.parametrize(("layout", "shared_prefix", "mask_prompt", "split", "precision", "step"), STEPS)
def test_loss_and_every_gradient_are_those_of_the_plain_batch(
    model: GPT, plain: Plain, examples: list[EncodedExample], tokenizer: GPT2Tokenizer, layout: str, shared_prefix: bool,
    mask_prompt: bool, split: list[int], precision: tuple[torch.dtype, float], step: type[StepAccelerator],
) -> None:  # fmt: skip
    dtype, tolerance = precision
    model = copy.deepcopy(model).to(dtype)
    ends = np.cumsum(split)
    parts = [examples[end - size : end] for end, size in zip(ends, split, strict=True)]
    collator = Collator(EOT, tokenizer.n_bytes_of, layout, shared_prefix, mask_prompt)  # type: ignore[arg-type]
    loss, gradients = by_layout(model, parts, collator, step=step())
    expected, wanted = plain(mask_prompt, dtype)
    assert loss == pytest.approx(expected, rel=tolerance)
    for name, gradient in gradients.items():
        error = (gradient - wanted[name]).norm() / wanted[name].norm()
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("shared_prefix", [False, True])
@pytest.mark.parametrize("mask_prompt", [True, False])
def test_rounding_up_the_shapes_changes_nothing(
    model: GPT, plain: Plain, examples: list[EncodedExample], tokenizer: GPT2Tokenizer, layout: str, shared_prefix: bool,
    mask_prompt: bool,
) -> None:  # fmt: skip
    collator = Collator(
        EOT, tokenizer.n_bytes_of, layout, shared_prefix, mask_prompt, pad_to_multiple_of=32  # type: ignore[arg-type]
    )  # fmt: skip
    batch = collator(examples[:8])
    assert len(batch.targets) % 32 == 0 and (layout == "padded" or len(batch.input_ids) % 32 == 0)
    loss, gradients = by_layout(model, [examples[:8], examples[8:]], collator)
    expected, wanted = plain(mask_prompt)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() / wanted[name].norm() < 1e-5, name


def test_padding_to_a_fixed_length_changes_nothing(
    model: GPT, plain: Plain, examples: list[EncodedExample], tokenizer: GPT2Tokenizer
) -> None:
    loss, gradients = by_layout(model, [examples], Collator(EOT, tokenizer.n_bytes_of, pad_to=127))
    expected, wanted = plain(True)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() / wanted[name].norm() < 1e-5, name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("mask_prompt", [True, False])
def test_half_precision_is_near(
    model: GPT, plain: Plain, examples: list[EncodedExample], tokenizer: GPT2Tokenizer, layout: str, mask_prompt: bool,
    device: str,
) -> None:  # fmt: skip
    """The fast path in bf16-mixed; its rounding is that of bf16, about three digits."""
    expected, wanted = plain(mask_prompt)
    for shared_prefix in (False, True):
        collator = Collator(EOT, tokenizer.n_bytes_of, layout, shared_prefix, mask_prompt)  # type: ignore[arg-type]
        with torch.autocast(device, torch.bfloat16):
            loss, gradients = by_layout(model, [examples], collator, device)
        assert loss == pytest.approx(expected, rel=5e-3)
        for name in ("wte.weight", "blocks.0.attn.qkv.weight", "blocks.1.mlp.proj.weight"):
            assert (
                torch.nn.functional.cosine_similarity(gradients[name].flatten(), wanted[name].flatten(), dim=0) > 0.995
            )


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("shared_prefix", [False, True])
@pytest.mark.parametrize("mask_prompt", [True, False])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_a_gpu_gives_the_same(
    model: GPT, plain: Plain, examples: list[EncodedExample], tokenizer: GPT2Tokenizer, layout: str, shared_prefix: bool,
    mask_prompt: bool, compiled: bool,
) -> None:  # fmt: skip
    collator = Collator(EOT, tokenizer.n_bytes_of, layout, shared_prefix, mask_prompt)  # type: ignore[arg-type]
    loss, gradients = by_layout(model, [examples[:8], examples[8:]], collator, "cuda", AcceleratedStep(compiled))
    expected, wanted = plain(mask_prompt)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        error = (gradient - wanted[name]).norm() / wanted[name].norm()
        assert error < 1e-5, f"{name}: relative error {error:.1e}"


def test_a_shared_prefix_may_hold_answers(tokenizer: GPT2Tokenizer) -> None:
    """What two conversations share is learnt as often as it occurs, answers in it too."""
    examples = conversations(tokenizer, "all")
    batch = Collator(EOT, tokenizer.n_bytes_of, "packed", True)(examples)
    in_prefix = batch.loss_index < batch.prefix_length
    assert in_prefix.any() and batch.loss_weights[in_prefix].min() == len(examples)
    rows = Collator(EOT, tokenizer.n_bytes_of)(examples)
    assert (batch.n_supervised, batch.n_response_bytes) == (rows.n_supervised, rows.n_response_bytes)


@pytest.mark.parametrize(("mask_prompt", "prompt_weight"), [(True, 1.0), (False, 0.3)])
def test_weights_of_turns_and_prompts_are_the_same_in_every_layout(
    model: GPT, mask_prompt: bool, prompt_weight: float
) -> None:
    random = np.random.default_rng(2)
    examples, expected_weights = [], []
    for example in relabelled(random_examples()):
        weights = np.full(len(example.ids), random.choice([0.0, 0.25, 1.0]), dtype=np.float32)
        weights[: example.n_prompt] = 1
        expected_weights.append(np.where(example.is_response, weights, 0 if mask_prompt else prompt_weight))
        examples.append(replace(example, weights=weights, is_response=example.is_response & (weights > 0)))
    double = copy.deepcopy(model).double()
    inputs, targets = pad_shift_mask(examples, EOT, mask_prompt=False)
    expected = torch.zeros(targets.shape, dtype=torch.float64)
    for row, of_tokens in enumerate(expected_weights):
        expected[row, : len(of_tokens) - 1] = torch.from_numpy(of_tokens[1:])
    copied = copy.deepcopy(double)
    losses = torch.nn.functional.cross_entropy(
        copied(inputs).flatten(0, 1), targets.flatten().clamp(min=0), reduction="none"
    )
    loss = (losses * expected.flatten()).sum() / expected.sum()
    loss.backward()
    gradients = {name: p.grad for name, p in copied.named_parameters()}
    for layout, shared in itertools.product(["padded", "packed"], [False, True]):
        collator = Collator(
            EOT,
            np.zeros(N_VOCAB, dtype=np.int64),
            layout,
            shared,
            mask_prompt,
            prompt_weight=prompt_weight,  # type: ignore[arg-type]
        )
        total, found = by_layout(double, [examples[:8], examples[8:]], collator)
        assert total == pytest.approx(loss.item(), rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
