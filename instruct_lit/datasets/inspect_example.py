"""One example on its whole way, for a person: record, text, tokens, shifted targets and mask, loss per token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.example import Example
from instruct_lit.errors import printable

LEARNT, MASKED = "bold green", "dim"
N_CONTEXT = 3  # masked tokens that stay visible at each end of a longer run
BAR = 10  # columns of the longest bar
_CONTROL = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "␡"}
_VISIBLE = _CONTROL | str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥"})


def print_walk(
    console: Console,
    example: Example,
    encoded: EncodedExample,
    tokenizer: Any,
    mask_prompt: bool,
    losses: Sequence[float] | None = None,
    all_tokens: bool = False,
) -> None:
    """Print the five stops of one example.

    `losses` are those of every target, learnt or not, `(T - 1,)`. Of a long masked run only the ends are shown unless
    `all_tokens`.
    """
    learnt = encoded.is_response if mask_prompt else np.ones(len(encoded.ids), dtype=bool)
    _heading(console, "record")
    for name, value in example.as_record().items():
        if value != "":
            console.print(Text(f"{name}: ", style="bold") + Text(printable(str(value))))
    _heading(console, "rendered text", "dim: not learnt, green: learnt" if console.color_system else "⟦learnt⟧")
    console.print(rendered(encoded.ids, learnt, tokenizer, bool(console.color_system)))
    n_learnt = int(learnt[1:].sum())
    _heading(console, "tokens", f"{len(encoded.ids)} tokens, {n_learnt} of {len(encoded.ids) - 1} targets are learnt")
    console.print(_table(encoded.ids, learnt, tokenizer, losses, all_tokens))
    if losses is not None and n_learnt:
        mean = float(np.asarray(losses)[learnt[1:]].mean())
        console.print(
            f"mean loss of the learnt targets: {mean:.3f} nats, perplexity {np.exp(mean):.2f}", highlight=False
        )


def rendered(ids: np.ndarray, learnt: np.ndarray, tokenizer: Any, coloured: bool = True) -> Text:
    """The example's text decoded from its ids, what is not learnt dim and what is learnt bright.

    Without colours the learnt parts stand in ⟦ ⟧.
    """
    text = Text()
    for is_learnt, run in groupby(range(len(ids)), key=lambda i: bool(learnt[i])):
        part = printable(tokenizer.decode(ids[list(run)].tolist()))
        text.append(part if coloured or not is_learnt else f"⟦{part}⟧", style=LEARNT if is_learnt else MASKED)
    return text


def piece(tokenizer: Any, token_id: int) -> str:
    """What a token stands for, with visible white space and control characters; half a character is a replacement."""
    return printable(tokenizer.decode([int(token_id)]).translate(_VISIBLE))


def _table(
    ids: np.ndarray, learnt: np.ndarray, tokenizer: Any, losses: Sequence[float] | None, all_tokens: bool
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "input", "", "target", ""):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True, overflow="ellipsis")
    table.columns[0].justify = "right"
    table.add_column("learnt" if losses is None else "loss", no_wrap=True)
    longest = max(1e-9, max(losses)) if losses is not None and len(losses) else 1.0
    for is_learnt, run in groupby(range(len(ids) - 1), key=lambda i: bool(learnt[i + 1])):
        rows = list(run)
        hidden = [] if is_learnt or all_tokens else rows[N_CONTEXT:-N_CONTEXT]
        for i in rows:
            if hidden and i == hidden[0]:
                table.add_row("⋮", "", Text(f"{len(hidden)} more"), "", "", "", style=MASKED)
            if hidden and hidden[0] <= i <= hidden[-1]:
                continue
            last = Text("yes" if is_learnt else "")
            if losses is not None:
                bar = "█" * round(BAR * losses[i] / longest)
                last = Text(f"{losses[i]:6.3f} {bar}")
            cells = [str(ids[i]), piece(tokenizer, ids[i]), str(ids[i + 1]), piece(tokenizer, ids[i + 1])]
            # As Text, since a token like [/b] would be taken for rich's markup.
            table.add_row(str(i), *map(Text, cells), last, style=LEARNT if is_learnt else MASKED)
    return table


def _heading(console: Console, title: str, note: str = "") -> None:
    line = Text(f"\n{title}", style="bold underline")
    console.print(line + Text(f"  {note}" if note else "", style="not bold not underline"))
