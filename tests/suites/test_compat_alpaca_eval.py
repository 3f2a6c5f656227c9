"""The undocumented part of alpaca_eval that is replaced: a version without it is named."""

import sys
from types import ModuleType

import pytest

from instruct_lit.suites.compat_alpaca_eval import use_length_table


def test_the_table_replaces_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: ModuleType(name) for name in ("alpaca_eval", "alpaca_eval.metrics")}
    glm_winrate = ModuleType("glm_winrate")
    modules["alpaca_eval.metrics"].glm_winrate = glm_winrate  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(AttributeError, match="alpaca_eval.metrics.glm_winrate.hf_hub_download is gone"):
        use_length_table("table.csv")
    glm_winrate.hf_hub_download = None  # type: ignore[attr-defined]
    use_length_table("table.csv")
    assert glm_winrate.hf_hub_download(repo_id="x", filename="y") == "table.csv"  # type: ignore[attr-defined]
