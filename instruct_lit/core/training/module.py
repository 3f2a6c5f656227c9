"""The LightningModule: a causal model, its masked cross-entropy, and means taken once per optimizer step."""

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from instruct_lit.core.data.batching import Batch
from instruct_lit.core.model.causal import CausalLM, sum_dtype, token_losses
from instruct_lit.core.training.checkpoints import completed, trained_part
from instruct_lit.core.training.compat_lightning import logs_this_step
from instruct_lit.core.training.loss import FiniteLosses, FitFacts, StepAccelerator, layout_of, sum_over_ranks
from instruct_lit.core.training.sharding import Sharding
from instruct_lit.errors import TrainingError

NO_SUMS = (0,) * 5  # of an evaluation, before its first batch


class InstructionTuner(LightningModule):
    """Fine-tunes a causal model on the supervised tokens of instruction batches.

    The gradient of an optimizer step is that of the mean over all supervised tokens of its micro-batches on all ranks.
    Every micro-batch's sum is divided by the token count of the step's first one, so that with one micro-batch per
    step nothing is left to do, and otherwise the gradients are rescaled once before clipping.

    Args:
        make_optimizer: Receives the model.
        make_scheduler: Receives the optimizer and the number of optimizer steps of the run.
        neftune_alpha: Token embeddings get uniform noise in training, at most alpha / sqrt(L·C) for texts of L tokens
            (NEFTune, Jain et al. 2023); L is the batch's mean without padding, so the noise does not depend on the
            layout.
        step: Computes losses and gradients; by default plain autograd.
        sharding: Where the weights are in several processes; by default whole in each.
    """

    def __init__(
        self,
        model: CausalLM,
        make_optimizer: Callable[[torch.nn.Module], Optimizer],
        make_scheduler: Callable[[Optimizer, int], Any],
        neftune_alpha: float | None = None,
        step: StepAccelerator | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        super().__init__()
        self.model, self.neftune_alpha = model, neftune_alpha
        self.make_optimizer, self.make_scheduler = make_optimizer, make_scheduler
        self.step, self.sharding = step or StepAccelerator(), sharding or Sharding()
        self.step.attach(model)
        self.ends_when_not_finite = True  # a NaN or infinite loss ends the run
        self.tokens_seen: float = 0  # supervised tokens that went into optimizer steps, over all ranks
        self._window, self._finite = _Window(), FiniteLosses()
        self._sums: dict[int, list[Any]] = {}  # of an evaluation, by loader: each data set of a mixture has its own

    def configure_model(self) -> None:
        if self.trainer.datamodule is None:  # type: ignore[attr-defined]
            raise TrainingError("InstructionTuner: needs datamodule=InstructionData(…) in place of loaders")
        self.sharding.shard(self.model, self.trainer.strategy)

    def cpu(self) -> Self:
        """Stay on the device: Lightning would move the model off it after each phase of a run and back for the next."""
        return self

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        optimizer = self.make_optimizer(self.model)
        n_steps = min(self.trainer.estimated_stepping_batches, sys.maxsize)  # infinite with max_epochs=-1
        schedule = {"scheduler": self.make_scheduler(optimizer, int(n_steps)), "interval": "step", "name": "train/lr"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        trainer = self.trainer
        facts = FitFacts(trainer.precision, trainer.accumulate_grad_batches, trainer.strategy.model is not self)
        self.step.start(trainer.optimizers[0], facts)

    def on_train_end(self) -> None:
        self.step.stop(self.trainer.optimizers[0])

    def on_train_epoch_start(self) -> None:
        epoch = 0 if self.trainer.overfit_batches else self.current_epoch  # type: ignore[attr-defined]
        self.trainer.datamodule.set_epoch(epoch)  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the micro-batch's share of the step's mean loss."""
        window = self._window
        if window.reference == 0:
            (window.reference,) = sum_over_ranks(self.trainer, [batch.n_supervised])
            self.trainer.optimizers[0].zero_grad()
        if self.neftune_alpha:
            n_tokens = batch.n_tokens / max(1, len(batch.example_ids))
            self.model.embedding_noise = self.neftune_alpha / math.sqrt(max(1.0, n_tokens) * self.model.config.d_model)
        # DDP divides by the number of ranks, Lightning by that of micro-batches: both are undone. The factor is part of
        # the weights, since the head's gradient (V, C) may exist already when the loss returns.
        factor = self.trainer.world_size / max(1, window.reference)
        loss = self.step.loss(batch, batch.loss_weights * factor)
        window.n_supervised += batch.n_supervised
        window.example_ids.append(batch.example_ids)
        window.losses.append(loss.detach() / factor)
        return loss * self.trainer.accumulate_grad_batches

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Do nothing: Lightning calls this after the forward pass, in which gradients may be computed already."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        window, self._window = self._window, _Window()
        (n_supervised,) = sum_over_ranks(self.trainer, [window.n_supervised])
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if n_supervised == 0:
            warnings.warn("an optimizer step without a single supervised token was skipped", stacklevel=1)
            optimizer.zero_grad(set_to_none=True)
            return
        if not gradients:
            raise TrainingError("trainable: the loss has no gradient for any weight that is trained; train others")
        if n_supervised != max(1, window.reference):
            for gradient in gradients:
                gradient.mul_(max(1, window.reference) / n_supervised)
        self.tokens_seen += n_supervised
        loss = sum_over_ranks(self.trainer, torch.stack(window.losses).sum())
        if self.ends_when_not_finite:
            self._finite.add(self.trainer.global_step + 1, window.example_ids, loss / n_supervised, self._last_good)
        self.log("train/loss", loss / n_supervised)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        by_norm = bool(gradient_clip_val) and gradient_clip_algorithm != "value"
        if logs_this_step(self.trainer) or by_norm:
            norm = self.step.gradient_norm([p.grad for p in parameters if p.grad is not None])
            self.log("train/grad_norm", norm)
        if gradient_clip_val and by_norm:
            self.step.clip(optimizer, parameters, norm, float(gradient_clip_val))
        elif gradient_clip_val:
            nn.utils.clip_grad_value_(parameters, float(gradient_clip_val))

    def _last_good(self) -> str:
        paths = [getattr(c, "best_model_path", "") or getattr(c, "path", "") for c in self.trainer.checkpoint_callbacks]
        saved = [str(path) for path in paths if path and Path(path).is_file()]
        return f"the last good checkpoint is {saved[0]}" if saved else "no checkpoint was written yet"

    def on_validation_epoch_start(self) -> None:
        self._sums = {}
        self.sharding.gather(self.model)  # ranks may have different numbers of batches, so none can wait for another

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        states = self.model.hidden_states(batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index)
        weights = batch.loss_weights.to(sum_dtype(self.device))
        losses, of_responses = token_losses(self.model, states, batch.targets), weights * batch.is_response
        # Loss and weight of all supervised tokens; loss, weight and bytes of those of responses.
        sums = [(losses * weights).sum(), batch.n_supervised,
                (losses * of_responses).sum(), of_responses.sum(), batch.n_response_bytes]  # fmt: skip
        before = self._sums.get(dataloader_idx, NO_SUMS)
        self._sums[dataloader_idx] = [a + b for a, b in zip(before, sums, strict=True)]

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_validation_epoch_end(self) -> None:
        metrics = self._evaluated("val")
        value = float(metrics["val/loss"])
        if self.trainer.state.fn == TrainerFn.FITTING and not math.isfinite(value):
            place = f"after step {self.trainer.global_step}"
            raise TrainingError(FiniteLosses.message("val/loss", value, place, self._last_good()))
        self.log_dict(metrics, rank_zero_only=False)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._evaluated("test"))

    def _evaluated(self, split: str) -> dict[str, Tensor]:
        self.sharding.scatter(self.model)
        names = self.trainer.datamodule.loader_names(split)  # type: ignore[attr-defined]
        values = [value for n in range(max(1, len(names))) for value in self._sums.get(n, NO_SUMS)]
        on_device = [torch.as_tensor(value, dtype=sum_dtype(self.device), device=self.device) for value in values]
        by_loader = sum_over_ranks(self.trainer, torch.stack(on_device).view(-1, len(NO_SUMS)))
        loss, weight, response_loss, response_weight, n_response_bytes = by_loader.sum(0).unbind()
        return {
            f"{split}/loss": loss / weight,
            f"{split}/perplexity": (loss / weight).exp(),
            f"{split}/response_loss": response_loss / response_weight,
            f"{split}/bits_per_byte": response_loss / math.log(2) / n_response_bytes,
            **{f"{split}/loss/{name}": own[0] / own[1] for name, own in zip(names, by_loader, strict=False)},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokens_seen"] = self.tokens_seen
        for key in ("state_dict", "current_model_state"):  # the latter belongs to weight averaging
            if key in checkpoint:
                checkpoint[key] = trained_part(checkpoint[key], self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                checkpoint[key] = completed(checkpoint[key], self)
        self.tokens_seen = checkpoint["tokens_seen"]


@dataclass
class _Window:
    """Counts and losses of the micro-batches of the current optimizer step."""

    reference: float = 0  # supervised tokens of the first micro-batch, over all ranks
    n_supervised: float = 0
    losses: list[Tensor] = field(default_factory=list)
    example_ids: list[Tensor] = field(default_factory=list)
