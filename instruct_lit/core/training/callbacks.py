"""What is observed while training: the history of losses and throughput, sample answers, the progress bar."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from instruct_lit.accel.hardware import wait_for
from instruct_lit.core.data.collate import Batch
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.distributed.fsdp import whole_weights
from instruct_lit.distributed.ranks import sum_over_ranks


class History(Callback):
    """Appends a row to `history.jsonl` at every logging step and every validation, and measures the throughput.

    `tokens_per_s` counts the examples' own tokens, without padding, over the time spent in training batches;
    validation, checkpoints and generation are left out. A GPU works on after it got a batch: it is waited for at
    logging steps, before a validation and at the end. `waiting_s` is the time the loop waited for data. The best step
    is that of the lowest (or with `mode="max"` the highest) `monitor`, as the best checkpoint has it.
    """

    def __init__(self, path: Path, monitor: str = "val/loss", mode: str = "min") -> None:
        self.path, self.monitor, self.sign = path, monitor, -1 if mode == "max" else 1
        self.n_tokens = 0  # input tokens of the examples
        self.n_supervised = 0
        self.n_positions = 0  # positions the model computed for them: padding adds, a shared prefix takes away
        self.training_s = 0.0
        self.waiting_s = 0.0
        self.best_step = 0
        self.best_loss = math.inf  # the validation loss there
        self.best_value = math.inf  # what is watched there, its sign turned where more is better
        self.n_rows = 0
        self._batch_start: float | None = None
        self._batch_end: float | None = None
        self._last = (0, 0.0)

    @property
    def tokens_per_s(self) -> float:
        """Useful tokens per second of training so far."""
        return self.n_tokens / self.training_s if self.training_s else math.nan

    def figures(self, model: CausalLM, flops_per_s: float) -> dict[str, float]:
        """Throughput of the run for its metrics, given the rate of the device's matrix products in FLOP/s.

        `positions_per_token` tells what the layout costs: 1.24 is 24 % padding, 0.7 a shared prefix. The utilisation is
        that of the products the examples themselves need, forward and backward: every token once through the blocks,
        every supervised one through the head. Frozen weights need no gradient of their own, and below the lowest
        trained layer there is no backward pass.
        """
        needed = _flops(model, self.n_tokens, self.n_supervised)
        return {
            "tokens_per_s": self.tokens_per_s,
            "positions_per_token": self.n_positions / max(1, self.n_tokens),
            "flop_utilisation": needed / max(1e-9, self.training_s) / flops_per_s,
            "matrix_flops_per_s": flops_per_s,
            "training_s": self.training_s,
            "waiting_s": self.waiting_s,
        }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._batch_start = time.perf_counter()
        if self._batch_end is not None:
            self.waiting_s += self._batch_start - self._batch_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert self._batch_start is not None
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        stepped = not trainer.fit_loop.epoch_loop._should_accumulate()
        logs = stepped and trainer.global_step % every == 0
        if logs:
            wait_for(pl_module.device)
        self._batch_end = time.perf_counter()
        self.training_s += self._batch_end - self._batch_start
        mine = (batch.n_tokens, batch.n_supervised, batch.input_ids.numel())
        n_tokens, n_supervised, n_positions = sum_over_ranks(trainer, mine)
        self.n_tokens += n_tokens
        self.n_supervised += n_supervised
        self.n_positions += n_positions
        if logs and "train/loss" in trainer.callback_metrics:
            n_tokens, seconds = self._last
            rate = (self.n_tokens - n_tokens) / max(1e-9, self.training_s - seconds)
            self._last = (self.n_tokens, self.training_s)
            pl_module.log("train/tokens_per_s", rate)
            self._append(trainer, pl_module, ("train/loss", "train/grad_norm"), {"tokens_per_s": rate})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_work(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_work(pl_module)

    def _finish_work(self, pl_module: LightningModule) -> None:
        """Count what the device still does; the time until the next batch is then no wait for data."""
        if self._batch_end is not None and pl_module.device.type != "cpu":
            wait_for(pl_module.device)
            self.training_s += time.perf_counter() - self._batch_end
        self._batch_end = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (trainer.global_step > 0 and not fitting):
            return  # the validation of the best weights after fitting belongs to no step
        value = self.sign * float(trainer.callback_metrics.get(self.monitor, self.sign * math.inf))
        if fitting and value < self.best_value:
            self.best_value, self.best_step = value, trainer.global_step
            self.best_loss = float(trainer.callback_metrics["val/loss"])
        names = tuple(name for name in trainer.callback_metrics if name.startswith("val/"))
        self._append(trainer, pl_module, names, {})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run continues the rows that the run it comes from had when the checkpoint was taken."""
        if trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        before = Path(trainer.ckpt_path).resolve().parent.parent / self.path.name
        if before.is_file():
            rows = before.read_text().splitlines(keepends=True)[: self.n_rows]
            new = self.path.with_suffix(".part")
            new.write_text("".join(rows))
            os.replace(new, self.path)

    def _append(
        self, trainer: Trainer, pl_module: LightningModule, names: tuple[str, ...], extra: Mapping[str, float]
    ) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        row = {"step": trainer.global_step, "tokens": int(pl_module.tokens_seen), **metrics, **extra}  # type: ignore[arg-type]
        if trainer.optimizers:
            row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.n_rows += 1

    def state_dict(self) -> dict[str, Any]:
        names = ["n_tokens", "n_supervised", "n_positions", "training_s", "waiting_s", "best_step", "best_loss"]
        return {name: getattr(self, name) for name in (*names, "best_value", "n_rows")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


class ValidateAtEnd(Callback):
    """Validates after the last step of a run, wherever that lies between two validations.

    Otherwise the weights of `trainer.max_steps` would be none that can be the best, and no loss would tell of them.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if 0 < trainer.estimated_stepping_batches <= trainer.global_step:
            trainer.should_stop = True  # Lightning validates before it stops


class SampleAnswers(Callback):
    """Writes the model's answers to a few validation examples to TensorBoard at every validation."""

    def __init__(self, n_examples: int = 3, max_new_tokens: int = 64) -> None:
        self.n_examples = n_examples
        self.settings = SamplingSettings(max_new_tokens=max_new_tokens)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or not writers:
            return
        with whole_weights(pl_module.model):  # type: ignore[arg-type]
            if trainer.is_global_zero:
                self._write(trainer, pl_module, writers)

    def _write(self, trainer: Trainer, pl_module: LightningModule, writers: list[Any]) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        store, indices = data.examples_of("val")
        chosen = [int(i) for i in indices[: self.n_examples]]
        engine = Engine(pl_module.model, data.tokenizer)  # type: ignore[arg-type]
        answers = engine.generate([store[i].prompt_ids for i in chosen], self.settings)
        for number, (index, answer) in enumerate(zip(chosen, answers, strict=True)):
            example = store.example(index)
            text = "\n\n".join(
                f"**{title}**\n\n{_quoted(body)}"
                for title, body in (
                    ("Instruction", example.instruction),
                    ("Input", example.input),
                    ("Wanted", example.output),
                    ("Answer", answer.text),
                )
                if body
            )
            for writer in writers:
                writer.add_text(f"answers/{number}", text, trainer.global_step)


class Progress(TQDMProgressBar):
    """One line that shows loss, validation loss, tokens per second and the time left."""

    def __init__(self, history: History) -> None:
        super().__init__(refresh_rate=5)
        self.history = history

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        # Steps per second depend on the batch; what is left out of tqdm's usual line makes room at 80 columns.
        bar.bar_format = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        return bar

    def init_validation_tqdm(self) -> Tqdm:
        return self._short_lived(super().init_validation_tqdm())

    def init_test_tqdm(self) -> Tqdm:
        return self._short_lived(super().init_test_tqdm())

    def _short_lived(self, bar: Tqdm) -> Tqdm:
        bar.leave = False
        return bar

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._train_progress_bar is not None and trainer.state.fn == TrainerFn.FITTING:
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))  # type: ignore[arg-type]

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        shown: dict[str, int | str | float | dict[str, float]] = {}
        for title, name in (("loss", "train/loss"), ("val", "val/loss")):
            if name in trainer.callback_metrics:
                shown[title] = f"{float(trainer.callback_metrics[name]):.3f}"
        if self.history.training_s:
            shown["tok/s"] = f"{self.history.tokens_per_s:.0f}"
        return shown


def _flops(model: CausalLM, n_tokens: int, n_supervised: int) -> int:
    """Operations that a model needs for so many tokens, two for each weight in each of its products."""
    in_blocks = {id(p) for p in model.blocks.parameters()}
    backward = any(p.requires_grad and id(p) not in in_blocks for p in model.parameters())
    per_token = 0
    for block in model.blocks:
        trained = sum(p.numel() for p in block.parameters() if p.requires_grad)
        backward = backward or trained > 0
        frozen = sum(p.numel() for p in block.parameters()) - trained
        per_token += 6 * trained + (4 if backward else 2) * frozen
    head = (6 if any(p.requires_grad for p in model.head_parameters) else 4) * model.head_weight.numel()
    return per_token * n_tokens + head * n_supervised


def _quoted(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
