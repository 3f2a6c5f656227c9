"""Relations between the keys of the commands beside training."""

import pytest

from instruct_lit.config.check_commands import check_command
from instruct_lit.errors import ConfigError
from tests.configs import composed


@pytest.mark.parametrize(
    ("command", "key"),
    [("evaluate", "compare"), ("evaluate", "run"), ("benchmark", "run"), ("arena", "runs"), ("export", "soup"),
     ("report", "runs"), ("review", "run")],
)  # fmt: skip
def test_a_run_is_given_once(command: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}=\[…,\./a\]: given twice; give each once"):
        check_command(command, composed(command, f"{key}=[a,b,./a]"))
