"""The page and the loss curves of a run, from the files in its folder."""

import json
from pathlib import Path

import pytest

from instruct_lit.reports.run_page import plot_losses, print_summary, write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    history = [{"step": 0, "tokens": 0, "val/loss": 3.0}]
    history += [{"step": s, "tokens": 10 * s, "train/loss": 3 - s / 4} for s in range(1, 9)]
    history += [{"step": 4, "tokens": 40, "val/loss": 1.9}, {"step": 8, "tokens": 80, "val/loss": 2.4}]
    (tmp_path / "history.jsonl").write_text("\n".join(map(json.dumps, sorted(history, key=lambda row: row["step"]))))
    rows = [
        {
            "instruction": "<b>bold</b>",
            "input": "",
            "output": "yes",
            "response": " yes\n",
            "base_response": "no",
            "finish_reason": "stop",
            "family": "a",
        },
        {
            "instruction": "other",
            "input": "x",
            "output": "yes",
            "response": "<script>",
            "base_response": "no",
            "finish_reason": "length",
            "family": "a",
        },
    ]
    (tmp_path / "responses.jsonl").write_text("\n".join(map(json.dumps, rows)))
    metrics = {
        "n_train": 12,
        "base/test/exact_match": 0.25,
        "test/exact_match": 0.5,
        "val/loss": 1.9,
        "stopped_early": True,
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


def test_the_page_shows_metrics_before_and_after_and_wrong_answers_first(run: Path) -> None:
    plot_losses(run)
    write_report(run, [("optimizer.lr", 1e-3, 2e-3)], ["optimizer.lr=2e-3"])
    page = (run / "report.html").read_text()
    assert "python -m instruct_lit.train optimizer.lr=2e-3" in page
    assert "<td>0.5000</td>" in page.replace(' class="number"', "") and "0.2500" in page
    assert (
        page.index("&lt;script&gt;") < page.index("&lt;b&gt;bold")
        and '<td class="text"><script>' not in page
        and "<b>bold" not in page
    )
    quality = page[page.index("Gained and lost by fine-tuning") : page.index("Responses to the test split")]
    assert '<code>exact_match</code></td><td class="number">0.500 <span class="dim">(0.013 to 0.987)' in quality
    assert '0.000 <span class="dim">(0.000 to 0.842)' in quality  # before fine-tuning
    assert "[length]" in page and "1 of 2" in page and "2 of 2 shown" in page
    assert page.count("<svg") == 1 and "http" not in page and "currentColor" in page


def test_a_name_with_the_time_is_no_difference_unless_it_was_set(tmp_path: Path) -> None:
    names = [("name", "demo-nano-10-00-00", "demo-nano-10-00-05")]
    for overrides, shown in (["seed=1"], False), (["name=mine"], True):
        write_report(tmp_path, names, overrides)
        assert ("<code>demo-nano-10-00-05</code>" in (tmp_path / "report.html").read_text()) is shown


def plot_of_best(run: Path, step: int | None) -> bytes:
    (run / "metrics.json").write_text(json.dumps({} if step is None else {"best_step": step}))
    plot_losses(run)
    return (run / "loss.png").read_bytes()


@pytest.mark.slow
def test_the_plot_is_drawn_from_any_history(run: Path) -> None:
    plot_losses(run)
    first = (run / "loss.png").read_bytes()
    assert first != plot_of_best(run, 8), "the step whose weights were kept, not that of the lowest loss"
    assert first == plot_of_best(run, 4) == plot_of_best(run, None)
    assert plot_of_best(run, 7) not in (first, plot_of_best(run, 8)), "not validated: nothing is marked"
    (run / "history.jsonl").write_text("")
    plot_losses(run)
    assert first[:4] == (run / "loss.png").read_bytes()[:4] == b"\x89PNG" and len(first) > 20_000


def test_the_page_of_a_run_without_responses_or_history(tmp_path: Path) -> None:
    write_report(tmp_path, [], [])
    page = (tmp_path / "report.html").read_text()
    assert (
        "There are no responses." in page and "tensorboard" not in page and "None: all values are the defaults." in page
    )


def test_the_summary_lists_metrics_and_files(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_summary(run, json.loads((run / "metrics.json").read_text()))
    out = capsys.readouterr().out
    assert "test/exact_match" in out and "0.5000   (before fine-tuning 0.2500)" in out and "responses.jsonl" in out
    assert "bundle" not in out.replace(str(run), "")  # it is not there
    assert all(len(line) <= 80 for line in out.replace(str(run), "").splitlines())


def test_the_loss_of_dft_is_named_since_it_is_no_cross_entropy(tmp_path: Path) -> None:
    row = {"step": 1, "tokens": 9, "train/loss": 0.1, "val/loss": 2.0}
    (tmp_path / "history.jsonl").write_text(json.dumps(row) + "\n")
    for loss, label in (("dft", "DFT: each token times its probability"), ("cross_entropy", "training, smoothed")):
        (tmp_path / "config.yaml").write_text(f"loss: {loss}\n")
        write_report(tmp_path, [], [])
        assert label in (tmp_path / "report.html").read_text()
