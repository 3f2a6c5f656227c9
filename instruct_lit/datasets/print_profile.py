"""The profile of a data set in the terminal, in 80 columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from instruct_lit.datasets.profile import N_SHOWN, Profile, histogram

BAR = 20  # columns of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"


def print_profile(console: Console, found: Profile, layout: str) -> None:
    """Print counts, histograms, the cost of padding, and odd records."""
    table = Table(Column(style="bold", no_wrap=True), "", box=None, show_header=False, pad_edge=False)
    n_tokens = int(found.prompt_lengths.sum() + found.response_lengths.sum())
    table.add_row("examples", f"{found.n_examples:,}, {n_tokens:,} tokens")
    filtered = [name for name in found.counts if name.startswith("n_filtered_")]
    for name, what in (_COUNTS | {n: f"dropped by {n.removeprefix('n_filtered_')}" for n in filtered}).items():
        if n := found.counts.get(name):
            table.add_row(what, f"{n:,}")
    table.add_row("truncated", f"{found.truncated_share:.1%}")
    table.add_row("supervised", f"{found.supervised_share:.1%} of the targets")
    table.add_row("end-of-text", f"supervised in {found.ends_share:.1%} of the examples")
    header = repr(found.header.strip()) if found.header.strip() else "none"
    table.add_row("response header", f"{header}, in {found.header_share:.1%} of the prompts")
    table.add_row("mask", f"decodes to the responses in {found.mask_share:.1%} of the examples")
    if found.kinds:
        shares = ", ".join(f"{kind} {n / found.n_examples:.0%}" for kind, n in found.kinds.items())
        table.add_row("examples with", shares)
        table.add_row("responses", f"{found.n_responses:,}, {found.n_responses / found.n_examples:.2f} per example")
    table.add_row("repeated prompts", f"{found.n_repeated_prompts:,}")
    console.print(table)
    console.print()
    console.print(
        Columns([_histogram("prompt", found.prompt_lengths), _histogram("response", found.response_lengths)], padding=2)
    )
    if found.costs:
        console.print()
        costs = Table("batching", Column("positions per token", justify="right"), "", "", box=None, pad_edge=False)
        longest = max(found.costs.values())
        for name, cost in sorted(found.costs.items(), key=lambda item: item[1]):
            note = "chosen" if name == layout else ""
            costs.add_row(name, f"{cost:.2f}", Text(_bar(cost / longest), style="cyan"), note)
        console.print(costs)
    if found.odd:
        console.print()
        odd = Table("odd", Column("examples", justify="right"), "index=", box=None, pad_edge=False)
        for what, indices in found.odd.items():
            shown = ", ".join(map(str, indices[:N_SHOWN])) + (", …" if len(indices) > N_SHOWN else "")
            odd.add_row(Text(what), f"{len(indices):,}", shown)
        console.print(odd)


def print_needs(console: Console, name: str, needs: Any, device: str, n_batches: int | None) -> None:
    """Print the estimated memory and time of a run.

    Args:
        needs: an `accel.estimate.Estimate`.
        device: with its precision.
        n_batches: of an epoch; None where an epoch has no known end.
    """
    total, states, activations = (
        f"{n / 2**30:.2f}" for n in (needs.memory_bytes, needs.states_bytes, needs.activations_bytes)
    )
    time = f"{needs.step_s:.3f} s per batch"
    if n_batches is not None:
        time = f"{_duration(needs.step_s * n_batches)} per epoch of {n_batches:,} batches ({needs.step_s:.3f} s each)"
    if needs.at_least:
        time += ",\n          if there were matrix products alone"
    console.print(
        f"\nmodel {name}, {needs.n_parameters:,} parameters, on {device} with AdamW\n"
        f"  memory  {total} GiB plus torch's own: {states} for weights, gradients\n"
        f"          and moments, {activations} more in a step of the largest batch\n"
        f"  time    {time}",
        highlight=False,
    )


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.0f} s"


def print_warnings(console: Console, lines: Sequence[str]) -> None:
    """Print the warnings, or that there are none."""
    console.print()
    for line in lines:
        console.print(Text("warning: ", style="bold yellow") + Text(line))
    if not lines:
        console.print("no common problem was found", style="green")


_COUNTS = {
    "n_bad_records": "bad records, skipped",
    "n_duplicates": "exact duplicates, dropped",
    "n_dropped_long": "too long, dropped",
    "n_without_weight": "without a learnt response, dropped",
}


def _histogram(title: str, lengths: np.ndarray) -> Table:
    head = Column(f"{title} tokens", justify="right", no_wrap=True)
    table = Table(head, Column(no_wrap=True, width=BAR), box=None, pad_edge=False)
    bins = histogram(lengths)
    most = max(n for _, _, n in bins)
    for low, high, n in bins:
        table.add_row(f"{low}" if low == high else f"{low} to {high}", Text(_bar(n / most), style="cyan"))
    table.caption = "median {:.0f}, 95 % up to {:.0f}".format(*np.floor(np.percentile(lengths, (50, 95))))
    return table


def _bar(share: float) -> str:
    """A bar of up to `BAR` columns in steps of an eighth; any share above 0 is visible."""
    eighths = max(round(share * BAR * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
