"""python -m instruct_lit.review: people label responses one by one in a browser, blind to the model."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from instruct_lit.config.compose import run_command, runs_of
from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import need


def review(config: DictConfig) -> None:
    """Serve the page until Ctrl-C, then print the figures of all labels."""
    for module in ("fastapi", "uvicorn"):
        need(module, "review", "serve")

    from instruct_lit.reports.evaluation_page import print_people
    from instruct_lit.serving.review import Review
    from instruct_lit.serving.review_page import make_app
    from instruct_lit.serving.server import run_server, usable_port

    usable_port(config.host, config.port)
    sources = {source: rows_of(config, Path(source).expanduser()) for source in runs_of(config)}
    session = Review(sources, Path(config.reviews).expanduser(), config.labels, config.seed)
    app = make_app(session, config.password, config.allowed_hosts, config.seed)
    what = f"{len(session.items)} responses to review"
    with suppress(KeyboardInterrupt):
        run_server(
            app, config.host, config.port,
            lambda url: print(f"{what} at {url} (Ctrl-C stops); labels in {session.log.path}", flush=True),
        )  # fmt: skip
    found = session.figures(config.seed)
    if found["n_labels"]:
        print_people(found)


def rows_of(config: DictConfig, source: Path) -> list[dict[str, Any]]:
    """The responses of a run folder or of a file, with the scores of the metrics that need no extra."""
    from instruct_lit.config.model_builders import install_satellites
    from instruct_lit.evaluation.answer_files import read_responses
    from instruct_lit.evaluation.metrics import WITHOUT_EXTRA, applicable
    from instruct_lit.evaluation.scores import add_scores

    install_satellites()  # the file formats
    file = source / "responses.jsonl" if source.is_dir() else source
    if not file.is_file():
        raise ConfigError(f"run={source}: it has no responses.jsonl; `evaluate run={source}` writes one")
    rows = read_responses(file, config.response_field, keep=("judge",))[: config.n_responses]
    add_scores(rows, applicable([*WITHOUT_EXTRA, "checks"], rows))
    return rows


if __name__ == "__main__":
    run_command("review", review)
