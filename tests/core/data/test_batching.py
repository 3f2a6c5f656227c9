"""Literal batches in every layout (that losses agree is in tests/invariants), and which examples make a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instruct_lit.core.data.batching import Batch, BatchSampler, Collator, pad_shift_mask
from instruct_lit.core.data.encode import EncodedExample

EOT = 50256
N_BYTES = np.ones(EOT + 1, dtype=np.int64)
N_BYTES[EOT] = 0


def pairs(batch: Batch) -> list[tuple[int, int, int, float]]:
    """(input token, position, target, weight) of everything learnt, sorted."""
    ids, positions = batch.input_ids.flatten()[batch.loss_index], batch.position_ids.flatten()[batch.loss_index]
    found = zip(ids.tolist(), positions.tolist(), batch.targets.tolist(), batch.loss_weights.tolist(), strict=True)
    return sorted(found)


def test_trap_1_and_6_padded_inputs_and_targets_by_hand(three: list[EncodedExample]) -> None:
    """One shift; one supervised end-of-text per whole example; the padding behind it is masked."""
    inputs, targets = pad_shift_mask(three, EOT)
    assert inputs.tolist() == [
        [7, 8, 1, 11, EOT, EOT],
        [7, 8, 2, 3, 12, 13],
        [7, 8, EOT, EOT, EOT, EOT],
    ]
    assert targets.tolist() == [
        [-100, -100, 11, EOT, -100, -100],
        [-100, -100, -100, 12, 13, EOT],
        [-100, 14, -100, -100, -100, -100],
    ]


def test_the_prompt_is_learnt_without_mask(three: list[EncodedExample]) -> None:
    _, targets = pad_shift_mask(three, EOT, mask_prompt=False)
    assert targets.tolist() == [
        [8, 1, 11, EOT, -100, -100],
        [8, 2, 3, 12, 13, EOT],
        [8, 14, -100, -100, -100, -100],
    ]


def test_padding_to_a_fixed_length(three: list[EncodedExample]) -> None:
    inputs, targets = pad_shift_mask(three, EOT, pad_to=9)
    assert inputs.shape == targets.shape == (3, 9)
    assert inputs[:, 6:].eq(EOT).all() and targets[:, 6:].eq(-100).all()
    with pytest.raises(AssertionError, match="an example has 6 inputs, pad_to is 5"):
        pad_shift_mask(three, EOT, pad_to=5)


def test_a_batch_of_rows_names_its_learnt_pairs(three: list[EncodedExample]) -> None:
    batch = Collator(EOT, N_BYTES)(three)
    assert batch.example_ids.tolist() == [4, 9, 2]
    assert batch.position_ids.tolist() == [list(range(6))] * 3
    assert batch.loss_index.tolist() == [2, 3, 9, 10, 11, 13]
    assert batch.targets.tolist() == [11, EOT, 12, 13, EOT, 14]
    assert (batch.n_supervised, batch.n_tokens, batch.n_response_bytes) == (6, 12, 4)
    assert batch.document_lengths is None and batch.is_response.all()


def test_packed_documents_stand_side_by_side_and_positions_restart(three: list[EncodedExample]) -> None:
    batch = Collator(EOT, N_BYTES, "packed")(three)
    assert batch.input_ids.tolist() == [7, 8, 1, 11, 7, 8, 2, 3, 12, 13, 7, 8]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1]
    assert batch.document_lengths == (4, 6, 2)
    # The last token of a document predicts its own next token, never the first of the next document.
    assert batch.targets.tolist() == [11, EOT, 12, 13, EOT, 14]
    assert batch.loss_index.tolist() == [2, 3, 7, 8, 9, 11]


def test_a_shared_prefix_stands_once_and_is_counted_once_per_document(three: list[EncodedExample]) -> None:
    batch = Collator(EOT, N_BYTES, "packed", shared_prefix=True, mask_prompt=False)(three)
    # Every document keeps one input of its own, so of the shared [7, 8] only 7 stands in front.
    assert batch.prefix_length == 1 and batch.document_lengths == (3, 5, 1)
    assert batch.input_ids.tolist() == [7, 8, 1, 11, 8, 2, 3, 12, 13, 8]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 5, 1]
    assert (7, 0, 8, 3.0) in pairs(batch)
    assert batch.n_supervised == 12 and batch.n_tokens == 12


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("shared_prefix", [False, True])
@pytest.mark.parametrize("mask_prompt", [False, True])
def test_every_layout_learns_the_same_pairs(
    three: list[EncodedExample], layout: str, shared_prefix: bool, mask_prompt: bool
) -> None:
    plain = Collator(EOT, N_BYTES, mask_prompt=mask_prompt)(three)
    other = Collator(EOT, N_BYTES, layout, shared_prefix, mask_prompt)(three)  # type: ignore[arg-type]
    expanded = sorted(p[:3] for p in pairs(other) for _ in range(int(p[3])))
    assert expanded == sorted(p[:3] for p in pairs(plain))
    for field in ("n_supervised", "n_tokens", "n_response_bytes"):
        assert getattr(other, field) == getattr(plain, field)


def test_shapes_are_rounded_up_with_a_document_of_padding_and_pairs_without_weight(three: list[EncodedExample]) -> None:
    plain = Collator(EOT, N_BYTES, "packed", shared_prefix=True)(three)
    rounded = Collator(EOT, N_BYTES, "packed", shared_prefix=True, pad_to_multiple_of=8)(three)
    n = len(plain.input_ids)
    assert len(rounded.input_ids) == 16 and len(rounded.targets) == 8
    assert rounded.input_ids.tolist() == plain.input_ids.tolist() + [EOT] * (16 - n)
    assert rounded.document_lengths == (*plain.document_lengths, 16 - n)  # type: ignore[misc]
    assert rounded.loss_weights.tolist() == plain.loss_weights.tolist() + [0] * (8 - len(plain.targets))
    for field in ("n_supervised", "n_tokens", "n_response_bytes"):
        assert getattr(rounded, field) == getattr(plain, field)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_nothing_is_learnt_from_no_examples(layout: str) -> None:
    batch = Collator(EOT, N_BYTES, layout, mask_prompt=False)([])  # type: ignore[arg-type]
    assert batch.n_supervised == 0 and len(batch.targets) == 0 and batch.input_ids.numel() == 1


def test_a_batch_moves_as_a_whole(three: list[EncodedExample]) -> None:
    batch = Collator(EOT, N_BYTES)(three).to(torch.device("meta"))
    assert batch.input_ids.is_meta and batch.loss_weights.is_meta and batch.n_supervised == 6


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.lists(st.integers(0, 5), max_size=6)),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 4),
)
def test_trap_1_every_whole_example_has_one_supervised_end(
    examples: list[tuple[list[int], list[int]]], extra: int
) -> None:
    batch = []
    for index, (prompt, response) in enumerate(examples):
        ids = np.array([*prompt, *response, EOT])
        batch.append(EncodedExample(index, ids, np.arange(len(ids)) >= len(prompt)))
    width = max(len(e.ids) for e in batch) - 1 + extra
    _, targets = pad_shift_mask(batch, EOT, pad_to=width)
    assert (targets == EOT).sum(1).tolist() == [1] * len(batch)
    assert (targets != -100).sum(1).tolist() == [len(response) + 1 for _, response in examples]


def _written(ids: list[int], n_prompt: int, index: int = 0) -> EncodedExample:
    return EncodedExample(index, np.array(ids), np.arange(len(ids)) >= n_prompt)


def test_a_shared_prefix_by_hand() -> None:
    """The last of three begins differently soonest; what all share stands once, with the pair that two of them learn."""
    examples = [_written([1, 2, 3, 4, 9], 2), _written([1, 2, 3, 9], 2, 1), _written([1, 2, 5, 9], 2, 2)]
    batch = Collator(9, np.ones(10, dtype=np.int64), "packed", shared_prefix=True)(examples)
    assert batch.prefix_length == 2 and batch.document_lengths == (2, 1, 1)
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 3, 5] and batch.position_ids.tolist() == [0, 1, 2, 3, 2, 2]
    pairs = zip(batch.loss_index.tolist(), batch.targets.tolist(), batch.loss_weights.tolist(), strict=True)
    assert list(pairs) == [(1, 3, 2.0), (1, 5, 1.0), (2, 4, 1.0), (3, 9, 1.0), (4, 9, 1.0), (5, 9, 1.0)]
    assert (batch.n_supervised, batch.n_tokens, batch.n_response_bytes) == (7, 10, 7)


def test_rows_behind_a_shared_prefix_are_padded_to_the_longest_or_to_a_length() -> None:
    examples = [_written([1, 2, 3, 4, 9], 2), _written([1, 2, 5, 9], 2, 1)]
    for pad_to, length in ((None, 2), (6, 4)):
        batch = Collator(9, np.ones(10, dtype=np.int64), "padded", True, pad_to=pad_to)(examples)
        assert batch.document_lengths == (length, length) and batch.prefix_length == 2
        assert len(batch.input_ids) == 2 + 2 * length
    packed = Collator(9, np.ones(10, dtype=np.int64), "packed", True, pad_to=6)(examples)
    assert packed.document_lengths == (2, 1)


def test_one_example_shares_nothing_and_none_is_a_batch_too() -> None:
    collator = Collator(9, np.ones(10, dtype=np.int64), "packed", shared_prefix=True)
    assert collator([_written([1, 2, 3, 9], 2)]).prefix_length == 0
    assert collator([]).example_ids.tolist() == [-1] and collator([]).n_supervised == 0
    assert Collator(9, np.ones(10, dtype=np.int64))([_written([1, 2, 3, 9], 2)]).prefix_length == 0


@pytest.mark.parametrize(
    ("texts", "n_shared"),
    [
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [1, 2, 3, 8, 9, 9]], 3),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 8, 8, 8, 8], [1, 2, 3, 4, 9, 9]], 2),
        ([[1, 2, 3, 8, 5, 9], [1, 2, 3, 4, 5, 6]], 3),  # alike again behind the place where they differ
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], 3),  # each keeps an input of its own
        ([[1, 2, 3], [4, 2, 3]], 0),
        ([[1, 2], [1, 3]], 0),
    ],
)
def test_the_prefix_is_what_all_begin_with(texts: list[list[int]], n_shared: int) -> None:
    examples = [EncodedExample(i, np.array(ids), np.arange(len(ids)) > 0) for i, ids in enumerate(texts)]
    for order in (examples, examples[::-1]):
        batch = Collator(EOT, N_BYTES, "packed", shared_prefix=True)(order)
        assert batch.prefix_length == n_shared
        assert batch.input_ids[:n_shared].tolist() == texts[0][:n_shared]
        assert sum(batch.document_lengths or ()) == sum(len(ids) - 1 - n_shared for ids in texts)


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


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("shared_prefix", [False, True])
@pytest.mark.parametrize("prompt_weight", [0.25, 1.0])
def test_weights_of_turns_and_of_prompts(layout: str, shared_prefix: bool, prompt_weight: float) -> None:
    """Two documents that share [7, 8, 9], in one of them as a response of weight 0.5, in the other as a prompt."""
    first, second = np.array([7, 8, 9, 1, 50256]), np.array([7, 8, 9, 2, 3])
    half = np.array([1, 0.5, 0.5, 1, 1], dtype=np.float32)
    none = np.array([1, 1, 1, 1, 0], dtype=np.float32)  # of a turn that is not learnt
    examples = [
        EncodedExample(0, first, np.array([0, 1, 1, 0, 1], dtype=bool), half),
        EncodedExample(1, second, np.array([0, 0, 0, 1, 0], dtype=bool), none),
    ]
    collator = Collator(EOT, N_BYTES, layout, shared_prefix, mask_prompt=False, prompt_weight=prompt_weight)  # type: ignore[arg-type]
    batch = collator(examples)
    w = prompt_weight
    found: dict[tuple[int, bool], float] = {}
    for target, of_response, weight in zip(batch.targets, batch.is_response, batch.loss_weights, strict=True):
        key = int(target), bool(of_response)
        found[key] = found.get(key, 0) + float(weight)
    assert found == {
        (8, True): 0.5, (9, True): 0.5, (1, False): w, (EOT, True): 1, (8, False): w, (9, False): w, (2, True): 1
    }  # fmt: skip
    assert batch.n_supervised == 3 + 3 * w
    batch = Collator(EOT, N_BYTES, layout, shared_prefix)(examples)  # type: ignore[arg-type]
    assert batch.n_supervised == 3 and isinstance(batch.n_supervised, int) and batch.loss_weights.sum() == 3
