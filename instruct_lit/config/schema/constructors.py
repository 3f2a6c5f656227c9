"""Keys of the groups whose schema is a constructor's signature (`_target_`): the meaning of those in `conf/`."""

from __future__ import annotations

from instruct_lit.config.schema.options import Rules

# Any other argument of the constructor is a key too, with a leading + where conf/ does not have it.
CONSTRUCTOR_KEYS = {
    "optimizer.lr": Rules("Peak learning rate; by default what suits the model and its adapter."),
    "optimizer.weight_decay": Rules("Weight decay, on matrices only."),
    "optimizer.betas": Rules("Decay rates of the moments."),
    "optimizer.eps": Rules("Term added to the denominator for stability."),
    "trainer.accelerator": Rules("cpu, gpu, …; auto: a GPU where available."),
    "trainer.devices": Rules("Number of devices, a list of them, or auto for all."),
    "trainer.num_nodes": Rules("Number of machines."),
    "trainer.strategy": Rules("How devices share the work: auto, ddp, or a constructor (trainer=fsdp)."),
    "trainer.precision": Rules("Precision; null: bf16-mixed where the device computes in bf16, otherwise 32-true."),
    "trainer.max_epochs": Rules("Epochs at most; early stopping may end training before."),
    "trainer.max_steps": Rules("Optimizer steps at most; -1: no limit."),
    "trainer.max_time": Rules("Time at most, as DD:HH:MM:SS."),
    "trainer.accumulate_grad_batches": Rules("Batches per optimizer step; the loss is a mean over all their tokens."),
    "trainer.gradient_clip_val": Rules("Largest norm of the gradient."),
    "trainer.val_check_interval": Rules("Time between validations: a fraction of an epoch, or a number of batches."),
    "trainer.check_val_every_n_epoch": Rules("Epochs between validations."),
    "trainer.limit_train_batches": Rules("Use only a part of the training batches: a fraction or a number."),
    "trainer.limit_val_batches": Rules("The same for validation."),
    "trainer.limit_test_batches": Rules("The same for test."),
    "trainer.log_every_n_steps": Rules("Optimizer steps between logged values."),
    "trainer.num_sanity_val_steps": Rules("Validation batches before training, to find errors early."),
    "trainer.deterministic": Rules("Use deterministic algorithms only."),
    "trainer.default_root_dir": Rules("Folder for what callbacks write without a path."),
    "callbacks.early_stopping.monitor": Rules("Metric of early stopping (Lightning's EarlyStopping)."),
    "callbacks.early_stopping.mode": Rules("min or max, whichever is better."),
    "callbacks.early_stopping.patience": Rules("Validations without improvement until training stops."),
    "callbacks.early_stopping.min_delta": Rules("Smallest change that counts as an improvement."),
    "callbacks.best_checkpoint.monitor": Rules("Metric that decides which weights are kept and tested."),
    "callbacks.last_checkpoint.every_n_steps": Rules("Steps between checkpoints to resume from, beside validations."),
    "callbacks.sample_answers.n_examples": Rules("Validation examples whose responses are logged at each validation."),
}
