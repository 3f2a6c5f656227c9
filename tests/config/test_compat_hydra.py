"""The undocumented parts of Hydra still do what the program needs."""

import inspect
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import Container, DictConfig

from instruct_lit.config import compat_hydra
from instruct_lit.config.compose import CONF, composed
from tests.fixtures import compositions


def test_a_configuration_is_composed_beside_that_of_a_command() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert hasattr(GlobalHydra.instance(), "hydra"), "hydra.core.global_hydra.GlobalHydra has no `hydra`"
        assert composed("reproduce", ["tolerance=0.5"]).tolerance == 0.5
        assert compose("paths/default").paths, "the outer configuration is lost"
    assert not GlobalHydra.instance().is_initialized()
    assert composed("reproduce").tolerance == 0.01 and not GlobalHydra.instance().is_initialized()


def test_overrides_are_parsed_into_keys_packages_and_values() -> None:
    texts = ["a.b={c:[1,x]}", "+g@p.q=h", "~d", "lr=tag(log,interval(1,2))", "n=range(1,4)"]
    value, group, deleted, interval, numbers = compat_hydra.parse_overrides(texts)
    assert (value.key_or_group, value.value(), value.is_sweep_override()) == ("a.b", {"c": [1, "x"]}, False)
    assert (group.key_or_group, group.package, group.value()) == ("g", "p.q", "h")
    assert deleted.is_delete()
    assert isinstance(interval.value(), compat_hydra.IntervalSweep) and interval.is_sweep_override()
    assert isinstance(numbers.value(), compat_hydra.RangeSweep)


def test_a_launcher_is_made_from_context_function_and_configuration() -> None:
    parameters = inspect.signature(Plugins.instantiate_launcher).parameters
    assert {"hydra_context", "task_function", "config"} <= set(parameters), "Plugins.instantiate_launcher has changed"


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("train", ["model=hf", "model.path=x", "hydra.run.dir=y"]),
        ("train", ["sweep=optuna", "~callbacks.early_stopping", "+trainer.profiler=simple"]),
        ("train", ["~logger", "data={path:x}", "experiment=book_gpt2_medium"]),
        ("benchmark", ["suite=glue", "run=null"]),
    ],
)
def test_a_remembered_composition_is_that_of_hydra(
    command: str, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tests/fixtures/compositions.py remembers, of the same choices with other values."""
    composed(command, [override for override in given if "." not in override], with_hydra=True)
    remembered = composed(command, given, with_hydra=True)
    compositions.use(monkeypatch)
    assert nodes(composed(command, given, with_hydra=True)) == nodes(remembered)


def nodes(config: Container, place: str = "") -> dict[str, tuple[Any, ...]]:
    """Every value with all that OmegaConf knows of it."""
    found = {}
    for key in config if isinstance(config, DictConfig) else range(len(config)):
        node = config._get_node(key)
        about = {k: v for k, v in vars(node._metadata).items() if k != "resolver_cache"}
        found[f"{place}.{key}"] = (type(node), about, str(node))
        if isinstance(node, Container) and not (node._is_none() or node._is_interpolation() or node._is_missing()):
            found |= nodes(node, f"{place}.{key}")
    return found


def test_what_is_not_in_this_repository_is_not_remembered(tmp_path: pytest.TempPathFactory) -> None:
    (tmp_path / "optimizer").mkdir()
    for lr in (0.5, 0.25):
        (tmp_path / "optimizer" / "mine.yaml").write_text(f"_target_: torch.optim.SGD\nlr: {lr}\n")
        assert composed("train", ["optimizer=mine", f"hydra.searchpath=[file://{tmp_path}]"]).optimizer.lr == lr
