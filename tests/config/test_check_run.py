"""Checks of a run that need its data."""

from collections.abc import Callable

import pytest

from instruct_lit.config.check_run import check_split
from instruct_lit.errors import ConfigError


def test_a_part_without_an_example_is_refused(make_data: Callable) -> None:
    data = make_data(split={"train": 30, "val": 0, "test": 5})
    data.prepare_data()
    data.setup()
    with pytest.raises(ConfigError, match=r"data.split=.*: no example for val, which a run needs to stop early"):
        check_split(data)
