"""The notebook of the documentation: its cells run in order, offline, and show what the text between them says."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs() -> None:
    assert CELLS and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


@pytest.mark.slow
def test_its_cells_run_in_order_and_the_model_learns(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules[__name__])
    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    start = time.process_time()
    for cell in CELLS:
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {cell['id']}", "exec"), names)
    assert time.process_time() - start < 400  # three minutes on two cores
    printed = capsys.readouterr().out
    assert "learns ' yes'" in printed and "learns -100" in printed and "8 supervised" in printed
    assert names["after"] != names["before"] and "black" in names["after"][0]
    assert names["tested"]["test/loss"] < 1 and names["axes"].get_legend() is not None
