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
    "trainer.num_nodes": Rules("Number of machines.", at_least=1, at_most=65536),
    "trainer.strategy": Rules("How devices share the work: auto, ddp, or a constructor (trainer=fsdp)."),
    "trainer.precision": Rules(
        "Precision; null: bf16-mixed where the device computes in bf16, otherwise 32-true.",
        choices=("32-true", "bf16-mixed", "32", "bf16"),
    ),
    "trainer.max_epochs": Rules("Epochs at most; early stopping may end training before.", at_least=-1),
    "trainer.min_epochs": Rules("Epochs at least.", at_least=0),
    "trainer.max_steps": Rules("Optimizer steps at most; -1: no limit.", at_least=-1),
    "trainer.min_steps": Rules("Optimizer steps at least.", at_least=0),
    "trainer.max_time": Rules("Time at most, as DD:HH:MM:SS."),
    "trainer.accumulate_grad_batches": Rules("Batches per optimizer step; the loss is over all tokens.", at_least=1),
    "trainer.gradient_clip_val": Rules("Largest norm of the gradient.", at_least=0),
    "trainer.gradient_clip_algorithm": Rules("What is clipped; null: norm.", choices=("norm", "value")),
    "trainer.val_check_interval": Rules(
        "Time between validations: a fraction of an epoch, a number of batches, or DD:HH:MM:SS.",
        above=0,
        fraction=True,
    ),
    "trainer.check_val_every_n_epoch": Rules("Epochs between validations; null: counted over epochs.", at_least=1),
    "trainer.limit_train_batches": Rules("Training batches: a fraction or a number.", at_least=0, fraction=True),
    "trainer.limit_val_batches": Rules("The same for validation.", at_least=0, fraction=True),
    "trainer.limit_test_batches": Rules("The same for test.", at_least=0, fraction=True),
    "trainer.overfit_batches": Rules("Train and validate on the same batches.", at_least=0, fraction=True),
    "trainer.fast_dev_run": Rules("true: one batch of everything, without loggers and checkpoints.", at_least=0),
    "trainer.log_every_n_steps": Rules("Optimizer steps between logged values.", at_least=0),
    "trainer.num_sanity_val_steps": Rules("Validation batches before training, to find errors early.", at_least=-1),
    "trainer.reload_dataloaders_every_n_epochs": Rules("Epochs between new data loaders; 0: never.", at_least=0),
    "trainer.profiler": Rules("Writes fit-profile.txt, … into the run folder.", choices=("simple", "advanced")),
    "trainer.deterministic": Rules("Use deterministic algorithms only."),
    "trainer.default_root_dir": Rules("Folder for what callbacks write without a path."),
    "callbacks.early_stopping.monitor": Rules("Metric of early stopping (Lightning's EarlyStopping)."),
    "callbacks.early_stopping.mode": Rules("min or max, whichever is better."),
    "callbacks.early_stopping.patience": Rules("Validations without improvement until training stops.", at_least=0),
    "callbacks.early_stopping.min_delta": Rules("Smallest change that counts as an improvement.", at_least=0),
    "callbacks.best_checkpoint.monitor": Rules("Metric that decides which weights are kept and tested."),
    "callbacks.last_checkpoint.every_n_steps": Rules("Steps between further checkpoints.", at_least=1),
    "callbacks.sample_answers.n_examples": Rules("Validation examples with logged responses.", at_least=0),
    "callbacks.sample_answers.max_new_tokens": Rules("Longest of these responses in tokens.", at_least=1),
    "callbacks.sample_answers.cuda_graphs": Rules("As generation.cuda_graphs."),
}
