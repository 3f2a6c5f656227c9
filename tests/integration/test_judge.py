"""The evaluate command with a judge on this machine: scores, confirmation, comparison, calibration, resumption."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_lit.config.check_commands import check_command
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.answer_files import read_responses
from tests.configs import composed

pytest.importorskip("openai")
RECORDS = [
    {"instruction": f"Say {n}.", "input": "", "output": f"word {n}", "answer": f"word {n % 3}", "other": f"word {n}"}
    for n in range(6)
]
KEY = "sk-very-secret"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "answers.json").write_text(json.dumps([{**r, "response": r["answer"]} for r in RECORDS]))
    (tmp_path / "others.json").write_text(json.dumps([{**r, "response": r["other"]} for r in RECORDS]))
    return tmp_path


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def found_in(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def fair(n: int, body: dict) -> str:
    """100 for the wanted answer, 10 for another one; in one case nothing that can be read."""
    asked = body["messages"][0]["content"]
    if "word 4" in asked:
        return "Hm."
    blocks = [line for line in asked.splitlines() if line.startswith("word ")]
    return json.dumps({"score": 100 if blocks[0] == blocks[1] else 10})


def test_scores_with_the_unparsed_counted(judge_server: Callable, folder: Path, command: Callable, key: None) -> None:
    server = judge_server(fair)
    judge = ["judge=openai", f"judge.url={server.url}", "judge.model=small", "judge.n_asks=2"]
    common = ["responses=answers.json", *judge, "judge.usd_per_million_tokens=[1000,1000]"]
    refused = command("evaluate", *common, "hydra.run.dir=first", cwd=folder, status=2)
    assert "judge.confirmed=false: nothing was asked" in refused.stderr and "US dollars" in refused.stderr
    assert server.requests == [] and found_in(folder / "first")["metrics"]["exact_match"]["mean"] == 0.5
    (folder / "theirs.json").write_text("[90, 90, 100, 0, 10, 5]")
    done = command(
        "evaluate", *common, "judge.confirmed=true", "judge.calibrate=theirs.json", "hydra.run.dir=second", cwd=folder
    )
    found = found_in(folder / "second")["judge"]
    # 0, 1, 2 are right, 3 and 5 wrong, 4 cannot be read.
    assert found["score"]["mean"] == pytest.approx((3 * 100 + 2 * 10 + 0) / 6) and found["n_unparsed"] == 1
    assert found["n_requests"] == 7 and found["usd"] == pytest.approx(7 * 13 * 1e-3)
    assert found["agreement"]["n"] == 5 and found["agreement"]["pearson"] > 0.9
    assert "1 of 6 verdicts could not be parsed" in done.stdout and "pearson" in done.stdout
    page = (folder / "second" / "report.html").read_text()
    assert (
        page.index("Say 4.") < page.index("Say 3.") < page.index("Say 0.")
    )  # the unread one first, then the wrong ones
    again = command("evaluate", *common, "hydra.run.dir=third", cwd=folder)  # all in the cache: nothing to confirm
    assert "all answered in the cache" in again.stderr and len(server.requests) == 7
    assert found_in(folder / "third")["judge"]["score"] == found["score"]
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("what", "figures", "score", "n_verdicts"),
    [
        (["responses=answers.json"], "judge", "score", 6),
        pytest.param(["compare=[others.json,answers.json]"], "pairwise", "win_rate", 6, marks=pytest.mark.slow),
    ],
)
def test_an_unreadable_judge_has_not_judged_and_everything_is_kept(
    judge_server: Callable, folder: Path, command: Callable, what: list[str], figures: str, score: str, n_verdicts: int
) -> None:
    server = judge_server(lambda n, body: "It is good.")
    judge = ["judge=ollama", f"judge.url={server.url}", "judge.model=small", "judge.n_asks=1"]
    done = command("evaluate", *what, *judge, "hydra.run.dir=out", cwd=folder, status=2)
    found = found_in(folder / "out")[figures]
    assert found[score] is None and found["n_unparsed"] == n_verdicts, found
    assert f"not judged: {n_verdicts} of {n_verdicts} verdicts could not be parsed" in done.stderr
    assert f"not judged, {n_verdicts} of" in (folder / "out" / "report.html").read_text()
    assert "It is good." in (folder / "out" / "responses.jsonl").read_text()


def test_too_few_common_examples_are_refused(folder: Path, command: Callable) -> None:
    others = json.loads((folder / "others.json").read_text())
    (folder / "one.json").write_text(json.dumps(others[:1]))
    done = command("evaluate", "compare=[others.json,one.json]", cwd=folder, status=2)
    assert "compare: 1 examples in common, at least 2 are needed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_comparison_in_both_orders(judge_server: Callable, folder: Path, command: Callable) -> None:
    def first_shown(n: int, body: dict) -> str:
        return '{"better": "A"}'

    server = judge_server(first_shown)
    judge = ["judge=ollama", f"judge.url={server.url}", "judge.model=small"]
    done = command("evaluate", "compare=[others.json,answers.json]", *judge, "hydra.run.dir=out", cwd=folder)
    found = found_in(folder / "out")
    pairwise = found["pairwise"]
    # A judge that always takes the first: three pairs differ and turn, three are equal and ties.
    assert (
        pairwise["win_rate"]["mean"] == 0.5
        and pairwise["turned"] == 3
        and pairwise["first_shown"] == 1
        and pairwise["p"] == 1
    )
    assert found["differences"]["exact_match"]["mean"] == 0.5 and found["n_pairs"] == 6
    assert "the difference from 50 % is not significant" in done.stdout
    assert "answer_a" not in (folder / "out" / "report.html").read_text()

    def by_truth(n: int, body: dict) -> str:
        lines = [line for line in body["messages"][0]["content"].splitlines() if line.startswith("word ")]
        return json.dumps({"better": "A" if lines[1] == lines[0] else "B"})

    server.behave = by_truth
    command("evaluate", "compare=[others.json,answers.json]", *judge, "judge.seed=1", "hydra.run.dir=fair", cwd=folder)
    pairwise = found_in(folder / "fair")["pairwise"]
    assert pairwise["win_rate"]["mean"] == 0.75 and (pairwise["wins"], pairwise["losses"], pairwise["turned"]) == (
        3,
        0,
        0,
    )


@pytest.mark.slow
def test_a_side_without_data_is_refused_before_the_other_answers(
    small_run: Path, folder: Path, command: Callable
) -> None:
    shutil.copytree(small_run / "bundle", folder / "copy")
    done = command("evaluate", f"compare=[{small_run},copy]", "hydra.run.dir=out", cwd=folder, status=2)
    assert "error: run=copy: not in a run folder, so give the data" in done.stderr and "responses to" not in done.stdout


@pytest.mark.slow
def test_a_comparison_of_two_models(small_run: Path, folder: Path, command: Callable) -> None:
    shutil.copytree(small_run, folder / "copy")  # the same model once more
    command(
        "evaluate",
        f"compare=[{small_run},copy]",
        "generation.max_new_tokens=4",
        "hydra.run.dir=out",
        cwd=folder,
    )
    found = found_in(folder / "out")
    assert found["n_pairs"] == 10 and found["differences"]["distinct_2"]["mean"] == 0
    assert found["differences"]["distinct_2"]["p"] == 1


def test_leaks_are_reported_before_the_scores(folder: Path, command: Callable) -> None:
    (folder / "train.json").write_text(json.dumps(RECORDS[:2]))
    done = command("evaluate", "responses=answers.json", "leaks.train=train.json", "hydra.run.dir=out", cwd=folder)
    found = found_in(folder / "out")["leaks"]
    assert found["n"] == 2 and [item["kind"] for item in found["items"]] == ["exact", "exact"]
    assert found["metrics_without"]["exact_match"]["mean"] == 0.25 and found["metrics_without"]["exact_match"]["n"] == 4
    assert done.stdout.index("2 of 6 examples are in the training data or close to it (exact 2)") < done.stdout.index(
        "95 % interval"
    )
    assert "exact (1.00): Say 1." in done.stdout and "without leaks" in done.stdout
    assert [item["text"] for item in found["items"]] == ["Say 0.", "Say 1."]
    assert "in the training data: exact" in (folder / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judge=ollama", "judge.url=http://127.0.0.1:9", "judge.n_retries=0"], "judge.url=http://127.0.0.1:9: cannot be reached"),
        (["judge=scores", "judge.path=short.json"], "judge.path=short.json: 1 scores for 6 responses"),
    ],
)  # fmt: skip
def test_an_unusable_judge_is_one_message(overrides: list[str], message: str, folder: Path, command: Callable) -> None:
    (folder / "short.json").write_text("[1]")
    done = command("evaluate", "responses=answers.json", *overrides, cwd=folder, status=2)
    assert message in done.stderr and done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_key_in_the_wrong_place_is_not_written(folder: Path, command: Callable) -> None:
    wrong = ["judge=openai", f"judge.api_key_env={KEY}", f"judge.url=http://me:{KEY}@host/v1"]
    wrong += [f"judge.panel=[{{api_key_env: {KEY}}}]"]
    done = command("evaluate", "responses=answers.json", *wrong, "hydra.run.dir=out", cwd=folder, status=2)
    assert "never the key itself" in done.stderr and KEY not in done.stderr + done.stdout
    written = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert written and all(KEY not in path.read_text() for path in written)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judge=openai"], "judge.api_key_env=OPENAI_API_KEY: no such environment variable"),
        (["judge=openai", "judge.api_key_env=sk-123"], "judge.api_key_env=***: give the name of an environment variable"),
        (["judge=ollama", "judge.url=http://me:secret@host"], "judge.url=http://***@host: give http://… or https://… without a name"),
        (["judge=ollama", "judge.url=http://me:se/cret:secret@host"], "judge.url=http://***@host: give"),
        (["judge=ollama", "judge.name=oracle"], "judge.name=oracle: allowed are openai, ollama, local, scores"),
        (["judge=ollama", "judge.n_retries=-1"], "judge.n_retries=-1: must be at least 0"),
        (["judge=ollama", "judge.timeout_s=0"], "judge.timeout_s=0.0: must be above 0"),
        (["judge=ollama", "judge.scale=[5,1]"], "judge.scale=[5, 1]: give two integers"),
        (["judge=ollama", "judge.prompt=nowhere"], "judge.prompt=nowhere: no such prompt and no readable file; prompts are open_ended, pairwise, reference, rubric"),
        (["judge=ollama", "judge.calibrate=nowhere.json"], "judge.calibrate=nowhere.json: no such file"),
        (["judge=ollama", "judge.n_asks=0"], "judge.n_asks=0: must be at least 1"),
        (["judge=ollama", "judge.usd_per_million_tokens=[1]"], "judge.usd_per_million_tokens=[1.0]: give two prices"),
        (["judge=local", "judge.model=x", "judge.explain=true"], "judge.explain=true: a local judge is constrained to the bare score"),
        (["judge=scores", "judge.path=nowhere"], "judge.path=nowhere: no such file"),
        (["judge=ollama", "judge.panel=[{modle: x}]"], "judge.panel[0]: modle cannot differ; give a mapping such as {model: qwen}"),
        (["judge=ollama", "judge.panel=[{seed: many}]"], "judge.panel[0]: Value 'many'"),
        (["judge=ollama", "judge.panel=[{n_concurrent: 2}]"], "judge.panel[0]: the same judge as judge, so its vote would count twice"),
        (["judge=ollama", "judge.panel=[{seed: 1},{model: x},{model: x, n_asks: 9}]"], "judge.panel[2]: the same judge as judge.panel[1]"),
        (["judge=ollama", "judge.url=http://a:1", "judge.panel=[{url: 'http://a:1/', gguf_file: x}]"], "judge.panel[0]: the same judge as judge"),
        (["judge=local", "judge.model=a/../b", "judge.panel=[{model: b, seed: 3}]"], "judge.panel[0]: the same judge as judge"),
        (["responses=null", "compare=[answers.json,others.json]", "judge=ollama", "judge.audit=3"], "judge.audit=3: for the scores of one model"),
        (["run=nowhere"], "give exactly one of the three"),
        (["responses=null", "compare=[answers.json]"], "compare=[answers.json]: give two or more"),
        (["responses=null", "compare=[answers.json,nowhere]"], "compare=nowhere: no such file or folder"),
        (["responses=null", "compare=[answers.json,others.json]", "judge=scores", "judge.path=answers.json"], "judge=scores: cannot compare models"),
        (["leaks.train=nowhere.json"], "leaks.train=nowhere.json: no such file"),
        (["metrics=[ended]"], "metrics=[ended]: give at least one besides ended"),
        (["forgetting.suite=ifeval"], "forgetting.suite=ifeval: it is answered by one model and its base; give one run"),
        (["forgetting.limit=3"], "forgetting.limit=3: it is for forgetting.suite=<name>"),
        (["forgetting.suite=x", "forgetting.enabled=false"], "forgetting.enabled=false: leave out forgetting.suite as well"),
    ],
)  # fmt: skip
def test_impossible_values_are_reported_before_any_work(
    overrides: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = composed("evaluate", "responses=answers.json", *overrides)
    with pytest.raises(ConfigError) as told:
        check_command("evaluate", config)
    assert message in str(told.value) and "sk-123" not in str(told.value) and "secret" not in str(told.value)


@pytest.mark.parametrize("judge", ["openai", "ollama", "local", "scores"])
def test_every_judge_composes(judge: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    needs = {"local": ["judge.model=."], "scores": ["judge.path=answers.json"]}.get(judge, [])
    panel = ["judge.panel=[{n_ctx: 1024}]"] if judge == "ollama" else []  # another judge
    config = composed("evaluate", "responses=answers.json", f"judge={judge}", *needs, *panel)
    check_command("evaluate", config)
    assert config.judge.name == judge


def test_three_models_in_one_table_with_a_judge(judge_server: Callable, folder: Path, command: Callable) -> None:
    (folder / "bad.json").write_text(json.dumps([{**r, "response": "word x"} for r in RECORDS]))
    server = judge_server(fair)
    judge = ["judge=ollama", f"judge.url={server.url}", "judge.model=small", "judge.n_asks=1"]
    files = "compare=[answers.json,others.json,bad.json]"
    done = command("evaluate", files, *judge, "metrics=[exact_match]", "format=csv", "hydra.run.dir=out", cwd=folder)
    found = found_in(folder / "out")
    assert found["models"] == {name: name for name in ("answers.json", "others.json", "bad.json")}
    scores = {model: value["mean"] for model, value in found["comparison"]["judge"]["models"].items()}
    assert scores["others.json"] == pytest.approx(500 / 6) and scores["bad.json"] == pytest.approx(50 / 6)
    assert len(found["comparison"]["exact_match"]["pairs"]) == 3 and found["judge"]["n_verdicts"] == 18
    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert rows[0] == ["metric", "model", "mean", "low", "high", "n", "best_rank", "worst_rank"] and len(rows) == 7
    assert "p-values are corrected for the number of pairs (Holm)" in done.stderr
    page = (folder / "out" / "report.html").read_text()
    assert "Comparison of 3 models" in page and page.count("word x") == 6


@pytest.mark.slow
def test_a_panel_and_an_audit(judge_server: Callable, folder: Path, command: Callable) -> None:
    scores = {"harsh": 20, "mild": 60}
    server = judge_server(lambda n, body: json.dumps({"score": scores[body["model"]]}))
    judge = ["judge=openai", f"judge.url={server.url}", "judge.model=harsh", "judge.api_key_env=null"]
    judge += ["judge.paid=false", "judge.panel=[{model: mild},{model: mild, seed: 1}]", "judge.audit=2"]
    done = command("evaluate", "responses=answers.json", *judge, "hydra.run.dir=out", cwd=folder)
    found = found_in(folder / "out")["judge"]
    assert found["model"] == "harsh, mild, mild" and found["score"] is not None and len(server.requests) == 18
    assert "harsh: 20.00" in done.stdout and "instruct_lit.review run=" in done.stderr
    assert len(read_responses(folder / "out" / "audit.jsonl", "response", keep=("judge",))) == 2
