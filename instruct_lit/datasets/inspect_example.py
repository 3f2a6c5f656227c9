"""One example in the terminal: record, text, tokens, shifted targets and mask, loss per target."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from instruct_lit.core.data.batching import supervised as supervised_tokens
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.encode import EncodedExample
from instruct_lit.core.data.example import Example
from instruct_lit.core.model.causal import CausalLM, token_losses
from instruct_lit.errors import ConfigError, printable

SUPERVISED, MASKED = "bold green", "dim"
N_CONTEXT = 3  # masked tokens that stay visible at each end of a longer run
BAR = 10  # columns of the longest bar
_CONTROL = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "␡"}
_VISIBLE = _CONTROL | str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥"})


def show_example(
    console: Console, data: InstructionData, split: str, index: int, model: CausalLM | None, all_tokens: bool
) -> None:
    """Print the example with this index in the store of a split; with a model also the loss of every target."""
    store = data.examples_of(split)[0]
    if not 0 <= index < len(store):
        raise ConfigError(f"index={index}: must be between 0 and {len(store) - 1}")
    found = next((name for name in ("train", "val", "test") if index in data.examples_of(name)[1]), "no split")
    console.print(f"example {index}, in {split if split in data.stores else found}", style="bold", highlight=False)
    encoded = store[index]
    losses = target_losses(model, encoded.ids) if model is not None else None
    print_example(console, store.example(index), encoded, data.tokenizer, data.collator.mask_prompt, losses, all_tokens)


def print_example(
    console: Console,
    example: Example,
    encoded: EncodedExample,
    tokenizer: Any,
    mask_prompt: bool,
    losses: Sequence[float] | None = None,
    all_tokens: bool = False,
) -> None:
    """Print one example.

    Args:
        losses: of every target, supervised or not, `(T - 1,)`.
        all_tokens: also the middle of long masked runs.
    """
    supervised = supervised_tokens(encoded, mask_prompt) > 0
    _heading(console, "record")
    for name, value in example.as_record().items():
        if value != "":
            console.print(Text(f"{printable(name)}: ", style="bold") + Text(printable(str(value))))
    _heading(console, "rendered text", "dim: masked, green: supervised" if console.color_system else "⟦supervised⟧")
    console.print(rendered(encoded.ids, supervised, tokenizer, bool(console.color_system)))
    n_supervised = int(supervised[1:].sum())
    _heading(
        console, "tokens", f"{len(encoded.ids)} tokens, {n_supervised} of {len(encoded.ids) - 1} targets are supervised"
    )
    console.print(_table(encoded.ids, supervised, tokenizer, losses, all_tokens))
    if losses is not None and n_supervised:
        mean = float(np.asarray(losses)[supervised[1:]].mean())
        console.print(
            f"mean loss of the supervised targets: {mean:.3f} nats, perplexity {np.exp(mean):.2f}", highlight=False
        )


def target_losses(model: CausalLM, ids: np.ndarray) -> list[float]:
    """The loss of every target of one example in nats `(T - 1,)`, prompt and response alike."""
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        hidden = model.eval().hidden_states(tokens[None, :-1])[0]
    return token_losses(hidden, model.head_weight, tokens[1:]).tolist()


def rendered(ids: np.ndarray, supervised: np.ndarray, tokenizer: Any, coloured: bool = True) -> Text:
    """The example's text decoded from its ids, masked parts dim and supervised parts green.

    Without colours, supervised parts are in ⟦ ⟧.
    """
    text = Text()
    for is_supervised, run in groupby(range(len(ids)), key=lambda i: bool(supervised[i])):
        part = printable(tokenizer.decode(ids[list(run)].tolist()))
        text.append(
            part if coloured or not is_supervised else f"⟦{part}⟧", style=SUPERVISED if is_supervised else MASKED
        )
    return text


def piece(tokenizer: Any, token_id: int) -> str:
    """The text of a token with visible white space and control characters; part of a character is a replacement."""
    return printable(tokenizer.decode([int(token_id)]).translate(_VISIBLE))


def _table(
    ids: np.ndarray, supervised: np.ndarray, tokenizer: Any, losses: Sequence[float] | None, all_tokens: bool
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "input", "", "target", ""):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True, overflow="ellipsis")
    table.columns[0].justify = "right"
    table.add_column("supervised" if losses is None else "loss", no_wrap=True)
    longest = max(1e-9, max(losses)) if losses is not None and len(losses) else 1.0
    for is_supervised, run in groupby(range(len(ids) - 1), key=lambda i: bool(supervised[i + 1])):
        rows = list(run)
        hidden = [] if is_supervised or all_tokens else rows[N_CONTEXT:-N_CONTEXT]
        for i in rows:
            if hidden and i == hidden[0]:
                table.add_row("⋮", "", Text(f"{len(hidden)} more"), "", "", "", style=MASKED)
            if hidden and hidden[0] <= i <= hidden[-1]:
                continue
            last = Text("yes" if is_supervised else "")
            if losses is not None:
                bar = "█" * round(BAR * losses[i] / longest)
                last = Text(f"{losses[i]:6.3f} {bar}")
            cells = [str(ids[i]), piece(tokenizer, ids[i]), str(ids[i + 1]), piece(tokenizer, ids[i + 1])]
            # As Text, since a token like [/b] would be taken for rich's markup.
            table.add_row(str(i), *map(Text, cells), last, style=SUPERVISED if is_supervised else MASKED)
    return table


def _heading(console: Console, title: str, note: str = "") -> None:
    line = Text(f"\n{title}", style="bold underline")
    console.print(line + Text(f"  {note}" if note else "", style="not bold not underline"))
