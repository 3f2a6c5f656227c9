"""The folder of a sweep: trials in order, the parameters in which they differ, the report."""

import json
import math
import re
import sys
from math import log10
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
from omegaconf import OmegaConf

from instruct_lit.errors import ConfigError, DataError
from instruct_lit.report import write
from instruct_lit.reports.metrics import bounds
from instruct_lit.reports.runs_page import side_by_side
from instruct_lit.sweeps.comparable import comparable_metric
from instruct_lit.sweeps.page import curves, parallel_coordinates, write_page
from instruct_lit.sweeps.statistics import by_setting, importances, mean_and_interval, paired_difference
from instruct_lit.sweeps.trial import _arguments, _threads, is_held, locked, parameters, read_record, run_trial
from instruct_lit.sweeps.trials import read_trials


def trial(
    folder: Path,
    number: int,
    value: float | None,
    status: str = "completed",
    reason: str | None = None,
    **given: object,
) -> None:
    run = folder / str(number)
    run.mkdir(parents=True)
    overrides = ["data=demo", "sweep=optuna", *(f"{k}={v}" for k, v in given.items())]
    overrides.append(f"callbacks.pruning.trial_number={number}")
    record = {"command": "train", "status": status, "value": value, "reason": reason, "seconds": 2.0}
    (run / "trial.json").write_text(json.dumps({**record, "overrides": overrides}))
    rows = [{"step": s, "val/loss": (value or 3) + 5 - s} for s in range(6)]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "va')
    if value is not None:
        answers = [
            {"id": 1, "instruction": "same", "input": "", "output": "yes", "response": "yes"},
            {"id": 2, "instruction": "<b>other</b>", "input": "", "output": "no", "response": f"answer {number}"},
        ]
        (run / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        (run / "metrics.json").write_text(json.dumps({"test/loss": value + 0.5, "n_steps": 6}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Loss is (log10 lr + 3)², whatever the decay is; one trial failed and one was pruned."""
    settings = [(lr, decay) for lr in (0.0001, 0.0003, 0.001, 0.003, 0.01) for decay in ("cosine", "linear")]
    for number, (lr, decay) in enumerate(settings):
        trial(tmp_path, number, round((log10(lr) + 3) ** 2 + 0.001 * (decay == "linear"), 6), lr=lr, decay=decay)
    trial(tmp_path, 10, None, "failed", "killed by SIGKILL", lr=1.0, decay="linear")
    trial(tmp_path, 11, None, "pruned", "pruned at step 4", lr=0.1, decay="cosine")
    return tmp_path


def test_trials_come_best_first_with_what_differs(sweep: Path) -> None:
    trials = read_trials(sweep)
    assert trials[0].parameters == {"lr": "0.001", "decay": "cosine"} and trials[0].value == 0
    assert [t.status for t in trials[-2:]] == ["failed", "pruned"] and trials[-2].reason == "killed by SIGKILL"
    assert trials[0].command_line() == "python -m instruct_lit.train data=demo decay=cosine lr=0.001"
    assert trials[0].curve("val/loss")[-1] == (5, 3.0)  # the half line of a killed trial is left out
    assert read_trials(sweep, maximize=True)[0].value == max(t.value for t in trials if t.value is not None)
    with pytest.raises(DataError, match="not a sweep, no <number>/trial.json in it"):
        read_trials(sweep / "0")


def test_another_metric_is_read_from_each_trial_and_a_missing_one_is_refused(sweep: Path) -> None:
    (sweep / "multirun.yaml").write_text("optimized_metric: val/token_f1\n")
    page = write(sweep, "test/loss").read_text()
    assert '<span class="figure">0.5000</span> <code>test/loss</code>' in page and "smallest" in page
    for path in sweep.glob("*/metrics.json"):
        path.write_text(path.read_text().replace("test/loss", "test/looping"))
    assert "smallest <code>test/looping" in write(sweep, "test/looping").read_text()
    with pytest.raises(
        ConfigError,
        match=r"metric=nonsense: no completed trial has a finite value of it; there are n_steps, test/looping",
    ):
        write(sweep, "nonsense")


def test_only_finite_metrics_of_completed_trials_are_ranked(tmp_path: Path) -> None:
    values = {0: math.nan, 1: 2.0, 2: math.inf, 3: 1.0, 4: 0.5}
    for number, value in values.items():
        trial(tmp_path, number, 3.0, "interrupted" if number == 4 else "completed", lr=number)
        (tmp_path / str(number) / "metrics.json").write_text(json.dumps({"val/perplexity": value}))
    assert write(tmp_path, "val/perplexity").is_file()
    found = json.loads((tmp_path / "trials.json").read_text())["trials"]
    assert [(row["trial"], row["value"]) for row in found] == [(3, 1.0), (1, 2.0), (0, None), (2, None), (4, None)]


def test_what_a_trial_has_written_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    trial(tmp_path, 0, 1.0, lr=1)
    answer = {"id": 1, "instruction": "a", "input": "", "output": "b", "response": "one\u2028two\x85three"}
    (tmp_path / "0" / "responses.jsonl").write_text(
        json.dumps(answer, ensure_ascii=False) + '\n{"id": 2, "ins', "utf-8"
    )
    (tmp_path / "0" / "metrics.json").write_text('{"test/loss": 1')  # being written
    (found,) = read_trials(tmp_path)
    assert list(found.responses) == [answer] and found.metrics == {}
    for name, content in (
        ("metrics.json", b"[" * 100_000),
        ("history.jsonl", b'7\n{"step": 1}\n\xff\x00'),
        ("responses.jsonl", b""),
    ):
        (tmp_path / "0" / name).write_bytes(content)
    (found,) = read_trials(tmp_path)
    assert list(found.history) == [{"step": 1}] and found.metrics == {} and list(found.responses) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no JSON object"),
        (b'{"status": "comp', "no JSON object"),
        (b"[1]", "no JSON object"),
        (b"\xff\x00", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b'{"command": "train", "status": 1, "overrides": [], "seconds": 1, "value": "x"}', "status, value"),
    ],
)
def test_a_damaged_record_of_a_trial_is_refused_by_its_path(tmp_path: Path, content: bytes, reason: str) -> None:
    trial(tmp_path, 0, 1.0)
    file = tmp_path / "0" / "trial.json"
    file.write_bytes(content)
    message = f"{file}: damaged ({reason}); delete it: the trial resumes from its last checkpoint"
    with pytest.raises(DataError) as raised:
        read_record(file.parent)
    assert str(raised.value) == message


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (16, 2.131), (17, 2.120), (30, 2.045)])
def test_intervals_follow_the_table_of_student(n: int, t: float) -> None:
    pytest.importorskip("scipy")
    values = [float(i) for i in range(n)]
    found = mean_and_interval(values)
    assert found["n"] == n and found["high"] - found["mean"] == pytest.approx(t * stdev(values) / n**0.5, rel=1e-3)


def test_an_interval_stays_between_the_bounds_of_its_metric_and_needs_values_that_differ() -> None:
    pytest.importorskip("scipy")
    found = mean_and_interval([0.1, 0.9], bounds("val/exact_match"))
    assert (found["low"], found["high"]) == (0.0, 1.0)
    assert mean_and_interval([0.1, 0.9], bounds("test/loss"))["high"] > 5
    for values in ([3.0], [1.0, 1.0, 1.0]):
        assert mean_and_interval(values) == {"mean": values[0], "low": None, "high": None, "n": len(values)}


def test_the_interval_over_seeds_covers_the_mean_as_often_as_it_says() -> None:
    pytest.importorskip("scipy")
    samples = np.random.default_rng(0).normal(2.0, 0.3, (4000, 4))
    found = [mean_and_interval(sample.tolist()) for sample in samples]
    assert sum(f["low"] <= 2.0 <= f["high"] for f in found) / len(found) == pytest.approx(0.95, abs=0.01)


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """Setting lr=1 has the luckiest seed, lr=2 the best mean."""
    for number, (lr, seed, value) in enumerate([(1, 1, 0.5), (1, 2, 4.0), (2, 1, 1.0), (2, 2, 1.5), (3, 2, 9.0)]):
        trial(tmp_path, number, value, lr=lr, seed=seed)
    return tmp_path


def test_settings_are_ordered_by_their_means_over_seeds(seeds: Path) -> None:
    pytest.importorskip("scipy")
    settings = by_setting(read_trials(seeds))
    assert [(s.parameters["lr"], s.mean, len(s.trials)) for s in settings] == [
        ("2", 1.25, 2),
        ("1", 2.25, 2),
        ("3", 9, 1),
    ]
    assert [s.mean for s in by_setting(read_trials(seeds), maximize=True)] == [2.25, 1.25, 9.0]
    first, second, third = settings
    found = paired_difference(first, second)
    assert found is not None and (found["mean"], found["n"]) == (-1.0, 2) and found["low"] < 0 < found["high"]
    assert paired_difference(first, third) is None, "one common seed"


def test_equal_numbers_are_one_setting_in_the_spelling_of_the_first(tmp_path: Path) -> None:
    given = [("1e-3", 1), ("0.001", 2), ("2.0", 1), ("2", 2), ("9007199254740993", 1), ("9007199254740992", 1)]
    for number, (lr, seed) in enumerate(given):
        trial(tmp_path, number, 1.0 + number, lr=lr, seed=seed)
    settings = by_setting(read_trials(tmp_path))
    assert [(s.parameters["lr"], len(s.trials)) for s in settings] == [
        ("1e-3", 2), ("2.0", 2), ("9007199254740993", 1), ("9007199254740992", 1)
    ]  # fmt: skip


def test_the_headline_is_the_setting_with_the_best_mean_not_the_luckiest_seed(seeds: Path) -> None:
    pytest.importorskip("scipy")
    page = write_page(seeds, read_trials(seeds), "val/loss", False).read_text()
    head = page[page.index('<div class="best">') : page.index("Means over seeds")]
    assert '<span class="figure">1.2500</span> mean <code>val/loss</code> of 2 seeds, 95 % interval 0.0000 to' in head
    assert "<code>lr=2</code>" in head and "-1.0000" in head and "(2 common seeds): no clear difference" in head
    assert '<pre id="command">python -m instruct_lit.train data=demo lr=2</pre>' in head, "without its seed"
    parallel = parallel_coordinates(read_trials(seeds), "val/loss", {})
    assert ">lr<" in parallel and ">seed<" not in parallel, "seeds are replicates"


def test_the_settings_are_printed_with_means_the_best_first(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    (seeds / "multirun.yaml").write_text("optimized_metric: val/loss\n")
    write(seeds)
    head, *rows = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", head) == ["setting", "mean val/loss", "95 % interval", "n"] and len(head) <= 80
    assert [row.split()[:2] for row in rows] == [["lr=2", "1.2500"], ["lr=1", "2.2500"], ["lr=3", "9.0000"]]
    assert rows[0].endswith(" to 4.4266  2") and rows[2].endswith("too few to say  1")


def test_responses_are_those_of_the_best_trial_of_each_of_the_best_settings(seeds: Path) -> None:
    pytest.importorskip("scipy")

    def heads() -> list[str]:
        page = write_page(seeds, read_trials(seeds), "val/loss", False, n_best=2).read_text()
        part = page[page.index("Responses of the best trials") :]
        return [part.partition(" test examples")[0], *re.findall(r"<th>trial (\d)", part)]

    text, *shown = heads()
    assert shown == ["2", "0"] and "The best trial of each of the best settings. 2 of 2" in text
    for number, setting in ((5, 2), (6, 1)):  # seed 3 has another test split
        trial(seeds, number, 0.9 if setting == 2 else 8.0, lr=setting, seed=3)
        row = {"id": 9, "instruction": "x", "input": "", "output": "y", "response": "z"}
        (seeds / str(number) / "responses.jsonl").write_text(json.dumps(row) + "\n")
    text, *shown = heads()
    assert shown == ["5", "6"] and "The trials with the best trial's seed" in text and text.endswith("1 of 1")


def test_a_sweep_of_one_setting_says_so_and_ranks_no_parameters(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    for number, value in enumerate((2.0, 1.0, 3.0, 4.0)):
        trial(tmp_path, number, value, seed=number)
    page = write_page(tmp_path, read_trials(tmp_path), "val/loss", False).read_text()
    assert "The sweep has one setting, so its best trial is shown alone." in page and "<th>trial 1" in page
    assert "<th>trial 0" not in page and "Importance of the hyper-parameters" not in page


def test_losses_over_different_tokens_share_no_column(tmp_path: Path) -> None:
    for number, mask in enumerate(("true", "false")):
        trial(tmp_path, number, 2.0 - number, **{"data.mask_prompt": mask})
        run = tmp_path / str(number)
        losses = {"val/loss": 2.0 - number, "val/response_loss": 1.5 + number, "val/bits_per_byte": 0.5}
        (run / "metrics.json").write_text(json.dumps(losses))
        (run / "history.jsonl").write_text(json.dumps({"step": 1, **losses}) + "\n")
    (tmp_path / "multirun.yaml").write_text("optimized_metric: val/loss\n")
    page = write(tmp_path).read_text()
    assert '<span class="figure">1.5000</span> <code>val/response_loss</code> in trial 0' in page
    assert ">val/loss<" not in page and "val/bits_per_byte" in page and "val/response_loss of every trial" in page
    assert "The trials differ in <code>data.mask_prompt</code>, so their losses are means over different tokens" in page
    given = write(tmp_path, "val/loss").read_text()
    assert "cannot be compared between them. Rank them with <code>metric=val/response_loss</code>" in given


@pytest.mark.parametrize(
    ("names", "metric", "instead"),
    [(["optimizer.lr"], "val/loss", None), (["template"], "val/perplexity", "val/response_loss"),
     (["data.mask_prompt"], "val/token_f1", None), (["model.tokenizer"], "test/loss", "test/bits_per_byte"),
     (["data.mask_prompt"], "test/loss/dolly", "test/response_loss"), (["template"], "value", None)],
)  # fmt: skip
def test_a_loss_is_replaced_where_its_meaning_differs(names: list[str], metric: str, instead: str | None) -> None:
    assert comparable_metric(names, metric) == instead


def test_importance_goes_to_the_parameter_that_matters(sweep: Path) -> None:
    pytest.importorskip("optuna")
    shares = importances(read_trials(sweep))
    assert list(shares) == ["lr", "decay"] and shares["lr"] > 0.9 and sum(shares.values()) == pytest.approx(1)
    assert importances(read_trials(sweep)[-3:]) == {}


def test_a_missing_extra_is_named(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial(sweep, 12, 1.0, lr=0.001, decay="cosine", seed=2)
    trial(sweep, 13, 1.5, lr=0.001, decay="cosine", seed=3)
    for name in ("optuna", "scipy.stats"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[sweep\]'"):
        importances(read_trials(sweep))
    page = write_page(sweep, read_trials(sweep), "val/loss", False).read_text()
    assert "importance of hyper-parameters: needs optuna" in page and "intervals over seeds: needs scipy" in page


def test_the_page_is_self_contained_and_has_everything(sweep: Path) -> None:
    page = write_page(sweep, read_trials(sweep), "val/loss", False).read_text()
    assert "10 completed, 1 pruned, 1 failed" in page and "killed by SIGKILL" in page
    assert "python -m instruct_lit.train data=demo decay=cosine lr=0.001" in page
    assert "&lt;b&gt;other" in page and "<b>other" not in page
    assert page.count("<g data-trial=") == 12 + 10  # all curves; the trials with a value on the parallel axes
    assert "<title>trial 10: failed  decay=linear lr=1.0</title>" in page
    assert not re.search(r"src=|http|url\((?!#)|href=(?!.#|.data:,)", page)
    found = json.loads((sweep / "trials.json").read_text())
    assert found["trials"][0]["parameters"]["lr"] == "0.001"


def test_answers_side_by_side_begin_with_those_that_differ(sweep: Path) -> None:
    best = read_trials(sweep)[:2]
    rows = side_by_side([trial.responses for trial in best])
    assert [row["example"]["id"] for row in rows] == [2, 1]
    assert rows[0]["answers"] == [(f"answer {t.number}", False) for t in best] and rows[1]["answers"][0] == (
        "yes",
        True,
    )


def test_plots_of_few_trials_are_empty_and_of_constants_possible(tmp_path: Path) -> None:
    trial(tmp_path, 0, 1.0, lr=1)
    one = read_trials(tmp_path)
    assert parallel_coordinates(one, "val/loss", {}) == "" and 'data-trial="0"' in curves(one, {0: "#123456"})
    trial(tmp_path, 1, 1.0, lr=2)
    assert "data-trial" in parallel_coordinates(read_trials(tmp_path), "val/loss", {})


def test_a_trial_that_no_process_runs_is_interrupted(tmp_path: Path) -> None:
    trial(tmp_path, 0, None, "running", lr=1)  # of a sweep that was killed
    assert [t.status for t in read_trials(tmp_path)] == ["interrupted"]
    with locked(tmp_path / "0"):
        assert [t.status for t in read_trials(tmp_path)] == ["running"]


def test_a_trial_is_held_by_one_process(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with locked(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(ConfigError, match="another process runs this trial"), locked(tmp_path):
            pass
    assert not is_held(tmp_path)
    assert parameters(["b=1", "++callbacks.pruning.storage=x", "a=2"]) == ["a=2", "b=1"]


def test_a_trial_is_composed_from_the_files_of_its_sweep() -> None:
    given = [
        "hydra/launcher=joblib",
        "++hydra.launcher.n_jobs=2",
        "hydra.searchpath=[file://own]",
        "hydra.verbose=true",
    ]
    hydra = OmegaConf.create({"overrides": {"task": ["seed=1"], "hydra": given}})
    found = _arguments("evaluate", hydra, Path("o'brien"), ["--config-name=mine", "hydra.searchpath=[file://own]"])
    assert found == ["--config-name=mine", "hydra.searchpath=[file://own]", "seed=1", "hydra.verbose=true",
                     "hydra.mode=RUN", "hydra.run.dir='o\\'brien'"]  # fmt: skip


@pytest.mark.parametrize(("n_jobs", "share"), [(2, "4"), (3, "2"), (16, "1"), (-1, "1"), (1, None)])
def test_trials_side_by_side_divide_the_threads(
    n_jobs: int, share: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    found = _threads(OmegaConf.create({"launcher": {"n_jobs": n_jobs}}))
    assert found == (
        dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), share) if share else {}
    )


@pytest.mark.parametrize(
    ("overrides", "metric", "warns"),
    [(["data.mask_prompt=False"], "val/loss", True), (["+template=alpaca"], "val/perplexity", True),
     (["data.mask_prompt=False"], "val/response_loss", False), (["optimizer.lr=1"], "val/loss", False),
     (["responses=a.json"], None, False)],
)  # fmt: skip
def test_a_sweep_over_what_the_loss_covers_warns_once(
    overrides: list[str], metric: str | None, warns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"command": "train", "status": "completed", "value": 2.0, "seconds": 1.0, "overrides": overrides}
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "trial.json").write_text(json.dumps(record))
        hydra = {"output_dir": str(tmp_path / str(number))}
        of_hydra = OmegaConf.create({"runtime": hydra, "overrides": {"task": overrides}, "job": {"num": number}})
        assert run_trial("train", of_hydra, metric) == 2.0
    message = "the trials differ in which tokens their loss covers, so it cannot be compared; use optimized_metric="
    out, err = capsys.readouterr()
    assert err.count(message) == warns and f"): {metric or 'result'} 2, already finished" in out
