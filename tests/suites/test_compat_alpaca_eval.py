"""The undocumented part of alpaca_eval that is replaced: a version without it is named."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from instruct_lit.suites.compat_alpaca_eval import use_length_table, write_verdicts_whole


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


def test_verdicts_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Annotator:
        caching_path, text = str(tmp_path / "verdicts.json"), "old"

        def save(self, path: str | None = None) -> None:
            assert (tmp_path / "verdicts.json.lock").exists()  # of two programs one waits for the other
            with Path(path or self.caching_path).open("w") as file:
                file.write(self.text)
                if self.text == "half":
                    raise KeyboardInterrupt

    base = ModuleType("alpaca_eval.annotators.base")
    for module in (ModuleType("alpaca_eval"), ModuleType("alpaca_eval.annotators"), base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    base.BaseAnnotatorJSON = type("BaseAnnotatorJSON", (), {})  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'BaseAnnotatorJSON' has no attribute 'save'"):
        write_verdicts_whole()
    base.BaseAnnotatorJSON = Annotator  # type: ignore[attr-defined]
    write_verdicts_whole()
    Annotator().save()
    Annotator.text = "half"
    with pytest.raises(KeyboardInterrupt):
        Annotator().save()
    assert (tmp_path / "verdicts.json").read_text() == "old"
