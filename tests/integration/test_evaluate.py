"""The evaluate command end to end, and training that monitors the quality of its responses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_evaluate_answers_again_with_other_settings(
    small_run: Path, command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("evaluate", f"run={small_run}", "generation.max_new_tokens=6", "hydra.run.dir=out", cwd=tmp_path)
    again = rows_of(tmp_path / "out" / "responses.jsonl")
    first = rows_of(small_run / "responses.jsonl")
    assert [row["response"] for row in again] == [row["response"] for row in first]
    assert "exact_match" in done.stdout
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    exact = evaluation["metrics"]["exact_match"]
    assert exact["n"] == 10 and exact["low"] <= exact["mean"] <= exact["high"]
    assert exact["mean"] == json.loads((small_run / "metrics.json").read_text())["test/exact_match"]
    assert set(evaluation["by"]["input"]) == {"with input", "without input"}
    metrics = json.loads((small_run / "metrics.json").read_text())
    # The run tests in its own precision, bf16 where the processor has it; evaluate computes in the weights'.
    assert evaluation["losses"]["loss"]["mean"] == pytest.approx(metrics["test/response_loss"], rel=1e-4)
    assert evaluation["losses"]["perplexity"]["mean"] == pytest.approx(metrics["test/perplexity"], rel=1e-3)
    assert sum(part["n"] for part in evaluation["by"]["length"].values()) == 10
    (lost,) = evaluation["changes"]  # random weights have nothing to forget
    assert lost["after"]["mean"] == pytest.approx(metrics["general/loss"], rel=1e-4) and "before" not in lost
    assert "base/general/loss" not in metrics
    command("evaluate", f"run={small_run}/bundle", "generation=sample", "generation.max_new_tokens=6", "n_responses=3",
            "generation.dtype=bfloat16",
            "hydra.run.dir=sampled", cwd=tmp_path)  # fmt: skip
    assert len(rows_of(tmp_path / "sampled" / "responses.jsonl")) == 3


@pytest.mark.slow
def test_what_fine_tuning_gained_and_lost_is_reported(command: Callable, tmp_path: Path) -> None:
    small = (
        "data.source.n_examples=120",
        "data.split={train:80,val:20,test:20}",
        "n_test_responses=20",
        "verify=false",
    )
    for name, enabled in (("run", "true"), ("off", "false")):
        done = command("train", *small, "trainer.max_steps=16", f"forgetting.enabled={enabled}", f"hydra.run.dir={name}",
                       cwd=tmp_path)  # fmt: skip
        assert ("general/loss" in done.stdout) is (name == "run")
    metrics, off = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "off"))
    assert all(metrics[name] == value for name, value in off.items() if "loss" in name)  # to the last digit
    assert metrics["general/loss_change_low"] <= metrics["general/loss_change"] <= metrics["general/loss_change_high"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Gained and lost" in page and page.count(">lost</td>") == 1 and ">gained</td>" in page
    command("evaluate", "run=run", "hydra.run.dir=out", cwd=tmp_path)
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    gained, lost = evaluation["changes"]
    assert lost["change"]["mean"] == pytest.approx(metrics["general/loss_change"], rel=1e-2)
    assert lost["before"]["mean"] == pytest.approx(metrics["base/general/loss"], rel=1e-4)
    assert gained["after"]["mean"] == pytest.approx(evaluation["losses"]["loss"]["mean"])
    assert "Gained and lost" in (tmp_path / "out" / "report.html").read_text()


def test_evaluate_scores_existing_responses(command: Callable, tmp_path: Path) -> None:
    records = [
        {"instruction": "a", "input": "", "output": "The cat.", "model_response": "cat"},
        {"instruction": "b", "input": "x", "output": "dog", "model_response": "bird"},
    ]
    (tmp_path / "answers.json").write_text(json.dumps(records))
    command("evaluate", "responses=answers.json", "response_field=model_response", "metrics=[exact_match_normalised,token_f1]",
            "hydra.run.dir=out", cwd=tmp_path)  # fmt: skip
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["metrics"]["exact_match_normalised"]["mean"] == 0.5
    by = {value: part["exact_match_normalised"]["mean"] for value, part in found["by"]["input"].items()}
    assert by == {"with input": 0, "without input": 1} and found["losses"] == {}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page  # scores by category
    assert page.index("bird") < page.index("cat</td>") and "http" not in page
    for overrides, message in (
        ([], "give exactly one of the three"),
        (["responses=nowhere.json"], "responses=nowhere.json: no such file"),
        (["responses=answers.json"], "no text in 'response'; found: id, input, instruction, output, model_response"),
        (["responses=answers.json", "metrics=[exact]"], "metrics=exact: allowed are exact_match"),
        (
            ["responses=answers.json", "response_field=model_response", "by=[level]"],
            "by=level: no record has such a field",
        ),
    ):
        assert message in command("evaluate", *overrides, cwd=tmp_path, status=2).stderr


def test_outputs_in_the_form_of_alpaca_eval_are_compared(command: Callable, tmp_path: Path) -> None:
    """Their field `output` is the response: it was the wanted answer too, so that every answer was right."""
    for name, n_words in (("a", 2), ("b", 3)):
        outputs = [{"instruction": str(i), "output": "word " * n_words, "generator": name} for i in range(4)]
        (tmp_path / f"{name}.json").write_text(json.dumps(outputs))
    command("evaluate", "compare=[a.json,b.json]", "response_field=output", "hydra.run.dir=out", cwd=tmp_path)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["n_pairs"] == 4 and list(found["differences"]) == ["empty", "distinct_2", "looping", "copied_prompt"]
    assert found["differences"]["distinct_2"] == pytest.approx(
        {"a": 1, "b": 0.5, "mean": 0.5, "low": None, "high": None, "n": 4, "p": 0.125}
    )


@pytest.mark.slow
def test_checks_of_records_and_a_function_are_scored(command: Callable, tmp_path: Path) -> None:
    records = [
        {
            "instruction": "a",
            "output": "x",
            "response": "one two",
            "checks": [{"n_words": [1, 2]}, {"contains": "one"}],
        },
        {"instruction": "b", "output": "y", "response": "one two three", "checks": [{"n_words": [1, 2]}]},
        {"instruction": "c", "output": "z", "response": "zebra"},
    ]
    (tmp_path / "answers.json").write_text(json.dumps(records))
    (tmp_path / "mine.py").write_text("def check(record):\n    return 'z' in record['response']\n")
    done = command("evaluate", "responses=answers.json", "hydra.run.dir=out", cwd=tmp_path)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["metrics"]["checks"]["mean"] == 0.5 and found["checks"]["n_words"]["n"] == 2
    assert "checks, n_words" in done.stdout and "checks, contains" in (tmp_path / "out" / "report.html").read_text()
    command("evaluate", "responses=answers.json", "metrics=[checks]", "check_function=mine.py", "hydra.run.dir=mine",
            cwd=tmp_path)  # fmt: skip
    found = json.loads((tmp_path / "mine" / "evaluation.json").read_text())
    assert [round(v["mean"], 3) for v in (found["metrics"]["checks"], found["checks"]["function"])] == [0.333, 0.333]
    # The written responses can be evaluated again; the function's verdicts are not taken from them.
    command("evaluate", "responses=mine/responses.jsonl", "hydra.run.dir=again", cwd=tmp_path)
    assert "function" not in json.loads((tmp_path / "again" / "evaluation.json").read_text())["checks"]
    (tmp_path / "answers.json").write_text(json.dumps([{**records[0], "checks": [{"words": 2}]}]))
    refused = command("evaluate", "responses=answers.json", cwd=tmp_path, status=2).stderr
    assert "answers.json, record 0: check {'words': 2}; allowed is a mapping with one of contains" in refused


@pytest.mark.slow
def test_peoples_labels_are_evaluated(command: Callable, tmp_path: Path) -> None:
    words = ["cat", "dog", "cow", "hen"]
    records = [{"id": w, "instruction": w, "output": w, "response": w if w < "d" else "x"} for w in words]
    (tmp_path / "answers.json").write_text(json.dumps(records))
    labels = [{"id": w, "label": "right" if w < "d" else "wrong", "reviewer": "ann"} for w in words]
    labels += [{**label, "label": "right", "reviewer": "bob"} for label in labels]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    given = ("responses=answers.json", "metrics=[exact_match]", "hydra.run.dir=out")
    done = command("evaluate", *given, "reviews=labels.jsonl", cwd=tmp_path)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["people"]
    assert found["rates"]["right"]["mean"] == 0.75 and found["disagreements"] == ["dog", "hen"]
    assert list(found["predictors"]) == ["exact_match"] and found["predictors"]["exact_match"]["mean"] == pytest.approx(
        1
    )
    assert "different labels for the responses dog, hen" in done.stdout and "ann, bob" in done.stdout
    (tmp_path / "labels.jsonl").write_text('{"id": "pig", "label": "right"}')
    refused = command("evaluate", *given, "reviews=labels.jsonl", cwd=tmp_path, status=2).stderr
    assert "labels.jsonl, line 1: no response has the id 'pig'" in refused


@pytest.mark.slow
def test_evaluate_opens_a_hugging_face_directory(small_run: Path, command: Callable, tmp_path: Path) -> None:
    """What transformers itself has saved, with the data and the template given by hand."""
    transformers = pytest.importorskip("transformers")
    transformers.GPT2LMHeadModel.from_pretrained(small_run / "bundle").save_pretrained(tmp_path / "hf")
    records = [
        {"instruction": "Say it.", "input": word, "output": word, "kind": word[0]} for word in ("cat", "dog", "cow")
    ]
    long = {"instruction": "Say it. " * 60, "output": "cat", "kind": "c"}
    (tmp_path / "records.json").write_text(json.dumps([*records, long]))
    given = [
        "data=files",
        "data.path=records.json",
        "data.split={train:1,val:0,test:2}",
        "data.max_length=96",
    ]
    done = command(
        "evaluate",
        "run=hf",
        "template=alpaca",
        *given,
        "generation.max_new_tokens=4",
        "by=[kind]",
        "hydra.run.dir=out",
        cwd=tmp_path,
    )
    assert "data: 1 train, 0 val, 2 test, 1 dropped_long" in done.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert sum(part["n"] for part in found["by"]["kind"].values()) == 2 and found["losses"]["loss"]["n"] == 2
    for overrides, message in (
        (given, "run=hf: not a bundle of instruct-lit, so give a template (template=alpaca)"),
        (["template=alpaca"], "run=hf: not in a run folder, so give the data"),
    ):
        assert message in command("evaluate", "run=hf", *overrides, cwd=tmp_path, status=2).stderr
    (tmp_path / "cut" / "checkpoints").mkdir(parents=True)
    assert "run=cut: this run has not finished" in command("evaluate", "run=cut", cwd=tmp_path, status=2).stderr


@pytest.mark.slow
def test_a_run_that_watches_the_quality_of_its_answers(
    command: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    watched = ["callbacks=generation_quality", "callbacks.generation_quality.max_new_tokens=4", "optimized_metric=val/distinct_2",
               "callbacks.generation_quality.metrics=[exact_match,distinct_2]", "callbacks.generation_quality.n_examples=5"]  # fmt: skip
    for name in ("early_stopping", "best_checkpoint"):
        watched += [f"callbacks.{name}.monitor=val/distinct_2", f"callbacks.{name}.mode=max"]
    command("train", *small, *watched, "trainer.max_epochs=3", "hydra.run.dir=run", cwd=tmp_path)
    history = [
        row for row in rows_of(tmp_path / "run" / "history.jsonl") if "val/distinct_2" in row and row["step"] > 0
    ]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    best = max(history, key=lambda row: row["val/distinct_2"])
    assert metrics["best_step"] == best["step"] and metrics["val/distinct_2"] == pytest.approx(best["val/distinct_2"])
    assert metrics["val/loss"] == pytest.approx(best["val/loss"]) and "base/val/exact_match" in metrics
    for overrides, message in (
        (["callbacks=generation_quality", "optimized_metric=val/token_f2"], "optimized_metric=val/token_f2: logged are"),
        (["optimized_metric=val/exact_match"], "optimized_metric=val/exact_match: logged are"),
        (["callbacks=generation_quality", "callbacks.early_stopping.monitor=val/exact_match"],
         "EarlyStopping monitors val/exact_match with mode=min; use mode=max"),
    ):  # fmt: skip
        assert message in command("train", *small, *overrides, cwd=tmp_path, status=2).stderr


@pytest.mark.slow
def test_existing_responses_need_no_lightning(tmp_path: Path) -> None:
    """It takes two seconds to import."""
    (tmp_path / "answers.json").write_text(json.dumps([{"instruction": "a", "output": "b", "response": "b"}] * 2))
    program = (
        "import sys; sys.argv = ['evaluate', 'responses=answers.json', 'hydra.run.dir=out']\n"
        "from instruct_lit.config.compose import run_command\n"
        "from instruct_lit.evaluate import evaluate\n"
        "run_command('evaluate', evaluate); assert 'lightning' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
