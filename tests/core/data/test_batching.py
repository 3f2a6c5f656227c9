"""Every example once, whatever the grouping and the number of ranks; the same order for the same seed and epoch."""

import numpy as np
import pytest

from instruct_lit.core.data.batching import BatchSampler

LENGTHS = np.random.default_rng(0).integers(3, 40, 103)
INDICES = np.arange(1000, 1103)


def sampler(
    shuffle: bool = True, grouping: str = "none", rank: int = 0, world_size: int = 1, n: int = 103, **options
) -> BatchSampler:
    max_tokens = 100 if grouping == "best_fit" else None
    return BatchSampler(INDICES[:n], LENGTHS[:n], 8, shuffle, 5, grouping, max_tokens, rank, world_size, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("grouping", ["none", "length", "best_fit"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_trap_14_every_example_exactly_once_over_all_ranks(grouping: str, world_size: int) -> None:
    ranks = [sampler(True, grouping, rank, world_size) for rank in range(world_size)]
    seen = [i for rank in ranks for batch in rank for i in batch]
    assert sorted(seen) == INDICES.tolist()
    assert len({len(rank) for rank in ranks}) == 1  # as many steps on every rank


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 103])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_trap_14_evaluation_deals_out_every_example_once(n: int, world_size: int) -> None:
    ranks = [list(sampler(False, rank=rank, world_size=world_size, n=n)) for rank in range(world_size)]
    assert sorted(i for rank in ranks for batch in rank for i in batch) == INDICES[:n].tolist()
    if n >= world_size:
        assert all(ranks)  # a rank without a batch would not take part in summing up


def test_epochs_differ_and_repeat() -> None:
    first = sampler()
    one = list(first)
    first.epoch = 1
    two = list(first)
    first.epoch = 0
    assert one == list(first) == list(sampler()) and one != two
    assert one != sorted(one)


def test_length_groups_are_tight_and_shuffled() -> None:
    grouped, plain = list(sampler(grouping="length")), list(sampler())

    def padding(batches: list[list[int]]) -> int:
        of = dict(zip(INDICES.tolist(), LENGTHS.tolist(), strict=True))
        return sum(max(of[i] for i in b) * len(b) - sum(of[i] for i in b) for b in batches)

    assert padding(grouped) < 0.3 * padding(plain)
    again = sampler(grouping="length")
    again.epoch = 1
    assert {frozenset(b) for b in grouped} != {frozenset(b) for b in again}
    longest = [max(LENGTHS[np.array(b) - 1000]) for b in grouped]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_best_fit_keeps_its_budget() -> None:
    batches = list(sampler(grouping="best_fit"))
    totals = [LENGTHS[np.array(batch) - 1000].sum() for batch in batches]
    assert max(totals) <= 100 and sum(totals) == LENGTHS.sum()
    assert len(batches) <= 1.1 * np.ceil(LENGTHS.sum() / 100)
