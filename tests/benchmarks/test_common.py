"""The harness of the benchmarks: figures in, medians and ratios out, failures named."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import common
from instruct_lit.accel import compat_torch


def rounds(*speeds: float, peak: float = 1e9) -> list[dict[str, float]]:
    return [{"examples_per_s": speed, "peak_bytes": peak} for speed in speeds]


def test_table_compares_medians_with_the_fastest_of_each_group(capsys: pytest.CaptureFixture[str]) -> None:
    results = {
        "chapter 7": rounds(1.0, 3.0, 2.0, peak=4e9),
        "trl a": rounds(3.0),
        "trl b": rounds(4.0),
        "litgpt": [{"error": "not installed: 'litgpt'"}],
        "ours": rounds(12.0, 7.0, 8.0, peak=2e9),
    }
    summary = common.table(
        "t", results, "examples_per_s", {"chapter 7": ["chapter 7"], "TRL's best": ["trl a", "trl b", "trl c"]}
    )
    ours = summary["ours"]
    assert (ours["median"], ours["min"], ours["max"]) == (8.0, 7.0, 12.0)
    assert ours["ratios"] == {"chapter 7": 4.0, "TRL's best": 2.0}
    assert ours["peak_ratio"] == 0.5
    assert summary["litgpt"] == {"error": "not installed: 'litgpt'"}
    out = capsys.readouterr().out
    assert "7.00–12.00" in out
    assert "litgpt: not installed: 'litgpt'" in out


def test_a_figure_is_handed_over_and_a_missing_package_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    common.report({"examples_per_s": 2.5})
    assert common._result(0, "noise\n" + capsys.readouterr().out, "") == {"examples_per_s": 2.5}
    missing = "Traceback …\nModuleNotFoundError: No module named 'trl'\n"
    assert common._result(1, "", missing) == {"error": "not installed: 'trl'"}
    assert common._result(1, "RESULT {}", "Traceback …\nMemoryError: too much") == {"error": "MemoryError: too much"}
    killed = common._result(-9, "", "preparing: 100%")
    assert killed == {"error": "killed, as the system does where memory runs out"}
    assert common._result(0, "", "") == {"error": "no output"}


def test_what_is_measured_is_told_by_options_and_by_the_shape_of_a_model() -> None:
    given = Namespace(batch_size=8, data=Path("a.json"), ch07=None)
    assert common.passed_on(given, "data", "batch_size", "ch07") == ["--data=a.json", "--batch-size=8"]
    model = common.random_gpt("nano", context_length=32)
    assert (model.config.n_layers, model.config.n_heads, model.config.d_model) == common.shape_of("nano")
    assert model.config.context_length == 32


def test_systems_take_turns_and_a_failed_one_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake.py").write_text(
        "import sys, json\n"
        "name = sys.argv[sys.argv.index('--system') + 1]\n"
        "open('order.txt', 'a').write(name + '\\n')\n"
        "assert name != 'broken', 'broken it is'\n"
        "print('RESULT ' + json.dumps({'speed': len(sys.argv)}))\n"
    )
    monkeypatch.chdir(tmp_path)
    results = common.alternate("fake", ["a", "broken", "b"], ["--x=1"], 2, {"b": sys.executable})
    assert (tmp_path / "order.txt").read_text().split() == ["a", "broken", "b", "a", "b"]
    assert results == {
        "a": [{"speed": 4}] * 2,
        "broken": [{"error": "AssertionError: broken it is"}],
        "b": [{"speed": 4}] * 2,
    }


def test_the_clock_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 14.0])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(now))
    calls: list[int] = []
    assert common.timed(lambda: calls.append(1), 2, 3, "cpu") == 4.0
    assert len(calls) == 5


def test_json_tells_the_machine_and_the_command(tmp_path: Path) -> None:
    common.write_json(tmp_path / "deep" / "x.json", {"summary": {"a": 1}})
    written = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert written["summary"] == {"a": 1}
    assert {"processor", "torch", "n_threads"} <= set(written["machine"])


def test_rows_in_a_precision_that_the_processor_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["chapter 7", "trl fp32", "trl bf16 packed", "ours packed+prefix bf16"]
    monkeypatch.setattr(compat_torch, "has_bf16_products", lambda: False)
    assert common.precisions("cpu") == ["fp32"] and common.without_slow(names, "cpu") == names[:2]
    assert common.without_slow(names, "cuda") == names
    monkeypatch.setattr(compat_torch, "has_bf16_products", lambda: True)
    assert common.without_slow(names, "cpu") == names
