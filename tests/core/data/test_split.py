"""Seeded, disjoint, complete; the book's split in file order."""

import json
from pathlib import Path

import numpy as np
import pytest

from instruct_lit.core.data.batching import Split, keep_together, make_split, same_prompt
from instruct_lit.errors import ConfigError


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
        ({"val": -1}, "data.split.val=-1: must be a fraction below 1 or a count"),
        ({"val": 1.5}, "data.split.val=1.5: must be a fraction below 1 or a whole count"),
        ({"train": 0.9, "val": 0.2}, "more than the 20 examples of the data"),
        ({"val": 21}, "more than the 20 examples of the data"),
        ({"val": 0.01}, "of 20 examples none is left for val"),
        ({"val": 10, "test": 10}, "of 20 examples none is left for train"),
        ({"b": 0.1, "a": 0.1}, "data.split.a: allowed are train, val, test"),
        ({"val": True}, "data.split.val=True: must be a fraction below 1 or a count"),
        ({"val": "half"}, "data.split.val=half: must be a fraction below 1 or a count"),
        ({"val": float("inf")}, "data.split.val=inf: must be a fraction below 1 or a count"),
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


SPLIT = Split(np.array([0, 1, 2]), np.array([3, 4, 8]), np.array([5, 6, 7]))
GROUPS = np.array([0, 1, 2, 0, 3, 4, 3, 5, 6, 2])  # example 9 is in no part


def test_trap_17_a_group_in_several_parts_goes_to_train_as_a_whole() -> None:
    kept, counts = keep_together(SPLIT, GROUPS, {2, 4}, movable=True)
    # Group 0 is in train and val, group 3 in val and test; groups 2 and 4 are in a test file of its own.
    assert (kept.train.tolist(), kept.val.tolist(), kept.test.tolist()) == ([0, 1, 3, 4, 6], [8], [7])
    assert counts == {
        "n_moved_to_train": 3, "n_left_out_of_train": 1, "n_left_out_of_val": 0, "n_left_out_of_test": 1
    }  # fmt: skip


@pytest.mark.parametrize(("one", "other", "moved"), [(0, 3, [3]), (0, 5, [5]), (3, 5, [3, 5])])
def test_trap_17_a_group_in_any_two_parts_goes_to_train(one: int, other: int, moved: list[int]) -> None:
    groups = np.arange(9)
    groups[other] = one
    kept, counts = keep_together(SPLIT, groups, set(), movable=True)
    assert counts["n_moved_to_train"] == len(moved) and kept.train.tolist() == [0, 1, 2, *moved]


def test_a_split_in_file_order_is_counted_alone() -> None:
    kept, counts = keep_together(SPLIT, GROUPS, {2}, movable=False)
    assert kept is SPLIT and counts == {"n_straddling": 4}


def test_nothing_moves_where_nothing_is_alike() -> None:
    kept, counts = keep_together(SPLIT, np.arange(10), set(), movable=True)
    for name in ("train", "val", "test"):
        assert getattr(kept, name).tolist() == getattr(SPLIT, name).tolist()
    assert not any(counts.values())


def test_a_part_that_only_has_duplicates_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"every example for val has a near-duplicate in another part"):
        keep_together(SPLIT, np.array([0, 1, 2, 0, 1, 4, 5, 6, 2, 7]), set(), movable=True)


def test_one_is_a_count_zero_is_allowed_and_what_is_not_named_is_empty() -> None:
    def lengths(n: int, **spec: float) -> tuple[int, int, int]:
        split = make_split(n, spec, 0)
        return len(split.train), len(split.val), len(split.test)

    assert lengths(9, train=1, val=1, test=1) == (1, 1, 1)
    assert lengths(9, val=2.0, test=0) == (7, 2, 0)
    assert lengths(9, test=3) == (6, 0, 3) and lengths(9, train=7, test=2) == (7, 0, 2)
    assert lengths(103, train=0.5, val=0.25) == (51, 25, 0)  # no whole: train takes no remainder


def test_fractions_above_one_are_refused_though_their_rounded_counts_fit() -> None:
    with pytest.raises(ConfigError, match="more than the 5 examples of the data"):
        make_split(5, {"train": 0.5, "val": 0.3, "test": 0.3}, 0)


def test_a_part_that_was_empty_may_stay_so_and_one_of_one_may_not_become_it() -> None:
    split = Split(*map(np.array, ([0, 1], [2], np.array([], dtype=int))))
    kept, _ = keep_together(split, np.array([0, 1, 2]), set(), movable=True)
    assert kept.test.tolist() == [] and kept.val.tolist() == [2]
    with pytest.raises(ConfigError, match=r"every example for val has a near-duplicate in another part"):
        keep_together(split, np.array([0, 1, 0]), set(), movable=True)


def test_texts_with_the_same_words_share_a_group() -> None:
    assert same_prompt(["Say: hello!", "say hello", "Say goodbye", "?", "?"]).tolist() == [0, 0, 1, 2, 2]
