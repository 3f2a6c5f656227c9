"""The loop with static shapes gives the plain decoder's texts, token for token."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from instruct_lit.accel.decode_loop import MAX_STEPS, MAX_STEPS_OF_FEW, DeviceLoop, _Shape, decode_loop
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Hook, Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.attention import KeyValueCache
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig
from tests.accel.emulated_graphs import EmulatedGraph, emulated_cuda, never_waits

__all__ = ["emulated_cuda"]
LOOP = [partial(DeviceLoop, with_graphs=False)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def sharpened(model: CausalLM, factor: float = 6.0) -> CausalLM:
    """Sharper than at initialisation, so that texts differ and do not hang on rounding."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(factor)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> CausalLM:
    gpt = GPT(GPTConfig(n_vocab=400, context_length=64, d_model=32, n_layers=2, n_heads=4))
    gpt.init_weights(seed=0)
    return sharpened(gpt)


def ending(tokenizer: GPT2Tokenizer, eot_id: int) -> GPT2Tokenizer:
    """GPT-2's tokenizer with another end-of-text."""
    other = copy.copy(tokenizer)
    other.eot_id = eot_id
    return other


def prompts(n: int, longest: int = 30) -> list[list[int]]:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest, (n,), generator=random).tolist()
    return [[5, 6, 7, *torch.randint(0, 400, (length,), generator=random).tolist()] for length in lengths]


def answers(model: CausalLM, tokenizer: Any, settings: Any, given: list[list[int]], loops: Any, rows: int = 4) -> list:
    requests = Engine(model, tokenizer, rows, make_loops=loops).generate(given, settings)
    return [(r.ids, r.text, r.finish_reason, r.has_eot) for r in requests]


SETTINGS: dict[str, Callable[[int], SamplingSettings]] = {
    "greedy": lambda n: SamplingSettings(max_new_tokens=3 + 7 * n),
    "temperature": lambda n: SamplingSettings(max_new_tokens=3 + 7 * n, temperature=1.3, seed=n),
    "mixed": lambda n: SamplingSettings(
        30, n % 3, top_k=50 if n == 2 else None, top_p=0.8 if n > 3 else None, repetition_penalty=1 + n // 4 / 4, seed=n
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", SETTINGS)
def test_texts_are_those_of_the_plain_decoder(
    model: CausalLM, tokenizer: GPT2Tokenizer, kind: str, device: str
) -> None:
    """More prompts than rows, so that rows are filled again; some fill the context of 64 tokens."""
    model.to(device)
    settings = [SETTINGS[kind](n) for n in range(9)]
    loop = LOOP if device == "cpu" else [decode_loop]
    found = answers(model, tokenizer, settings, prompts(9), loop)
    assert found == answers(model, tokenizer, settings, prompts(9), [])
    assert found == answers(model, tokenizer, settings, prompts(9), loop, rows=1)
    assert len({tuple(ids) for ids, *_ in found}) == 9
    model.to("cpu")


def test_end_of_text_and_stop_texts_end_a_row_while_others_continue(model: CausalLM, tokenizer: GPT2Tokenizer) -> None:
    given, settings = prompts(6), SamplingSettings(max_new_tokens=20, temperature=1.5)
    whole = answers(model, tokenizer, settings, given, [])
    ends = ending(tokenizer, whole[1][0][6])
    settings = replace(settings, stop=(whole[0][1][9:12], whole[2][1][-4:]))
    expected = answers(model, ends, settings, given, [])
    assert answers(model, ends, settings, given, LOOP) == expected
    assert {"stop", "length"} == {reason for _, _, reason, _ in expected}
    assert {True, False} == {has_eot for *_, has_eot in expected}


def test_the_host_looks_every_few_steps_and_hooks_see_every_token(model: CausalLM, tokenizer: GPT2Tokenizer) -> None:
    settings, given = SamplingSettings(max_new_tokens=40), prompts(2)
    for n_rows, n_steps in ((1, MAX_STEPS_OF_FEW), (5, MAX_STEPS)):
        engine = Engine(model, tokenizer, make_loops=LOOP)
        first, *_ = [engine.enqueue(engine.prepare(given[0], settings)) for _ in range(n_rows)]
        lengths = []
        for _ in range(3):
            engine.step()
            lengths.append(len(first.ids))
        assert lengths == [1, 1 + n_steps, 1 + 2 * n_steps]
    engine = Engine(model, tokenizer, make_loops=LOOP)
    first = engine.enqueue(engine.prepare(given[0], settings))
    engine.step()
    seen: list[int] = []

    class Watch(Hook):
        def on_token(self, token: int, logits: torch.Tensor) -> None:
            seen.append(token)

    second = engine.prepare(given[1], settings, Watch())
    engine.enqueue(second)
    while engine.n_unfinished:
        engine.step()
    expected = answers(model, tokenizer, settings, given, [])
    assert [first.ids, second.ids] == [expected[0][0], expected[1][0]] and seen == second.ids


def test_a_cancelled_row_changes_no_other(model: CausalLM, tokenizer: GPT2Tokenizer) -> None:
    settings = SamplingSettings(max_new_tokens=30)
    engine = Engine(model, tokenizer, 3, make_loops=LOOP)
    requests: list[Request] = [engine.enqueue(engine.prepare(prompt, settings)) for prompt in prompts(5)]
    engine.step()
    engine.step()
    engine.cancel(requests[1])
    while engine.n_unfinished:
        engine.step()
    expected = answers(model, tokenizer, settings, prompts(5), [])
    assert [requests[i].ids for i in (0, 2, 3, 4)] == [expected[i][0] for i in (0, 2, 3, 4)]


@pytest.mark.parametrize("kind", ["mixed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SETTINGS)])
def test_recorded_steps_depend_on_no_number_of_the_host(
    model: CausalLM,
    tokenizer: GPT2Tokenizer,
    kind: str,
    emulated_cuda: list[EmulatedGraph],
) -> None:
    """Graphs of an earlier batch, replayed for other texts, lengths and settings."""
    engine = Engine(model, tokenizer, 8, make_loops=[partial(DeviceLoop, with_graphs=True)])
    for n_first in (0, 5):
        settings, given = [SETTINGS[kind](n_first + n) for n in range(9)], prompts(15)[n_first : n_first + 9]
        found = [r.ids for r in engine.generate(given, settings)]
        assert found == [ids for ids, *_ in answers(model, tokenizer, settings, given, [])]
    assert all(len(graph.operations) > 30 for graph in emulated_cuda)
    assert sum(graph.n_replays for graph in emulated_cuda) > 2 * len(emulated_cuda) > 0


@pytest.mark.gpu
def test_steps_are_recorded_on_a_gpu(model: CausalLM, tokenizer: GPT2Tokenizer) -> None:
    engine = Engine(copy.deepcopy(model).cuda(), tokenizer, make_loops=[decode_loop])
    for settings in (SamplingSettings(20), SamplingSettings(20, 0.8, 50, 0.9, 1.2)):
        engine.generate(prompts(5), settings)
    loop = engine._loop
    assert isinstance(loop, DeviceLoop) and loop.with_graphs and len(loop._graphs) == 2


class OnDevice(TorchDispatchMode):
    """Every operation works on tensors of the device alone: one on the host would have to be copied, and waited for."""

    n_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n_operations += 1
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        assert {x.device.type for x in tensors} <= {"meta"}, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("needs", [(False,) * 3, (True, False, False), (True,) * 3])
def test_a_step_neither_waits_for_values_nor_reads_from_the_host(model: CausalLM, needs: tuple) -> None:
    """Tensors on the meta device have no values that anything could depend on."""
    model = copy.deepcopy(model).to("meta")
    cache = KeyValueCache(model.config, 4, 64, torch.float32, torch.device("meta"))
    loop = DeviceLoop(model, None, 7, cache, with_graphs=False)
    loop._seen = torch.zeros(4, 400, dtype=torch.bool, device="meta")
    with torch.inference_mode(), OnDevice() as mode:
        loop._step(_Shape(2, 64, *needs))
        with pytest.raises(AssertionError, match="logical_or"):
            loop._seen.logical_or(torch.ones((), dtype=torch.bool))  # what the mode is for
    assert mode.n_operations > 50


class Replay:
    """A recorded step, made kernel by kernel."""

    def __init__(self, loop: DeviceLoop, shape: Any) -> None:
        self.loop, self.shape = loop, shape

    def replay(self) -> None:
        self.loop._step(self.shape)


def test_few_graphs_decode_every_batch_and_are_recorded_again_when_a_weight_has_moved(
    model: CausalLM, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[Any] = []

    class Recording(DeviceLoop):
        def _recorded(self, shape: Any) -> Any:
            shapes.append(shape)
            self._graphs[shape] = Replay(self, shape)  # type: ignore[assignment]
            return self._graphs[shape]

    monkeypatch.setattr("instruct_lit.accel.decode_loop.waits_for_gpu", never_waits)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    model, settings = copy.deepcopy(model), [SamplingSettings(max_new_tokens=3 + 5 * n) for n in range(12)]
    engine = Engine(model, tokenizer, 12, make_loops=[partial(Recording, with_graphs=True)])
    expected = answers(model, tokenizer, settings, prompts(12), [])
    for n_recorded, moves in ((2, False), (2, False), (4, True)):  # of 12 and 4 rows; the end is not worth one
        if moves:
            model.final_norm.weight.data = model.final_norm.weight.data.clone()  # type: ignore[operator,union-attr]
        assert [r.ids for r in engine.generate(prompts(12), settings)] == [ids for ids, *_ in expected]
        assert len(shapes) == n_recorded


def test_a_model_that_waits_is_decoded_kernel_by_kernel(
    model: CausalLM, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instruct_lit.accel.decode_loop.waits_for_gpu", lambda run: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    with pytest.warns(UserWarning, match="the model waits for the GPU within a step, so none is recorded"):
        found = answers(model, tokenizer, SamplingSettings(20), prompts(3), [partial(DeviceLoop, with_graphs=True)])
    assert found == answers(model, tokenizer, SamplingSettings(20), prompts(3), [])
