"""The LightningModule: a causal model, its masked cross-entropy, and means taken once per optimizer step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from instruct_lit.accel.compiled import compiled_form
from instruct_lit.accel.cuda_graphs import StepGraphs
from instruct_lit.accel.weight_copies import LowPrecisionWeights, can_hold_other_gradients
from instruct_lit.core.data.collate import Batch
from instruct_lit.core.model.attention import AttentionLayout, PackedDocuments
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.likelihood import token_losses
from instruct_lit.core.training.checkpoints import check_identity
from instruct_lit.core.training.failures import FiniteLosses, not_finite
from instruct_lit.core.training.loss import summed_cross_entropy
from instruct_lit.core.training.optimizer import AdamW, total_norm
from instruct_lit.core.training.trainable_state import completed, trained_part
from instruct_lit.distributed.fsdp import FullySharded, gather, is_sharded, scatter
from instruct_lit.distributed.ranks import sum_over_ranks
from instruct_lit.errors import TrainingError


class InstructionTuner(LightningModule):
    """Fine-tunes a causal model on the supervised tokens of instruction batches.

    The gradient of an optimizer step is that of the mean over all supervised tokens of its micro-batches on all ranks.
    Every micro-batch's sum is divided by the token count of the step's first one, so that with one micro-batch per
    step nothing is left to do, and otherwise the gradients are rescaled once before clipping.

    With `neftune_alpha` token embeddings get uniform noise in training, at most alpha / sqrt(L·C) for texts of L tokens
    (NEFTune, Jain et al. 2023); L is the batch's mean without padding, so the noise does not depend on the layout.

    With `compiled` a GPU runs kernels made for model and loss (`torch.compile`). With `cuda_graphs` it is asked for all
    of a micro-batch at once (`StepGraphs`), in bf16-mixed precision and one process; elsewhere it has no effect.

    `make_optimizer` receives the model, `make_scheduler` the optimizer and the number of optimizer steps of the run.
    """

    def __init__(
        self,
        model: CausalLM,
        make_optimizer: Callable[[torch.nn.Module], Optimizer],
        make_scheduler: Callable[[Optimizer, int], Any],
        neftune_alpha: float | None = None,
        compiled: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        model.compiler, self.cuda_graphs = compiled_form if compiled else None, cuda_graphs
        self.make_optimizer, self.make_scheduler = make_optimizer, make_scheduler
        self.neftune_alpha = neftune_alpha
        self.identity: dict[str, str] = {}  # what a checkpoint must share with the run that resumes it
        self.ends_when_not_finite = True  # a loss that is no number ends the run
        self.tokens_seen = 0  # supervised tokens that went into optimizer steps, over all ranks
        self._working: LowPrecisionWeights | None = None
        self._graphs: StepGraphs | None = None
        self._window, self._finite = _Window(), FiniteLosses()
        self._evaluation: dict[int, _Sums] = {}  # by loader: of a mixture each set has its own

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, FullySharded):
            strategy.shard(self.model)

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        optimizer = self.make_optimizer(self.model)
        scheduler = self.make_scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _loss(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        layout: AttentionLayout | None,
        loss_index: Tensor,
        targets: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """The summed loss of a micro-batch, each pair multiplied by its weight."""
        states, head = self.model.hidden_states(input_ids, position_ids, layout, loss_index), self.model.head_weight
        working = self._working.of.get(id(head)) if self._working is not None else None
        return summed_cross_entropy(states, head, targets, weights, working, self.model.compiler)

    def on_train_start(self) -> None:
        if self.trainer.world_size > 1 or is_sharded(self.model):
            return
        half = self.trainer.precision == "bf16-mixed"
        if self.device.type == "cuda" and self.cuda_graphs and half:
            self._graphs = StepGraphs(self._loss, self.model.parameters(), self.trainer.accumulate_grad_batches > 1)
            self._graphs.begin()
        optimizer = self.trainer.optimizers[0]
        if self.device.type != "cpu" or not isinstance(optimizer, AdamW) or (half and not can_hold_other_gradients()):
            return
        dtype = torch.bfloat16 if half else torch.float32
        # Gradients of several micro-batches are summed in fp32.
        gradient_dtype = dtype if self.trainer.accumulate_grad_batches == 1 else torch.float32
        self._working = LowPrecisionWeights(self.model, self.model.head_weight, dtype, gradient_dtype).attach()
        optimizer.working = self._working

    def on_train_end(self) -> None:
        if self._graphs is not None:
            self._graphs.end()
            self._graphs = None
        if self._working is not None:
            self._working.detach()
            self.trainer.optimizers[0].working = self._working = None  # type: ignore[attr-defined]

    def on_train_epoch_start(self) -> None:
        self.trainer.datamodule.set_epoch(self.current_epoch)  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the micro-batch's share of the step's mean loss."""
        window = self._window
        if window.reference == 0:
            (window.reference,) = sum_over_ranks(self.trainer, [batch.n_supervised])
            self.trainer.optimizers[0].zero_grad()
        if self.neftune_alpha is not None:
            n_tokens = batch.n_tokens / max(1, len(batch.example_ids))
            self.model.embedding_noise = self.neftune_alpha / math.sqrt(max(1.0, n_tokens) * self.model.config.d_model)
        # DDP divides by the number of ranks, Lightning by that of micro-batches: both are taken back. The factor goes
        # in with the weights, so that no pass over the head's gradient (V, C) is needed for it.
        factor = self.trainer.world_size / max(1, window.reference)
        weights = batch.loss_weights * factor
        if self._graphs is not None:
            loss = self._graphs.loss(batch, weights)
        else:
            loss = self._loss(
                batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index, batch.targets, weights
            )
        window.n_supervised += batch.n_supervised
        window.example_ids.append(batch.example_ids)
        window.losses.append(loss.detach() / factor)
        return loss * self.trainer.accumulate_grad_batches

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: Lightning calls this between forward and backward, and the loss makes gradients in the forward."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        window, self._window = self._window, _Window()
        (n_supervised,) = sum_over_ranks(self.trainer, [window.n_supervised])
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if n_supervised == 0:
            warnings.warn("an optimizer step without a single supervised token was skipped", stacklevel=1)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            return
        if n_supervised != window.reference:
            torch._foreach_mul_(gradients, max(1, window.reference) / n_supervised)
        self.tokens_seen += n_supervised
        loss = torch.stack(window.losses).sum()
        if self.trainer.world_size > 1:
            loss = self.trainer.strategy.reduce(loss, reduce_op="sum")
        if self.ends_when_not_finite:
            self._finite.add(self.trainer.global_step + 1, window.example_ids, loss / n_supervised, self._last_good)
        self.log("train/loss", loss / n_supervised, prog_bar=False)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        if self.trainer._logger_connector.should_update_logs or gradient_clip_val:
            norm = total_norm([p.grad for p in parameters if p.grad is not None])
            self.log("train/grad_norm", norm)
            if gradient_clip_val and isinstance(optimizer, AdamW) and not is_sharded(self.model):
                optimizer.grad_scale = (norm / gradient_clip_val).clamp(min=1.0)
            elif gradient_clip_val:
                torch.nn.utils.clip_grads_with_norm_(parameters, float(gradient_clip_val), norm)

    def _last_good(self) -> str:
        paths = [getattr(c, "best_model_path", "") or getattr(c, "path", "") for c in self.trainer.checkpoint_callbacks]
        saved = [str(path) for path in paths if path and Path(path).is_file()]
        return f"the last good checkpoint is {saved[0]}" if saved else "no checkpoint was written before"

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()

    def _start_evaluation(self) -> None:
        self._evaluation = {}
        gather(self.model)  # processes may have different numbers of batches, so none can wait for another's weights

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def _evaluate(self, batch: Batch, loader: int) -> None:
        states = self.model.hidden_states(batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index)
        losses = token_losses(states, self.model.head_weight, batch.targets).double() * batch.loss_weights
        of_response = batch.is_response.double()
        self._evaluation.setdefault(loader, _Sums()).add(
            losses.sum(),
            (losses * of_response).sum(),
            (batch.loss_weights * of_response).sum(),
            batch.n_supervised,
            batch.n_response_bytes,
        )

    def on_validation_epoch_end(self) -> None:
        metrics = self._evaluated("val")
        value = float(metrics["val/loss"])
        if self.trainer.state.fn == TrainerFn.FITTING and not math.isfinite(value):
            place = f"after step {self.trainer.global_step}"
            raise TrainingError(not_finite("val/loss", value, place, self._last_good()))
        self.log_dict(metrics, rank_zero_only=False)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._evaluated("test"))

    def _evaluated(self, split: str) -> dict[str, Tensor]:
        scatter(self.model)
        names = self.trainer.datamodule.loader_names(split)  # type: ignore[attr-defined]
        loaders = range(max(1, len(names)))
        sums = torch.stack([self._evaluation.get(n, _Sums()).values(self.device) for n in loaders])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        loss, response_loss, n_response, n_supervised, n_bytes = sums.sum(0).unbind()
        mean = loss / n_supervised
        return {
            f"{split}/loss": mean,
            f"{split}/perplexity": mean.exp(),
            f"{split}/response_loss": response_loss / n_response,
            f"{split}/bits_per_byte": response_loss / math.log(2) / n_bytes,
            **{f"{split}/loss/{name}": of_set[0] / of_set[3] for name, of_set in zip(names, sums, strict=False)},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokens_seen"] = self.tokens_seen
        checkpoint["identity"] = self.identity
        for key in ("state_dict", "current_model_state"):  # the latter is of weight averaging
            if key in checkpoint:
                checkpoint[key] = trained_part(checkpoint[key], self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_identity(checkpoint["identity"], self.identity)
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                checkpoint[key] = completed(checkpoint[key], self)
        self.tokens_seen = checkpoint["tokens_seen"]


def layout_of(batch: Batch) -> AttentionLayout | None:
    """The attention layout that a batch asks for; None for plain rows."""
    if batch.document_lengths is None:
        return None
    return PackedDocuments(batch.document_lengths, batch.prefix_length)


class _Window:
    """What the micro-batches of the current optimizer step have given so far."""

    def __init__(self) -> None:
        self.reference = 0  # supervised tokens of the first micro-batch, over all ranks
        self.n_supervised = 0
        self.losses: list[Tensor] = []
        self.example_ids: list[Tensor] = []


class _Sums:
    """Running sums of an evaluation in double precision, kept on the device."""

    def __init__(self) -> None:
        self._parts: list[Tensor] | None = None

    def add(self, *parts: Tensor | int) -> None:
        tensors = [torch.as_tensor(part, dtype=torch.float64) for part in parts]
        self._parts = tensors if self._parts is None else [a + b for a, b in zip(self._parts, tensors, strict=True)]

    def values(self, device: torch.device) -> Tensor:
        if self._parts is None:
            return torch.zeros(5, dtype=torch.float64, device=device)
        return torch.stack([part.to(device) for part in self._parts])
