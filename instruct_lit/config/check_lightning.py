"""Which arguments of lightning.Trainer and which of Lightning's callbacks a run obeys, and why it refuses the others.

All are named in `tests/config/test_lightning_options.py`, which shows by small runs that what is not refused is obeyed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from instruct_lit.config.schema.options import Rules

REFUSED_ARGUMENTS = {
    "barebones": "no metric is logged in this mode, so nothing could stop early or be reported; leave it out",
    "callbacks": "use the group callbacks (callbacks.<name>._target_=…)",
    "limit_predict_batches": "nothing is predicted; n_test_responses limits the responses",
    "logger": "use the group logger (logger=none, logger.<name>._target_=…)",
    "model_registry": "checkpoints stay in the run folder; leave it out",
    "plugins": "checkpoints are written by the program; use trainer.precision, trainer.strategy",
    "sync_batchnorm": "no model here has batch normalisation; leave it out",
    "use_distributed_sampler": "the data module divides the batches among processes; leave it out",
}

REFUSED_CALLBACKS = {
    "BackboneFinetuning": "use trainable=last_<n>_blocks",
    "BaseFinetuning": "use trainable=last_<n>_blocks",
    "BasePredictionWriter": "nothing is predicted; responses.jsonl has the responses",
    "BatchSizeFinder": "use sweep=batch_size",
    "Callback": "does nothing by itself; name a subclass",
    "Checkpoint": "does nothing by itself; use lightning.pytorch.callbacks.ModelCheckpoint",
    "GradientAccumulationScheduler": "the schedule needs a fixed number of steps; use trainer.accumulate_grad_batches",
    "LambdaCallback": "a configuration holds no functions; name a class",
    "LearningRateFinder": "use sweep=lr_range",
    "ModelPruning": "a pruned model has other parameters than its bundle",
    "OnExceptionCheckpoint": "it may lie within a step; use callbacks.last_checkpoint.every_n_steps",
    "ProgressBar": "does nothing by itself; use lightning.pytorch.callbacks.TQDMProgressBar",
    "SpikeDetection": "skips no batch by itself and ends in an exception; a NaN or infinite loss ends a run already",
    "StochasticWeightAveraging": "its average is in no checkpoint, so it would not be tested; use callbacks=ema",
    "ThroughputMonitor": "needs functions; train/tokens_per_s is logged already",
}

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
LAUNCHERS = (
    "TORCHELASTIC_RUN_ID",
    "SLURM_JOB_ID",
    "LSB_JOBID",
    "KUBERNETES_PORT",
    "MASTER_ADDR",
)  # of several machines

_FRACTION = Rules("a fraction up to 1, or a whole number", at_least=0)
TRAINER_RULES = {
    "accumulate_grad_batches": Rules("", at_least=1),
    "check_val_every_n_epoch": Rules("", at_least=1),
    "fast_dev_run": Rules("", at_least=0),
    "gradient_clip_algorithm": Rules("", choices=("norm", "value")),
    "gradient_clip_val": Rules("", at_least=0),
    "limit_test_batches": _FRACTION,
    "limit_train_batches": _FRACTION,
    "limit_val_batches": _FRACTION,
    "log_every_n_steps": Rules("", at_least=0),
    "max_epochs": Rules("", at_least=-1),
    "max_steps": Rules("", at_least=-1),
    "min_epochs": Rules("", at_least=0),
    "min_steps": Rules("", at_least=0),
    "num_nodes": Rules("", at_least=1, at_most=65536),
    "num_sanity_val_steps": Rules("", at_least=-1),
    "overfit_batches": _FRACTION,
    "precision": Rules("", choices=("32-true", "bf16-mixed", "32", "bf16")),
    "profiler": Rules("", choices=("simple", "advanced")),
    "reload_dataloaders_every_n_epochs": Rules("", at_least=0),
    "val_check_interval": Rules("a fraction up to 1, or a whole number", above=0),
}
CALLBACK_RULES = {
    "EMAWeightAveraging": {"decay": Rules("", at_least=0, below=1), "update_every_n_steps": Rules("", at_least=1)},
    "EarlyStopping": {"min_delta": Rules("", at_least=0), "patience": Rules("", at_least=0)},
    "GenerationQuality": {"max_new_tokens": Rules("", at_least=1), "n_examples": Rules("", at_least=1)},
    "LastCheckpoint": {"every_n_steps": Rules("", at_least=1)},
    "SampleAnswers": {"max_new_tokens": Rules("", at_least=1), "n_examples": Rules("", at_least=0)},
}


def check_lightning(config: Any) -> list[str]:
    """Problems of the groups `trainer` and `callbacks`."""
    return _problems_of_trainer(config) + _problems_of_callbacks(config)


def _problems_of_trainer(config: Any) -> list[str]:
    trainer = config.trainer
    problems = [f"trainer.{k}: {reason}" for k, reason in REFUSED_ARGUMENTS.items() if trainer.get(k) is not None]
    for name, rules in TRAINER_RULES.items():
        value = trainer.get(name)
        if value is None or OmegaConf.is_config(value):
            continue
        problem = rules.problem(str(value) if rules.choices else value)
        if problem is None and rules.doc and isinstance(value, float) and value > 1:
            problem = f"must be {rules.doc}"
        if problem:
            problems.append(f"trainer.{name}={value}: {problem}")
    strategy = trainer.get("strategy")
    if not OmegaConf.is_dict(strategy) and strategy not in STRATEGIES:
        problems.append(f"trainer.strategy={strategy}: allowed are {', '.join(STRATEGIES)}; in shards: trainer=fsdp")
    if problems:
        return problems
    several = isinstance(trainer.num_nodes, int) and trainer.num_nodes > 1
    if several and not any(name in os.environ for name in LAUNCHERS):
        problems.append(f"trainer.num_nodes={trainer.num_nodes}: start the processes with torchrun or SLURM")
    no_steps = {name: trainer.get(name) for name in ("max_steps", "max_epochs", "limit_train_batches")}
    if config.fit:
        problems += [
            f"trainer.{k}={v}: no step could be made; fit=false trains nothing" for k, v in no_steps.items() if v == 0
        ]
    endless = trainer.get("max_steps", -1) == -1 and trainer.get("max_epochs") == -1
    if config.fit and endless and config.scheduler.decay != "constant":
        problems.append(
            f"trainer.max_epochs=-1: scheduler.decay={config.scheduler.decay} needs the number of steps; give "
            "trainer.max_steps, or scheduler=constant"
        )
    return problems


def _problems_of_callbacks(config: Any) -> list[str]:
    problems = []
    for key, node in (config.callbacks or {}).items():
        if not isinstance(node, Mapping):
            continue
        name = str(node.get("_target_")).rpartition(".")[2]
        if name in REFUSED_CALLBACKS and str(node.get("_target_")).startswith("lightning."):
            problems.append(f"callbacks.{key}: {name} is not supported; {REFUSED_CALLBACKS[name]}")
        for argument, rules in CALLBACK_RULES.get(name, {}).items():
            value = node.get(argument)
            if value is not None and (problem := rules.problem(value)):
                problems.append(f"callbacks.{key}.{argument}={value}: {problem}")
    return problems
