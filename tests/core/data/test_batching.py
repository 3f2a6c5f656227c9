"""Seeded, disjoint, complete splits; batches with every example once, whatever the grouping and the number of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest

from instruct_lit.core.data.batching import BatchSampler
from instruct_lit.core.data.datamodule import make_split
from instruct_lit.errors import ConfigError

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


def test_the_books_split_is_in_file_order() -> None:
    split = make_split(1100, "book", seed=9)
    assert split.train.tolist() == list(range(935))
    assert split.test.tolist() == list(range(935, 1045))
    assert split.val.tolist() == list(range(1045, 1100))


def test_fractions_and_counts_cover_everything_once() -> None:
    split = make_split(103, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=1)
    together = np.concatenate([split.train, split.val, split.test])
    assert sorted(together) == list(range(103)) and (len(split.val), len(split.test)) == (10, 10)
    counts = make_split(103, {"train": 50, "val": 5, "test": 7}, seed=1)
    assert (len(counts.train), len(counts.val), len(counts.test)) == (50, 5, 7)
    rest = make_split(103, {"val": 5, "test": 7}, seed=1)
    assert len(rest.train) == 91


def test_the_seed_decides() -> None:
    spec = {"val": 0.2, "test": 0.2}
    one, same, other = (make_split(50, spec, seed) for seed in (1, 1, 2))
    assert one.test.tolist() == same.test.tolist() != other.test.tolist()
    assert one.test.tolist() != list(range(10))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pages", "data.split=pages: allowed are 'book' and a mapping of train, val and test"),
        ({"tset": 0.1}, "data.split.tset: allowed are train, val, test"),
        ({"val": -1}, "data.split.val=-1: must be a fraction below 1 or a whole count"),
        ({"val": 1.5}, "data.split.val=1.5: must be a fraction below 1 or a whole count"),
        ({"train": 0.9, "val": 0.2}, "more than the 20 examples of the data"),
        ({"val": 21}, "more than the 20 examples of the data"),
        ({"val": 0.01}, "of 20 examples none is left for val"),
        ({"val": 10, "test": 10}, "of 20 examples none is left for train"),
        ({"b": 0.1, "a": 0.1}, "data.split.a: allowed are train, val, test"),
        ({"val": True}, "data.split.val=True: must be a fraction below 1 or a whole count"),
        ({"val": "half"}, "data.split.val=half: must be a fraction below 1 or a whole count"),
        ({"val": float("inf")}, "data.split.val=inf: must be a fraction below 1 or a whole count"),
    ],
)
def test_impossible_splits_say_why(spec: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_split(20, spec, 0)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_split_is_saved_as_json(tmp_path: Path) -> None:
    split = make_split(20, {"val": 4, "test": 3}, 0)
    split.save(tmp_path / "split.json")
    again = json.loads((tmp_path / "split.json").read_text())
    for name in ("train", "val", "test"):
        assert again[name] == getattr(split, name).tolist()


def test_one_is_a_count_zero_is_allowed_and_what_is_not_named_is_empty() -> None:
    def lengths(n: int, **spec: float) -> tuple[int, int, int]:
        split = make_split(n, spec, 0)
        return len(split.train), len(split.val), len(split.test)

    assert lengths(9, train=1, val=1, test=1) == (1, 1, 1)
    assert lengths(9, val=2.0, test=0) == (7, 2, 0)
    assert lengths(60, train=1.0) == (60, 0, 0) and lengths(60, train=1) == (1, 0, 0)  # a fraction, and a count
    assert lengths(9, test=3) == (6, 0, 3) and lengths(9, train=7, test=2) == (7, 0, 2)
    assert lengths(103, train=0.5, val=0.25) == (51, 25, 0)  # no whole: train takes no remainder


def test_fractions_above_one_are_refused_though_their_rounded_counts_fit() -> None:
    with pytest.raises(ConfigError, match="more than the 5 examples of the data"):
        make_split(5, {"train": 0.5, "val": 0.3, "test": 0.3}, 0)
