"""python -m instruct_lit.arena: models side by side, blind, voted on by people or by a judge; the leaderboard."""

from __future__ import annotations

import logging
import os
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config.compose import run_command
from instruct_lit.config.judge_builders import asked, check_judge, judge_of, judge_prompt_of
from instruct_lit.config.schema import ArenaConfig, check_values, missing_runs
from instruct_lit.errors import ConfigError, DataError
from instruct_lit.serve import is_loopback, usable_port

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from instruct_lit.serving.conversation import ChatModel
    from instruct_lit.serving.votes import VoteFile

Question = tuple[str, str]


def check_arena(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of an arena's configuration."""
    problems = check_values(config)
    if config.battles is None:
        problems += missing_runs(config.runs or None, "runs")
        if len(config.runs) == 1:
            problems.append("runs: two models at least")
    elif not Path(config.battles).expanduser().is_file():
        problems.append(f"import={config.battles}: no such file")
    if config.questions is not None and not Path(config.questions).expanduser().is_file():
        problems.append(f"questions={config.questions}: no such file")
    if not 0 <= config.port < 65536:
        problems.append(f"port={config.port}: must be between 0 (a free one) and 65535")
    if not is_loopback(config.host) and not config.password:
        problems.append(f"host={config.host}: others could reach it; give password=…, or stay with 127.0.0.1")
    if config.judge is not None:
        problems += check_judge(config.judge, compares=True)
    if problems:
        raise ConfigError("\n  ".join(problems))


def arena(config: DictConfig) -> None:
    """Rate the battles of a file (`import`), let a judge vote on the models of `runs`, or serve the page."""
    check_arena(config)

    from instruct_lit.config import builders as build
    from instruct_lit.serving.conversation import open_speakers
    from instruct_lit.serving.votes import VoteFile
    from instruct_lit.suites.ratings import read_battles

    build.need("evalica", "arena", "arena")
    if config.battles is not None:
        show(config, read_battles(Path(config.battles).expanduser()))
        return
    if config.judge is None:
        build.need("gradio", "arena", "arena")
        usable_port(config.host, config.port)  # told before the models are opened
    votes = VoteFile(Path(config.votes).expanduser())
    questions = questions_of(config)
    build.install_satellites()
    speakers = open_speakers(config.runs, build.given_template(config), config.device)
    if config.judge is not None:
        let_judge_vote(config, speakers, votes, questions)
        show(config, votes.battles())
    else:
        open_page(config, speakers, votes, questions)


def questions_of(config: DictConfig) -> list[Question]:
    """Instructions and inputs of `questions`, or of the test set that the first run folder with answers has."""
    from instruct_lit.core.bundle import bundle_of
    from instruct_lit.core.data.records import read_records

    answered = (bundle_of(run).parent / "responses.jsonl" for run in config.runs)
    path = Path(config.questions).expanduser() if config.questions else next((p for p in answered if p.is_file()), None)
    if path is None:
        return []
    found: dict[Question, None] = {}
    for place, record in read_records(path):
        if isinstance(record, DataError):
            raise record
        if not isinstance(record, dict) or not isinstance(record.get("instruction"), str):
            raise DataError(f"{place}: no text in 'instruction'")
        given = record.get("input") or ""
        if not isinstance(given, str):
            raise DataError(f"{place}: 'input' must be text, found {given!r:.60}")
        found[record["instruction"], given] = None
    return list(found)[: config.n_questions]


def let_judge_vote(config: DictConfig, speakers: list[ChatModel], votes: VoteFile, questions: list[Question]) -> None:
    """Let all models answer the questions, and a judge compare every two answers in both orders.

    A verdict that could not be read is no vote, and is counted.
    """
    if not questions:
        raise ConfigError("questions=null: the runs have no answered test set; give a file of records")
    from instruct_lit.config import builders as build
    from instruct_lit.core.data.example import Example
    from instruct_lit.core.generation.engine import Engine
    from instruct_lit.core.generation.responses import answer
    from instruct_lit.evaluation.comparison import questions_of as both_orders

    judge, prompt = judge_of(config), judge_prompt_of(config.judge, pairwise=True)
    judge.check()
    examples = [Example(instruction, "", given) for instruction, given in questions]
    rows = {}
    for speaker in speakers:
        engine = Engine(speaker.model, speaker.tokenizer, **build.engine_options(config))
        with_ids = [(i, example, speaker.prompt_ids(example)) for i, example in enumerate(examples)]
        rows[speaker.name] = answer(engine, speaker.template, with_ids, build.sampling_of(config))
        print(f"{speaker.name}: {len(examples)} answers", flush=True)
    texts, battles = [], []
    for a, b in combinations(rows, 2):
        for row_a, row_b in zip(rows[a], rows[b], strict=True):
            texts += [prompt.render(text) for text in both_orders((row_a, row_b))]
            battles += [(a, row_a, b, row_b), (b, row_b, a, row_a)]
    verdicts = asked(config, judge, prompt, texts)
    winners = {"A": "model_a", "B": "model_b", "tie": "tie"}
    for (first, row_a, second, row_b), judgement in zip(battles, verdicts, strict=True):
        if judgement.value is not None:
            votes.append(
                {
                    "judge": config.judge.model, "model_a": first, "model_b": second,
                    "winner": winners[judgement.value], "instruction": row_a["instruction"], "input": row_a["input"],
                    "response_a": row_a["response"], "response_b": row_b["response"],
                }
            )  # fmt: skip
    n_unread = sum(judgement.value is None for judgement in verdicts)
    print(f"{len(verdicts) - n_unread} votes added to {votes.path}, {n_unread} verdicts could not be read")


def show(config: DictConfig, battles: Any) -> None:
    """Print the leaderboard, and draw it where `picture` names a file."""
    from instruct_lit.suites.leaderboard import print_leaderboard, save_picture
    from instruct_lit.suites.ratings import leaderboard

    ratings = leaderboard(battles)
    print_leaderboard(ratings)
    if config.picture is not None:
        path = Path(config.picture).expanduser()
        try:
            save_picture(path, ratings, battles)
        except (OSError, ValueError) as error:  # no such folder, or an ending that is no picture's
            raise ConfigError(f"picture={path}: cannot be written ({error})") from error
        print(f"picture: {path}")


def open_page(config: DictConfig, speakers: list[ChatModel], votes: VoteFile, questions: list[Question]) -> None:
    """Serve the page until Ctrl-C."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks its own page whether it is there
    from instruct_lit.config import builders as build
    from instruct_lit.serving.arena_page import appearance, make_page
    from instruct_lit.serving.arena_rounds import Arena

    rounds = Arena(speakers, build.sampling_of(config), votes, questions, **build.engine_options(config))
    page = make_page(rounds)
    try:
        _, url, _ = page.launch(
            server_name=config.host, server_port=usable_port(config.host, config.port), share=False, quiet=True,
            auth=("arena", config.password) if config.password else None, prevent_thread_lock=True, ssr_mode=False,
            **appearance(),
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"port={config.port}: {error}") from error
    names = ", ".join(speaker.name for speaker in speakers)
    print(f"{names} at {url} (Ctrl-C ends); votes in {votes.path}, {len(questions)} questions to draw", flush=True)
    page.block_thread()
    rounds.close()


def main() -> None:
    """Entry point of the command; `import` is a word of Python's, so the key behind it is `battles`."""
    sys.argv = [re.sub(r"^import=", "battles=", argument) for argument in sys.argv]
    run_command("arena", ArenaConfig, arena)


if __name__ == "__main__":
    main()
