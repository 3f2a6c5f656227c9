"""Batches of examples that fit together: of similar length, or filled up to a budget of tokens."""

from collections.abc import Sequence

import numpy as np

# Batches whose examples are sorted by length together: enough to match lengths, few enough to stay random.
MEGABATCH = 50


def similar_lengths(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Batches of `size` items of similar length, each from one pool of neighbours (Hugging Face's group_by_length)."""
    starts = range(0, len(lengths), size * MEGABATCH)
    pools = [start + np.argsort(-lengths[start : start + size * MEGABATCH], kind="stable") for start in starts]
    return [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]


def best_fit_decreasing(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[np.ndarray]:
    """Pack items into few bins: longest first, each into the fullest bin that has room (Johnson 1973).

    Returns the item numbers of every bin, each item exactly once; an item above the capacity is alone in its bin.
    """
    lengths = np.asarray(lengths)
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by free capacity, which is a small integer
    rooms = np.zeros(capacity + 1, dtype=bool)
    for item in np.argsort(-lengths, kind="stable"):
        length = int(lengths[item])
        if length > capacity:
            bins.append([int(item)])
            continue
        fitting = rooms[length:].argmax() + length  # the smallest sufficient room, if there is one
        if rooms[fitting] and fitting >= length:
            number = by_room[fitting].pop()
            rooms[fitting] = bool(by_room[fitting])
            room = int(fitting)
        else:
            number, room = len(bins), capacity
            bins.append([])
        bins[number].append(int(item))
        by_room[room - length].append(number)
        rooms[room - length] = True
    return [np.array(members) for members in bins]
