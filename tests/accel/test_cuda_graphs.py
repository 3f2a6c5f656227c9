"""Batches rounded up to few shapes keep loss and gradients; on a GPU a recorded step is the step itself."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instruct_lit.accel import cuda_graphs as module
from instruct_lit.accel.attention_varlen import VarlenDocuments
from instruct_lit.accel.compat_torch import borrowed
from instruct_lit.accel.cross_entropy import summed_cross_entropy
from instruct_lit.accel.cuda_graphs import StepGraphs
from instruct_lit.accel.step import AcceleratedStep, compiled_form
from instruct_lit.core.data.batching import Batch, Collator
from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.model.attention import AttentionLayout, PackedDocuments
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.training.loss import layout_of
from instruct_lit.errors import TrainingError
from tests.accel.emulated_graphs import EmulatedGraph, emulated_cuda, never_waits
from tests.accel.test_decode_loop import OnDevice

__all__ = ["emulated_cuda"]
LAYOUTS = [("padded", False), ("packed", False), ("packed", True)]


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(GPTConfig(n_vocab=97, context_length=256, d_model=48, n_layers=2, n_heads=3)).train()
    model.init_weights(0)
    return model


def batch_of(layout: str, shared_prefix: bool, lengths: tuple[int, ...] = (20, 33, 10), seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    examples = []
    for index, length in enumerate(lengths):
        ids = torch.cat((torch.arange(5), torch.randint(0, 97, (length,), generator=random)))
        examples.append(EncodedExample(index, ids.numpy(), torch.arange(len(ids)).numpy() > 8))
    return Collator(96, torch.ones(97, dtype=torch.long).numpy(), layout, shared_prefix)(examples)  # type: ignore[arg-type]


def loss_of(model: CausalLM) -> Callable[..., Tensor]:
    def loss(
        ids: Tensor, positions: Tensor, layout: AttentionLayout | None, index: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        states = model.hidden_states(ids, positions, layout, index)
        return summed_cross_entropy(states, model.head_weight, targets, weights, compiler=model.compiler)

    return loss


def arguments_of(batch: Batch) -> tuple[Any, ...]:
    return batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index, batch.targets


DRAWING = [
    "dropout padded", "lora packed", "noise recomputed packed",
    *(pytest.param(name, marks=pytest.mark.slow) for name in (
        "noise padded", "dora lora packed llama", "recomputed lora packed llama", "noise recomputed padded llama")),
]  # fmt: skip


def drawing(name: str, device: str = "cpu") -> tuple[AcceleratedStep, CausalLM, Batch]:
    """A step that draws random numbers or recomputes activations, its model, and a batch."""
    recomputes, dropout = "recomputed" in name, 0.3 * ("dropout" in name)
    kind = next((part for part in name.split() if part in ("llama", "qwen3", "gemma", "gemma3", "gemma4")), None)
    if kind is not None:
        transformers = pytest.importorskip("transformers")
        from instruct_lit.hf.model import HFModel
        from tests.hf.test_model import OF

        torch.manual_seed(0)
        config = OF[kind]()
        config.max_position_embeddings = 256
        hf = transformers.AutoModelForCausalLM.from_config(config)
        model: CausalLM = HFModel(hf, activation_checkpointing=recomputes).train()
    else:
        model = GPT(GPTConfig(n_vocab=97, context_length=256, d_model=48, n_layers=2, n_heads=3), dropout, recomputes)
        model.init_weights(0)
    if "lora" in name:
        pytest.importorskip("peft")
        from instruct_lit.hf.adapters import Adapter

        Adapter(model, rank=3, dropout=0.0 if recomputes and not dropout else 0.3, dora="dora" in name)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data.normal_(0, 0.1)
    model.embedding_noise = 0.05 if "noise" in name else None
    model.compiler = compiled_form if "compiled" in name else None
    step, batch = (
        AcceleratedStep(cuda_graphs=True),
        batch_of(*(("padded", False) if "padded" in name else ("packed", True))),
    )
    step.model = model.train().to(device)
    step.graphs = StepGraphs(step._loss, model.parameters(), adds=False)
    step._noise = torch.zeros((), device=device)
    return step, model, batch.to(device)


def plain(model: GPT, batch: Batch) -> tuple[float, list[Tensor]]:
    """Loss and gradients of the batch as it is."""
    loss = loss_of(model)(*arguments_of(batch), batch.loss_weights)
    return loss.item(), [g.to_dense() for g in torch.autograd.grad(loss, list(model.parameters()))]


def on_processor(documents: VarlenDocuments) -> PackedDocuments:
    """In place of the GPU's kernel; documents of padding continue the prefix, without effect."""
    n_prefix = documents.n_prefix
    return PackedDocuments([n for n in documents.cu_queries.diff().tolist()[n_prefix > 0 :] if n], n_prefix)


@pytest.mark.parametrize(("layout", "shared_prefix"), LAYOUTS)
def test_padding_changes_neither_loss_nor_gradients(model: GPT, layout: str, shared_prefix: bool) -> None:
    batch = batch_of(layout, shared_prefix)
    inputs = module._padded(batch, batch.loss_weights)
    ids, positions, _, index, targets, weights = inputs.arguments()
    assert ids.shape[-1] % 32 == 0 and ids.shape[-1] > batch.input_ids.shape[-1] and len(targets) % 32 == 0
    how = None
    if inputs.layout is not None:
        assert sum(inputs.layout.cu_queries.diff().tolist()) == len(ids)
        how = on_processor(inputs.layout)
    loss = loss_of(model)(ids, positions, how, index, targets, weights)
    gradients = [g.to_dense() for g in torch.autograd.grad(loss, list(model.parameters()))]
    expected, wanted = plain(model, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    for found, right in zip(gradients, wanted, strict=True):
        assert (found - right).norm() <= 1e-5 * right.norm()


class Repeated:
    """In place of a CUDA graph: repeats what was recorded, with the current inputs.

    Graphs share their memory: a replay overwrites all of it, and each has its gradients at other places there.
    """

    def __init__(self, graphs: StepGraphs, inputs: Any, memory: Tensor) -> None:
        self.graphs, self.inputs, self.loss, self.memory = graphs, inputs.copied(), torch.zeros(()), memory
        self.graph = self
        start, self.gradients = inputs.tensors[0].numel(), []
        for parameter in graphs.parameters:
            of_parameter = memory[start : start + parameter.numel()].view_as(parameter)
            self.gradients.append(borrowed(of_parameter))
            start += parameter.numel()

    def replay(self) -> None:
        loss = self.graphs.loss_of(*self.inputs.arguments())
        gradients = torch.autograd.grad(loss, self.graphs.parameters)
        self.memory.fill_(math.nan)
        self.loss.copy_(loss.detach())
        for own, new in zip(self.gradients, gradients, strict=True):
            own.copy_(new.to_dense())


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Graphs without a GPU; the shapes in the order in which they were recorded."""
    shapes, memory = [], torch.empty(500_000)

    def record(graphs: StepGraphs, inputs: Any) -> Repeated:
        shapes.append(inputs.shape)
        return Repeated(graphs, inputs, memory)

    monkeypatch.setattr(StepGraphs, "_record", record)
    monkeypatch.setattr(module, "waits_for_gpu", never_waits)
    monkeypatch.setattr(VarlenDocuments, "attend", lambda self, *arguments: on_processor(self).attend(*arguments))
    monkeypatch.setattr(torch.cuda, "Stream", type(None))  # a class, since annotations may name it
    of_gpu = {"current_stream": None, "graph_pool_handle": None, "empty_cache": None}
    of_gpu |= {"mem_get_info": (25 * 10**9, 0), "max_memory_allocated": 3 * 10**10, "memory_allocated": 2 * 10**10}
    for name, answer in of_gpu.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    return shapes


def check_step(model: GPT, graphs: StepGraphs, batch: Batch, of_loss: float, of_gradient: float) -> None:
    """A step with graphs, or two micro-batches where gradients add up, against loss and gradients without."""
    n = 1 + graphs.adds
    expected, wanted = plain(model, batch)
    model.zero_grad()
    for _ in range(n):
        loss = graphs.loss(batch, batch.loss_weights)
        loss.backward()
    assert loss.item() == pytest.approx(expected, rel=of_loss)
    for parameter, right in zip(model.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad.to_dense() / n - right).norm() <= of_gradient * right.norm()


@pytest.mark.parametrize(("layout", "shared_prefix"), LAYOUTS)
@pytest.mark.parametrize("adds", [False, True])
def test_a_shape_is_recorded_once_and_gives_the_step(
    model: GPT, recorded: list[Any], layout: str, shared_prefix: bool, adds: bool
) -> None:
    model = copy.deepcopy(model)
    graphs = StepGraphs(loss_of(model), model.parameters(), adds)
    for step, lengths in enumerate(((20, 33, 10), (19, 30, 11), (22, 27, 12), (15, 33, 14), (100, 90, 3))):
        batch = batch_of(layout, shared_prefix, lengths, seed=step)
        check_step(model, graphs, batch, 1e-6, 1e-5)
    n_recorded = len(recorded)
    assert 1 <= n_recorded == len(set(recorded)) <= 3
    model.ln_f.weight.data = model.ln_f.weight.data * 1.5
    for _ in range(3):
        assert graphs.loss(batch, batch.loss_weights).item() == pytest.approx(plain(model, batch)[0], rel=1e-6)
    assert len(recorded) == n_recorded + 1, "recorded anew, since a parameter moved"


def test_shapes_beyond_the_most_are_not_kept(model: GPT, recorded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GRAPHS", 1)
    graphs = StepGraphs(loss_of(model), model.parameters(), adds=False)
    for lengths in ((20, 33, 10), (60, 33, 10), (20, 33, 10), (60, 33, 10)):
        batch = batch_of("packed", False, lengths)
        assert graphs.loss(batch, batch.loss_weights).item() == pytest.approx(plain(model, batch)[0], rel=1e-6)
    assert len(recorded) == 1


def test_a_batch_too_large_for_the_memory_is_not_recorded(
    model: GPT, recorded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = StepGraphs(loss_of(model), model.parameters(), adds=False)
    small, large = batch_of("packed", False), batch_of("packed", False, (60, 33, 10))
    for batch in (small, small, large):
        check_step(model, graphs, batch, 1e-6, 1e-5)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (25 * 10**9 - 1, 0))
    message = (
        "cuda_graphs: a step takes 10.0 GB and 25.0 GB are free; batches of 128 tokens and more run without a graph"
    )
    with pytest.warns(UserWarning, match=message):
        check_step(model, graphs, large, 1e-6, 1e-5)
    # One warning; batches not larger than the largest recorded one are still recorded.
    for lengths in ((60, 34, 10), (60, 34, 10), (21, 33), (21, 33), (40, 35), (40, 35)):
        check_step(model, graphs, batch_of("packed", False, lengths), 1e-6, 1e-5)
    assert [shape.n_tokens for shape in recorded] == [96, 64, 96]


def test_a_model_that_waits_for_the_gpu_is_not_recorded(
    model: GPT, recorded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Tensor] = []

    def loss_that_waits_backward(*arguments: Any) -> Tensor:
        loss = loss_of(model)(*arguments)
        loss.register_hook(waits.append)
        return loss

    def waits_for_gpu(run: Callable[[], Any]) -> bool:
        waits.clear()
        run()
        return bool(waits)

    monkeypatch.setattr(module, "waits_for_gpu", waits_for_gpu)
    graphs, batch = StepGraphs(loss_that_waits_backward, model.parameters(), adds=False), batch_of("packed", True)
    check_step(model, graphs, batch, 1e-6, 1e-5)
    with pytest.warns(UserWarning, match="the model waits for the GPU within a step, so none is recorded"):
        check_step(model, graphs, batch, 1e-6, 1e-5)
    for _ in range(2):  # one warning
        check_step(model, graphs, batch, 1e-6, 1e-5)
    assert recorded == []


def test_a_step_that_cannot_be_recorded_ends_the_run(
    model: GPT, emulated_cuda: list[EmulatedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refused(*arguments: Any) -> Iterator[None]:
        yield
        raise RuntimeError("CUDA error: operation not permitted\nMore about it.")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    monkeypatch.setattr(VarlenDocuments, "attend", attend_by_tensors)
    graphs = StepGraphs(loss_of(model), model.parameters(), adds=False)
    batch = batch_of("packed", True)
    graphs.loss(batch, batch.loss_weights)
    message = (
        r"cuda_graphs=true: a step cannot be recorded \(CUDA error: operation not permitted\); use cuda_graphs=false"
    )
    with pytest.raises(TrainingError, match=message):
        graphs.loss(batch, batch.loss_weights)


def test_gradients_are_set_without_a_copy_unless_they_add_up(model: GPT, recorded: list[Any]) -> None:
    batch = batch_of("packed", True)
    for adds in (False, True):
        graphs = StepGraphs(loss_of(model), model.parameters(), adds)
        for _ in range(3):
            model.zero_grad()
            graphs.loss(batch, batch.loss_weights).backward()
        (recorded_step,) = filter(None, graphs._graphs.values())
        own = [p.grad is kept for p, kept in zip(model.parameters(), recorded_step.gradients, strict=True)]
        assert all(own) is not adds and any(own) is not adds
        graphs._forget()
        assert all((p.grad is None) is not adds for p in model.parameters()), "their memory goes with the graphs"
    model.zero_grad()


def test_gradients_have_memory_of_their_own_in_the_order_of_their_parameters() -> None:
    parameters = [torch.nn.Parameter(torch.randn(3, 4)) for _ in range(5)]
    first, second, third, fourth, _ = parameters
    loss = ((first + second) ** 2).sum() + (torch.ones(2, 4) @ third.t()).square().sum() + fourth.sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = module._laid_out(gradients, parameters)
    assert found[4] is None and len({id(g) for g in found}) == len({g.data_ptr() for g in found[:4]} | {0}) == 5
    for new, gradient, parameter in zip(found[:4], gradients, parameters, strict=False):
        assert new.stride() == parameter.stride() and torch.equal(new, gradient)


def test_the_shape_tells_apart_what_a_graph_cannot_take() -> None:
    batches = [
        batch_of("padded", False), batch_of("padded", False, (20, 33)), batch_of("packed", False), batch_of("packed", True),
        batch_of("packed", True, (20, 33)), batch_of("packed", True, (20, 33, 80)), batch_of("packed", True, (20, 33, 130)),
    ]  # fmt: skip
    shapes = [module._padded(batch, batch.loss_weights).shape for batch in batches]
    assert shapes == [
        (64, 64, 0, (3,)), (64, 64, 0, (2,)), (96, 64, 128, (3, 0)), (96, 64, 128, (3, 5)), (64, 64, 128, (2, 5)),
        (160, 128, 128, (3, 5)), (192, 192, 256, (3, 5)),
    ]  # fmt: skip
    assert [[n for n, seen in enumerate(shapes) if seen.fits(own)] for own in shapes] == [[n] for n in range(7)]


def test_a_batch_is_padded_to_the_shape_of_another_batch(model: GPT, recorded: list[Any]) -> None:
    """Within a tenth more tokens and a quarter more targets; sizes between are not recorded by themselves."""
    graphs = StepGraphs(loss_of(model), model.parameters(), adds=False)
    for lengths in ((210, 200, 180), (190, 190, 180), (190, 200, 180), (185, 200, 175), (150, 160, 150)):
        check_step(model, graphs, batch_of("packed", True, lengths), 1e-6, 1e-5)
    assert list(graphs._graphs) == [(608, 608, 256, (3, 5)), (480, 448, 256, (3, 5))] and len(recorded) == 1


def test_few_shapes_occur() -> None:
    assert module._shape_of(0) == 32, "also without targets"
    assert [module._step_of(n) for n in (1, 1024, 1025, 4096, 4097, 8192)] == [32, 32, 64, 128, 256, 256]
    sizes = [module._shape_of(n) for n in range(1, 100_000)]
    assert all(n <= size and size - n < max(32, n / 8) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 16 * 10 and sizes[:33] == [32] * 32 + [64]
    assert sum(sizes) / sum(range(1, 100_000)) < 1.03


@pytest.mark.parametrize(("n_more", "size"), [(0, 512), (31, 512), (200, 8192), (2000, 65536)])
def test_documents_of_padding_hold_all_of_it(n_more: int, size: int) -> None:
    lengths = module._documents_of_padding(n_more, size)
    assert sum(lengths) == n_more and max(lengths) <= 128
    assert len(lengths) == len(module._documents_of_padding(0, size)), "their number depends on the size alone"
    assert len(lengths) <= size // 2048 + size / 11 / 128 + 2


def test_documents_of_padding_hold_it_at_any_size() -> None:
    for n in [*range(1, 600), *range(4000, 4200), *range(8100, 8600, 7), *range(65_000, 66_000, 61)]:
        own = module._shape_of(n)
        for size in (
            own,
            max(size for size in map(module._shape_of, range(own, int(1.1 * own) + 1, 16)) if size <= 1.1 * own),
        ):
            assert sum(module._documents_of_padding(size - n, size)) == size - n, n


@pytest.mark.parametrize(
    ("name", "adds"),
    [
        ("lora packed", False), ("noise recomputed packed", True), ("dropout recomputed padded", True),
        ("packed llama", False),
        *(pytest.param(name, adds, marks=pytest.mark.slow) for adds in (False, True) for name in (
            "padded", "packed", "dropout padded", "noise padded", "lora packed llama", "dora lora packed llama",
            "dropout recomputed lora packed llama", "recomputed lora packed llama", "noise recomputed padded llama", "packed qwen3", "lora packed gemma",
            "packed gemma3", "packed gemma4")),
    ],
)  # fmt: skip
def test_a_replay_depends_on_nothing_but_its_inputs(
    name: str, adds: bool, emulated_cuda: list[EmulatedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other texts, lengths, weights of the loss, and random numbers than those of the recording, in several shapes."""
    monkeypatch.setattr("instruct_lit.accel.cross_entropy._at_once", lambda like: True)  # as on a GPU
    monkeypatch.setattr(VarlenDocuments, "attend", attend_by_tensors)
    embedding = nn.functional.embedding
    monkeypatch.setattr(nn.functional, "embedding", lambda ids, weight, *_, **__: embedding(ids, weight))
    step, model, _ = drawing(name)
    trained = [p for p in model.parameters() if p.requires_grad]
    step.graphs = StepGraphs(step._loss, model.parameters(), adds)
    layout = ("padded", False) if "padded" in name else ("packed", True)
    for n, lengths in enumerate(((20, 33, 9), (19, 30, 11), (22, 28, 12), (60, 50, 3), (15, 33, 14), (61, 49, 2))):
        batch = batch_of(*layout, lengths, seed=n)
        weights, inputs = batch.loss_weights * (n + 1), module._padded(batch, batch.loss_weights * (n + 1))
        if model.embedding_noise is not None:
            model.embedding_noise = 0.1 / (n + 1)
        model.zero_grad()
        for micro_batch in range(1 + adds):
            torch.manual_seed(n + micro_batch)
            loss = step.loss(batch, weights)
            loss.backward()
        found = [p.grad.clone() for p in trained]
        torch.manual_seed(n + micro_batch)
        expected = step._loss(*inputs.arguments())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        wanted = torch.autograd.grad(expected, trained)
        if adds:
            torch.manual_seed(n)
            firsts = torch.autograd.grad(step._loss(*inputs.arguments()), trained)
            wanted = [first + second for first, second in zip(firsts, wanted, strict=True)]
        for gradient, right in zip(found, wanted, strict=True):
            assert (gradient - right).norm() <= 1e-4 * right.norm()
    assert sum(graph.n_replays for graph in emulated_cuda) > len(emulated_cuda) > 0


def attend_by_tensors(
    documents: VarlenDocuments, layer: int, q: Tensor, k: Tensor, v: Tensor, dropout: float, window: int | None = None
) -> Tensor:
    """In place of the GPU's kernel, with the lengths as it has them."""
    k, v = documents.keys_of(k), documents.keys_of(v)
    (of_query, before_end), (of_key, key_before_end) = (
        _places(len(x), ends) for x, ends in ((q, documents.cu_queries[1:]), (k, documents.cu_keys[1:]))
    )
    distance = key_before_end - before_end[:, None]
    visible = (of_query[:, None] == of_key) & (distance >= 0) & (distance < (window or len(k)))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, visible, enable_gqa=True)[0].transpose(0, 1)


def _places(n: int, ends: Tensor) -> tuple[Tensor, Tensor]:
    """The document of each of n tokens, and how far its end is."""
    tokens = torch.arange(n)
    documents = torch.searchsorted(ends.contiguous(), tokens, right=True)
    return documents, ends.long()[documents] - tokens


@pytest.mark.parametrize("name", DRAWING)
def test_a_step_reads_nothing_from_the_host_and_leaves_the_state_of_random_numbers(
    name: str, recorded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors on the meta device have no values that anything could depend on."""
    step, model, batch = drawing(name)
    step.loss(batch, batch.loss_weights)  # finds out what blocks draw
    trained = [p for p in model.to("meta").parameters() if p.requires_grad]
    step._noise = torch.zeros((), device="meta")
    monkeypatch.undo()
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # knows no such device, nor does its inverse
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr("instruct_lit.accel.cross_entropy._at_once", lambda like: True)  # as on a GPU
    for function in ("get_rng_state", "set_rng_state", "manual_seed"):
        monkeypatch.delattr(torch, function)
    if model.embedding_noise is not None:
        model.embedding_noise = step._noise
    batch = batch.to("meta")
    inputs = module._padded(batch, batch.loss_weights)
    with OnDevice() as mode:
        torch.autograd.grad(step._loss(*inputs.arguments()), trained, allow_unused=True)
    assert mode.n_operations > 150


@pytest.mark.parametrize("name", DRAWING)
def test_padding_changes_no_random_number_of_others_and_is_not_learnt_from(name: str, recorded: list[Any]) -> None:
    """Whatever the tokens of padding are, loss and gradients are the same with the same random numbers."""
    (step, model, batch), found = drawing(name), []
    trained = [p for p in model.parameters() if p.requires_grad]
    for token in (0, 5):
        inputs = module._padded(batch, batch.loss_weights)
        inputs.tensors[0][..., batch.input_ids.shape[-1] :] = token
        torch.manual_seed(1)
        loss = step._loss(*inputs.arguments())
        found.append([loss.detach(), *(g.to_dense() for g in torch.autograd.grad(loss, trained))])
    for first, second in zip(*found, strict=True):
        assert (first - second).norm() <= 1e-5 * first.norm()


@pytest.mark.parametrize("name", DRAWING)
def test_replays_draw_the_random_numbers_of_the_steps_that_they_replace(name: str, recorded: list[Any]) -> None:
    (step, _, batch), found = drawing(name), []
    assert step.graphs is not None
    inputs = module._padded(batch, batch.loss_weights)
    for loss in (lambda: step.loss(batch, batch.loss_weights), lambda: step._loss(*inputs.arguments())):
        torch.manual_seed(1)
        found.append([loss().item() for _ in range(4)])
    assert found[0] == pytest.approx(found[1], rel=1e-6) and len(recorded) == 1
    assert len(set(found[0])) == (1 if name.startswith("recomputed") else 4)


def test_a_recorded_step_has_the_noise_of_the_current_batch(recorded: list[Any]) -> None:
    """NEFTune's noise on padded batches is that on the batches themselves, whose width changes."""
    step, model, batch = drawing("noise packed")
    for n, width in enumerate((0.05, 0.1, 0.02, 0.3)):
        torch.manual_seed(n)
        model.embedding_noise = width
        expected = loss_of(model)(*arguments_of(batch), batch.loss_weights).item()
        torch.manual_seed(n)
        assert step.loss(batch, batch.loss_weights).item() == pytest.approx(expected, rel=1e-6)
        assert model.embedding_noise is step._noise, "a number of the host would be that of the recording"
    assert len(recorded) == 1


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [
        *DRAWING, "dropout recomputed padded", "dropout recomputed lora packed llama", "compiled lora packed llama",
        "compiled dropout recomputed lora packed llama",
    ],
)  # fmt: skip
def test_recorded_steps_draw_anew_and_recompute(name: str) -> None:
    """Against the same steps kernel by kernel with the same random numbers; the width of the noise changes."""
    (step, model, batch), found = drawing(name, "cuda"), []
    trained = [p for p in model.parameters() if p.requires_grad]
    assert step.graphs is not None
    step.graphs.begin()
    inputs = module._padded(batch, batch.loss_weights)

    def kernel_by_kernel() -> Tensor:
        if model.embedding_noise is not None:
            step._noise.fill_(model.embedding_noise)
            model.embedding_noise = step._noise
        return step._loss(*inputs.arguments())

    with torch.autocast("cuda", torch.bfloat16):
        for _ in range(2):  # seen, and recorded
            step.loss(batch, batch.loss_weights).backward()
        assert any(step.graphs._graphs.values())
        for loss_of_step in (lambda: step.loss(batch, batch.loss_weights), kernel_by_kernel):
            torch.cuda.manual_seed(7)
            losses, sums = [], [torch.zeros_like(p) for p in trained]
            for n in range(32):
                if model.embedding_noise is not None:
                    model.embedding_noise = 0.05 + n / 100
                model.zero_grad()
                loss = loss_of_step()
                loss.backward()
                losses.append(loss.item())
                torch._foreach_add_(sums, [p.grad for p in trained])
            found.append((losses, torch.cat([x.flatten() for x in sums])))
    step.graphs.end()
    (replayed, of_replays), (expected, wanted) = found
    assert replayed == pytest.approx(expected, rel=2e-3)
    assert (of_replays - wanted).norm() <= 0.02 * wanted.norm()
    assert (len(set(replayed)) == 1) is name.startswith("recomputed")


@pytest.mark.gpu
def test_gradients_of_recorded_steps_take_no_memory_beside_the_activations() -> None:
    model = GPT(GPTConfig(n_vocab=30_000, context_length=256, d_model=768, n_layers=2, n_heads=3)).cuda().train()
    graphs = StepGraphs(loss_of(model), model.parameters(), adds=False)
    graphs.begin()

    def step(lengths: tuple[int, ...]) -> None:
        batch = batch_of("packed", True, lengths).to("cuda")
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            graphs.loss(batch, batch.loss_weights).backward()

    step((20, 33, 10))  # not recorded; torch keeps a workspace of matrix products for each stream and thread
    model.zero_grad()
    before = torch.cuda.memory_allocated()
    for lengths in ((20, 33, 10), (100, 90, 3), (250, 240, 200)):
        for _ in range(3):
            step(lengths)
    assert len(list(filter(None, graphs._graphs.values()))) == 3
    n_bytes = sum(p.numel() * 4 for p in model.parameters())
    assert torch.cuda.memory_allocated() - before < n_bytes / 4
    graphs.end()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("layout", "shared_prefix", "compiled"),
    [*((*of, False) for of in LAYOUTS), pytest.param("packed", True, True, id="compiled")],
)
@pytest.mark.parametrize("adds", [False, True])
def test_a_recorded_step_is_the_step(model: GPT, layout: str, shared_prefix: bool, adds: bool, compiled: bool) -> None:
    """Different texts of one shape, seen once, recorded, replayed; then a parameter moves."""
    model = copy.deepcopy(model).cuda()
    model.compiler = compiled_form if compiled else None
    graphs = StepGraphs(loss_of(model), model.parameters(), adds)
    graphs.begin()
    n_recorded = 0
    lengths = ((20, 33, 9), (19, 30, 11), (22, 28, 12), (15, 33, 14), (100, 90, 3), (20, 31, 10))
    for step, of_batch in enumerate(lengths):
        batch = batch_of(layout, shared_prefix, of_batch, seed=step).to("cuda")
        if step == len(lengths) - 1:
            model.ln_f.weight.data = model.ln_f.weight.data * 1.5
        with torch.autocast("cuda", torch.bfloat16):
            check_step(model, graphs, batch, 1e-3, 0.02)
        n_recorded += sum(graph is not None for graph in graphs._graphs.values())
    assert n_recorded > 0
    graphs.end()
