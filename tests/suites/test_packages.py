"""Files of benchmark packages: win rates with unparsed verdicts, reference responses, HELM's scenarios."""

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instruct_lit.errors import DataError
from instruct_lit.suites import alpaca_eval, helm, openai_evals
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.hub_files import read_rows
from instruct_lit.suites.judged_answers import check_judge
from instruct_lit.suites.suite import BenchmarkError, RunRequest, Suite


def request_of(folder: Path, data_dir: Path | None = None, **options: Any) -> RunRequest:
    return RunRequest(Suite("x", [], options=options), data_dir, folder / "cache", folder, folder / "log")


def test_unparsed_verdicts_stay_in_the_denominator() -> None:
    result = {"win_rate": 75.0, "standard_error": 10.0, "n_total": 8, "avg_length": 40}
    figure = alpaca_eval._figure(result, 10)
    assert figure.value == pytest.approx((0.75 * 8 + 0.5 * 2) / 10) and figure.n == 10
    assert figure.others["n_unread_verdicts"] == 2 and figure.stderr == pytest.approx(0.1)
    assert "length_controlled_win_rate" not in figure.others
    assert (
        alpaca_eval._figure({**result, "length_controlled_winrate": 60.0}, 10).others["length_controlled_win_rate"]
        == 0.6
    )


def test_references_come_from_a_file_or_the_folder(tmp_path: Path) -> None:
    place = tmp_path / "hub" / "tatsu-lab" / "alpaca_eval"
    place.mkdir(parents=True)
    with pytest.raises(BenchmarkError, match=r"alpaca_eval.json: no such file; .* suite.options.references=<file with"):
        alpaca_eval.read_references(request_of(tmp_path, tmp_path / "hub"))
    (place / "alpaca_eval.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    assert alpaca_eval.read_references(request_of(tmp_path, tmp_path / "hub"))[0]["generator"] == "reference"
    with pytest.raises(BenchmarkError, match=r"suite.options.references=.*none.json: no such file"):
        alpaca_eval.read_references(request_of(tmp_path, references=str(tmp_path / "none.json")))
    (tmp_path / "mine.json").write_text('[{"instruction": "a"}]')
    with pytest.raises(BenchmarkError, match=r"mine.json.*: not a record of mine.json \(KeyError: 'output'\)"):
        alpaca_eval.read_references(request_of(tmp_path, references=str(tmp_path / "mine.json")))
    (tmp_path / "cut.json").write_text('[{"instruction": "a", "output": "b"}, {"instr')
    with pytest.raises(DataError, match=r"cut.json.*: invalid JSON \(Unterminated string"):
        alpaca_eval.read_references(request_of(tmp_path, references=str(tmp_path / "cut.json")))


def test_a_line_that_is_cut_off_is_named_as_that(tmp_path: Path) -> None:
    file = tmp_path / "question.jsonl"
    file.write_text('{"a": 1}\n{"a": "wor')
    with pytest.raises(DataError, match=r"question.jsonl, line 2: invalid JSON \(Unterminated string"):
        read_rows(file, lambda record: record["a"])


def test_the_table_of_lengths_comes_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tatsu-lab" / "alpaca_eval"
    place.mkdir(parents=True)
    with pytest.raises(
        BenchmarkError, match=r"df_gamed.csv: no such file; .* or give suite.options.length_controlled=f"
    ):
        alpaca_eval.length_table(request_of(tmp_path, tmp_path))
    (place / "df_gamed.csv").write_text("model,index,preference\n")
    with pytest.raises(BenchmarkError, match=r"no column instruction_difficulty, not_gamed_baseline, std_delta_len"):
        alpaca_eval.length_table(request_of(tmp_path, tmp_path))
    (place / "df_gamed.csv").write_text(",".join(alpaca_eval.COLUMNS) + "\n")
    assert alpaca_eval.length_table(request_of(tmp_path, tmp_path)) == place / "df_gamed.csv"
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    message = (
        r"df_gamed.csv of .* cannot be downloaded .*\(OSError\); give benchmark.data_dir=<folder with tatsu-lab/alpaca_"
    )
    with pytest.raises(BenchmarkError, match=message):
        alpaca_eval.length_table(request_of(tmp_path))


def test_a_judge_is_needed(tmp_path: Path, evaluated: EvaluatedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BenchmarkError, match=r"it needs a judge; set OPENAI_API_KEY, or give suite.options.judge_url="):
        alpaca_eval.run(evaluated, request_of(tmp_path))
    with pytest.raises(BenchmarkError, match="judge_url requires suite.options.judge_model=<name>"):
        openai_evals.run(evaluated, request_of(tmp_path, judge_url="http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (
            (401, {}, b'{"error": {"message": "no"}}'),
            r"suite=x: suite.options.judge_url=.*the key is refused .*OPENAI_API_KEY",
        ),
        ((200, {"content-type": "text/html"}, b"<html>"), r"judge_url=.*the answer is not JSON"),
    ],
)
def test_a_bad_judge_is_reported_before_the_work(judge_server: Callable, listing: tuple, message: str) -> None:
    pytest.importorskip("openai")
    judge = judge_server(lambda n, body: "m")
    judge.listing = listing
    with pytest.raises(BenchmarkError, match=message):
        check_judge("x", judge.url, "small")
    assert judge.requests == []


def test_an_unreachable_judge(judge_server: Callable) -> None:
    pytest.importorskip("openai")
    judge = judge_server(lambda n, body: "m")
    check_judge("x", judge.url, "small")
    judge.close()
    with pytest.raises(
        BenchmarkError, match=r"suite=x: suite.options.judge_url=.*cannot be reached.*is the server running"
    ):
        check_judge("x", judge.url, "small")


def test_accuracy_in_a_record_of_openai_evals(tmp_path: Path) -> None:
    record = tmp_path / "r.jsonl"
    lines = [
        {"spec": {}},
        {"sample_id": "a.0", "type": "match"},
        {"sample_id": "a.0", "type": "sampling"},
        {"sample_id": "a.1", "type": "match"},
        {"final_report": {"accuracy": 0.5, "boostrap_std": 0.25, "usage_total_tokens": 9}},
    ]
    record.write_text("\n".join(map(json.dumps, lines)))
    figure = openai_evals._figure(record, "a")
    assert (figure.metric, figure.value, figure.stderr, figure.n, figure.others) == ("accuracy", 0.5, 0.25, 2, {})
    record.write_text(json.dumps(lines[0]))
    with pytest.raises(BenchmarkError, match="a wrote no report"):
        openai_evals._figure(record, "a")
    record.write_text('{"spec": {}}\n{"final_rep')
    for read in (lambda: openai_evals._figure(record, "a"), lambda: openai_evals.items_of(tmp_path, "r", "accuracy")):
        with pytest.raises(DataError, match=r"r.jsonl, line 2: invalid JSON"):
            read()


@pytest.mark.parametrize(
    ("report", "metric", "value", "others"),
    [
        (
            {"counts/Y": 1, "counts/__invalid__": 1, "score": 0.5},
            "score", 0.5, {"share/Y": 0.5, "graded": 0.5, "n_unread_verdicts": 1},
        ),
        ({"counts/C": 1, "counts/A": 1}, "graded", 1.0, {"share/A": 0.5, "share/C": 0.5, "n_unread_verdicts": 0}),
    ],
)  # fmt: skip
def test_grades_in_a_record_of_openai_evals(
    tmp_path: Path, report: dict, metric: str, value: float, others: dict
) -> None:
    record = tmp_path / "r.jsonl"
    lines = [{"sample_id": "a.0", "type": "metrics"}, {"sample_id": "a.1", "type": "metrics"}, {"final_report": report}]
    record.write_text("\n".join(map(json.dumps, lines)))
    figure = openai_evals._figure(record, "a")
    assert (figure.metric, figure.value, figure.n, figure.others) == (metric, value, 2, others)


def test_model_graded_evals_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "evals").mkdir()
    graded = "poem:\n  id: poem.v0\npoem.v0:\n  class: evals.elsuite.modelgraded.classify:ModelBasedClassify\n"
    (tmp_path / "evals" / "poem.yaml").write_text(graded)
    (tmp_path / "evals" / "sum.yaml").write_text(
        "sum:\n  id: sum.v0\nsum.v0:\n  class: evals.elsuite.basic.match:Match\n"
    )
    assert openai_evals.is_graded("poem", [tmp_path])
    assert not openai_evals.is_graded("sum", [tmp_path]) and not openai_evals.is_graded("none", [tmp_path])


def test_mmlu_is_converted_for_helm(tmp_path: Path, hub: Path) -> None:
    helm._place_mmlu(hub / "cais" / "mmlu", tmp_path)
    assert len(list((tmp_path / "test").glob("*.csv"))) == 57
    with (tmp_path / "dev" / "anatomy_dev.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    with (hub.parent / "mmlu" / "dev" / "anatomy_dev.csv").open(newline="") as file:
        assert rows == list(csv.reader(file))


def test_files_of_other_scenarios_are_placed_as_helm_has_them(tmp_path: Path) -> None:
    (tmp_path / "data" / "helm" / "gsm").mkdir(parents=True)
    (tmp_path / "data" / "helm" / "gsm" / "gsm_data_test").write_text("{}")
    for _ in range(2):  # a second run finds them there
        helm._place(tmp_path / "data", tmp_path / "scenarios")
    assert (tmp_path / "scenarios" / "gsm" / "gsm_data_test").read_text() == "{}"


def test_runs_of_an_earlier_call_in_the_folder_are_no_figures_of_helm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "benchmark_output" / "runs" / "instruct-lit"

    def program(*arguments: Any) -> None:
        (runs / "gsm:model=x").mkdir(parents=True)
        (runs / "gsm:model=x" / "stats.json").touch()

    (runs / "mmlu:subject=anatomy").mkdir(parents=True)
    (runs / "mmlu:subject=anatomy" / "stats.json").touch()
    monkeypatch.setattr(helm, "ENVIRONMENT", SimpleNamespace(python=lambda *_: Path("python")))
    monkeypatch.setattr(helm, "Endpoint", lambda _: nullcontext(SimpleNamespace(url="http://h/v1")))
    monkeypatch.setattr(helm, "_describe", lambda *_: None)
    monkeypatch.setattr(helm, "run_in", program)
    monkeypatch.setattr(helm, "_figure", lambda file: file)
    request = RunRequest(Suite("helm", ["gsm"]), None, tmp_path, tmp_path, tmp_path / "log")
    assert list(helm.run(SimpleNamespace(max_rows=1), request)) == ["gsm"]  # type: ignore[arg-type]


def test_run_entries_of_helm() -> None:
    assert helm.entry_of("gsm") == helm.entry_of("gsm:") == "gsm:model=local/instruct-lit"
    assert helm.entry_of("mmlu:subject=anatomy") == "mmlu:subject=anatomy,model=local/instruct-lit"


def test_names_of_helm_runs() -> None:
    assert helm.name_of("mmlu:subject=anatomy,method=multiple_choice_joint,model=local_x") == "mmlu:subject=anatomy"
    assert helm.name_of("gsm:model=local_x") == "gsm"


def test_transformers_opens_the_tokenizer_that_helm_gets(tmp_path: Path, evaluated: EvaluatedModel) -> None:
    transformers = pytest.importorskip("transformers")
    helm._describe(evaluated, "http://127.0.0.1:1/v1", tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert theirs("Hello, world!")["input_ids"] == evaluated.tokenizer.encode("Hello, world!")
    (deployment,) = json.loads((tmp_path / "model_deployments.yaml").read_text())["model_deployments"]
    assert deployment["max_sequence_length"] == 512
