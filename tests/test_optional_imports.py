"""The one way to import what an extra brings."""

import math
import sys
from typing import Any

import pytest

from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import installed, load, message, need


def test_a_module_that_is_installed_is_imported() -> None:
    assert load("math", "x", "extra") is math
    assert installed("math")
    need("math", "x", "extra")


@pytest.mark.parametrize("ask", [load, need])
def test_a_missing_one_is_refused_with_the_extra(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert not installed("sklearn")
    with pytest.raises(ConfigError, match=r"^judge=openai: needs scikit-learn; pip install -e '.\[judge\]'$"):
        ask("sklearn", "judge=openai", "judge")
    assert message("lm_eval.models", "suite=mmlu", "benchmark").startswith("suite=mmlu: needs lm-eval;")
