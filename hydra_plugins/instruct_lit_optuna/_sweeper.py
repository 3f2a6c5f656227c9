"""A Hydra sweeper on Optuna: TPE, pruning, a storage that several sweepers may share.

Hydra's own plugin, hydra-optuna-sweeper, requires Optuna below 3.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.compat_hydra import IntervalSweep, Override, RangeSweep, launcher_of, parse_overrides
from instruct_lit.config.satellites import has_satellite
from instruct_lit.errors import ConfigError, quoted
from instruct_lit.optional_imports import load
from instruct_lit.sweeps.compat_optuna import running_trial
from instruct_lit.sweeps.study import PRUNERS, make_pruner, open_storage
from instruct_lit.sweeps.trial import is_held, locked, read_record

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="optuna",
    node={
        "_target_": "hydra_plugins.instruct_lit_optuna._sweeper.OptunaSweeper",
        "study_name": "study",
        "storage": None,
        "n_trials": 20,
        "n_jobs": 1,
        "direction": "minimize",
        "sampler": "tpe",
        "pruner": "median",
        "n_startup_trials": 5,
        "n_warmup_steps": 0,
        "seed": 0,
        "params": {},
    },
    provider="instruct_lit_optuna",
)
SAMPLERS = ("tpe", "random")
Direction = Literal["minimize", "maximize"]
FOLDER, WORKER = "folder", "worker"  # user attributes of a trial: its folder, and the sweep that asked for it
WORKERS = ".workers"  # in a sweep's folder, a folder for each sweep that runs there, locked while it runs
NAME = "name"  # beside these, a random name that differs from that of the same path on another machine


class OptunaSweeper(Sweeper):
    """Runs trials until the study has `n_trials`, `n_jobs` at a time; an existing study is continued.

    `params` and overrides of the command line define the search space in Hydra's grammar: `interval(a, b)`,
    `range(a, b)`, `choice(x, y)` or `x,y`, and `tag(log, interval(a, b))` for a logarithmic scale.
    """

    # Hydra gives a sweeper one argument per key of `hydra.sweeper`, so these cannot be grouped.
    def __init__(
        self, study_name: str, storage: str | None, n_trials: int, n_jobs: int, direction: Direction, sampler: str,
        pruner: str, n_startup_trials: int, n_warmup_steps: int, seed: int, params: dict[str, str] | None,
    ) -> None:  # fmt: skip
        self.study_name, self.storage, self.direction, self.seed = study_name, storage, direction, seed
        self.n_trials, self.n_jobs, self.params = n_trials, n_jobs, params or {}
        self.sampler, self.pruner = sampler, pruner
        self.n_startup_trials, self.n_warmup_steps = n_startup_trials, n_warmup_steps

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context: HydraContext = hydra_context
        self.settings: DictConfig = config
        self.hydra_context, self.config = hydra_context, config  # for `validate_batch_is_legal`
        self.jobs: Launcher = launcher_of(hydra_context, task_function, config)

    def _check(self) -> None:
        """Raise ConfigError for an invalid setting; from the constructor Hydra would wrap it."""
        choices = (("sampler", SAMPLERS), ("pruner", PRUNERS), ("direction", ("minimize", "maximize")))
        for key, allowed in choices:
            if getattr(self, key) not in allowed:
                raise ConfigError(f"hydra.sweeper.{key}={getattr(self, key)}: allowed are {', '.join(allowed)}")
        for key in ("n_trials", "n_jobs"):
            if getattr(self, key) < 1:
                raise ConfigError(f"hydra.sweeper.{key}={getattr(self, key)}: must be at least 1")
        metric = self.settings.get("optimized_metric")
        if metric and has_satellite("evaluation"):
            from instruct_lit.evaluation.metrics import higher_is_better

            better = {True: "maximize", False: "minimize", None: self.direction}[higher_is_better(metric)]
            if better != self.direction:
                raise ConfigError(
                    f"hydra.sweeper.direction={self.direction}: the wrong one for optimized_metric={metric}; give "
                    f"hydra.sweeper.direction={better}"
                )

    def sweep(self, arguments: list[str]) -> None:
        self._check()
        optuna = load("optuna", "sweep=optuna", "sweep")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweep_dir = Path(self.settings.hydra.sweep.dir).absolute()
        sweep_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.settings, sweep_dir / "multirun.yaml")
        storage = self.storage or f"sqlite:///{sweep_dir / 'study.db'}"
        fixed, space = self._search_space(arguments)
        name, number = _join(sweep_dir / WORKERS)
        # Sweeps that share a storage draw different points, whether they share a folder or not.
        seed = self.seed + number + (int(name, 16) if self.storage else 0)
        study = optuna.create_study(
            study_name=self.study_name, storage=open_storage(storage), direction=self.direction, load_if_exists=True,
            sampler=self._sampler(seed),
            pruner=make_pruner(self.pruner, self.n_startup_trials, self.n_warmup_steps),
        )  # fmt: skip
        with locked(sweep_dir / WORKERS / str(number)):
            while batch := self._next_trials(study, space, sweep_dir, f"{name}/{number}"):
                overrides = [self._overrides(trial, fixed, storage) for trial in batch]
                self.validate_batch_is_legal(overrides)
                self.jobs.launch(overrides, initial_job_idx=batch[0].number)
                for trial in batch:
                    self._report(study, trial, sweep_dir / str(trial.number))

    def _search_space(self, arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
        """The overrides that all trials share, and the distribution of each searched key."""
        given = parse_overrides(arguments, self.context.config_loader)
        named = {override.get_key_element() for override in given}
        params = [f"{key}={value}" for key, value in self.params.items() if key not in named]
        fixed, space = [], {}
        for override in [*given, *parse_overrides(params, self.context.config_loader)]:
            if override.is_sweep_override():
                space[override.get_key_element()] = distribution(override)
            else:
                fixed.append(f"{override.get_key_element()}={override.get_value_element_as_str()}")
        if not space:
            raise ConfigError(
                "sweep=optuna: the search space is empty; give a key a range, as in "
                "'optimizer.lr=tag(log,interval(1e-4,1e-2))', or set hydra.sweeper.params"
            )
        return fixed, space

    def _next_trials(self, study: Any, space: dict[str, Any], sweep_dir: Path, worker: str) -> list[Any]:
        """Interrupted trials of this folder, then new ones, up to `n_jobs`.

        A trial counts as interrupted when neither the sweep that asked for it nor its own process runs: another sweep
        of the study may be about to start it.
        """
        import optuna

        running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))

        name, _, _ = worker.partition("/")

        def was_interrupted(trial: Any) -> bool:
            asked_by, _, number = trial.user_attrs.get(WORKER, "").partition("/")
            folders = (sweep_dir / WORKERS / number, sweep_dir / str(trial.number))
            return asked_by == name and not any(map(is_held, folders))

        interrupted = [trial for trial in running if was_interrupted(trial)]
        batch = [running_trial(study, trial.number) for trial in interrupted[: self.n_jobs]]
        for trial in batch:
            trial.set_user_attr(WORKER, worker)
        # Without a worker it is of a sweep that was killed while it asked for it, maybe before it had all parameters.
        trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() or WORKER in t.user_attrs]
        n_left = self.n_trials - len(trials)
        for _ in range(min(self.n_jobs - len(batch), n_left)):
            trial = study.ask(space)
            trial.set_user_attr(WORKER, worker)
            trial.set_user_attr(FOLDER, str(sweep_dir / str(trial.number)))
            batch.append(trial)
        return batch

    def _overrides(self, trial: Any, fixed: Sequence[str], storage: str) -> list[str]:
        overrides = [*fixed, *(f"{key}={value}" for key, value in trial.params.items())]
        overrides.append(f"hydra.sweep.subdir={trial.number}")
        callbacks = self.settings.get("callbacks")
        if callbacks is not None and callbacks.get("pruning") is not None:
            given = {
                "storage": quoted(storage), "study_name": quoted(self.study_name), "trial_number": trial.number,
                "pruner": self.pruner, "n_startup_trials": self.n_startup_trials, "n_warmup_steps": self.n_warmup_steps,
            }  # fmt: skip
            overrides += [f"callbacks.pruning.{key}={value}" for key, value in given.items()]
        return overrides

    def _report(self, study: Any, trial: Any, folder: Path) -> None:
        from optuna.trial import TrialState

        record = read_record(folder) or {"status": "failed", "reason": "the launcher did not run it", "value": None}
        if record["reason"]:
            trial.set_user_attr("reason", record["reason"])
        if record["status"] == "completed" and record["value"] is not None:
            study.tell(trial, record["value"])
        elif record["status"] == "pruned":
            study.tell(trial, state=TrialState.PRUNED)  # Optuna takes the last reported value
        else:
            study.tell(trial, state=TrialState.FAIL)

    def _sampler(self, seed: int) -> Any:
        import optuna

        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        # constant_liar spreads trials that run in parallel
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=self.n_startup_trials, constant_liar=self.n_jobs > 1
        )


def _join(workers: Path) -> tuple[str, int]:
    """The folder's name (six hexadecimal digits), and the first number that no sweep in it has used.

    Every sweep gets a new number, also one that continues a study, and so draws different points.
    """
    for number in itertools.count():
        with contextlib.suppress(FileExistsError):
            (workers / str(number)).mkdir(parents=True)
            break
    own, name = workers / str(number) / NAME, workers / NAME
    own.write_text(uuid.uuid4().hex[:6])
    try:
        os.link(own, name)  # atomic: the name of the first sweep
    except FileExistsError:
        pass
    except OSError:  # a disk without hard links
        with contextlib.suppress(FileExistsError), name.open("x") as file:
            file.write(own.read_text())
    return name.read_text(), number


def distribution(override: Override) -> Any:
    """The Optuna distribution of a sweep override, with exactly the values that Hydra's grammar means by it.

    Raises: ConfigError for a range without values, and for one that Optuna cannot draw from.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    given: dict[str, Any] = {"log": "log" in getattr(value, "tags", set())}
    if isinstance(value, IntervalSweep):
        points: Any = (value.start, value.end)
    elif isinstance(value, RangeSweep):  # its end is no value of it, and it may descend
        points = value.range() if isinstance(value.range(), range) else list(value.range())
        points = sorted((points[0], points[-1])) if points else ()
        given["step"] = abs(value.step)
    else:
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    kind = IntDistribution if all(isinstance(n, int) for n in (*points, *given.values())) else FloatDistribution
    try:
        if not points or not all(map(math.isfinite, points)):
            raise ValueError("its ends must be finite" if points else "no value lies in it")
        return kind(*points, **given)
    except ValueError as error:
        reason = str(error).rstrip(".").replace("`", "")
        raise ConfigError(f"{override.input_line}: not a search space for sweep=optuna ({reason})") from error
