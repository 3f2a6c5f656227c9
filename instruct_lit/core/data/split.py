"""Which examples train, which validate, which test: seeded, disjoint, and written down with the run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instruct_lit.errors import ConfigError

NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Indices of each part in ascending order; disjoint."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def save(self, path: Path) -> None:
        """Write the indices as JSON."""
        path.write_text(json.dumps({name: getattr(self, name).tolist() for name in NAMES}))

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read what `save` wrote."""
        parts = json.loads(path.read_text())
        return cls(**{name: np.array(parts[name], dtype=np.int64) for name in NAMES})


def make_split(n_examples: int, spec: str | Mapping[str, float], seed: int) -> Split:
    """Split `n_examples` as `spec` says.

    `"book"` is the split of LLMs-from-scratch chapter 7: in file order 85 % train, 10 % test, the rest validation. A
    mapping gives a fraction (below 1) or a count for each of train, val and test, drawn by seed; a missing train takes
    what is left. Raises ConfigError for anything else and for a part that would be empty though it was asked for.
    """
    if isinstance(spec, str):
        if spec != "book":
            raise ConfigError(f"data.split={spec}: allowed are 'book' and a mapping of train, val and test")
        n_train, n_test = int(n_examples * 0.85), int(n_examples * 0.1)
        order = np.arange(n_examples)
        sizes = {"train": n_train, "test": n_test, "val": n_examples - n_train - n_test}
        placed = ("train", "test", "val")
    else:
        sizes = _sizes(n_examples, dict(spec))
        order = np.random.default_rng(seed).permutation(n_examples)
        placed = ("test", "val", "train")
    parts, start = {}, 0
    for name in placed:
        if sizes[name] == 0 and (isinstance(spec, str) or spec.get(name, 1 if name == "train" else 0) != 0):
            raise ConfigError(f"data.split={spec}: no example is left for {name} of the {n_examples} there are")
        parts[name] = np.sort(order[start : start + sizes[name]])
        start += sizes[name]
    return Split(**parts)


def kept_together(
    split: Split, groups: np.ndarray, elsewhere: Collection[int], movable: bool
) -> tuple[Split, dict[str, int]]:
    """The split with every group of examples on one side, and how many examples that took.

    A group that lies in several parts goes to train as a whole, so nothing that is held out was trained on. Examples of
    a group in `elsewhere` (test or validation files of their own) are taken out of every part. Where examples may not
    be moved (`movable`: the book's split is in file order) those that would have been are counted alone.
    """
    parts = {name: getattr(split, name) for name in NAMES}
    relatives = np.array(sorted(elsewhere), dtype=np.int64)
    part_of = np.full(len(groups), -1)
    for number, members in enumerate(parts.values()):
        part_of[members] = number
    left_out = (part_of >= 0) & np.isin(groups, relatives)
    in_train, in_val, in_test = (groups[(part_of == number) & ~left_out] for number in range(len(NAMES)))
    shared = np.concatenate([in_train, np.intersect1d(in_val, in_test)])
    moved = (part_of > 0) & ~left_out & np.isin(groups, shared)
    if not movable:
        return split, {"n_straddling": int(moved.sum() + left_out.sum())}
    counts = {"n_moved_to_train": int(moved.sum())}
    counts |= {f"n_left_out_of_{name}": int(left_out[members].sum()) for name, members in parts.items()}
    part_of[moved], part_of[left_out] = 0, -1
    kept = {name: np.flatnonzero(part_of == number) for number, name in enumerate(NAMES)}
    for name, members in parts.items():
        if len(kept[name]) == 0 and len(members) > 0:
            raise ConfigError(
                f"data.split: every example for {name} has a near-duplicate elsewhere; give more examples, or "
                "data.keep_together=nothing"
            )
    return Split(**kept), counts


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; of a text without any, its characters."""
    return re.findall(r"\w+", text.lower()) or list(text.strip())


def same_prompt(texts: Iterable[str]) -> np.ndarray:
    """A group number for each text `(n,)`: texts with the same words share one."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(" ".join(words(text)), len(seen)) for text in texts], dtype=np.int64)


def joined(splits: Sequence[Split], starts: Sequence[int]) -> Split:
    """The splits of several sets as one, each set's indices counted from its start."""
    return Split(
        **{
            name: np.concatenate([getattr(s, name) + start for s, start in zip(splits, starts, strict=True)])
            for name in NAMES
        }
    )


def _sizes(n_examples: int, spec: dict[str, Any]) -> dict[str, int]:
    unknown = set(spec) - set(NAMES)
    if unknown:
        raise ConfigError(f"data.split.{sorted(unknown)[0]}: allowed are {', '.join(NAMES)}")
    for name, share in spec.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise ConfigError(f"data.split.{name}={share}: give a fraction below 1 or a count")
        if isinstance(share, float) and share >= 1 and share != int(share):
            raise ConfigError(f"data.split.{name}={share}: give a fraction below 1 or a whole count")
    sizes = {name: int(share * n_examples) if 0 < share < 1 else int(share) for name, share in spec.items()}
    fractions = sum(share for share in spec.values() if 0 < share < 1)
    rest = n_examples - sum(sizes.get(name, 0) for name in ("val", "test"))
    # Fractions that make a whole lose nothing to rounding: train takes the remainder.
    if "train" not in sizes or (0 < spec["train"] < 1 and abs(fractions - 1) < 1e-9):
        sizes["train"] = rest
    if fractions > 1 + 1e-9 or sum(sizes.values()) > n_examples or rest < 0:
        raise ConfigError(f"data.split={spec}: asks for more than the {n_examples} examples there are")
    return {name: sizes.get(name, 0) for name in NAMES}
