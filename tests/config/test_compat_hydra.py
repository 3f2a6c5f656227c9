"""The undocumented parts of Hydra still do what the program needs."""

import inspect

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from instruct_lit.config import compat_hydra
from instruct_lit.config.compose import CONF, composed


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
