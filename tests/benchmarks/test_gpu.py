"""The rows of the GPU's table: bounded, written at once, and summed up; the models and records they need."""

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu


def test_a_row_is_ended_with_all_it_started_and_its_last_line_is_kept(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    start = time.monotonic()
    result = gpu.run(gpu.Row("slow", [sys.executable, "-c", child]), 0.5, tmp_path / "log")
    assert time.monotonic() - start < 10
    assert result["status"] == "stopped after 0 s" and result["last_line"] in ("begun", "no output")
    hanging = "import time; print('RESULT {\"tokens_per_s\": 7}', flush=True); time.sleep(60)"
    result = gpu.run(gpu.Row("hangs at its end", [sys.executable, "-c", hanging]), 30, tmp_path / "log")
    assert (result["status"], result["tokens_per_s"]) == ("done", 7) and time.monotonic() - start < 10
    failing = gpu.run(gpu.Row("bad", [sys.executable, "-c", "raise SystemExit('no such row')"]), 30, tmp_path / "log")
    assert (failing["status"], failing["last_line"]) == ("exit status 1", "no such row")


def test_results_are_a_table_with_what_was_not_reached(tmp_path: Path) -> None:
    rows = [
        {"row": "a", "status": "done", "seconds": 9.0, "examples_per_s": 1234.5, "peak_bytes": 2e9, "target": "≥ 1"},
        {"row": "b", "status": "done", "seconds": 3.0, "tokens_per_s": 20000.0, "target": ""},
        {"row": "c", "status": "not reached", "target": ""},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = gpu.summary(tmp_path)
    assert "| a | 1,234.5 examples/s | 2.0 | 9.0 | ≥ 1 |" in table and "| b | 20,000.0 tokens/s |" in table
    assert "| c | not reached |" in table


def test_the_first_row_has_every_test_that_needs_a_gpu() -> None:
    files = [*gpu.ROOT.glob("tests/*/*.py"), *gpu.ROOT.glob("tests/core/*/*.py")]
    marked = {str(f.relative_to(gpu.ROOT)) for f in files if "pytest.mark.gpu" in f.read_text(encoding="utf-8")}
    assert marked - {"tests/benchmarks/test_gpu.py"} == set(gpu.TESTS)


def test_rows_name_models_and_records_that_are_made(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    gpu.prepare(tmp_path, True, tmp_path / "none.json", tmp_path / "none.json")
    rows = list(gpu.rows("cpu", tmp_path))
    assert len({row.name for row in rows}) == len(rows) > 20
    for row in rows:
        for word in row.command:
            path = Path(word.rpartition("=")[2].removeprefix("hf:"))
            if path.is_relative_to(tmp_path) and path.name != "cache":
                assert path.is_file() or ((path / "config.json").is_file() and (path / "tokenizer.json").is_file()), (
                    word
                )
    assert len(json.loads((tmp_path / "answers.json").read_text())) >= 1045
