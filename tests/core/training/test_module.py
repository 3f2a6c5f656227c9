"""Means are taken once per optimizer step; evaluation does not depend on the batch."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from lightning import Callback, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from instruct_lit.core.data.batching import pad_shift_mask
from instruct_lit.core.training import module
from instruct_lit.errors import TrainingError


class Order(Callback):
    """The ids of the examples in the order in which they were trained on."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx) -> None:
        self.ids += batch.example_ids.tolist()


def plain_step(base, data, indices, lr: float) -> dict[str, torch.Tensor]:
    """The parameters after one SGD step on the mean loss over all tokens of these examples, by definition."""
    import copy

    model = copy.deepcopy(base)
    store, _ = data.examples_of("train")
    inputs, targets = pad_shift_mask([store[int(i)] for i in indices], 50256)
    loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)
    loss.backward()
    with torch.no_grad():
        return {name: p - lr * p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_trap_7_the_step_is_the_mean_over_all_its_tokens(
    base, make_data: Callable, make_tuner: Callable, fit: Callable, batch_size: int, accumulate: int
) -> None:
    data = make_data(n_train=8, batch_size=batch_size)
    tuner = make_tuner()
    fit(tuner, data, accumulate_grad_batches=accumulate)
    expected = plain_step(base, data, data.split.train, 0.1)
    for name, parameter in tuner.model.named_parameters():
        torch.testing.assert_close(
            parameter, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_trap_7_the_short_last_window_counts_its_own_tokens(
    base, make_data: Callable, make_tuner: Callable, fit: Callable
) -> None:
    """Ten examples in batches of 2 with 3 to a step: the second step has two batches."""
    data = make_data(n_train=10, batch_size=2)
    tuner = make_tuner()
    order = Order()
    trainer = fit(tuner, data, order, accumulate_grad_batches=3)
    assert trainer.global_step == 2
    first = make_tuner()
    after = plain_step(base, data, order.ids[:6], 0.1)
    with torch.no_grad():
        for name, parameter in first.model.named_parameters():
            parameter.copy_(after[name])
    expected = plain_step(first.model, data, order.ids[6:], 0.1)
    for name, parameter in tuner.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6)


def test_clipping_acts_on_the_normalised_gradient(
    base, make_data: Callable, make_tuner: Callable, fit: Callable
) -> None:
    data = make_data(n_train=8, batch_size=2)
    tuner = make_tuner(lr=1.0)
    fit(tuner, data, accumulate_grad_batches=4, gradient_clip_val=1e-3)
    moved = [(p - q).flatten() for p, q in zip(tuner.model.parameters(), base.parameters(), strict=True)]
    assert torch.cat(moved).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_trap_9_a_step_without_a_supervised_token_changes_nothing_and_warns(
    base, make_data: Callable, make_tuner: Callable, fit: Callable
) -> None:
    def adamw(model):
        return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)

    data = make_data(n_train=8)
    plain = data.collator
    data._collator = lambda: lambda examples: plain([])  # type: ignore[method-assign, assignment]
    tuner = make_tuner(make_optimizer=adamw)
    with pytest.warns(UserWarning, match="an optimizer step without a single supervised token was skipped"):
        fit(tuner, data)
    for found, before in zip(tuner.model.parameters(), base.parameters(), strict=True):
        assert torch.equal(found, before)


def test_a_run_that_would_train_nothing_ends_with_the_reason(
    make_data: Callable, make_tuner: Callable, fit: Callable
) -> None:
    def of_a_weight_beside_the_model(model):
        return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)

    message = "trainable: the loss has no gradient for any weight that is trained; train others"
    with pytest.raises(TrainingError, match=message):
        fit(make_tuner(make_optimizer=of_a_weight_beside_the_model), make_data(n_train=8))


def evaluated(tuner, data) -> dict[str, float]:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                      use_distributed_sampler=False)  # fmt: skip
    return dict(trainer.validate(tuner, data, verbose=False)[0])


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_trap_8_validation_does_not_depend_on_the_batch(
    make_data: Callable, make_tuner: Callable, mask_prompt: bool
) -> None:
    tuner = make_tuner()
    first = evaluated(tuner, make_data(eval_batch_size=1, mask_prompt=mask_prompt))
    for options in ({"eval_batch_size": 4}, {"eval_batch_size": 9, "layout": "packed", "shared_prefix": True}):
        again = evaluated(tuner, make_data(mask_prompt=mask_prompt, **options))
        assert again == pytest.approx(first, rel=1e-6)


class NoFloat64(TorchDispatchMode):
    """Raises where an operation gives a float64 tensor, as on Apple's GPUs."""

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        assert not (isinstance(out, torch.Tensor) and out.dtype == torch.float64), func
        return out


def without_float64(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*inputs: object, **named: object) -> object:
        with NoFloat64():
            return function(*inputs, **named)

    return call


def test_apples_gpus_need_no_float64(make_data: Callable, make_tuner: Callable, fit: Callable, monkeypatch) -> None:
    options = {"limit_val_batches": 9, "gradient_clip_val": 0.5}
    expected = fit(make_tuner(), make_data(), **options).callback_metrics["val/loss"]
    monkeypatch.setattr(module, "sum_dtype", lambda device: torch.float32)
    tuner = make_tuner()
    for name in ("training_step", "validation_step", "on_validation_epoch_end", "configure_gradient_clipping"):
        monkeypatch.setattr(tuner, name, without_float64(getattr(tuner, name)))
    found = fit(tuner, make_data(), **options).callback_metrics["val/loss"]
    assert (expected.dtype, found.dtype) == (torch.float64, torch.float32)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_the_metrics_by_definition(base, make_data: Callable, make_tuner: Callable) -> None:
    data = make_data(mask_prompt=False)
    found = evaluated(make_tuner(), data)
    store, indices = data.examples_of("val")
    total, response, n_tokens, n_response, n_bytes = 0.0, 0.0, 0, 0, 0
    for i in indices:
        example = store[int(i)]
        ids = torch.from_numpy(example.ids)
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(base(ids[:-1]), ids[1:], reduction="none").double()
        of_response = torch.from_numpy(example.is_response[1:])
        total, response = total + losses.sum(), response + losses[of_response].sum()
        n_tokens, n_response = n_tokens + len(losses), n_response + int(of_response.sum())
        n_bytes += len(store.example(int(i)).output.encode())
    assert found["val/loss"] == pytest.approx(float(total / n_tokens), rel=1e-5)
    assert found["val/perplexity"] == pytest.approx(math.exp(total / n_tokens), rel=1e-5)
    assert found["val/response_loss"] == pytest.approx(float(response / n_response), rel=1e-5)
    assert found["val/bits_per_byte"] == pytest.approx(float(response / math.log(2) / n_bytes), rel=1e-5)


def test_the_logged_training_loss_is_the_mean_before_the_step(
    base, make_data: Callable, make_tuner: Callable, fit: Callable
) -> None:
    data = make_data(n_train=8, batch_size=4)
    trainer = fit(make_tuner(), data, accumulate_grad_batches=2)
    store, indices = data.examples_of("train")
    inputs, targets = pad_shift_mask([store[int(i)] for i in indices], 50256)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(base(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(expected.item(), rel=1e-5)


def test_a_model_stays_on_its_device_between_the_phases_of_a_run(make_tuner: Callable) -> None:
    """Lightning calls `cpu` after each; on the meta device, as on a GPU."""
    assert {p.device.type for p in make_tuner().to("meta").cpu().parameters()} == {"meta"}


@pytest.mark.gpu
def test_on_a_gpu_a_run_ends_with_the_same_weights(make_data: Callable, make_tuner: Callable, fit: Callable) -> None:
    """In fp32, in three layouts, with clipping and accumulation; that of a padded run on the CPU."""
    wanted = None
    for accelerator, layout in (("cpu", "padded"), ("gpu", "padded"), ("gpu", "packed")):
        tuner, options = make_tuner(), {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "max_epochs": 2}
        fit(tuner, make_data(layout=layout, shared_prefix=layout == "packed"), accelerator=accelerator, **options)
        found = torch.cat([p.detach().cpu().flatten() for p in tuner.model.parameters()])
        wanted = found if wanted is None else wanted
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_trainer_with_loaders_in_place_of_the_data_module_is_refused(make_tuner: Callable) -> None:
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TrainingError, match="InstructionTuner: needs datamodule=InstructionData"):
        trainer.fit(make_tuner(), train_dataloaders=[0], val_dataloaders=[0])
