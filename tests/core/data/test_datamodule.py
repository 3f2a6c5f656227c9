"""The store on disk, the data module over it, and its split: seeded, disjoint, complete."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instruct_lit.core.data.datamodule import InstructionData, make_split
from instruct_lit.core.data.encode import Encoder, open_or_build
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.settings import Lengths, Splits
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets.demo import DemoSource
from instruct_lit.datasets.stream_datamodule import HeldOut
from instruct_lit.errors import ConfigError, DataError
from tests.fixtures.data import settings

TEMPLATE = Template(
    "short", "{{ instruction }} {{ input }} = {{ response }}", next_turn=" {{ instruction }} = {{ response }}"
)
EXAMPLES = [
    Example("é\n🙂", "one", "x", {"level": 1}),
    Example("b", "two " * 30),
    Example("c", "three", "", {}, "", (("a", "b"),)),
]


def build(folder: Path, tokenizer: GPT2Tokenizer, examples: Any = EXAMPLES, max_length: int = 20):
    return open_or_build(folder, "key", HeldOut("listed", examples, ""), Encoder(TEMPLATE, tokenizer, max_length))


def test_examples_and_encodings_come_back(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    store = build(tmp_path, tokenizer)
    assert len(store) == 3 and store.lengths.tolist()[1] == 20
    assert [store.example(i) for i in range(3)] == EXAMPLES
    expected = [e for _, e in Encoder(TEMPLATE, tokenizer, 20).encode(EXAMPLES)]
    again = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 1000 and again[0].ids.tolist() == store[0].ids.tolist()
    for i, encoded in enumerate(expected):
        assert store[i].index == i and store[i].ids.tolist() == encoded.ids.tolist()
        assert store[i].is_response.tolist() == encoded.is_response.tolist()
    assert store.counts == {
        "n_bad_records": 0,
        "n_duplicates": 0,
        "n_encoded": 3,
        "n_truncated": 1,
        "n_dropped_long": 0,
        "n_without_weight": 0,
    }


def test_a_second_start_reads_no_source(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    build(tmp_path, tokenizer)

    def refuse():
        raise AssertionError("the source was read again")
        yield

    assert len(build(tmp_path, tokenizer, refuse())) == 3


def test_a_build_that_failed_leaves_nothing(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    def broken():
        yield EXAMPLES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, tokenizer, broken())
    assert list((tmp_path / "encoded").iterdir()) == []


def test_of_two_builds_at_the_same_time_the_first_one_counts(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    def slow():
        yield EXAMPLES[0]
        build(tmp_path, tokenizer)  # what another process does meanwhile

    assert len(build(tmp_path, tokenizer, slow())) == 3
    assert [p.name for p in (tmp_path / "encoded").iterdir()] == ["key"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokens.bin", b"\0" * 8), ("is_response.bin", b""), ("records.jsonl", b"{"), ("counts.json", b"{"),
        ("counts.json", b"[]"), ("counts.json", b'{"counts": {}, "notes": 1}'), ("offsets.npy", b"\x93NUMPY"),
        ("record_offsets.npy", None),
    ],
)  # fmt: skip
def test_a_damaged_store_is_built_again(
    tmp_path: Path, tokenizer: GPT2Tokenizer, name: str, content: bytes | None
) -> None:
    build(tmp_path, tokenizer)
    file = tmp_path / "encoded" / "key" / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    store = build(tmp_path, tokenizer)
    assert [store.example(i) for i in range(3)] == EXAMPLES and store.lengths.tolist()[1] == 20
    assert [p.name for p in (tmp_path / "encoded").iterdir()] == ["key"]


def test_a_shared_cache_has_the_mode_of_the_umask(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    before = os.umask(0o002)
    try:
        build(tmp_path, tokenizer)
    finally:
        os.umask(before)
    assert (tmp_path / "encoded" / "key").stat().st_mode & 0o777 == 0o775
    assert (tmp_path / "encoded" / "key" / "tokens.bin").stat().st_mode & 0o777 == 0o664


def test_no_example_left_and_an_unwritable_cache_are_said(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    with pytest.raises(DataError, match="no example is left to train on"):
        build(tmp_path, tokenizer, max_length=3)
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a"}\n' * 2)
    bad = FileSource(str(tmp_path / "bad.jsonl"), on_bad_record="skip")
    with pytest.raises(
        DataError,
        match="no example is left to train on: no field 'output' for the output; found: instruction .see data.columns.; {'n_bad_records': 2, ",
    ):
        open_or_build(tmp_path, "bad", bad, Encoder(TEMPLATE, tokenizer, 64))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"paths.cache=.*file: cannot be written"):
        build(tmp_path / "file", tokenizer)


def data_module(tmp_path: Path, tokenizer: GPT2Tokenizer, **options) -> InstructionData:
    defaults = {"max_length": 64, "split": {"train": 40, "val": 10, "test": 11}, "seed": 1, "batch_size": 8}
    data = InstructionData(DemoSource(61), TEMPLATE, tokenizer, tmp_path, **settings(**{**defaults, **options}))
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("grouping", ["none", "length"])
def test_trap_14_every_loader_yields_its_split_exactly_once(
    tmp_path: Path, tokenizer: GPT2Tokenizer, grouping: str
) -> None:
    data = data_module(tmp_path, tokenizer, grouping=grouping, eval_batch_size=4)
    for name in ("train", "val", "test"):
        loader = getattr(data, f"{name}_dataloader")()
        seen = [i for batch in loader for i in batch.example_ids.tolist()]
        assert sorted(seen) == getattr(data.split, name).tolist(), name


def test_a_split_of_its_own_file(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    path = tmp_path / "test.json"
    path.write_text(json.dumps([{"instruction": "i", "output": "o"}]))
    data = data_module(
        tmp_path,
        tokenizer,
        split={"train": 0.8, "val": 0.2, "test": 0.1},
        test_source=FileSource(str(path), name="own"),
    )
    assert len(data.examples_of("test")[1]) == 1 and len(data.split.test) == 0
    assert len(data.split.train) + len(data.split.val) == 61
    store, indices = data.examples_of("test")
    assert store.example(int(indices[0])).instruction == "i"


@pytest.mark.parametrize("split", [{"train": 1.0}, {"train": 0.85, "val": 0.05, "test": 0.1}, {"val": 3}])
def test_what_separate_files_hold_is_not_taken_from_training(
    tmp_path: Path, tokenizer: GPT2Tokenizer, split: dict[str, float]
) -> None:
    for name in ("val", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"instruction": name, "output": "o"}]))
    files = {f"{name}_source": FileSource(str(tmp_path / f"{name}.json"), name=name) for name in ("val", "test")}
    data = data_module(tmp_path, tokenizer, split=split, **files)
    assert len(data.split.train) == 61 and data.counts == {"n_train": 61, "n_val": 1, "n_test": 1}


def test_examples_of_no_part_are_counted(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    data = data_module(tmp_path, tokenizer, split={"train": 1, "val": 10, "test": 10})
    assert data.counts == {"n_train": 1, "n_val": 10, "n_test": 10, "n_unused": 40}


@pytest.mark.parametrize(("name", "n"), [("val", 4), ("test", 6)])
def test_what_the_books_split_has_for_a_separate_file_is_counted(
    tmp_path: Path, tokenizer: GPT2Tokenizer, name: str, n: int
) -> None:
    (tmp_path / "own.json").write_text(json.dumps([{"instruction": name, "output": "o"}]))
    own = {f"{name}_source": FileSource(str(tmp_path / "own.json"), name=name)}
    book = {"n_train": 51, "n_val": 4, "n_test": 6}
    assert data_module(tmp_path, tokenizer, split="book").counts == book
    assert data_module(tmp_path, tokenizer, split="book", **own).counts == {**book, f"n_{name}": 1, "n_unused": n}


def test_the_fingerprint_changes_with_what_changes_the_tokens(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    one = data_module(tmp_path, tokenizer).fingerprint
    assert data_module(tmp_path, tokenizer).fingerprint == one
    assert data_module(tmp_path, tokenizer, max_length=63).fingerprint != one
    assert data_module(tmp_path, tokenizer, on_long="drop").fingerprint != one
    assert data_module(tmp_path, tokenizer, batch_size=2).fingerprint == one


def test_trap_17_duplicates_do_not_straddle_the_split(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    path = tmp_path / "r.json"
    records = [{"instruction": f"i{n % 20}", "output": "o"} for n in range(40)]
    path.write_text(json.dumps(records))
    data = InstructionData(
        FileSource(str(path)),
        TEMPLATE,
        tokenizer,
        tmp_path,
        Lengths(64),
        Splits({"train": 0.5, "val": 0.25, "test": 0.25}),
    )
    data.prepare_data()
    data.setup()
    assert data.stores["main"].counts["n_duplicates"] == 20
    parts = [
        {data.stores["main"].example(int(i)).instruction for i in getattr(data.split, n)}
        for n in ("train", "val", "test")
    ]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


def test_rows_that_are_too_short_for_an_example_are_refused(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    longest = int(data_module(tmp_path, tokenizer).stores["main"].lengths.max())
    data_module(tmp_path, tokenizer, pad_to=longest - 1)
    with pytest.raises(
        ConfigError, match=rf"data.pad_to={longest - 2}: the longest example has {longest - 1} inputs; raise it"
    ):
        data_module(tmp_path, tokenizer, pad_to=longest - 2)


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
        ({"train": 0.9, "val": 0.2}, "more than the 20 examples"),
        ({"val": 21}, "more than the 20 examples"),
        ({"val": 0.01}, "of 20 examples none is left for val; give more, or 0"),
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
    with pytest.raises(ConfigError, match="5.5 are more than the 5 examples; lower its parts, also those that"):
        make_split(5, {"train": 0.5, "val": 0.3, "test": 0.3}, 0)
