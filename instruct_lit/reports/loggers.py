"""What the loggers of a run get beside the curves, each in its own form, and four loggers beside Lightning's own."""

import csv
import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.image import imread

from instruct_lit.core.training.run import Run
from instruct_lit.optional_imports import load
from instruct_lit.reports.metrics import quantity

BEST = "with_best_weights/"  # before what is logged at the end: TensorBoard sorts charts and images by name


class TensorBoard(TensorBoardLogger):
    """Lightning's logger with charts of the training alone: no epochs, tests, and validations after the training."""

    fitted = False  # set when the training has ended

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        left_out = ("epoch", "test/", "val/") if self.fitted else ("epoch", "test/")
        super().log_metrics({name: value for name, value in metrics.items() if not name.startswith(left_out)}, step)


class Csv(CSVLogger):
    """Lightning's logger, which goes on in the file of a run that is resumed; Lightning's deletes it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            rows = self.rows()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*will be deleted")
                self._experiment = super().experiment
            self.write(rows)
        return self._experiment

    def rows(self) -> list[dict[str, str]]:
        """What the file has, without a last row that a kill has cut."""
        path = Path(self.log_dir, "metrics.csv")
        *lines, _cut = path.read_text().split("\n") if path.is_file() else [""]
        return list(csv.DictReader(lines))

    def write(self, rows: list[dict[str, str]]) -> None:
        """Make these the rows of the file, behind which the next ones come; none: no file."""
        path, writer = Path(self.log_dir, "metrics.csv"), self.experiment
        writer.metrics, writer.metrics_keys = [], list(rows[0]) if rows else []
        if not rows:
            path.unlink(missing_ok=True)
        else:
            temporary = path.with_suffix(".new")
            with temporary.open("w", newline="") as file:
                lines = csv.DictWriter(file, writer.metrics_keys)
                lines.writeheader()
                lines.writerows(rows)
            temporary.replace(path)


class Comet(CometLogger):
    """Lightning's logger, which can also log offline: with its own `online=False` it disables the experiment."""

    def __init__(self, online: bool = True, **given: Any) -> None:
        os.environ["COMET_START_ONLINE"] = str(online)
        super().__init__(**given)


class Trackio(Logger):
    """A project of Trackio on this machine, which `trackio show` opens."""

    def __init__(self, project: str, name: str | None = None) -> None:
        super().__init__()
        self.trackio = load("trackio", "logger=trackio", "loggers")
        self.project, self.run_name = project, name

    @cached_property
    def experiment(self) -> Any:
        return self.trackio.init(self.project, self.run_name, resume="allow", embed=False)

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        return self.run_name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        self.experiment.config.update(params)


@contextmanager
def steps_from_one(loggers: Iterable[Logger]) -> Iterator[None]:
    """While fitting, count optimizer steps from 1 as history.jsonl and the plots do; Lightning counts from 0."""

    def log(log_metrics: Callable[..., None], metrics: Mapping[str, float], step: int | None = None) -> None:
        log_metrics(metrics, None if step is None else step + 1)

    with ExitStack() as stack:
        for logger in loggers:
            logger.log_metrics = partial(log, logger.log_metrics)  # type: ignore[method-assign]
            stack.callback(delattr, logger, "log_metrics")
            stack.callback(setattr, logger, "fitted", True)  # for TensorBoard
        yield


def log_configuration(logger: Logger, configuration: Mapping[str, Any]) -> None:
    """Log every key of a run's configuration, before training; TensorBoard gets a selection at the end."""
    if not isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(dict(configuration))


def log_results(logger: Logger, run: Run, settings: Mapping[str, Any], compared: Iterable[str]) -> None:
    """Log the final metrics, where the logger can as figures without a chart, and the plot of the losses.

    Args:
        settings: by which TensorBoard's HPARAMS compares runs; empty: not.
        compared: names of the metrics in HPARAMS, of which those that the run has are shown.
    """
    metrics, step, plot = run.metrics, run.trainer.global_step, run.run_dir / "loss.png"
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    if isinstance(logger, TensorBoardLogger):
        if settings:
            _log_hparams(logger, settings, {name: numbers[name] for name in compared if name in numbers}, step)
        rows = [f"| {name} | {quantity(value, name)} |" for name, value in metrics.items()]
        log_text(logger, "results", "\n".join(["| metric | value |", "|---|---|", *rows]), step)
    elif isinstance(logger, WandbLogger):
        logger.experiment.summary.update(numbers)
    else:
        logger.log_metrics(numbers, step)
    if plot.is_file():
        _log_image(logger, "loss", plot, step)


def _log_hparams(
    logger: TensorBoardLogger, settings: Mapping[str, Any], metrics: Mapping[str, float], step: int
) -> None:
    """Log a row of HPARAMS; booleans are logged as text, since TensorBoard shows 1.0000 for True.

    HPARAMS shows the last point of a chart. The metrics of the best weights get charts of their own, below those of the
    training, and are displayed under their names.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    shown = {key: str(value) if isinstance(value, bool) else value for key, value in settings.items()}
    logger.log_hyperparams(shown, {})  # for hparams.yaml
    points = {BEST + name: value for name, value in metrics.items()}
    logger.log_metrics(points, step)
    experiment, *session = hparams(shown, points)
    plugin_data = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.metric_infos:
        info.display_name = info.name.tag.removeprefix(BEST)
    plugin_data.content = content.SerializeToString()
    for summary in (experiment, *session):
        logger.experiment.file_writer.add_summary(summary, step)  # type: ignore[union-attr]


def takes_text(logger: Logger) -> bool:
    """Whether texts and plots can be logged."""
    return isinstance(logger, TensorBoardLogger | WandbLogger | MLFlowLogger | CometLogger | Trackio)


def log_text(logger: Logger, title: str, text: str, step: int) -> None:
    """Log a text in Markdown; a logger that takes none gets none."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(title, text, step)
    elif isinstance(logger, WandbLogger):
        logger.log_text(title, ["step", "text"], [[str(step), text]])
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, text, f"{title}/step-{step}.md")
    elif isinstance(logger, CometLogger):
        logger.experiment.log_text(text, step=step, metadata={"title": title})
    elif isinstance(logger, Trackio):
        logger.experiment.log({title: logger.trackio.Markdown(text)}, step)


def _log_image(logger: Logger, title: str, path: Path, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(f"{BEST}plot of the {title}", imread(path)[:, :, :3], step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(title, [str(path)])
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(path))
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(str(path), name=title, step=step)
    elif isinstance(logger, Trackio):
        logger.log_metrics({title: logger.trackio.Image(str(path))}, step)
