"""The arena's web page: two anonymous answers side by side, four ways to vote, and the leaderboard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from instruct_lit.errors import DataError, InstructLitError
from instruct_lit.serving.arena_rounds import Arena, Round
from instruct_lit.suites.leaderboard import HEADS, picture, table_of
from instruct_lit.suites.ratings import leaderboard

VOTES = {"A is better": "model_a", "B is better": "model_b", "Tie": "tie", "Both are bad": "both_bad"}
EXPLAINED = """\
Bradley–Terry ratings on Elo's scale (400 points: ten wins to one), their mean at 1000, with 95 % bootstrap intervals;
Elo follows the votes in their order. Both bad counts as a tie. While a model has only won or only lost, Bradley–Terry
cannot place it; Elo and the win rate can."""
_FONT = ["system-ui", "sans-serif"]  # of the reader's machine: the page must not ask another for one


def make_page(arena: Arena) -> Any:
    """The gradio page of an arena; `launch` it with `appearance()`."""
    import gradio as gr

    def vote_buttons(active: bool) -> list[Any]:
        return [gr.Button(interactive=active) for _ in VOTES]

    def ask(instruction: str, given: str) -> Iterator[list[Any]]:
        """Show both answers as they grow, then open the vote."""
        try:
            battle = arena.pair(instruction, given)
            for a, b in arena.answer(battle):
                yield [battle, a, b, "", *vote_buttons(False)]
        except InstructLitError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from error
        yield [battle, *battle.answers, "Which answer is better?", *vote_buttons(True)]

    def cast(winner: str, battle: Round | None) -> list[Any]:
        """Keep the vote and tell the names."""
        try:
            if battle is None:
                raise DataError("ask something first")
            name_a, name_b = arena.vote(battle, winner)
        except InstructLitError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from error
        names = f"**A** was **{name_a}**, **B** was **{name_b}**. Thank you; your vote is kept."
        return [battle, names, *vote_buttons(False), *standings()]

    def standings() -> list[Any]:
        battles = arena.votes.battles()
        ratings = leaderboard(battles) if battles else []
        count = f"{len(battles)} votes" if len(battles) != 1 else "1 vote"
        return [count, table_of(ratings), picture(ratings, battles) if ratings else None]

    with gr.Blocks(title="instruct-lit arena", analytics_enabled=False) as page:
        gr.Markdown("# Which answer is better?\nTwo models answer; their names are shown after your vote.")
        battle = gr.State(None)
        with gr.Tab("Battle"):
            with gr.Row():
                instruction = gr.Textbox(label="Instruction", lines=2, scale=3, elem_id="instruction")
                given = gr.Textbox(label="Input (may be empty)", lines=2, scale=2, elem_id="input")
            with gr.Row():
                drawn = gr.Button("An instruction of the test set", visible=bool(arena.questions), elem_id="draw")
                start = gr.Button("Ask both", variant="primary", elem_id="ask")
            with gr.Row():
                answers = [gr.Textbox(label=f"Model {x}", lines=8, elem_id=f"answer-{x.lower()}") for x in "AB"]
            told = gr.Markdown("", elem_id="told")
            with gr.Row():
                buttons = [gr.Button(label, interactive=False, elem_id=f"vote-{VOTES[label]}") for label in VOTES]
        with gr.Tab("Leaderboard") as tab:
            count = gr.Markdown("", elem_id="count")
            table = gr.Dataframe(headers=list(HEADS), interactive=False, elem_id="leaderboard")
            plot = gr.Plot(show_label=False, elem_id="plot")
            gr.Markdown(EXPLAINED)
        shown = [battle, *answers, told, *buttons]
        board = [count, table, plot]
        asked: Any = {"fn": ask, "inputs": [instruction, given], "outputs": shown, "concurrency_limit": 16}
        start.click(**asked)
        instruction.submit(**asked)
        drawn.click(lambda: list(arena.question()) if arena.questions else ["", ""], None, [instruction, given])
        for button, winner in zip(buttons, VOTES.values(), strict=True):
            button.click(lambda battle, winner=winner: cast(winner, battle), [battle], [battle, told, *buttons, *board])
        tab.select(standings, None, board)
        page.load(standings, None, board)
    return page


def appearance() -> dict[str, Any]:
    """Arguments of `launch` for the looks."""
    import gradio as gr

    return {"theme": gr.themes.Soft(font=_FONT, font_mono=["ui-monospace", "monospace"]), "footer_links": []}
