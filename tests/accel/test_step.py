"""A fit with the accelerated step is the fit with the plain one."""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer

from instruct_lit.accel import adamw as accelerated
from instruct_lit.accel.adamw import adamw
from instruct_lit.accel.attention_varlen import VarlenDocuments
from instruct_lit.accel.cuda_graphs import StepGraphs
from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training import optimizer as plain
from instruct_lit.core.training.loss import FitFacts, StepAccelerator
from instruct_lit.core.training.optimizer import parameter_groups
from tests.accel.emulated_graphs import EmulatedGraph, emulated_cuda
from tests.accel.test_cuda_graphs import attend_by_tensors

__all__ = ["emulated_cuda"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_accelerated_fit_is_the_plain_fit(
    make_data: Callable, make_tuner: Callable, fit: Callable, precision: str,
    accumulate: int,
) -> None:  # fmt: skip
    options = {"precision": precision, "accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5, "max_epochs": 2}
    data_options = {"layout": "packed", "shared_prefix": True, "pad_to_multiple_of": 16}
    steps = StepAccelerator(), AcceleratedStep()
    optimizers = [module.adamw for module in (plain, accelerated)]
    tuners, losses = [], []
    for step, of in zip(steps, optimizers, strict=True):
        make_optimizer = lambda model, of=of: of(parameter_groups(model.named_parameters(), 0.1), lr=1e-3)  # noqa: E731
        tuners.append(make_tuner(make_optimizer=make_optimizer, step=step))
        trainer = fit(tuners[-1], make_data(**data_options), **options)
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert steps[1].copies is None and trainer.optimizers[0].copies is None, "removed after the fit"
    half = precision == "bf16-mixed"
    assert losses[1] == pytest.approx(losses[0], rel=2e-3 if half else 1e-6)
    for p, q in zip(tuners[0].parameters(), tuners[1].parameters(), strict=True):
        assert (p - q).abs().mean() < (3e-4 if half else 1e-6)


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_gradients_that_ddp_reduces_keep_their_precision(make_tuner: Callable, is_wrapped: bool) -> None:
    """Also those of a single process, as with trainer=ddp on one device."""
    tuner = make_tuner(step=AcceleratedStep())
    optimizer = adamw(parameter_groups(tuner.model.named_parameters(), 0.0), lr=1e-3)
    strategy = SimpleNamespace(model=object() if is_wrapped else tuner)
    facts = {"precision": "bf16-mixed", "accumulate_grad_batches": 1}
    tuner._trainer = SimpleNamespace(strategy=strategy, optimizers=[optimizer], **facts)
    tuner.step.attach(tuner.model)
    tuner.on_train_start()
    assert (tuner.step.copies is None) is is_wrapped
    tuner.on_train_end()


def test_gradients_are_clipped_where_the_optimizer_cannot_scale_them() -> None:
    """On the meta device, as on Apple's GPUs."""
    for device, scaled in (("cpu", True), ("meta", False)):
        parameter = torch.nn.Parameter(torch.ones(4, device=device))
        parameter.grad = torch.ones_like(parameter)
        optimizer, grad = adamw([{"params": [parameter]}], lr=1.0), parameter.grad
        before = grad._version
        AcceleratedStep().clip(optimizer, [parameter], torch.tensor(2.0, device=device), 1.0)
        assert (optimizer.grad_scale is not None, grad._version > before) == (scaled, not scaled)


def test_each_fit_has_the_compiler_to_itself(make_tuner: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[bool] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    for compiled in (False, True):
        tuner = make_tuner(step=AcceleratedStep(compiled))
        tuner.step.attach(tuner.model)
        tuner.step.start(torch.optim.SGD(tuner.parameters()), FitFacts("32-true", 1, False))
        assert len(resets) == compiled


class Recorded(AcceleratedStep):
    """A step with graphs on a CPU."""

    def start(self, optimizer: torch.optim.Optimizer, facts: FitFacts) -> None:
        self.graphs = StepGraphs(self._loss, self.model.parameters(), facts.n_micro_batches > 1)
        self.graphs.begin()


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fit_with_replayed_steps_is_the_plain_fit(
    make_data: Callable,
    make_tuner: Callable,
    fit: Callable,
    accumulate: int,
    emulated_cuda: list[EmulatedGraph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clipped gradients that lie where the next replay writes, in AdamW's steps and between validations."""
    monkeypatch.setattr(VarlenDocuments, "attend", attend_by_tensors)
    embedding = torch.nn.functional.embedding
    monkeypatch.setattr(torch.nn.functional, "embedding", lambda ids, weight, *_, **__: embedding(ids, weight))
    tuners = []
    for step in (StepAccelerator(), Recorded()):
        tuners.append(make_tuner(lr=0.01, step=step))
        data = make_data(n_train=32, layout="packed", shared_prefix=True)
        trainer = fit(tuners[-1], data, max_epochs=3, gradient_clip_val=0.5, accumulate_grad_batches=accumulate)
    assert step.graphs is None and all(p.grad is None for p in tuners[1].parameters()) is (accumulate == 1)
    assert sum(graph.n_replays for graph in emulated_cuda) > trainer.global_step * accumulate // 2
    for p, q in zip(tuners[0].parameters(), tuners[1].parameters(), strict=True):
        assert (p - q).abs().max() < 1e-5


class NoWaiting(Callback):
    """Makes every synchronisation within a step an error, after the first steps."""

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx >= 2:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_step_does_not_synchronise_with_the_gpu(
    make_data: Callable, make_tuner: Callable, fit: Callable, layout: str
) -> None:
    data = make_data(n_train=48, layout=layout, shared_prefix=layout == "packed")
    tuner = make_tuner(
        make_optimizer=lambda model: adamw(parameter_groups(model.named_parameters(), 0.1), lr=1e-3),
        step=AcceleratedStep(),
    )
    options = {"accelerator": "gpu", "precision": "bf16-mixed", "gradient_clip_val": 1.0}
    assert fit(tuner, data, NoWaiting(), log_every_n_steps=100, **options).global_step == 6


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(("accumulate", "recomputes"), [(1, False), (2, False), (1, True)])
def test_with_graphs_a_run_on_a_gpu_is_the_same(
    base, make_data: Callable, make_tuner: Callable, fit: Callable, layout: str, accumulate: int, recomputes: bool
) -> None:
    """Changes of the weights agree within the rounding of bf16; the process returns to its stream."""
    moved = []
    stream = torch.cuda.current_stream()
    for graphs in (False, True):
        tuner = make_tuner(lr=0.02, step=AcceleratedStep(cuda_graphs=graphs))
        tuner.model.activation_checkpointing = recomputes
        options = {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "accumulate_grad_batches": accumulate}
        data = make_data(n_train=64, layout=layout, shared_prefix=layout == "packed")
        fit(tuner, data, accelerator="gpu", max_epochs=4, **options)
        pairs = zip(tuner.model.parameters(), base.parameters(), strict=True)
        moved.append(torch.cat([(p.detach().cpu() - before).flatten() for p, before in pairs]))
    assert (moved[1] - moved[0]).norm() < 0.03 * moved[0].norm()
    assert torch.cuda.current_stream() == stream


@pytest.mark.parametrize("step", [StepAccelerator(), AcceleratedStep()])
def test_the_head_is_read_behind_the_states(step: StepAccelerator, tiny_model: GPT) -> None:
    """That of a model in shards is whole from its forward pass on."""

    class Sharded(GPT):
        is_whole = False

        def hidden_states(self, *inputs: torch.Tensor) -> torch.Tensor:
            self.is_whole = True
            return super().hidden_states(*inputs)

        @property
        def head_weight(self) -> torch.Tensor:
            assert self.is_whole, "a shard of the head"
            return super().head_weight

    model = Sharded(tiny_model.config)
    model.load_state_dict(tiny_model.state_dict())
    step.attach(model)
    ids = torch.arange(6)
    batch = SimpleNamespace(
        input_ids=ids[None], position_ids=ids[None], document_lengths=None, prefix_length=0, loss_index=ids, targets=ids
    )
    loss = step.loss(batch, torch.full((6,), 1 / 6))
    expected = torch.nn.functional.cross_entropy(tiny_model.train()(ids[None])[0], ids)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("widths", "recorded"), [((64, 128), True), ((), True), ((256, 512), False), ((6,), False)])
def test_steps_are_recorded_where_the_kernel_has_all_widths(
    widths: tuple[int, ...], recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 4 has heads of 256 and of 512."""

    class OnGPU(torch.nn.Module):
        config = SimpleNamespace(kv_heads=[(2, width) for width in widths])
        head_weight = SimpleNamespace(device=SimpleNamespace(type="cuda"))

    step, begun = AcceleratedStep(cuda_graphs=True), []
    monkeypatch.setattr(
        "instruct_lit.accel.step.StepGraphs", lambda *given: SimpleNamespace(begin=lambda: begun.append(1))
    )
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)
    step.attach(OnGPU())  # type: ignore[arg-type]
    with contextlib.nullcontext() if recorded else pytest.warns(match=f"heads of width {max((0, *widths))}, so none"):
        step.start(object(), FitFacts("bf16-mixed", 1, False))  # type: ignore[arg-type]
    assert bool(begun) is recorded and (step.graphs is not None) is recorded
