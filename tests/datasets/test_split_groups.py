"""Related examples stay in one part of the split."""

from pathlib import Path

import numpy as np
import pytest

from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.example import WHOLE, Example
from instruct_lit.core.data.settings import Split
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets.split_groups import follow_the_first, keep_together, same_prompt
from instruct_lit.datasets.stream_datamodule import HeldOut
from instruct_lit.errors import ConfigError
from tests.fixtures.data import settings

TEMPLATE = Template("short", "{{ instruction }} = {{ response }}")

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


def test_a_part_that_was_empty_may_stay_so_and_one_of_one_may_not_become_it() -> None:
    split = Split(*map(np.array, ([0, 1], [2], np.array([], dtype=int))))
    kept, _ = keep_together(split, np.array([0, 1, 2]), set(), movable=True)
    assert kept.test.tolist() == [] and kept.val.tolist() == [2]
    with pytest.raises(ConfigError, match=r"every example for val has a near-duplicate in another part"):
        keep_together(split, np.array([0, 1, 0]), set(), movable=True)


def test_the_examples_of_a_conversation_follow_the_first_of_them() -> None:
    split = Split(np.array([0, 3, 6, 8]), np.array([1, 4]), np.array([2, 5, 7]))
    conversations = np.array([-1, 7, 7, 7, 3, 3, 3, -1, 9, -1])  # example 9 is in no part
    found = follow_the_first(split, conversations)
    assert (found.train.tolist(), found.val.tolist(), found.test.tolist()) == ([0, 8], [1, 2, 3, 4, 5, 6], [7])
    assert follow_the_first(split, np.full(10, -1)) is split
    with pytest.raises(
        ConfigError, match="every example for val belongs to a conversation that begins in another part"
    ):
        follow_the_first(split, np.array([0, 0, 7, 7, 0, 3, 3, 5, 9, -1]))


def test_paths_of_trees_reach_every_part_of_the_split(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    examples = [Example(f"{n} {path}", "a", extra={WHOLE: f"tree {n}"}) for n in range(40) for path in "abc"]
    chosen = settings(split={"val": 0.1, "test": 0.2}, groups=same_prompt, max_length=64)
    data = InstructionData(HeldOut("trees", examples, ""), TEMPLATE, tokenizer, tmp_path, **chosen)
    data.prepare_data()
    data.setup()
    trees = {name: {n // 3 for n in data.examples_of(name)[1].tolist()} for name in ("train", "val", "test")}
    assert [3 * len(trees[name]) for name in trees] == [len(data.examples_of(name)[1]) for name in trees]
    assert all(trees.values()) and sum(map(len, trees.values())) == len(set.union(*trees.values())) == 40
    chosen = settings(split="book", groups=same_prompt, max_length=64)
    book = InstructionData(HeldOut("trees", examples, ""), TEMPLATE, tokenizer, tmp_path, **chosen)
    book.setup()
    assert book.examples_of("test")[1].tolist() == list(range(102, 114)), "the book's split is in file order"


def test_texts_with_the_same_words_share_a_group() -> None:
    assert same_prompt(["Say: hello!", "say hello", "Say goodbye", "?", "?"]).tolist() == [0, 0, 1, 2, 2]
