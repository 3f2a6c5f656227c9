"""Which arguments of lightning.Trainer and which of Lightning's callbacks a run obeys, and why it refuses the others.

All are named in `tests/config/test_lightning_options.py`, which shows by small runs that what is not refused is obeyed.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from instruct_lit.config.schema import constructors
from instruct_lit.config.schema.options import Relation

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
# Set where processes of several machines are started.
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "LSB_JOBID", "KUBERNETES_PORT", "MASTER_ADDR")


def trainer_relations(config: Any) -> Iterator[Relation]:
    """Refused and impossible arguments of the trainer."""
    trainer = config.trainer
    for name, reason in constructors.REFUSED_ARGUMENTS.items():
        yield trainer.get(name) is not None, f"trainer.{name}", reason
    for key, rules in constructors.CONSTRUCTOR_KEYS.items():
        name = key.removeprefix("trainer.")
        if name in trainer and not OmegaConf.is_interpolation(trainer, name) and not OmegaConf.is_config(trainer[name]):
            yield from rules.problems(key, trainer[name])
    strategy = trainer.get("strategy")
    allowed = f"allowed are {', '.join(STRATEGIES)}; in shards: trainer=fsdp"
    yield not OmegaConf.is_dict(strategy) and strategy not in STRATEGIES, "trainer.strategy", allowed
    several = isinstance(trainer.num_nodes, int) and trainer.num_nodes > 1
    launched = any(name in os.environ for name in LAUNCHERS)
    yield several and not launched, "trainer.num_nodes", "start the processes with torchrun or SLURM"
    for name in ("max_steps", "max_epochs", "limit_train_batches") if config.fit else ():
        value = trainer.get(name)
        no_step = value == 0 and not isinstance(value, bool)
        yield no_step, f"trainer.{name}={value}", "no step could be made; fit=false trains nothing"
    for what in ("epochs", "steps"):
        least, most = trainer.get(f"min_{what}"), trainer.get(f"max_{what}")
        above = isinstance(least, int) and isinstance(most, int) and 0 <= most < least
        yield above, f"trainer.min_{what}", f"must be at most trainer.max_{what}={most}"
    decay, lowest = config.scheduler.decay, config.scheduler.min_ratio
    reason = "scheduler.decay=constant stays at optimizer.lr; use scheduler=cosine or linear"
    yield decay == "constant" and lowest not in (0, 1), "scheduler.min_ratio", reason
    endless = trainer.get("max_steps", -1) == -1 and trainer.get("max_epochs") == -1
    reason = (
        f"scheduler.decay={config.scheduler.decay} requires the number of steps; give trainer.max_steps, or "
        "scheduler=constant"
    )
    yield config.fit and endless and config.scheduler.decay != "constant", "trainer.max_epochs=-1", reason


def callback_relations(callbacks: Mapping[str, Any]) -> Iterator[Relation]:
    """Refused callbacks, and impossible arguments of others."""
    for key, node in callbacks.items():
        target = str(node.get("_target_"))
        name = target.rpartition(".")[2]
        reason = constructors.REFUSED_CALLBACKS.get(name) if target.startswith("lightning.") else None
        yield reason, f"callbacks.{key}._target_={target}", f"not supported; {reason}"
        for argument, rules in constructors.CALLBACK_RULES.get(name, {}).items():
            yield from rules.problems(f"callbacks.{key}.{argument}", node.get(argument))
