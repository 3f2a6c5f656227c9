"""python -m instruct_lit.arena: blind comparison of models in a browser or by a judge, with a leaderboard."""

import re
import sys
from pathlib import Path

from omegaconf import DictConfig

from instruct_lit.config.compose import run_command
from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import need


def arena(config: DictConfig) -> None:
    """Rate the battles of a file, let a judge vote on the models of `runs`, or serve the page."""
    from instruct_lit.config import model_builders as build
    from instruct_lit.evaluation.ratings import read_battles
    from instruct_lit.reports.leaderboard import show_leaderboard
    from instruct_lit.serving.arena_judging import judge_votes, read_questions
    from instruct_lit.serving.arena_rounds import Arena, VoteFile
    from instruct_lit.serving.chat_model import open_chat_models
    from instruct_lit.serving.server import usable_port

    if config.battles is not None:
        show_leaderboard(read_battles(Path(config.battles).expanduser()), config.plot)
        return
    if config.judge is None:
        need("gradio", "arena", "arena")
        usable_port(config.host, config.port)  # fails before the models are opened
    votes = VoteFile(Path(config.votes).expanduser())
    questions = read_questions(config.questions, config.runs, config.n_questions)
    build.install_satellites()
    chat_models = open_chat_models(config.runs, build.given_template(config), config.device)
    sampling, options = build.sampling_of(config), build.engine_options(config)
    if config.judge is not None:
        if not questions:
            raise ConfigError("questions=null: no run has responses to a test set; give a file of records")
        from instruct_lit.config.judge_builders import judge_of, judge_prompt_of

        prompt = judge_prompt_of(config.judge, pairwise=True)
        judge = judge_of(config.judge, config.paths.cache)
        judge.check()
        judge_votes(chat_models, questions, sampling, options, judge, prompt, votes)
        show_leaderboard(votes.battles(), config.plot)
        return
    from instruct_lit.serving.arena_page import open_page

    rounds = Arena(chat_models, sampling, votes, questions, **options)
    page, url = open_page(rounds, config.host, config.port, config.password, config.allowed_hosts)
    names = ", ".join(chat_model.name for chat_model in chat_models)
    print(f"{names} at {url} (Ctrl-C stops); votes in {votes.path}, {len(questions)} questions", flush=True)
    page.block_thread()
    rounds.close()


def main() -> None:
    """Entry point of the command; `import` is reserved in Python, so the key behind it is `battles`."""
    sys.argv = [re.sub(r"^import=", "battles=", argument) for argument in sys.argv]
    run_command("arena", arena)


if __name__ == "__main__":
    main()
