"""One example in the terminal: record, text, tokens, shifted targets and mask, loss per target."""

import json
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
from instruct_lit.core.data.example import CONVERSATION, Example
from instruct_lit.core.model.causal import CausalLM, token_losses
from instruct_lit.errors import ConfigError, printable

SUPERVISED, WEIGHED, MASKED = "bold green", "yellow", "dim"
ROLES = {"system": "cyan", "user": "blue", "assistant": "green", "tool": "magenta"}
N_CONTEXT = 3  # masked tokens that stay visible at each end of a longer run
OF_MESSAGES = (*CONVERSATION, "history", "system", "instruction", "output")  # fields that a conversation shows
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
    collator = data.collator
    weights = supervised_tokens(encoded, collator.mask_prompt, collator.prompt_weight)
    print_example(console, store.example(index), encoded, data.tokenizer, weights, losses, all_tokens)


def print_example(
    console: Console,
    example: Example,
    encoded: EncodedExample,
    tokenizer: Any,
    weights: np.ndarray,
    losses: Sequence[float] | None = None,
    all_tokens: bool = False,
) -> None:
    """Print one example.

    Args:
        weights: of every token in the loss `(T,)`, 0 where it is masked.
        losses: of every target, supervised or not, `(T - 1,)`.
        all_tokens: also the middle of long masked runs.
    """
    supervised = weights > 0
    _heading(console, "record")
    for name, value in example.as_record().items():
        if value != "" and not (example.messages and name in OF_MESSAGES):
            console.print(Text(f"{printable(name)}: ", style="bold") + Text(printable(str(value))))
    if example.messages:
        _heading(console, "conversation")
        console.print(conversation(example))
    coloured = console.color_system is not None and not console.no_color
    note = "dim: masked, green: supervised, yellow: with a weight below 1" if coloured else "⟦supervised⟧"
    _heading(console, "rendered text", note)
    console.print(rendered(encoded.ids, weights, tokenizer, coloured))
    n_supervised = int(supervised[1:].sum())
    _heading(
        console, "tokens", f"{len(encoded.ids)} tokens, {n_supervised} of {len(encoded.ids) - 1} targets are supervised"
    )
    console.print(_table(encoded.ids, weights, tokenizer, losses, all_tokens))
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
    return token_losses(model, hidden, tokens[1:]).tolist()


def conversation(example: Example) -> Text:
    """Tools and messages with their roles, weights, thoughts (dim) and calls, in the colours of the roles."""
    text = Text()
    for tool in example.tools:
        text.append("tool offered: ", "bold magenta").append(f"{printable(json.dumps(tool['function']))}\n", "magenta")
    weights = iter(example.weights)
    for message in example.messages:
        role, weight = message["role"], next(weights, 1.0) if message["role"] == "assistant" else 1.0
        style = ROLES[role]
        text.append(role if weight == 1 else f"{role} (weight {weight:g})", f"bold {style}").append(": ")
        if thoughts := message.get("reasoning_content"):
            text.append("thoughts: ", "bold dim").append(f"{printable(thoughts)}\n", "dim")
        if message["content"]:
            text.append(f"{printable(message['content'])}\n", style)
        for call in message.get("tool_calls", ()):
            text.append("calls: ", "bold magenta").append(f"{printable(json.dumps(call['function']))}\n", "magenta")
    text.rstrip()
    return text


def rendered(ids: np.ndarray, weights: np.ndarray, tokenizer: Any, coloured: bool = True) -> Text:
    """The example's text decoded from its ids, masked parts dim, supervised parts green, yellow below a weight of 1.

    Without colours, supervised parts are in ⟦ ⟧.
    """
    text = Text()
    for weight, run in groupby(range(len(ids)), key=lambda i: float(weights[i])):
        part = printable(tokenizer.decode(ids[list(run)].tolist()))
        text.append(part if coloured or not weight else f"⟦{part}⟧", style=_style(weight))
    return text


def _style(weight: float) -> str:
    return MASKED if not weight else SUPERVISED if weight == 1 else WEIGHED


def piece(tokenizer: Any, token_id: int) -> str:
    """The text of a token with visible white space and control characters; part of a character is a replacement."""
    return printable(tokenizer.decode([int(token_id)]).translate(_VISIBLE))


def _table(
    ids: np.ndarray, weights: np.ndarray, tokenizer: Any, losses: Sequence[float] | None, all_tokens: bool
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "input", "", "target", ""):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True, overflow="ellipsis")
    table.columns[0].justify = "right"
    table.add_column("supervised" if losses is None else "loss", no_wrap=True)
    longest = max(1e-9, max(losses)) if losses is not None and len(losses) else 1.0
    for weight, run in groupby(range(len(ids) - 1), key=lambda i: float(weights[i + 1])):
        rows = list(run)
        hidden = [] if weight or all_tokens else rows[N_CONTEXT:-N_CONTEXT]
        for i in rows:
            if hidden and i == hidden[0]:
                table.add_row("⋮", "", Text(f"{len(hidden)} more"), "", "", "", style=MASKED)
            if hidden and hidden[0] <= i <= hidden[-1]:
                continue
            last = Text("" if not weight else "yes" if weight == 1 else f"{weight:g}")
            if losses is not None:
                bar = "█" * round(BAR * losses[i] / longest)
                last = Text(f"{losses[i]:6.3f} {bar}")
            cells = [str(ids[i]), piece(tokenizer, ids[i]), str(ids[i + 1]), piece(tokenizer, ids[i + 1])]
            # As Text, since a token like [/b] would be taken for rich's markup.
            table.add_row(str(i), *map(Text, cells), last, style=_style(weight))
    return table


def _heading(console: Console, title: str, note: str = "") -> None:
    line = Text(f"\n{title}", style="bold underline")
    console.print(line + Text(f"  {note}" if note else "", style="not bold not underline"))
