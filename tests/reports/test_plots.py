"""Plots: what is drawn, and SVG that takes a page's colours."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from instruct_lit.reports import plots
from instruct_lit.reports.plots import TrialLine

LINES = [TrialLine(7, "#123456", [(0, 3.0), (5, 1.0)], "trial <7>"), TrialLine(2, "#654321", [(0, 3.0)], dashed=True)]


def test_svg_is_well_formed_self_contained_and_has_the_page_s_colours() -> None:
    shown = plots.svg(plots.trial_curves(LINES), "curves", LINES)
    ET.fromstring(shown.replace("xlink:href", "href"))
    assert "http" not in shown and plots.TEXT not in shown and "currentColor" in shown and "var(--line)" in shown
    assert '<g data-trial="7"><title>trial &lt;7&gt;</title>' in shown and shown.count("data-trial") == 2
    assert "optimizer step" in shown and "nats per token" in shown and "pruned" in shown


def test_ids_of_two_plots_on_a_page_differ() -> None:
    ids = [re.findall(r' id="([^"]+)"', plots.svg(plots.trial_curves(LINES), name, LINES)) for name in ("a", "b")]
    assert ids[0] and not {*ids[0]} & {*ids[1]}


def test_a_high_loss_before_the_first_step_does_not_stretch_the_axis() -> None:
    rows = [{"step": s, "tokens": 9 * s, "train/loss": 1.5 - s / 10, "val/loss": 1.4 - s / 10} for s in range(1, 6)]
    figure = plots.loss_curves([{"step": 0, "tokens": 0, "val/loss": 9.0}, *rows], 5)
    axes = figure.axes[0]
    assert axes.get_ylim()[1] < 2
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["training, smoothed", "validation, 9.000 at step 0", "best 0.900, step 5"]


def test_a_short_run_has_whole_steps_and_a_legend_beside_its_lines() -> None:
    rows = [{"step": 10, "train/loss": 1.6}, {"step": 20, "train/loss": 1.05, "val/loss": 1.36, "tokens": 3}]
    figure = plots.loss_curves([{"step": 0, "tokens": 0, "val/loss": 6.1}, *rows], 20)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "Training and validation loss"
    assert plots.loss_curves([{"step": 0, "val/loss": 6.1}], 0).axes[0].get_title(loc="left") == "Validation loss"
    assert all(tick == int(tick) for axis in (axes.xaxis, axes.child_axes[0].xaxis) for tick in axis.get_ticklocs())
    box = axes.get_legend().get_window_extent()
    assert not any(line.get_path().transformed(line.get_transform()).intersects_bbox(box) for line in axes.lines)


@pytest.mark.parametrize(
    ("column", "logarithmic", "heights", "labels"),
    [
        ([0.001, 0.1, 0.01], True, [0, 1, 0.5], ["0.001", "0.01", "0.1"]),
        ([1.0, 3.0, 2.0], False, [0, 1, 0.5], ["1", "2", "3"]),
        (["b", "a"], False, [0.75, 0.25], ["a", "b"]),
        ([2.0, 2.0], False, [0, 0], ["2"]),
        ([1.0, 9.9, 10.0], False, [0, 8.9 / 9, 1], ["1", "10"]),  # the end rather than its neighbour
    ],
)
def test_axes_of_parallel_coordinates(column: list, logarithmic: bool, heights: list[float], labels: list[str]) -> None:
    found, ticks = plots._scaled(column, logarithmic)
    assert found == pytest.approx(heights) and [label for _, label in ticks] == labels


def test_ticks_of_many_numbers_are_round_and_apart() -> None:
    _, ticks = plots._scaled(np.linspace(0.13, 9.87, 30).tolist(), False)
    assert {"2", "4", "6", "8"} <= {label for _, label in ticks}
    heights = sorted(y for y, _ in ticks)
    assert min(np.diff(heights)) >= 0.05


def test_every_plot_has_a_title_and_labels_with_units(tmp_path: Path) -> None:
    figures = [
        plots.loss_curves([], None),
        plots.importance({"optimizer.lr": 0.9, "seed": 0.1}, "val/loss"),
        plots.learning_rate_range([1e-4, 1e-3], [2.0, 1.0], 1e-4),
        plots.leaderboard(
            ["a", "b"], [1010, 990], [(1000, 1020), (980, 1000)], np.array([[np.nan, 0.7], [0.3, np.nan]])
        ),
    ]
    for figure in figures:
        axes = figure.axes[0]
        assert axes.get_title(loc="left") and axes.get_xlabel()
        plots.save(figure, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name",
    [
        "$a_{$",
        pytest.param("模型", marks=pytest.mark.slow),
        "ไทย",
        pytest.param("z" * 120, marks=pytest.mark.slow),
        pytest.param("two\nlines", marks=pytest.mark.slow),
    ],
    ids=["formula", "han", "thai", "long", "lines"],
)
def test_any_name_is_written_as_text_and_leaves_room_for_the_plot(name: str) -> None:
    history = [{"step": 0, "tokens": 0, "val/loss": 3.0}, {"step": 5, "tokens": 50, "val/loss": 2.0}]
    wins = np.array([[np.nan, 0.6], [0.4, np.nan]])
    numbers = {"n": 20, "mean": 0.5, "low": 0.1, "high": 0.6}
    figures = [
        plots.run_curves({name: history}, "val/loss", "step", "optimizer steps"),
        plots.category_scores("m", {"field": {name: numbers, "b": numbers}}),
        plots.parallel_coordinates(LINES, {name: [1.0] * len(LINES), "path": [name] * len(LINES)}, ()),
        plots.importance({name: 0.5, "b": 0.5}, "val/loss"),
        plots.leaderboard([name, "b"], [1000, 900], [(900, 1100), (800, 1000)], wins),
    ]
    written = f"{'z' * 20} … {'z' * 20}" if name.startswith("zz") else name.replace("\n", " ")
    for number, figure in enumerate(figures):
        shown = plots.svg(figure, "plot")  # warnings are errors
        assert written in shown or (number == 1 and written[-20:] in shown), number


def test_more_runs_than_colours_begin_again_with_dashed_lines() -> None:
    history = [{"step": 0, "tokens": 0, "val/loss": 3.0}, {"step": 5, "tokens": 50, "val/loss": 2.0}]
    n = len(plots.RUN_COLOURS) + 1
    lines = plots.run_curves({str(i): history for i in range(n)}, "val/loss", "step", "optimizer steps").axes[0].lines
    assert [line.get_color() for line in lines] == [*plots.RUN_COLOURS, plots.RUN_COLOURS[0]]
    assert [line.get_linestyle() for line in lines] == [*["-"] * (n - 1), "--"]


def test_a_saved_plot_takes_a_font_that_has_its_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(name: str) -> set[str]:
        figure = plots.leaderboard([name, "b"], [1010, 990], [(1000, 1020), (980, 1000)], np.full((2, 2), np.nan))
        plots.save(figure, tmp_path / "board.png")
        return {family for text in figure.findobj(Text) for family in text.get_fontfamily()}

    assert saved("a") == {"sans-serif"}
    others = saved("\u1d15") - {"sans-serif", "DejaVu Sans"}
    assert len(others) == 1, "matplotlib's DejaVu Sans does not have ᴕ, its DejaVu Serif does"
    monkeypatch.setattr(plots.fontManager, "ttflist", [])
    with pytest.warns(UserWarning, match=r"board.png: no font has 型模; install a Noto font") as found:
        saved("模型")
    assert len(found) == 1


def test_a_run_of_one_or_two_steps_has_each_step_once_on_its_axis() -> None:
    for steps in ((1,), (2,), (0, 1)):
        history = [{"step": step, "tokens": 100 * step, "val/loss": 3.0} for step in steps]
        for figure in (plots.loss_curves(history, None), plots.run_curves({"a": history}, "val/loss", "step", "steps")):
            figure.draw_without_rendering()
            labels = [label.get_text() for label in figure.axes[0].get_xticklabels() if label.get_text()]
            assert len(labels) == len(set(labels)), (steps, labels)
