"""Sweeps that share a study: in one folder, and in folders of the same path on other machines."""

import re
import runpy
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hydra_plugins.instruct_lit_optuna._sweeper import WORKERS, OptunaSweeper, _join, distribution
from instruct_lit.config.compat_hydra import parse_overrides
from instruct_lit.errors import ConfigError
from instruct_lit.sweeps.trial import locked

optuna = pytest.importorskip("optuna")


def sweeper(n_trials: int = 4) -> OptunaSweeper:
    return OptunaSweeper("study", "sqlite://", n_trials, 1, "minimize", "random", "none", 5, 0, 0, {})


def test_sweeps_of_a_folder_share_its_name_and_have_their_own_numbers(tmp_path: Path) -> None:
    (name, first), (same, second) = _join(tmp_path / "a"), _join(tmp_path / "a")
    other, _ = _join(tmp_path / "b")
    assert (first, second) == (0, 1)
    assert name == same != other and len(name) == 6 and int(name, 16) >= 0


def test_a_direction_away_from_what_is_better_is_refused() -> None:
    for metric, message in (
        ("val/loss", None), (None, None),
        ("test/exact_match", "hydra.sweeper.direction=minimize: the wrong one for optimized_metric=test/exact_match; "
         "give hydra.sweeper.direction=maximize"),
    ):  # fmt: skip
        one = sweeper()
        one.settings = OmegaConf.create({"optimized_metric": metric})
        if message is None:
            one._check()
            continue
        with pytest.raises(ConfigError, match=message):
            one._check()


def test_an_interrupted_trial_resumes_in_its_own_folder_only(tmp_path: Path) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {"lr": optuna.distributions.FloatDistribution(0.0, 1.0)}
    (first,) = sweeper()._next_trials(study, space, tmp_path, "aaaaaa/0")
    (elsewhere,) = sweeper()._next_trials(study, space, tmp_path, "bbbbbb/0")  # the same path on another machine
    assert (first.number, elsewhere.number) == (0, 1)
    with locked(tmp_path / WORKERS / "0"):  # the sweep that asked for it lives
        (new,) = sweeper()._next_trials(study, space, tmp_path, "aaaaaa/1")
    assert new.number == 2
    study.tell(new, 0.5)
    (again,) = sweeper()._next_trials(study, space, tmp_path, "aaaaaa/2")
    assert again.number == 0 and again.user_attrs["worker"] == "aaaaaa/2"
    assert sweeper(n_trials=3)._next_trials(study, space, tmp_path, "cccccc/0") == []


def test_a_trial_of_a_sweep_that_was_killed_while_it_asked_for_it_does_not_count(tmp_path: Path) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.tell(study.ask(), 1.0)  # of another program
    study.ask()
    space = {"lr": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for number in (2, 3):
        (trial,) = sweeper(n_trials=3)._next_trials(study, space, tmp_path, "aaaaaa/0")
        assert trial.number == number and trial.params
        study.tell(trial, 0.5)
    assert sweeper(n_trials=3)._next_trials(study, space, tmp_path, "aaaaaa/0") == []


def test_without_the_satellite_hydra_finds_no_sweeper_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "instruct_lit.sweeps" else find(name))
    source = Path(__file__).parents[2] / "hydra_plugins" / "instruct_lit_optuna" / "optuna_sweeper.py"
    assert "OptunaSweeper" not in runpy.run_path(str(source))


def test_sweeps_join_a_folder_on_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    (first, zero), (second, one) = _join(tmp_path / "a"), _join(tmp_path / "a")
    assert first == second and (zero, one) == (0, 1)


@pytest.mark.parametrize(
    ("text", "low", "high", "step", "log"),
    [
        ("range(0.1,0.5,step=0.1)", 0.1, 0.4, 0.1, False), ("range(1,2.5,step=0.5)", 1, 2, 0.5, False),
        ("range(8,32,step=8)", 8, 24, 8, False), ("range(3,0,step=-1)", 1, 3, 1, False),
        ("shuffle(range(0,4))", 0, 3, 1, False), ("tag(log,range(1,100))", 1, 99, 1, True),
        ("int(interval(1,8))", 1, 8, 1, False), ("tag(log,interval(1e-4,1))", 1e-4, 1, None, True),
    ],
)  # fmt: skip
def test_a_range_has_the_values_of_hydra(text: str, low: float, high: float, step: float | None, log: bool) -> None:
    (override,) = parse_overrides([f"a={text}"])
    found = distribution(override)
    assert (found.low, found.high, found.step, found.log) == (low, high, step, log)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("range(5,5)", "no value lies in it"), ("interval(2,1)", "low <= high must hold"),
        ("tag(log,interval(0,1))", "low > 0 must hold for log=True"), ("interval(0,inf)", "its ends must be finite"),
        ("tag(log,range(1.0,9.0))", "step is not supported when log is true"),
    ],
)  # fmt: skip
def test_a_range_that_cannot_be_drawn_from_is_refused(text: str, reason: str) -> None:
    (override,) = parse_overrides([f"a={text}"])
    with pytest.raises(ConfigError, match=re.escape(f"a={text}: not a search space for sweep=optuna (")) as refused:
        distribution(override)
    assert reason in str(refused.value)
