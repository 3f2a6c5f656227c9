"""The benchmark command end to end on real items, offline."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from instruct_lit.benchmark import benchmark
from instruct_lit.config import benchmark_builders
from instruct_lit.config.check_commands import check_command, forget_secrets
from instruct_lit.config.compose import CONF
from instruct_lit.config.forgetting_builders import ForgettingProbe
from instruct_lit.config.model_builders import labels_of, open_model
from instruct_lit.core.bundle import save_bundle
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError
from instruct_lit.suites.suite import BenchmarkError
from tests.configs import composed
from tests.suites.literal_items import LITERAL, arc, literal_hub

GREEDY = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
Run = Callable[..., dict]


def bundle(folder: Path, seed: int) -> Path:
    model = GPT(GPTConfig(context_length=640, d_model=32, n_layers=1, n_heads=2))
    model.init_weights(seed)
    template = Template("short", "### Instruction:\n{{ instruction }}\n\n### Response:\n{{ response }}")
    save_bundle(folder / "bundle", model, GPT2Tokenizer(), template, GREEDY, {})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [bundle(folder / "first", 0), bundle(folder / "second", 1)]


def composed_into(out: Path, *overrides: str) -> object:
    places = (f"hydra.runtime.output_dir={out}", f"paths.cache={out / 'cache'}")
    config = composed("benchmark", *overrides, *places, hydra=True)
    HydraConfig.instance().set_config(config)
    return config


@pytest.fixture
def run(runs: list[Path], shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, offline, on the first run folder where no other is named; its file comes back."""
    pytest.importorskip("lm_eval")
    # The variables were read when the libraries were imported, perhaps by a test before; offline nothing is asked twice.
    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*overrides: str) -> dict:
        given = [] if any(o.startswith("run=") for o in overrides) else [f"run={runs[0]}"]
        hub = [] if any("data_dir" in o for o in overrides) else [f"benchmark.data_dir={shared_data / 'hub'}"]
        score = benchmark(composed_into(tmp_path, *overrides, *given, *hub))
        written = json.loads((tmp_path / "benchmark.json").read_text())
        first = written["runs"][0]
        figures = [first["score"], *first["tasks"].values()]  # unlike metrics have no mean
        assert next(figure["value"] for figure in figures if figure["value"] is not None) == score
        return written

    return call


@pytest.mark.slow
def test_mmlu_with_five_shots_over_two_runs(
    run: Run, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = run(
        "suite=mmlu", "suite.tasks=[mmlu_anatomy,mmlu_virology]", f"run=[{runs[0]},{runs[1]}]", "benchmark.limit=4",
    )  # fmt: skip
    assert [(r["label"], r["template"]) for r in written["runs"]] == [
        ("first", "on"), ("first", "off"), ("second", "on"), ("second", "off"),
    ]  # fmt: skip
    for report in written["runs"]:
        anatomy = report["tasks"]["mmlu_anatomy"]
        assert (anatomy["metric"], anatomy["n"], anatomy["n_shot"], anatomy["chance"]) == ("acc", 4, 5, 0.25)
        assert anatomy["value"] in (0, 0.25, 0.5, 0.75, 1) and anatomy["stderr"] >= 0
        assert report["score"]["n"] == 8 and report["groups"]["stem"]["n"] == 4
    shown = capsys.readouterr().out
    assert "second, template off" in shown and "chance, majority" in shown and "mmlu_virology, 5-shot" in shown
    samples = tmp_path / "1-first-off" / "samples_mmlu_anatomy.jsonl"
    assert len(samples.read_text().splitlines()) == 4
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["arguments"][0][0].count("Answer:") == 6 and first["resps"]  # five shots and the question
    assert "Running loglikelihood requests" in (tmp_path / "harness.log").read_text()
    assert "Running loglikelihood" not in shown


@pytest.mark.slow
def test_squad_writes_answers(run: Run) -> None:
    written = run("suite=squad", "benchmark.limit=4", "benchmark.template=on")
    (report,) = written["runs"]
    figure = report["tasks"]["squad_v1"]
    assert figure["metric"] == "f1" and figure["n"] == 4 and "exact_match" in figure["others"] and figure["chance"] == 0


@pytest.mark.slow
def test_triviaqa_with_shots_of_its_own(run: Run) -> None:
    written = run("suite=triviaqa", "benchmark.limit=4", "benchmark.n_shot=1", "benchmark.template=off")
    figure = written["runs"][0]["tasks"]["triviaqa"]
    assert (figure["metric"], figure["n"], figure["n_shot"]) == ("exact_match", 4, 1)


def test_mt_bench_with_a_judge(
    run: Run, judge_server: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    place = tmp_path / "hub" / "HuggingFaceH4" / "mt_bench_prompts" / "raw"
    place.mkdir(parents=True)
    question = {
        "question_id": 1,
        "category": "math",
        "turns": ["What is 3 + 4?", "Double it."],
        "reference": ["7", "14"],
    }
    (place / "question.jsonl").write_text(json.dumps(question) + "\n")
    server = judge_server(lambda n, body: '{"score": 3}')
    judge = [
        "judge=openai",
        f"judge.url={server.url}",
        "judge.model=small",
        "judge.api_key_env=null",
        "judge.paid=false",
    ]
    written = run(
        "suite=mt_bench", *judge, "benchmark.template=on", "suite.options.max_new_tokens=4",
        f"benchmark.data_dir={tmp_path / 'hub'}",
    )  # fmt: skip
    assert written["runs"][0]["score"]["value"] == 3 and len(server.requests) == 2
    shown = capsys.readouterr().out
    assert "math" in shown and "3.000" in shown


def test_arc_on_literal_items(run: Run, tmp_path: Path) -> None:
    hub = literal_hub(
        tmp_path, "allenai/ai2_arc", {"ARC-Easy": {"train": [arc(9)], "validation": [arc(8)], "test": [arc(1), arc(2)]}}
    )
    written = run("suite=arc", "suite.tasks=[arc_easy]", f"benchmark.data_dir={hub}", "benchmark.template=off")
    figure = written["runs"][0]["tasks"]["arc_easy"]
    assert (figure["metric"], figure["n"], figure["chance"]) == ("acc", 2, 0.25) and "acc_norm" in figure["others"]
    (row, _) = map(json.loads, (tmp_path / "0-first-off" / "samples_arc_easy.jsonl").read_text().splitlines())
    assert row["arguments"][0] == ["Question: What do fish number 1 breathe in?\nAnswer:", " water"]


@pytest.mark.slow
def test_any_task_of_the_harness_by_its_name(run: Run, tmp_path: Path) -> None:
    hub = literal_hub(
        tmp_path, "allenai/ai2_arc", {"ARC-Easy": {"train": [arc(9)], "validation": [arc(8)], "test": [arc(1), arc(2)]}}
    )
    for suite in ("lm_eval", "mmlu"):
        given = (f"suite={suite}", "suite.tasks=[arc_easy]", f"benchmark.data_dir={hub}", "benchmark.template=off")
        written = run(*given, "benchmark.n_shot=0")
        assert list(written["runs"][0]["tasks"]) == ["arc_easy"] and written["runs"][0]["score"]["n"] == 2
    with pytest.raises(
        BenchmarkError, match=r"suite.tasks=arc_eazy: lm-evaluation-harness has no such task; did you mean .*arc_easy"
    ):
        run("suite=lm_eval", "suite.tasks=[arc_eazy]")


def test_lm_eval_needs_tasks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"suite.tasks=\[\]: give tasks of lm-evaluation-harness, such as"):
        check_command("benchmark", composed_into(tmp_path, "suite=lm_eval", "run=."))


@pytest.mark.slow
def test_ifeval_on_literal_items(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("immutabledict")
    kinds = (["punctuation:no_comma"], ["punctuation:no_comma", "keywords:existence"])
    items = [
        {
            "key": n,
            "prompt": "Say it.",
            "instruction_id_list": ids,
            "kwargs": [{"keywords": None}, {"keywords": ["zebra"]}][: len(ids)],
        }
        for n, ids in enumerate(kinds)
    ]
    hub = literal_hub(tmp_path, "google/IFEval", {"default": {"train": items}})
    written = run("suite=ifeval", f"benchmark.data_dir={hub}", "benchmark.template=off")
    report = written["runs"][0]
    figure, by_kind = report["tasks"]["ifeval"], report["details"]["by_instruction"]["ifeval"]
    assert (figure["metric"], figure["n"], figure["chance"]) == ("prompt_level_strict_acc", 2, 0)
    assert {"inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"} <= set(figure["others"])
    assert {kind: found["n"] for kind, found in by_kind.items()} == {
        "keywords": 1, "keywords:existence": 1, "punctuation": 2, "punctuation:no_comma": 2,
    }  # fmt: skip
    assert figure["others"]["inst_level_strict_acc"] == pytest.approx(
        (2 * by_kind["punctuation"]["strict"] + by_kind["keywords"]["strict"]) / 3
    )
    assert "ifeval by kind of instruction, strict/loose: keywords" in capsys.readouterr().out


@pytest.mark.slow
def test_what_fine_tuning_changed_in_a_benchmark(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    hub = literal_hub(tmp_path, *LITERAL["arc"])
    settings = OmegaConf.create({"suite": "arc", "limit": 1, "data_dir": str(hub), "path": None, "n_texts": 1})
    probe, state = ForgettingProbe(settings, None, tmp_path / "cache", 0), torch.get_rng_state()
    sides = [
        probe.measured(opened.model.train(), opened.tokenizer, opened.template, tmp_path, is_base)
        for opened, is_base in zip(map(open_model, runs), (False, True), strict=True)
    ]
    assert torch.equal(state, torch.get_rng_state())  # training draws the same numbers
    assert [list(side) for _, side in sides] == [["arc_easy", "arc_challenge"]] * 2
    assert all(len(values) == 1 for _, side in sides for values in side.values())
    for change in probe.changes(*sides)[1:]:
        task = change["metric"].removeprefix("benchmark/")
        assert change["change"]["mean"] == sides[0][1][task][0] - sides[1][1][task][0]
    samples = [tmp_path / "benchmark" / side / "samples_arc_easy.jsonl" for side in ("after", "before")]
    assert ["Response:" in file.read_text() for file in samples] == [True, False]  # each as it is used
    (_, alone, _) = probe.changes(sides[0], None)
    assert "change" not in alone and alone["after"]["n"] == 1
    for name in ("arena", "humaneval"):
        with pytest.raises(ConfigError, match=f"forgetting.suite={name}: not a benchmark of lm-evaluation-harness"):
            ForgettingProbe(OmegaConf.merge(settings, {"suite": name}), None, tmp_path, 0)
    with pytest.raises(ConfigError, match="forgetting.suite=arcs: allowed are .*arc, arena"):
        ForgettingProbe(OmegaConf.merge(settings, {"suite": "arcs"}), None, tmp_path, 0)
    with pytest.raises(
        BenchmarkError,
        match=r"^forgetting.suite=gsm8k: cannot load the data of gsm8k \(.*put them into forgetting.data_dir=[^,]*/<owner>/<name>/$",
    ):
        ForgettingProbe(OmegaConf.merge(settings, {"suite": "gsm8k"}), None, tmp_path, 0)


def test_a_missing_package_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "immutabledict", None)
    for module in [name for name in sys.modules if "ifeval" in name]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(
        BenchmarkError, match=r"suite.tasks=ifeval: it needs the package immutabledict .*pip install -e"
    ):
        run("suite=ifeval")


def test_more_shots_than_there_are_examples(run: Run) -> None:
    with pytest.raises(
        BenchmarkError, match=r"benchmark.n_shot=9: the data of task triviaqa have 5 .* at most 4 shots"
    ):
        run("suite=triviaqa", "benchmark.n_shot=9")


@pytest.mark.slow
def test_humaneval_only_after_the_switch(run: Run, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"suite.tasks=humaneval: it runs code .* benchmark.allow_code=true"):
        run("suite=humaneval")
    assert not (tmp_path / "benchmark.json").exists()
    written = run("suite=humaneval", "benchmark.allow_code=true", "benchmark.limit=2", "benchmark.template=off")
    figure = written["runs"][0]["tasks"]["humaneval"]
    assert (figure["metric"], figure["value"], figure["n"]) == ("pass@1", 0, 2)


def test_no_other_suite_runs_code() -> None:
    suites = [OmegaConf.load(path) for path in (CONF / "suite").glob("*.yaml")]
    assert [suite.name for suite in suites if "humaneval" in suite.get("tasks", [])] == ["humaneval"]
    assert [suite.name for suite in suites if suite.get("runs_code")] == ["humaneval"]


def test_data_that_are_not_there(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchmarkError, match=r"cannot load the data of triviaqa \(mandarjoshi/trivia_qa"):
        run("suite=triviaqa", f"benchmark.data_dir={tmp_path / 'empty'}")
    tasks = "suite.tasks=[wnli,rte]"
    with pytest.raises(BenchmarkError, match=r"or benchmark.on_missing=skip for the other 1 tasks"):
        run("suite=glue", tasks)
    written = run("suite=glue", tasks, "benchmark.on_missing=skip", "benchmark.limit=2", "benchmark.template=off")
    assert list(written["missing"]) == ["wnli"] and list(written["runs"][0]["tasks"]) == ["rte"]
    assert "skipped, since their data are missing: wnli" in capsys.readouterr().out


def test_impossible_values_are_reported_together(tmp_path: Path) -> None:
    config = composed_into(
        tmp_path, "suite=mmlu", "run=nowhere", "benchmark.template=maybe", "benchmark.limit=0", "benchmark.data_dir=none",
        "suite.mean_over=x", "suite.limit=0",
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        check_command("benchmark", config)
    for part in (
        "run=nowhere: no such folder", "benchmark.template=maybe: allowed are on, off, both", "benchmark.limit=0",
        "suite.limit=0: must be at least 1", "benchmark.data_dir=none: no such folder", "suite.mean_over=x: allowed are tasks, items",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_a_password_in_an_address_is_refused_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    kept = tmp_path / ".hydra" / "overrides.yaml"
    kept.write_text("- suite.options.judge_url=http://me:sec/ret@host/v1\n")
    config = composed_into(tmp_path, "suite=openai_evals", "run=.", "suite.options.judge_url=http://me:sec/ret@host/v1")
    forget_secrets(tmp_path, config)  # as before every command
    with pytest.raises(ConfigError, match=r"^suite.options.judge_url=http://\*\*\*@host/v1: give http") as told:
        check_command("benchmark", config)
    assert "sec/ret" not in str(told.value) and kept.read_text() == "- suite.options.judge_url=http://***@host/v1\n"


@pytest.mark.slow
def test_the_base_stands_beside_a_run(small_run: Path, run: Run) -> None:
    written = run("suite=glue", "suite.tasks=[sst2]", f"run={small_run}", "benchmark.limit=2")
    assert [r["template"] for r in written["runs"]] == ["on", "off"]  # a base of random weights says nothing


def test_arena_rates_battles(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"suite.options.battles=…: give a file of battles"):
        check_command("benchmark", composed_into(tmp_path, "suite=arena"))
    file = shared_data / "arena" / "alpacaeval_judged_battles.jsonl.gz"
    best = benchmark(composed_into(tmp_path, "suite=arena", f"suite.options.battles={file}"))
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written["leaderboard"][0]["model"] == "gpt4_1106_preview"
    assert written["leaderboard"][0]["bradley_terry"] == best > 1400 and written["n_battles"] == 17705
    assert "Bradley–Terry" in capsys.readouterr().out


def test_labels_distinguish_runs() -> None:
    assert labels_of(["a/b/bundle", "a/c"]) == ["b", "c"]
    assert labels_of(["x/2026/b", "y/2026/b"]) == ["x_2026_b", "y_2026_b"]
    assert labels_of(["a/b", "a/b/bundle"]) == ["b", "b"]  # the same one twice


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["mmlu", "glue", "superglue", "bigbench", "humaneval", "squad", "triviaqa", "quick"])
def test_every_suite_of_the_harness(run: Run, suite: str) -> None:
    written = run(f"suite={suite}", "benchmark.limit=3", "benchmark.on_missing=skip", "benchmark.allow_code=true")
    n_tasks = {"mmlu": 57, "glue": 9, "superglue": 8, "bigbench": 20, "quick": 9}.get(suite, 1)
    assert all(len(report["tasks"]) >= n_tasks for report in written["runs"])
    assert [report["template"] for report in written["runs"]] == ["on", "off"]


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of packages share; `INSTRUCT_LIT_TEST_ENVIRONMENTS` keeps it from one run to the next."""
    kept = os.environ.get("INSTRUCT_LIT_TEST_ENVIRONMENTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["openai_evals", "helm"])
def test_packages_in_environments_of_their_own(run: Run, environments: Path, tmp_path: Path, suite: str) -> None:
    (tmp_path / "cache").symlink_to(environments)
    written = run(f"suite={suite}", "benchmark.limit=4")
    assert [report["template"] for report in written["runs"]] == ["on", "off"]
    for report in written["runs"]:
        assert len(report["tasks"]) == {"helm": 5, "openai_evals": 7}[suite]
        assert all(figure["n"] >= 2 and 0 <= figure["value"] <= 1 for figure in report["tasks"].values())


def completion(text: str) -> tuple[int, dict, bytes]:
    """What an endpoint with OpenAI's interface answers."""
    answer = {
        "id": "1", "object": "chat.completion", "created": 1, "model": "small",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip
    return 200, {}, json.dumps(answer).encode()


@pytest.mark.slow
def test_helm_asks_questions_whose_answers_are_written(
    run: Run, environments: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").symlink_to(environments)
    place = tmp_path / "hub" / "helm" / "gsm"
    place.mkdir(parents=True)
    (place / "gsm_data_train").symlink_to(shared_data / "gsm8k" / "train.first100.jsonl")
    lines = (shared_data / "gsm8k" / "test.first200.jsonl").read_text().splitlines()[:3]
    (place / "gsm_data_test").write_text("\n".join(lines) + "\n")
    trained = json.loads(lines[1])["question"]
    monkeypatch.setattr(benchmark_builders, "training_of_run", lambda config, run: [trained])
    written = run(
        "suite=helm", "suite.tasks=[gsm]", f"benchmark.data_dir={tmp_path / 'hub'}", "benchmark.template=on"
    )  # fmt: skip
    figure, leaks = written["runs"][0]["tasks"]["gsm"], written["runs"][0]["details"]["leaks"]["gsm"]
    assert (figure["metric"], figure["n"], figure["chance"]) == ("final_number_exact_match", 3, 0)
    assert leaks["n"] == 1 and leaks["value_without"] is not None


UEFI = "support for UEFI Secure Boot on supported devices with UEFI firmware, to prevent malware from infecting the boot process"


@pytest.mark.slow
def test_openai_evals_that_a_model_grades(
    run: Run, environments: Path, tmp_path: Path, judge_server: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").symlink_to(environments)
    monkeypatch.setattr(benchmark_builders, "training_of_run", lambda config, run: [UEFI])
    asked = ["suite=openai_evals", "suite.tasks=[coq-editing,coqa-fact]", "benchmark.limit=4", "benchmark.template=on"]
    with pytest.raises(BenchmarkError, match=r"coq-editing, coqa-fact: model-graded; give suite.options."):
        run(*asked)

    def grade(number: int, body: dict) -> tuple[int, dict, bytes]:
        question = json.dumps(body["messages"])
        assert body["model"] == "small" and "BEGIN DATA" in question
        return completion(
            "I cannot say" if number == 0 else "Because.\n" + ("C" if "(C) The submitted" in question else "Y")
        )

    judge = judge_server(grade)
    written = run(*asked, f"suite.options.judge_url={judge.url}", "suite.options.judge_model=small")
    scored, compared = (written["runs"][0]["tasks"][name] for name in ("coq-editing", "coqa-fact"))
    assert (scored["metric"], scored["value"], scored["n"]) == ("score", 0.75, 4)
    assert scored["others"] == {"share/Y": 0.75, "graded": 0.75, "n_unread_verdicts": 1}
    assert (compared["metric"], compared["value"], compared["others"]["share/C"]) == ("graded", 1, 1)
    leaks = written["runs"][0]["details"]["leaks"]
    assert list(leaks) == ["coqa-fact"] and leaks["coqa-fact"]["n"] == 1
    events = map(json.loads, (tmp_path / "0-first-on" / "coq-editing.jsonl").read_text().splitlines())
    asked_of_us = next(event["data"]["prompt"] for event in events if event.get("type") == "sampling")
    assert [message["role"] for message in asked_of_us] == [
        "system",
        "user",
    ]  # a chat, so the template is put around it


def verdict(number: int, body: dict) -> tuple[int, dict, bytes]:
    """Prefers the first answer; every fourth reply is not a verdict."""
    assert "Best Model Identifier" in json.dumps(body["messages"])
    return completion("well" if number % 4 == 3 else "m")


def place_alpaca_eval(folder: Path, shared_data: Path) -> None:
    """The hub's data set of AlpacaEval: real reference responses, and a table of lengths in which the longer one wins 90 %."""
    place = folder / "tatsu-lab" / "alpaca_eval"
    place.mkdir(parents=True)
    (place / "alpaca_eval.json").symlink_to(shared_data / "alpaca_eval" / "text_davinci_003.model_outputs.json")
    rows = [
        f"gamed{sign},{i},{1.5 + 0.4 * sign},{sign},{(i % 7 - 3) / 3},False" for sign in (1, -1) for i in range(805)
    ]
    header = "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"
    (place / "df_gamed.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.slow
def test_alpaca_eval_counts_unparsed_verdicts(
    run: Run,
    environments: Path,
    shared_data: Path,
    tmp_path: Path,
    judge_server: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cache").symlink_to(environments)
    for verdicts in (environments / "benchmark").glob("alpaca_eval-weighted_alpaca_eval_gpt4_turbo-small-*.json"):
        verdicts.unlink()
    place_alpaca_eval(tmp_path / "hub", shared_data)
    references = json.loads((tmp_path / "hub" / "tatsu-lab" / "alpaca_eval" / "alpaca_eval.json").read_text())
    trained = [references[number]["instruction"] for number in (0, 3)]
    monkeypatch.setattr(benchmark_builders, "training_of_run", lambda config, run: trained)
    judge = judge_server(verdict)
    written = run(
        "suite=alpaca_eval", "benchmark.limit=8", "benchmark.template=on", "suite.options.logprobs=false",
        f"suite.options.judge_url={judge.url}", "suite.options.judge_model=small", f"benchmark.data_dir={tmp_path / 'hub'}",
        "suite.options.max_new_tokens=20",
    )  # fmt: skip
    assert len(judge.requests) == 8
    figure = written["runs"][0]["tasks"]["alpaca_eval"]
    leaks = written["runs"][0]["details"]["leaks"]["alpaca_eval"]
    verdicts = json.loads((tmp_path / "0-first-on" / "annotations.json").read_text())
    shares = [0.5 if row["preference"] is None else row["preference"] - 1 for row in verdicts]
    clean = [share for number, share in enumerate(shares) if number not in (0, 3)]
    assert [item["item"] for item in leaks["items"]] == [0, 3]
    assert leaks["value_without"] == pytest.approx(sum(clean) / 6) and figure["value"] == pytest.approx(sum(shares) / 8)
    assert (figure["metric"], figure["n"], figure["others"]["n_unread_verdicts"]) == ("win_rate", 8, 2)
    assert 0 < figure["value"] < 1 and 0 < figure["others"]["length_controlled_win_rate"] < 1
    assert len(json.loads((tmp_path / "0-first-on" / "model_outputs.json").read_text())) == 8
