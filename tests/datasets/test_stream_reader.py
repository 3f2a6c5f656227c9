"""Streams: every example once per epoch whatever the ranks and workers, resumed exactly, held-out ones never trained on."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_lit.core.data.batching import Collator
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets.filters import FilterChain, Length
from instruct_lit.datasets.split_groups import same_prompt
from instruct_lit.datasets.stream_datamodule import StreamedData, quick_fingerprint
from instruct_lit.datasets.stream_hub_source import StreamingHubSource
from instruct_lit.datasets.stream_reader import ExampleStream, StreamLoader, prompt_digest, shuffled
from instruct_lit.errors import ConfigError, DataError, DownloadError
from tests.fixtures.data import settings as grouped

TEMPLATE = Template("short", "{{ instruction }} {{ input }} = {{ response }}")
SHARDS = (13, 1, 20, 7)
N = sum(SHARDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """41 records in four shards."""
    (tmp_path / "set").mkdir()
    number = 0
    for shard, n in enumerate(SHARDS):
        with (tmp_path / "set" / f"part-{shard}.jsonl").open("w") as file:
            for _ in range(n):
                file.write(json.dumps({"instruction": f"number {number}", "output": "x " * (1 + number % 6)}) + "\n")
                number += 1
    return tmp_path / "set"


def stream(folder: Path, tokenizer: GPT2Tokenizer, rank: int = 0, world_size: int = 1, **options: Any) -> ExampleStream:
    settings = {"batch_size": 4 // world_size, "buffer_size": 6, "seed": 2, **options}
    source = settings.pop("source", None) or FileSource(str(folder))
    return ExampleStream(source, lambda: Encoder(TEMPLATE, tokenizer, 32), rank=rank, world_size=world_size, **settings)


def loader(tokenizer: GPT2Tokenizer, of: ExampleStream, n_workers: int = 0) -> StreamLoader:
    return StreamLoader(of, Collator(tokenizer.eot_id, tokenizer.n_bytes_of, "packed"), n_workers)


def ids(loader: StreamLoader) -> list[list[int]]:
    return [batch.example_ids.tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 9))
def test_a_buffer_loses_and_repeats_nothing_and_reads_no_further_than_it_must(n: int, size: int, seed: int) -> None:
    n_read = 0

    def items():
        nonlocal n_read
        for item in range(n):
            n_read += 1
            yield item

    given_out = []
    for item in shuffled(items(), size, np.random.default_rng(seed)):
        given_out.append(item)
        assert n_read <= len(given_out) + size
    assert sorted(given_out) == list(range(n))
    if size == 1:
        assert given_out == list(range(n))


def test_an_epoch_has_every_example_once_and_its_own_order(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    loaded = loader(tokenizer, stream(folder, tokenizer))
    first = ids(loaded)
    expected = sorted((shard << 32) + place for shard, n in enumerate(SHARDS) for place in range(n))
    assert sorted(flat(first)) == expected and [len(batch) for batch in first] == [4] * 10 + [1]
    assert ids(loader(tokenizer, stream(folder, tokenizer))) == first != [sorted(batch) for batch in first]
    second = ids(loaded)  # a loader goes from epoch to epoch
    assert sorted(flat(second)) == expected and second != first
    assert loaded.counts == {"n_read": N}


def test_ranks_take_the_batches_of_one_apart(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    """And as many steps each, the last one perhaps empty."""
    one = ids(loader(tokenizer, stream(folder, tokenizer)))
    for world_size in (2, 4):
        ranks = [ids(loader(tokenizer, stream(folder, tokenizer, rank, world_size))) for rank in range(world_size)]
        assert {len(rank) for rank in ranks} == {len(one)}
        for step, batch in enumerate(one):
            assert sorted(i for rank in ranks for i in rank[step] if i >= 0) == sorted(batch)
    assert ranks[-1][-1] == [-1]  # nothing was left for the last rank: a batch in which nothing is learnt


@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_change_nothing(folder: Path, tokenizer: GPT2Tokenizer, n_workers: int) -> None:
    one = ids(loader(tokenizer, stream(folder, tokenizer)))
    many = loader(tokenizer, stream(folder, tokenizer), n_workers)
    assert ids(many) == one and many.counts == {"n_read": N}


@pytest.mark.parametrize(
    ("n_workers", "n_seen"),
    [
        pytest.param(
            n_workers, n_seen, marks=[] if (n_workers, n_seen) in ((0, 4), (2, 4), (0, 11)) else pytest.mark.slow
        )
        for n_workers in (0, 2)
        for n_seen in (0, 1, 4, 10, 11)
    ],
)
def test_trap_15_a_resumed_stream_goes_on_with_the_next_batch(
    folder: Path, tokenizer: GPT2Tokenizer, n_workers: int, n_seen: int
) -> None:
    whole = loader(tokenizer, stream(folder, tokenizer))
    whole.resume_at({"epoch": 3, "n_batches": 0})
    expected = ids(whole) + ids(whole)
    stopped = loader(tokenizer, stream(folder, tokenizer), n_workers)
    stopped.resume_at({"epoch": 3, "n_batches": 0})
    seen = []
    for batch in stopped:
        if len(seen) == n_seen:  # fetched ahead, but not trained on
            break
        seen.append(batch.example_ids.tolist())
        stopped.trained()
    rest = loader(tokenizer, stream(folder, tokenizer), n_workers)
    rest.resume_at(stopped.position)
    assert stopped.position == ({"epoch": 4, "n_batches": 0} if n_seen == 11 else {"epoch": 3, "n_batches": n_seen})
    found = seen + ids(rest)
    assert (found if n_seen == 11 else found + ids(rest)) == expected


def test_an_epoch_that_is_begun_twice_is_the_same(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    """As Lightning does when it fetches ahead."""
    loaded = loader(tokenizer, stream(folder, tokenizer))
    loaded.resume_at({"epoch": 1, "n_batches": 2})
    first = next(iter(loaded)).example_ids.tolist()
    again = ids(loaded)
    assert again[0] == first and len(again) == 9


def test_filters_and_bad_records_are_counted(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    with (folder / "part-1.jsonl").open("a") as file:
        file.write("{broken\n" + json.dumps({"instruction": "a"}) + "\n")
    source = FileSource(str(folder), on_bad_record="skip")
    for n_workers in (0, 2):
        loaded = loader(
            tokenizer,
            stream(folder, tokenizer, source=source, filters=FilterChain([Length(max_response_words=3)])),
            n_workers,
        )
        seen = flat(ids(loaded))
        n_long = sum(1 + number % 6 > 3 for number in range(N))
        assert loaded.counts == {"n_read": N + 2, "n_bad_records": 2, "n_filtered_length": n_long}
        assert len(seen) == N - n_long
    for n_workers in (0, 2):  # what is cut and dropped, by all workers together
        short = stream(folder, tokenizer, source=source)
        short.make_encoder = lambda: Encoder(TEMPLATE, tokenizer, 12, "drop")
        loaded = loader(tokenizer, short, n_workers)
        kept = [i for i in flat(ids(loaded)) if i >= 0]
        assert 0 < len(kept) == N - loaded.counts["n_dropped_long"] < N
    read = stream(folder, tokenizer, source=source)
    for epoch in (0, 1):  # a second reading does not count the bad records again
        list(read.examples(epoch, {}))
        assert (source.notes.n_records, source.notes.n_bad.total()) == (N + 2, 2)


@pytest.fixture
def quick_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker whose loader died of an error is waited for when Python collects the loader; here now and briefly."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    yield
    gc.collect()


@pytest.mark.usefixtures("quick_end")
@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_bad_record_stops_the_stream_with_its_place(folder: Path, tokenizer: GPT2Tokenizer, n_workers: int) -> None:
    (folder / "part-1.jsonl").write_text('{"instruction": "a"}\n')
    with pytest.raises(DataError) as caught:
        ids(loader(tokenizer, stream(folder, tokenizer), n_workers))
    assert str(caught.value).startswith(f"{folder}/part-1.jsonl, line 1: no field 'output'")
    assert "Traceback" not in str(caught.value)


class Unplugged(FileSource):
    """Files whose network is gone."""

    def read(self, shard: Path) -> Any:
        raise DownloadError("data set x, shard 0: cannot be read")


@pytest.mark.usefixtures("quick_end")
@pytest.mark.parametrize("n_workers", [0, 1])
def test_any_error_of_a_user_comes_out_of_a_worker_as_it_was(
    folder: Path, tokenizer: GPT2Tokenizer, n_workers: int
) -> None:
    with pytest.raises(DownloadError) as caught:
        ids(loader(tokenizer, stream(folder, tokenizer, source=Unplugged(str(folder))), n_workers))
    assert str(caught.value) == "data set x, shard 0: cannot be read"


def test_an_example_above_the_length_is_named(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    short = ExampleStream(
        FileSource(str(folder)), lambda: Encoder(TEMPLATE, tokenizer, 6, "error"), batch_size=4, buffer_size=1
    )
    with pytest.raises(DataError, match=r"shard \d, record \d+: example 0 has \d+ tokens, data.max_length is 6"):
        ids(loader(tokenizer, short))


def streamed(folder: Path, tokenizer: GPT2Tokenizer, **options: Any) -> StreamedData:
    defaults = {"max_length": 32, "split": {"val": 6, "test": 5}, "seed": 2, "batch_size": 4, "groups": same_prompt}
    data = StreamedData(
        FileSource(str(folder)), TEMPLATE, tokenizer, folder.parent / "cache", shuffle_buffer=8,
        **grouped(**{**defaults, **options}),
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("from_files", [False, True])
def test_a_field_of_columns_that_no_record_has_is_named(
    folder: Path, tokenizer: GPT2Tokenizer, from_files: bool
) -> None:
    files = FileSource([str(path) for path in sorted(folder.iterdir())[:1]])
    more: dict[str, Any] = (
        {"val_source": files, "test_source": files, "split": {}} if from_files else {"split": {"val": 2, "test": 2}}
    )
    for columns, expected in (({"input": "contxt"}, ["contxt"]), ({"instruction": "instruction"}, [])):
        data = StreamedData(
            FileSource(str(folder), columns), TEMPLATE, tokenizer, folder.parent / "cache", shuffle_buffer=8,
            **grouped(max_length=32, seed=2, batch_size=4, groups=same_prompt, **more),
        )  # fmt: skip
        data.prepare_data()
        data.setup()
        found = [line for line in data.notes if line.startswith("warning: none of the")]
        assert [line.split("the field ")[1] for line in found] == [f"{name} of data.columns" for name in expected]
        assert data.source.notes.n_records > 0


def test_what_is_held_out_may_be_most_of_a_stream(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    data = streamed(folder, tokenizer, split={"val": 12, "test": 12})
    before = data.fingerprint, instructions(data, "val"), sorted((folder.parent / "cache" / "encoded").iterdir())
    data.prepare_data()  # as Lightning does for each phase
    after = data.fingerprint, instructions(data, "val"), sorted((folder.parent / "cache" / "encoded").iterdir())
    assert before == after


def instructions(data: StreamedData, split: str) -> set[str]:
    store, indices = data.examples_of(split)
    return {store.example(int(i)).instruction for i in indices}


def test_trap_17_what_is_held_out_is_never_trained_on(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    data = streamed(folder, tokenizer)
    val, test = instructions(data, "val"), instructions(data, "test")
    assert (len(val), len(test)) == (6, 5) and not val & test
    relative = next(iter(val)).upper() + "!"
    (folder / "part-4.jsonl").write_text(json.dumps({"instruction": relative, "output": "again"}) + "\n")
    data = streamed(folder, tokenizer, split={"val": 6, "test": 5})
    held_out = instructions(data, "val") | instructions(data, "test")
    source = list(FileSource(str(folder)))
    near = {prompt_digest(e) for e in source if e.instruction in held_out}
    for epoch in range(2):
        loaded = data.train_dataloader()
        loaded.resume_at({"epoch": epoch, "n_batches": 0})
        n = len(flat(ids(loaded)))
        assert n == sum(prompt_digest(e) not in near for e in source) < N
    assert data.counts == {"n_val": 6, "n_test": 5, "n_read": N + 1, "n_left_out_of_train": N + 1 - n}
    assert len(data.examples_of("train")[1]) == 0 and data.loader_names("val") == []
    again = streamed(folder, tokenizer)
    assert instructions(again, "val") == instructions(data, "val") and again.fingerprint == data.fingerprint


def test_what_is_held_out_is_apart_whatever_is_keep_together(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    data = streamed(folder, tokenizer, groups=None)
    assert len(flat(ids(data.train_dataloader()))) == N - 11 and data.counts["n_left_out_of_train"] == 11


def test_files_of_their_own_take_the_place_of_what_is_held_out(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    (folder.parent / "own.json").write_text(json.dumps([{"instruction": "Number 3", "output": "x"}]))
    own = FileSource(str(folder.parent / "own.json"), name="own")
    data = streamed(folder, tokenizer, split={}, val_source=own, test_source=own)
    assert instructions(data, "test") == {"Number 3"}
    assert len(flat(ids(data.train_dataloader()))) == N - 1 and data.counts["n_left_out_of_train"] == 1


def test_trap_17_what_is_held_out_has_no_relative_in_a_file_of_its_own(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    path = folder.parent / "own.json"
    path.write_text(json.dumps([{"instruction": f"NUMBER: {i}", "output": "x"} for i in range(0, N, 2)]))
    data = streamed(folder, tokenizer, split={"val": 6}, test_source=FileSource(str(path), name="own"))
    assert all(int(instruction.split()[-1]) % 2 for instruction in instructions(data, "val"))
    assert len(instructions(data, "val")) == 6 and len(instructions(data, "test")) == -(-N // 2)
    free = streamed(folder, tokenizer, split={"val": 6}, test_source=FileSource(str(path), name="own"), groups=None)
    assert instructions(free, "val") != instructions(data, "val")


def test_rows_must_have_room_for_the_longest_example_of_a_stream(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"data.pad_to=30: the longest example has 31 inputs"):
        streamed(folder, tokenizer, pad_to=30)


def test_a_stream_that_is_too_short_for_its_split(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    with pytest.raises(
        ConfigError, match=r"data.split={'val': 40, 'test': 5}: the stream has only 41 different examples"
    ):
        streamed(folder, tokenizer, split={"val": 40, "test": 5})


def test_the_quick_fingerprint_follows_names_sizes_and_reading(folder: Path) -> None:
    first = quick_fingerprint(FileSource(str(folder)))
    assert quick_fingerprint(FileSource(str(folder))) == first
    assert quick_fingerprint(FileSource(str(folder), {"output": "a"})) != first
    (other := FileSource(str(folder))).reading = " think_tags"
    assert quick_fingerprint(other) != first
    with (folder / "part-0.jsonl").open("a") as file:
        file.write("\n")
    assert quick_fingerprint(FileSource(str(folder))) != first


def test_a_hub_set_is_streamed_shard_by_shard(folder: Path, tokenizer: GPT2Tokenizer) -> None:
    """A local folder in the hub's form; the same code reads one over the network."""
    pytest.importorskip("datasets")
    hub = StreamingHubSource(str(folder))
    assert len(hub.shards()) == len(SHARDS)
    assert [e.instruction for e in hub] == [e.instruction for e in FileSource(str(folder))]
    of_hub, of_files = (
        ids(loader(tokenizer, stream(folder, tokenizer, source=s))) for s in (hub, FileSource(str(folder)))
    )
    assert of_hub == of_files
    assert quick_fingerprint(hub) == hub.fingerprint() != StreamingHubSource(str(folder), split="test").fingerprint()
    (other := StreamingHubSource(str(folder))).reading = " think_tags"
    assert other.fingerprint() != hub.fingerprint()
    with pytest.raises(DownloadError, match=r"data set .*nowhere, split train: cannot be opened"):
        StreamingHubSource(str(folder / "nowhere")).shards()
