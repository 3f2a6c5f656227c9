"""Related examples in one part of the split: those with the same prompt, or near-duplicates."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np

from instruct_lit.core.data.encode import EncodedStore
from instruct_lit.core.data.example import WHOLE, Example
from instruct_lit.core.data.settings import NAMES, Split
from instruct_lit.datasets.near_duplicates import words
from instruct_lit.errors import ConfigError


class SplitGroups:
    """Keeps examples in one part whose prompts get the same number from `groups_of`; the data module's `Regroup`."""

    def __init__(self, groups_of: Callable[[Iterable[str]], np.ndarray]) -> None:
        self.groups_of = groups_of

    def __call__(
        self, split: Split, stores: Mapping[str, EncodedStore], movable: bool, cache_dir: Path, fingerprint: str
    ) -> tuple[Split, dict[str, int]]:
        groups, is_part = self._groups(stores, cache_dir, fingerprint)
        own, *others = np.split(groups, np.cumsum([len(store) for store in stores.values()])[:-1])
        if movable:
            split = follow_the_first(split, np.where(is_part[: len(own)], own, -1))
        split, counts = keep_together(split, own, {int(group) for part in others for group in part}, movable)
        if len(others) > 1:  # separate files for validation and for test stay unchanged
            n = int(np.isin(others[0], others[1]).sum())
            counts["n_straddling"] = counts.get("n_straddling", 0) + n
        return split, counts

    def _groups(self, stores: Mapping[str, EncodedStore], cache_dir: Path, fingerprint: str) -> np.ndarray:
        """Of every example of all stores its group, and whether it is a part of a conversation; cached beside them."""
        key = hashlib.sha256(f"{fingerprint} {self.groups_of.__name__} 2".encode()).hexdigest()[:16]
        file = cache_dir / "encoded" / f"groups-{key}.npy"
        try:
            found = np.load(file)
            if found.shape == (2, sum(map(len, stores.values()))):
                return found
        except (OSError, ValueError, EOFError):  # absent or damaged
            pass
        examples = (store.example(i) for store in stores.values() for i in range(len(store)))
        is_part: list[bool] = []

        def texts() -> Iterator[str]:
            for example in examples:
                is_part.append(WHOLE in example.extra)
                yield prompt_text(example)

        found = np.stack([self.groups_of(texts()), np.array(is_part)])
        temporary = file.with_name(f"{file.stem}.{uuid4().hex}.npy")
        np.save(temporary, found)
        os.replace(temporary, file)
        return found


def prompt_text(example: Example) -> str:
    """What related examples share: what the user wrote, in the whole conversation that an example may be a turn of."""
    return example.extra.get(WHOLE) or example.user_text or example.output


def same_prompt(texts: Iterable[str]) -> np.ndarray:
    """A group number for each text `(n,)`: texts with the same words share one."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(" ".join(words(text)), len(seen)) for text in texts], dtype=np.int64)


def follow_the_first(split: Split, conversations: np.ndarray) -> Split:
    """The split with all examples of one conversation (its turns, a tree's paths) in the part of the first of them.

    Otherwise hardly any conversation of several examples would lie in validation or test as a whole.

    Args:
        conversations: the number of each example's conversation `(n,)`, -1 for an example that is one by itself.

    Raises: ConfigError where that leaves no example for a part.
    """
    if (conversations < 0).all():
        return split
    part_of = np.full(len(conversations), -1)
    for number, name in enumerate(NAMES):
        part_of[getattr(split, name)] = number
    several = np.flatnonzero((conversations >= 0) & (part_of >= 0))
    _, first, place = np.unique(conversations[several], return_index=True, return_inverse=True)
    part_of[several] = part_of[several][first][place]
    return _split(part_of, split, "belongs to a conversation that begins in another part; give more conversations")


def keep_together(
    split: Split, groups: np.ndarray, elsewhere: Collection[int], movable: bool
) -> tuple[Split, dict[str, int]]:
    """The split with every group of examples in one part, and how many examples were moved or left out for that.

    A group that lies in several parts moves to train as a whole, so that nothing held out was trained on. Examples of a
    group in `elsewhere` (separate test or validation files) are left out of every part. With `movable` false (the
    book's split is in file order) the split stays unchanged, and what would have been moved is counted.
    """
    parts = {name: getattr(split, name) for name in NAMES}
    part_of = np.full(len(groups), -1)
    for number, members in enumerate(parts.values()):
        part_of[members] = number
    left_out = (part_of >= 0) & np.isin(groups, np.array(sorted(elsewhere), dtype=np.int64))
    in_train, in_val, in_test = (groups[(part_of == number) & ~left_out] for number in range(len(NAMES)))
    shared = np.concatenate([in_train, np.intersect1d(in_val, in_test)])
    moved = (part_of > 0) & ~left_out & np.isin(groups, shared)
    if not movable:
        return split, {"n_straddling": int(moved.sum() + left_out.sum())}
    counts = {"n_moved_to_train": int(moved.sum())}
    counts |= {f"n_left_out_of_{name}": int(left_out[members].sum()) for name, members in parts.items()}
    part_of[moved], part_of[left_out] = 0, -1
    return _split(part_of, split, "has a near-duplicate in another part; give more examples"), counts


def _split(part_of: np.ndarray, before: Split, reason: str) -> Split:
    """The split by the number of each example's part. Raises: ConfigError for a part that became empty."""
    found = Split(**{name: np.flatnonzero(part_of == number) for number, name in enumerate(NAMES)})
    for name in NAMES:
        if len(getattr(found, name)) == 0 and len(getattr(before, name)) > 0:
            raise ConfigError(f"data.split: every example for {name} {reason}, or data.keep_together=nothing")
    return found
