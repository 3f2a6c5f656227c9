"""Best-fit decreasing: nothing lost, the budget kept."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from instruct_lit.datasets.grouping import best_fit_decreasing


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 25))
def test_trap_11_best_fit_loses_nothing_and_an_item_above_the_capacity_is_alone(
    lengths: list[int], capacity: int
) -> None:
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(np.concatenate(bins).tolist()) == list(range(len(lengths)))
    for members in bins:
        total = sum(lengths[i] for i in members)
        assert total <= capacity or len(members) == 1


def test_best_fit_by_hand() -> None:
    assert [b.tolist() for b in best_fit_decreasing([4, 8, 1, 4, 2, 1], 10)] == [[1, 2, 5], [0, 3, 4]]
