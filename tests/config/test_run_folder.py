"""What is read from a run folder, which may be a stranger's."""

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.data_builders import source_nodes, with_settings_of_run
from instruct_lit.config.filter_builders import filters_of
from instruct_lit.config.model_builders import base_of_run
from instruct_lit.config.run_folder import SOURCE_MODULES, plain_text, read_plain, saved_group
from instruct_lit.config.targets import build
from instruct_lit.core.bundle import OpenedModel
from instruct_lit.errors import ConfigError
from tests.configs import composed


def folder(path: Path, **groups: Any) -> Path:
    (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(groups)))
    return path


def test_the_data_of_an_older_run_have_defaults_for_missing_keys(tmp_path: Path) -> None:
    run = folder(tmp_path, data={"name": "old", "seed": 4, "batch_size": 3, "a_key_of_another_version": 1})
    found = saved_group(run, "data", "cache")
    assert found is not None and (found.name, found.seed, found.batch_size) == ("old", 4, 3)
    assert found.sets is None and found.streaming is False and found.keep_together == "same_prompt"
    assert "a_key_of_another_version" not in found
    assert saved_group(run, "model", "cache") is None and saved_group(tmp_path / "none", "data", "cache") is None


@pytest.mark.parametrize("name", SOURCE_MODULES)
def test_a_source_of_an_older_run_is_found_where_it_is_now(name: str, tmp_path: Path) -> None:
    found = saved_group(
        folder(tmp_path, data={"source": {"_target_": f"instruct_lit.data.sources.{name}", "path": "x"}}), "data", "c"
    )
    assert found is not None
    assert getattr(importlib.import_module(SOURCE_MODULES[name]), name)
    assert found.source._target_ == f"{SOURCE_MODULES[name]}.{name}"


def test_downloads_of_a_run_folder_go_to_this_commands_cache(tmp_path: Path) -> None:
    source = {"_target_": "instruct_lit.datasets.remote_sources.UrlSource", "url": "u", "cache_dir": "/home/me/.ssh"}
    data = {"source": source, "sets": {"more": {"source": source, "weight": 1}}}
    found = saved_group(folder(tmp_path, data=data), "data", "cache")
    assert found is not None and found.source.cache_dir == found.sets.more.source.cache_dir == "cache"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {filters: {function: {path: evil.py}}}", "data.filters.function=evil.py: code that a run folder names is never"),
        ("data: {filters: {function: evil.py}}", "data.filters.function=evil.py: code that a run folder names is never"),
        ("data: {filters: {'function': {path: evil.py, function: keep}}}", "data.filters.function=evil.py: code that"),
        ("data: {filters: \"${oc.decode:'{function:{path:evil.py}}'}\"}", r"data.filters=\$\{oc.decode:.* is never resolved"),
        ("data: {filters: '${data.columns}', columns: {function: {path: evil.py}}}", r"data.filters=\$\{data.columns\}: an"),
        ("data: {name: '${oc.env:HOME}'}", r"data.name=\$\{oc.env:HOME\}: an interpolation in a run folder is never resolved"),
        ("data: {name: '${${x}:HOME}'}", r"data.name=\$\{\$\{x\}:HOME\}: an interpolation"),
        ("data: {path: ['${cache_dir:}']}", r"data.path=\['\$\{cache_dir:\}'\]: an interpolation"),
        ("data: {sets: {a: {path: '${oc.env:HOME}'}}}", r"data.sets.a.path=\$\{oc.env:HOME\}: an interpolation"),
        ("data: {name: &a evil, path: *a}", "has YAML aliases, which no run writes"),
        ("data: !!python/object/apply:os.system [touch x]", "cannot be read .ConstructorError: could not determine"),
        ("data: {name: ${oc.env:HOME}", "cannot be read"),
        ("data: [1, 2]", "data=.1, 2.: must be a mapping; give data=… on the command line"),
        ("data: {batch_size: many}", "data: Value 'many' .* could not be converted to Integer; give data=…"),
        ("data: {batch_size: 0}", "data.batch_size=0: must be at least 1; give data=…"),
        ("data: {filters: [function]}", r"data.filters=\[function\]: must be a mapping; give data="),
        ("[" * 5_000_000, "cannot be read .more than 100 levels deep"),
        ("{" * 5_000_000, "cannot be read .more than 100 levels deep"),
        ("- " * 3_000, "cannot be read .more than 100 levels deep"),
        ("data: " + "x" * 10_000_001, "has more than 10,000,000 bytes"),
    ],
)  # fmt: skip
def test_what_a_run_folder_may_not_say(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        saved_group(tmp_path, "data", "cache")
    assert str(refused.value).startswith(f"{tmp_path / 'config.yaml'}: ") and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "source",
    [
        {"_target_": "torch.hub.load", "repo_or_dir": "evil", "model": "m", "source": "local"},
        {"_target_": "instruct_lit.data.hf_tokenizer.load_tokenizer", "source": "evil"},
        {"_target_": "instruct_lit.hf.tokenizer.load_tokenizer", "source": "evil"},
        {"_target_": "instruct_lit.core.data.records.Path", "path": "evil"},
        {"_target_": ["os.system"], "path": "evil"},
        {"_target_": "os.system", "_args_": ["touch x"]},
        {"_target_": "instruct_lit.core.data.records.FileSource", "_partial_": True, "path": "x"},
        {"_target_": "instruct_lit.core.data.records.FileSource", "path": "x", "_args_": ["evil"]},
    ],
)
@pytest.mark.parametrize("place", ["source", "sets"])
def test_a_source_of_a_run_folder_is_on_the_closed_list(source: dict[str, Any], place: str, tmp_path: Path) -> None:
    named = {"source": source} if place == "source" else {"sets": {"a": {"source": source}}}
    data = saved_group(folder(tmp_path, data={"name": "x", **named}), "data", "cache")
    nodes = source_nodes(OmegaConf.create({"data": data, "paths": {"cache": "c"}}))
    ((key, node),) = nodes.items()
    with pytest.raises(ConfigError, match=r"_target_=.*: not an allowed target|source._(args|partial)_: not supported"):
        build(node.source, f"{key}.source")


def test_a_filter_of_a_run_folder_is_not_another_one(tmp_path: Path) -> None:
    function = {"_target_": "instruct_lit.datasets.filters.Function", "path": str(tmp_path / "evil.py")}
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    data = saved_group(folder(tmp_path, data={"filters": {"length": function}}), "data", "cache")
    assert data is not None
    with pytest.raises(
        ConfigError, match="data.filters.length._target_: not supported; allowed are the arguments of Length"
    ):
        filters_of(data.filters)


def test_the_base_that_a_run_folder_names_brings_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"kind": "hf", "path": "evil", "pretrained": True, "trust_remote_code": True}
    folder(tmp_path, model=model)
    monkeypatch.setattr("instruct_lit.config.model_builders.model_of", lambda config: config.model.trust_remote_code)
    opened = OpenedModel(tmp_path / "bundle", None, None, None, {}, {"kind": "hf"})  # type: ignore[arg-type]
    assert base_of_run(OmegaConf.create({"paths": {"cache": "c"}}), opened) is False


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_or_a_device_in_place_of_the_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    assert saved_group(tmp_path, "data", "cache") is None
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").symlink_to("/dev/zero")
    assert saved_group(tmp_path, "data", "cache") is None


def test_a_text_of_a_sweeps_configuration_is_plain(tmp_path: Path) -> None:
    file = tmp_path / "multirun.yaml"
    file.write_text("optimized_metric: '${oc.env:HOME}'\nhydra: {sweeper: {direction: minimize}, job: [1]}\n")
    values = read_plain(file)
    assert plain_text(values, "optimized_metric") is None and plain_text(values, "hydra.job.x") is None
    assert plain_text(values, "hydra.sweeper.direction") == "minimize"


def test_every_group_that_peek_takes_from_a_run_can_be_read(tmp_path: Path) -> None:
    run = folder(tmp_path, adapter={"kind": "lora", "rank": 4}, batching={"layout": "packed"})
    found = saved_group(run, "adapter", "cache")
    assert found is not None and (found.kind, found.rank, found.dropout) == ("lora", 4, 0.0)
    (run / "bundle").mkdir()
    config = with_settings_of_run(composed("peek", "data=demo", f"run={run}"), ("data",))
    assert (config.adapter.kind, config.batching.layout, config.data.name) == ("lora", "packed", "demo")
    assert with_settings_of_run(composed("peek", f"run={run}"), ("adapter", "data")).adapter.kind == "none"
    with pytest.raises(ConfigError, match="adapter.kind=x: allowed are none, lora, dora, qlora; give adapter="):
        saved_group(folder(tmp_path, adapter={"kind": "x"}), "adapter", "cache")
