"""Any runs side by side on one page."""

import json
import re
import shutil
from pathlib import Path

import pytest

from instruct_lit.reports.runs_page import differing, paired, side_by_side
from tests.commands import Command


def test_only_settings_differ_and_no_folders() -> None:
    one = {"optimizer.lr": 1e-3, "seed": 1, "logger.csv.save_dir": "a", "name": "a", "callbacks.best.dirpath": "a/c"}
    two = {
        **one,
        "optimizer.lr": 2e-3,
        "logger.csv.save_dir": "b",
        "name": "b",
        "callbacks.best.dirpath": "b/c",
        "new": None,
    }
    assert differing([one, two]) == {"optimizer.lr": [1e-3, 2e-3], "new": ["", None]}


def test_responses_are_paired_by_their_example() -> None:
    def rows(answers: str, first: int = 0) -> list[dict[str, str]]:
        return [
            {"instruction": f"i{n}", "input": "", "output": "a", "response": answer, "finish_reason": "stop"}
            for n, answer in enumerate(answers, start=first)
        ]

    found = paired({"one": rows("aaaaaaaaaaaaaaaaaaaa"), "two": rows("bbbbbbbbbbbbbbbbbbbb"), "three": rows("aa", 90)})
    exact = found["two"]["differences"]["exact_match"]
    assert exact["mean"] == -1 and exact["high"] < -0.7 and found["two"]["n_pairs"] == 20
    assert "0 examples in common" in found["three"]
    shown = side_by_side([rows("ab"), rows("aa")])
    assert [row["answers"] for row in shown] == [[("b", False), ("a", True)], [("a", True), ("a", True)]]


def test_a_page_of_two_runs(command: Command, small_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    other = shutil.copytree(small_run, tmp_path / "other")
    text = (other / "config.yaml").read_text()
    text = re.sub(r"(?m)^name: .*", "name: unmasked", text.replace("mask_prompt: true", "mask_prompt: false"))
    (other / "config.yaml").write_text(text)
    metrics = json.loads((other / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps({**metrics, "test/loss": 1.25}))
    done = command("report", f"runs=[{small_run},{other}]", "page=page.html", cwd=tmp_path)
    assert done.stdout == "page.html\n"
    page = (tmp_path / "page.html").read_text()
    assert '<code>data.mask_prompt</code></td><td class="number">true</td><td class="number">false' in re.sub(
        r">\s+<", "><", page
    )
    assert "1.2500" in page and "unmasked" in page and "means over different tokens" in page
    assert (
        page.count("<svg") == 2 and "val/response_loss over supervised tokens" in page and "10 common examples" in page
    )
    assert "<th>better</th>" in page and "no clear difference" in page
    assert not re.search(r"(src|href)=[\"']?(http|/)", page)
    for wrong, message in ((f"runs=[{other}]", "one run; give at least two"), ("n_best=2", "give one of the two")):
        assert message in command("report", wrong, cwd=tmp_path, status=2).stderr
