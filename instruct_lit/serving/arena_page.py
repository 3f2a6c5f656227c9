"""The arena's web page: two anonymous answers side by side, four buttons to vote, and the leaderboard."""

import html
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from instruct_lit.errors import ConfigError, DataError, InstructLitError
from instruct_lit.evaluation.ratings import leaderboard
from instruct_lit.reports.leaderboard import HEADS, leaderboard_plot, table_of
from instruct_lit.serving.arena_rounds import Arena, Round
from instruct_lit.serving.http import HostGuard, PagePolicy
from instruct_lit.serving.server import usable_port

VOTES = {"A is better": "model_a", "B is better": "model_b", "Tie": "tie", "Both are bad": "both_bad"}
NOTES = """\
Bradley–Terry ratings on the Elo scale (400 points are odds of ten to one) with mean 1000 and 95 % intervals.
Models whose intervals overlap share their ranks, `1 to 3`. Elo depends on the order of the votes. "Both are bad" counts
as a tie. The rating of a model that has only won or only lost is held finite by a weak prior; its interval is wide.
Where some models are connected to the others by no votes, ranks are `<group>.<rank>`, and ratings of different groups
cannot be compared."""
_FONT = ["system-ui", "sans-serif"]  # of the reader's machine: the page must not load one from elsewhere


def as_markdown(text: str) -> str:
    """Markdown that displays a text literally, with its punctuation and HTML escaped."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Errors of the user as messages on the page, whose HTML gradio renders."""
    import gradio as gr

    try:
        yield
    except InstructLitError as error:
        raise gr.Error(html.escape(str(error)), duration=8, print_exception=False) from error


def make_page(arena: Arena) -> Any:
    """The gradio page of an arena."""
    import gradio as gr

    def vote_buttons(active: bool) -> list[Any]:
        return [gr.Button(interactive=active) for _ in VOTES]

    def ask(instruction: str, input_text: str) -> Iterator[list[Any]]:
        """Stream both answers, then enable the vote."""
        with _shown_errors():
            battle = arena.new_round(instruction, input_text)
            for a, b in arena.answers(battle):
                yield [battle, a, b, "", *vote_buttons(False)]
        yield [battle, *battle.answers, "Which answer is better?", *vote_buttons(True)]

    def cast(winner: str, battle: Round | None) -> list[Any]:
        """Save the vote and show the names."""
        with _shown_errors():
            if battle is None:
                raise DataError("there are no answers yet; ask a question first")
            name_a, name_b = map(as_markdown, arena.vote(battle, winner))
        names = f"**A** was **{name_a}**, **B** was **{name_b}**. Your vote has been saved."
        return [battle, names, *vote_buttons(False), *standings()]

    def standings() -> list[Any]:
        with _shown_errors():
            battles = arena.votes.battles()
        ratings = leaderboard(battles) if battles else []
        count = f"{len(battles)} votes" if len(battles) != 1 else "1 vote"
        return [count, table_of(ratings), leaderboard_plot(ratings, battles) if ratings else None]

    with gr.Blocks(title="instruct-lit arena", analytics_enabled=False) as page:
        gr.Markdown("# Which answer is better?\nTwo models answer; their names are shown after your vote.")
        battle = gr.State(None)
        with gr.Tab("Battle"):
            with gr.Row():
                instruction = gr.Textbox(label="Instruction", lines=2, scale=3, elem_id="instruction")
                input_text = gr.Textbox(label="Input (optional)", lines=2, scale=2, elem_id="input")
            with gr.Row():
                draw = gr.Button("Random test question", visible=bool(arena.questions), elem_id="draw")
                start = gr.Button("Ask both models", variant="primary", elem_id="ask")
            with gr.Row():
                answers = [gr.Textbox(label=f"Model {x}", lines=8, elem_id=f"answer-{x.lower()}") for x in "AB"]
            status = gr.Markdown("", elem_id="status")
            with gr.Row():
                buttons = [gr.Button(label, interactive=False, elem_id=f"vote-{VOTES[label]}") for label in VOTES]
        with gr.Tab("Leaderboard") as tab:
            count = gr.Markdown("", elem_id="count")
            table = gr.Dataframe(headers=list(HEADS), interactive=False, elem_id="leaderboard")
            plot = gr.Plot(show_label=False, elem_id="plot")
            gr.Markdown(NOTES)
        board = [count, table, plot]
        asking: Any = {
            "fn": ask, "inputs": [instruction, input_text], "outputs": [battle, *answers, status, *buttons],
            "concurrency_limit": 16,
        }  # fmt: skip
        start.click(**asking)
        instruction.submit(**asking)
        draw.click(lambda: list(arena.random_question()), None, [instruction, input_text])
        for button, winner in zip(buttons, VOTES.values(), strict=True):
            button.click(
                lambda battle, winner=winner: cast(winner, battle), [battle], [battle, status, *buttons, *board]
            )
        tab.select(standings, None, board)
        page.load(standings, None, board)
    return page


def open_page(
    arena: Arena, host: str, port: int, password: str | None, allowed_hosts: Sequence[str] = ()
) -> tuple[Any, str]:
    """The page, served by a thread, and its URL; the user name of the password is `arena`.

    Args:
        allowed_hosts: names of the server beside those of this machine; none with a password allows every name.

    Raises: ConfigError where the port is in use.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio requests its own page at the start
    import gradio as gr
    from starlette.middleware import Middleware

    page, middleware = make_page(arena), [Middleware(PagePolicy)]
    if password is None or allowed_hosts:
        middleware.append(Middleware(HostGuard, hosts=allowed_hosts))
    try:
        _, url, _ = page.launch(
            server_name=host, server_port=usable_port(host, port), share=False, quiet=True, ssr_mode=False,
            auth=("arena", password) if password else None, prevent_thread_lock=True, footer_links=[],
            theme=gr.themes.Soft(primary_hue="blue", font=_FONT, font_mono=["ui-monospace", "monospace"]),
            app_kwargs={"middleware": middleware},
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"port={port}: {error}; port=0 takes a free one") from error
    return page, url
