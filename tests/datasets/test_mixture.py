"""Several sets in one: numbering, shares, epochs, the split of each, and configurations."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.data_builders import mixture_of, source_nodes
from instruct_lit.config.filter_builders import filters_of
from instruct_lit.core.data.datamodule import make_split
from instruct_lit.core.data.encode import Encoder, open_or_build
from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets.mixture import Mixture, MixtureData, MixtureSampler, MixtureStore, draw
from instruct_lit.datasets.near_duplicates import near_duplicate_groups
from instruct_lit.datasets.split_groups import same_prompt
from instruct_lit.errors import ConfigError
from tests.configs import composed
from tests.fixtures.data import settings

TEMPLATE = Template("short", "{{ instruction }} {{ input }} = {{ response }}")
SIZES = {"a": 40, "b": 12, "c": 4}


def write(folder: Path, name: str, records: list[dict]) -> FileSource:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(records))
    return FileSource(str(path), name=name)


def records(name: str, n: int) -> list[dict]:
    return [{"instruction": f"{name} number {i}", "output": f"{name} " * (1 + i % 5), "set": name} for i in range(n)]


def module(tmp_path: Path, tokenizer: GPT2Tokenizer, **options: Any) -> MixtureData:
    sources = {name: write(tmp_path, name, records(name, n)) for name, n in SIZES.items()}
    defaults = {"max_length": 32, "split": {"train": 0.5, "val": 0.25, "test": 0.25}, "seed": 3, "batch_size": 4}
    data = MixtureData(sources, TEMPLATE, tokenizer, tmp_path / "cache", **settings(**{**defaults, **options}))
    data.prepare_data()
    data.setup()
    return data


def test_one_numbering_over_all_sets_and_a_split_of_each(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    data = module(tmp_path, tokenizer)
    store = data.stores["main"]
    assert isinstance(store, MixtureStore) and len(store) == 56 and store.names == ("a", "b", "c")
    for index in range(56):
        name = "a" if index < 40 else "b" if index < 52 else "c"
        assert store.example(index).extra["set"] == name == store.names[store.store_of(index)]
        assert store[index].index == index and len(store[index].ids) == store.lengths[index]
        assert store[index].is_response.sum() == store.n_response[index]
    assert store.counts["n_encoded"] == 56
    for split, sizes in (("train", (20, 6, 2)), ("val", (10, 3, 1)), ("test", (10, 3, 1))):
        assert tuple(len(members) for members in data.members(split).values()) == sizes, split
        alone = make_split(12, {"train": 0.5, "val": 0.25, "test": 0.25}, 3)
        assert data.members(split)["b"].tolist() == (getattr(alone, split) + 40).tolist()
    together = np.concatenate([data.split.train, data.split.val, data.split.test])
    assert sorted(together) == list(range(56))


def test_trap_14_each_set_has_its_own_loader_in_evaluation(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    data = module(tmp_path, tokenizer)
    loaders = data.val_dataloader()
    assert isinstance(loaders, list)
    for loader, members in zip(loaders, data.members("val").values(), strict=True):
        assert sorted(i for batch in loader for i in batch.example_ids.tolist()) == members.tolist()


@pytest.mark.parametrize(
    ("mixture", "repeats"),
    [
        (Mixture(repeats={"b": 2.5, "c": 0.5}), (1, 2.5, 0.5)),
        (Mixture(weights={"a": 1, "b": 1, "c": 2}), (7 / 20, 7 / 6, 7.0)),
    ],
)
def test_an_epoch_sees_what_was_asked_for_and_the_share_is_reported(
    tmp_path: Path, tokenizer: GPT2Tokenizer, mixture: Mixture, repeats: tuple[float, ...]
) -> None:
    data = module(tmp_path, tokenizer, mixture=mixture)
    shares = data.shares()
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)  # type: ignore[attr-defined]
        seen = [i for batch in loader for i in batch.example_ids.tolist()]
        assert len(loader) == -(-len(seen) // 4)
        for number, (name, members) in enumerate(data.members("train").items()):
            of_set = [i for i in seen if i in members]
            assert len(of_set) == shares[name].n_examples == round(repeats[number] * len(members))
            times = [of_set.count(i) for i in members]
            assert max(times) - min(times) <= 1  # whole rounds, and a part once more
            learnt = sum(int(data.stores["main"].n_response[i]) for i in of_set)
            assert epoch or learnt == shares[name].n_learnt_tokens
        epochs.append(seen)
    assert epochs[0] != epochs[1] and {*epochs[0]} != {*epochs[1]}
    again = module(tmp_path, tokenizer, mixture=mixture).train_dataloader()
    assert [i for batch in again for i in batch.example_ids.tolist()] == epochs[0]


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 3)), min_size=1, max_size=4), st.integers(0, 5))
def test_a_draw_sees_every_position_its_whole_number_of_times(parts: list[tuple[int, float]], seed: int) -> None:
    starts = np.cumsum([0, *(n for n, _ in parts)])
    placed = [(np.arange(start, start + n), repeats) for start, (n, repeats) in zip(starts, parts, strict=False)]
    drawn = draw(placed, np.random.default_rng(seed))
    for positions, repeats in placed:
        times = np.array([(drawn == position).sum() for position in positions])
        assert times.min() >= int(repeats) and times.max() <= int(repeats) + 1
        assert abs(times.sum() - repeats * len(positions)) <= 0.5 + 1e-9


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_a_drawn_epoch_without_repetition_or_loss(world_size: int) -> None:
    parts = [(np.arange(10), 1.5), (np.arange(10, 13), 3.0)]

    def seen(rank: int, n_ranks: int) -> list[int]:
        sampler = MixtureSampler(np.arange(13), np.ones(13), 4, seed=1, rank=rank, world_size=n_ranks, parts=parts)
        return [i for batch in sampler for i in batch]

    together = sorted(i for rank in range(world_size) for i in seen(rank, world_size))
    assert together == sorted(seen(0, 1)) and len(together) == 24


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_epoch_of_filled_batches_has_as_many_as_lightning_counts_in_the_first(world_size: int) -> None:
    lengths = np.random.default_rng(0).integers(5, 300, 200)
    parts = [(np.arange(100), 0.4), (np.arange(100, 200), 1.6)]
    options = {"grouping": "best_fit", "max_tokens": 512, "world_size": world_size, "parts": parts}
    samplers = [MixtureSampler(np.arange(200), lengths, 8, rank=rank, **options) for rank in range(world_size)]
    n_batches, left_out = len(samplers[0]), []
    for epoch in range(12):
        for sampler in samplers:
            sampler.epoch = epoch
            assert len(sampler) == len(list(sampler)) == n_batches
            assert world_size > 1 or all(lengths[batch].sum() <= 512 for batch in sampler)
        seen = sorted(i for sampler in samplers for batch in sampler for i in batch)
        drawn = sorted(draw(parts, np.random.default_rng((0, epoch))))
        assert not Counter(seen) - Counter(drawn)
        left_out.append(len(drawn) - len(seen))
    assert left_out[0] == min(left_out) == 0 and max(left_out) < 12
    samplers[0].epoch = 0  # after others it is the first again
    assert list(samplers[0]) == list(MixtureSampler(np.arange(200), lengths, 8, **options))


def test_a_set_without_a_training_example_cannot_have_a_weight() -> None:
    with pytest.raises(ConfigError, match=r"data.sets.b.weight=2: no training example to repeat"):
        Mixture(weights={"a": 1, "b": 2}).repeats_of({"a": 4, "b": 0})


def test_repeats_that_leave_no_example_are_refused(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    data = module(tmp_path, tokenizer, mixture=Mixture(repeats=dict.fromkeys("abc", 1e-3)))
    with pytest.raises(ConfigError, match="data.sets=…: weights or repeats leave no example for an epoch; raise them"):
        data.shares()


@pytest.mark.parametrize("how", ["same_prompt", "near_duplicates"])
def test_trap_17_near_duplicates_stay_on_one_side_across_sets_and_files(
    tmp_path: Path, tokenizer: GPT2Tokenizer, how: str
) -> None:
    if how == "near_duplicates":
        pytest.importorskip("datasketch")

    def asked(number: int, more: str = "") -> str:
        return " ".join(f"w{number}x{i}" for i in range(20)) + more * (how == "near_duplicates")

    def of_set(name: str, numbers: list[int], more: str) -> FileSource:
        made = [{"instruction": asked(i, more), "output": name, "number": i} for i in numbers]
        return write(tmp_path, name, made)

    # Half of the second set's questions are the first one's in other places, so that they meet across the split.
    sources = {"one": of_set("one", list(range(30)), ""), "two": of_set("two", list(range(44, 14, -1)), " please")}
    own = {"test_source": of_set("test", list(range(20)), "?!")}

    groups = {"nothing": None, "same_prompt": same_prompt, "near_duplicates": near_duplicate_groups}

    def split_of(how: str, split: dict, **own: FileSource) -> MixtureData:
        given = settings(max_length=512, seed=1, split=split, groups=groups[how], **own)
        data = MixtureData(sources, TEMPLATE, tokenizer, tmp_path / "cache", **given)
        data.prepare_data()
        data.setup()
        return data

    def numbers(data: MixtureData, split: str) -> set[int]:
        store, indices = data.examples_of(split)
        return {store.example(int(i)).extra["number"] for i in indices}

    for split, files in (({"val": 6, "test": 6}, {}), ({"val": 6}, own)):
        before, data = split_of("nothing", split, **files), split_of(how, split, **files)
        train, val, test = (numbers(data, name) for name in ("train", "val", "test"))
        assert numbers(before, "train") & numbers(before, "val") and numbers(before, "train") & numbers(before, "test")
        assert train and val and test and not train & val and not train & test and not val & test
        counts = data.counts
        n_lost = counts.get("n_left_out_of_val", 0) + counts.get("n_left_out_of_train", 0)
        assert counts["n_moved_to_train"] > 0 and n_lost == (25 if files else 0)  # 20 of the first set, 5 of the second
        assert sum(counts[f"n_{name}"] for name in ("train", "val", "test")) == 60 - n_lost + (20 if files else 0)
    assert counts["n_left_out_of_val"] > 0  # a validation example with a relative in the test file

    both = split_of(how, {}, **own, val_source=of_set("val", [5, 77], ""))
    assert both.counts["n_straddling"] == 1 and not set(range(20)) & numbers(both, "train")


def test_exact_repetitions_between_sets_are_left_out_once(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    again = [*records("a", 40)[:6], *records("b", 12)]
    sources = {"a": write(tmp_path, "a", records("a", 40)), "b": write(tmp_path, "b", again)}
    given_settings = settings(max_length=32, seed=1, split={"train": 0.5, "val": 0.5})
    data = MixtureData(sources, TEMPLATE, tokenizer, tmp_path / "cache", **given_settings)
    data.prepare_data()
    data.setup()
    store, used = data.stores["main"], [*data.split.train, *data.split.val, *data.split.test]
    asked = [store.example(int(i)).instruction for i in used]
    assert len(asked) == len(set(asked)) == 52 and data.counts["n_duplicates_across_sets"] == 6


def test_what_one_set_has_twice_after_truncation_stays_as_without_a_mixture(
    tmp_path: Path, tokenizer: GPT2Tokenizer
) -> None:
    template = Template("short", "{{ instruction }} = {{ response }}", next_turn="\n{{ instruction }} = {{ response }}")
    talks = [{"instruction": "w " * 20 + str(n), "output": "o", "history": [["hello", "hi"]]} for n in range(3)]
    encoded = [
        open_or_build(tmp_path, name, write(tmp_path, name, talks), Encoder(template, tokenizer, 16)) for name in "ab"
    ]
    store = MixtureStore(dict(zip("ab", encoded, strict=True)))
    assert len(store) == 6 and store.example(0).instruction == "hello"
    assert store.duplicates().tolist() == [False] * 3 + [True] * 3


def configured(sets: str, more: str = "") -> Any:
    root = "{paths: {cache: cache}, data: {seed: 1, name: mixture, sets: %s%s}}"
    return OmegaConf.create(root % (sets, more))


def test_a_set_is_a_file_of_conf_or_files_of_its_own() -> None:
    sets = "{book: {weight: 1}, mine: {path: x.json, columns: {output: a}}, more: {data: dolly}}"
    nodes = source_nodes(configured(sets))
    assert list(nodes) == ["data.sets.book", "data.sets.mine", "data.sets.more"]
    book, mine, more = nodes.values()
    assert book.source.url.endswith("instruction-data.json") and book.name == "book"
    assert mine.source._target_.endswith("FileSource") and mine.source.path == "x.json"
    assert mine.source.columns == {"output": "a"}
    assert more.source.repo == "databricks/databricks-dolly-15k"
    assert more.source.cache_dir == "cache" and more.source.on_bad_record == "skip"


def test_sets_have_the_fields_the_format_and_the_treatment_of_bad_records_of_the_mixture() -> None:
    sets = "{mine: {path: x.json}, own: {path: y.json, format: kto, on_bad_record: error}, more: {data: dolly}}"
    given = ", columns: {output: a}, format: alpaca, on_bad_record: skip"
    mine, own, more = (node.source for node in source_nodes(configured(sets, given)).values())
    assert (mine.columns, mine.format, mine.on_bad_record) == ({"output": "a"}, "alpaca", "skip")
    assert (own.format, own.on_bad_record) == ("kto", "error")
    assert more.columns.output == "response"  # a data set of conf/data keeps its own


def test_files_beside_a_mixture_are_not_ignored() -> None:
    overrides = ("data=mixture", "data.sets={demo: {}}", "data.path=pyproject.toml")
    with pytest.raises(
        ConfigError, match="data.path=.*: a mixture reads the files of its sets; give them as data.sets.demo.path"
    ):
        check_command("train", composed("train", *overrides))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            "{book: {wieght: 1}}",
            "data.sets.book.wieght: allowed are data, path, columns, format, on_bad_record, source",
        ),
        ("{mine: {data: bok}}", "data.sets.mine.data=bok: allowed are alpaca,"),
    ],
)
def test_sets_that_cannot_be(sets: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        source_nodes(configured(sets))
    assert message in str(caught.value)


def test_weights_or_repeats() -> None:
    assert mixture_of(OmegaConf.create({"a": {"weight": 2}, "b": {"weight": 1}})).weights == {"a": 2, "b": 1}
    repeated = mixture_of(OmegaConf.create({"a": {"repeats": 2}, "b": None}))
    assert repeated.repeats_of({"a": 1, "b": 1}) == {"a": 2, "b": 1}
    for sets in ({"a": {"weight": 2}, "b": {"repeats": 1}}, {"a": {"weight": 2}, "b": None}):
        with pytest.raises(ConfigError, match=r"data.sets.b: give every data set a weight, or none"):
            mixture_of(OmegaConf.create(sets))


def test_filters_of_a_configuration() -> None:
    node = OmegaConf.create({"refusals": {}, "length": {"max_prompt_words": 3}, "language": None})
    chain = filters_of(node)
    assert chain is not None and [f.name for f in chain.filters] == ["refusals", "length"]
    assert filters_of(None) is None and filters_of(OmegaConf.create({"length": None})) is None
    for given_filters, message in (
        (
            {"lenght": {}},
            "data.filters.lenght: allowed are length, language, near_duplicates, leaks, refusals, function",
        ),
        ({"length": {"max_words": 3}}, "data.filters.length.max_words: .* has no such argument"),
        ({"length": {"max_prompt_words": "x"}}, "data.filters.length.max_prompt_words=x: .* requires int"),
        ({"function": {}}, "data.filters.function: .* refuses its arguments"),
    ):
        with pytest.raises(ConfigError, match=message):
            filters_of(OmegaConf.create(given_filters))
