"""The data module from a configuration: one data set, a mixture of several, or a stream."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.compose import CONF, choices_of
from instruct_lit.config.filter_builders import base_of_filters, filters_of
from instruct_lit.config.model_builders import install_satellites
from instruct_lit.config.run_folder import saved_group
from instruct_lit.config.satellites import has_satellite
from instruct_lit.config.targets import build, plain
from instruct_lit.core.bundle import OpenedModel, bundle_of, read_about
from instruct_lit.core.data.batching import GROUPINGS
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.example import listed
from instruct_lit.core.data.records import FileSource, read_records
from instruct_lit.core.data.settings import Batching, Lengths, Masking, Splits
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from instruct_lit.datasets.mixture import Mixture
    from instruct_lit.datasets.split_groups import SplitGroups

NO_DATA = "run={run}: not in a run folder, so give the data (data=files data.path=…, data=book)"
SET_KEYS = ("data", "path", "columns", "format", "on_bad_record", "source")  # of one data set in data.sets
SHARE_KEYS = ("weight", "repeats")


def data_of(
    config: DictConfig,
    template: Template,
    tokenizer: Tokenizer,
    context_length: int,
    n_streamed: int | None = None,
    model: CausalLM | None = None,
) -> InstructionData:
    """The data module, its lengths bounded by the model's context.

    Args:
        model: what the batch layout has to suit; by default a model for which every layout is exact.
        n_streamed: read and store the first examples of a stream, all of them for training, instead of streaming.
    """
    install_satellites()
    data = config.data
    for key in ("max_length", "pad_to"):
        if (data.get(key) or 0) > context_length:
            raise ConfigError(f"data.{key}={data[key]}: the model's context has {context_length} tokens; lower it")
    files = {
        name: FileSource(
            plain(data[f"{name}_path"]), plain(data.columns), data.on_bad_record, f"{data.name}_{name}", data.format
        )
        for name in ("test", "val")
        if data[f"{name}_path"] is not None
    }
    sources = {node.name: build(node.source, f"{key}.source") for key, node in source_nodes(config).items()}
    for source in (*sources.values(), *files.values()):
        set_reading(source, data)
    files = {**own_splits(sources, config), **files}
    split = plain(data.split)
    if isinstance(split, dict):  # a part that is null is like one that is not named
        split = {name: share for name, share in split.items() if share is not None}
    streamed = data.streaming and n_streamed is None
    arguments: dict[str, Any] = {
        "lengths": Lengths(data.max_length or context_length, data.on_long, data.pad_to),
        "splits": Splits({} if data.streaming and not streamed else split, regroup_of(data), files),
        "masking": masking_of(data),
        "batching": batching_of(config, model),
        "filters": filters_of(
            data.filters, partial(base_of_filters, config, template, tokenizer, context_length, model)
        ),
        "seed": data.seed,
    }
    common = (template, tokenizer, Path(config.paths.cache))
    if data.sets:
        from instruct_lit.datasets.mixture import MixtureData

        return MixtureData(sources, *common, mixture=mixture_of(data.sets), **arguments)
    source = sources[data.name]
    if not data.streaming:
        return InstructionData(source, *common, **arguments)
    from instruct_lit.datasets.stream_datamodule import Head, StreamedData

    if not isinstance(source, FileSource):
        raise ConfigError(f"data.streaming=true: data={data.name} cannot be streamed; use data=files or data=hf_stream")
    if n_streamed is not None:
        return InstructionData(Head(source, n_streamed), *common, **arguments)
    return StreamedData(source, *common, shuffle_buffer=data.shuffle_buffer, **arguments)


def set_reading(source: Any, data: DictConfig) -> None:
    """Let a source of files read them by `data.key`, `header`, `role_marks`, `n_paths` and `think_tags`.

    Raises: ConfigError for a source that does not read files.
    """
    if data.get("think_tags", False):
        from instruct_lit.datasets.conversations import with_thoughts_apart

        if not isinstance(source, FileSource):
            raise ConfigError(f"data.think_tags=true: data={data.name} is not read from files")
        source.rewrite, source.reading = with_thoughts_apart, " think_tags"  # type: ignore[method-assign]
    key, has_header, marks = data.get("key"), data.get("header", True), plain(data.get("role_marks"))
    n_paths = data.get("n_paths", 1)
    if key is None and has_header and not marks and n_paths == 1:
        return
    from instruct_lit.datasets.file_formats import readers_of
    from instruct_lit.datasets.record_forms import best_paths, marked_records

    if not isinstance(source, FileSource) or type(source).records is not FileSource.records:
        keys = "data.key, data.header, data.role_marks, data.n_paths"
        raise ConfigError(f"{keys}: data={data.name} is not read from files")
    read: Any = partial(read_records, readers=readers_of(key, has_header))
    read = partial(marked_records, read, marks, (source.columns or {}).get("text", "text")) if marks else read
    source.records = partial(best_paths, read, n_paths) if n_paths > 1 else read  # type: ignore[method-assign]
    source.reading += f" {key} {has_header} {marks} {n_paths}"


def masking_of(data: DictConfig) -> Masking:
    """Which tokens are trained on, and how much those of prompts weigh."""
    if data.prompt_weight is None:
        return Masking(data.mask_prompt, data.loss_on)
    return Masking(data.prompt_weight == 0, data.loss_on, data.prompt_weight)


def batching_of(config: DictConfig, model: CausalLM | None) -> Batching:
    """How batches are made; the layout is decided when the lengths of the data are known."""
    given, data = plain(config.batching), config.data
    automatic = given.get("layout") == "auto"
    if automatic:
        given["layout"] = "packed" if data.pad_to is None else "padded"
    limits = (math.inf, "") if model is None else (model.layout_length, model.no_layouts or "")
    choose = partial(chosen_layout, limits=limits, automatic=automatic and model is not None)
    return Batching(data.batch_size, data.eval_batch_size, n_workers=data.n_workers, choose=choose, **given)


def chosen_layout(batching: Batching, longest: int, limits: tuple[float, str], automatic: bool) -> Batching:
    """The settings of batches whose longest example has `longest` inputs.

    Padded rows without a shared prefix are exact for every model, other layouts up to a number of inputs.

    Args:
        limits: that number, and why no longer ones.
        automatic: whether padded rows replace a layout that is not exact.

    Raises: ConfigError where the configured layout is not exact for this model and these lengths.
    """
    exact_length, reason = limits
    is_exact = longest <= exact_length
    limit = f"exact up to {exact_length} inputs" if exact_length else "not exact"
    facts = f"packing is {limit} for this model, since {reason}; " if reason else "exact for this model; "
    facts += f"examples have up to {longest} inputs"
    if automatic:
        if not is_exact:
            grouping = "length" if batching.grouping == "none" and "length" in GROUPINGS else batching.grouping
            batching = replace(batching, layout="padded", shared_prefix=False, grouping=grouping, pad_to_multiple_of=1)
        rows = "" if batching.grouping == "none" else f" rows grouped by {batching.grouping}"
        print(f"batching: {batching.layout}{rows} ({facts})", flush=True)
    elif not is_exact and (batching.layout == "packed" or batching.shared_prefix):
        shorter = f" or data.max_length={int(exact_length) + 1}" if exact_length else ""
        raise ConfigError(
            f"batching.layout={batching.layout}, batching.shared_prefix={batching.shared_prefix}: {facts}; use "
            f"batching=auto, batching=bucketed{shorter}"
        )
    return batching


def own_splits(sources: dict[str, Any], config: DictConfig) -> dict[str, Any]:
    """The validation and test files of a folder or hub data set that has them; its source keeps the others.

    Raises ConfigError for one in a mixture.
    """
    found: dict[str, Any] = {}
    if not has_satellite("datasets"):
        return found
    from instruct_lit.datasets.folder_splits import separate_splits, unread_files
    from instruct_lit.datasets.remote_sources import HubSource

    for name, source in sources.items():
        if isinstance(source, HubSource) or (isinstance(source, FileSource) and any(map(Path.is_dir, source.paths))):
            if unread := unread_files(source):
                print(f"data {name}: files in its folder that are not read: {listed(unread)}", flush=True)
            own = separate_splits(source)
            if own and config.data.sets:
                raise ConfigError(
                    f"data.sets.{name}: the data set has files for {' and '.join(own)} too; give its training files as "
                    f"data.sets.{name}.path"
                )
            found |= own
    for name in found:
        given = config.data[f"{name}_path"] is not None
        used = f"data.{name}_path replaces the data set's own files" if given else "the data set's own files are used"
        print(f"data {config.data.name}: {used} for {name}", flush=True)
    return found


def regroup_of(data: DictConfig) -> SplitGroups | None:
    """What `data.keep_together` keeps in one part of the split; nothing without the satellite `datasets`."""
    if data.keep_together == "nothing" or not has_satellite("datasets"):
        return None
    from instruct_lit.datasets.near_duplicates import near_duplicate_groups
    from instruct_lit.datasets.split_groups import SplitGroups, same_prompt

    return SplitGroups(near_duplicate_groups if data.keep_together == "near_duplicates" else same_prompt)


def source_nodes(config: DictConfig) -> dict[str, DictConfig]:
    """The configuration of every data set with its `name` and `source`, by its key: `data`, or `data.sets.<name>`.

    A data set of a mixture is `conf/data/<its name>.yaml`, or the file that its `data` names, or else `files`; its own
    keys override those of the file, which override `columns`, `format` and `on_bad_record` of `data`. Raises
    ConfigError for an unknown key.
    """
    if not config.data.sets:
        return {"data": config.data}
    options = [option for option in choices_of("data") if option != "mixture"]
    nodes = {}
    for name, given in config.data.sets.items():
        key = f"data.sets.{name}"
        given = given if given is not None else OmegaConf.create({})
        for unknown in sorted({str(k) for k in given} - {*SET_KEYS, *SHARE_KEYS}):
            raise ConfigError(f"{key}.{unknown}: allowed are {', '.join((*SET_KEYS, *SHARE_KEYS))}")
        option = given.get("data", name if name in options else "files")
        if option not in options:
            raise ConfigError(f"{key}.data={option}: allowed are {', '.join(options)}")
        own = {k: v for k, v in given.items() if k in SET_KEYS and k != "data"}
        files = [OmegaConf.load(CONF / "data" / f"{stem}.yaml") for stem in ("base", option)]
        common = {key: config.data[key] for key in ("columns", "format", "on_bad_record") if key in config.data}
        node = OmegaConf.merge(files[0], common, files[1], own, {"name": name})
        # Under the keys of the command's root, for the interpolations of the file.
        root = OmegaConf.create({"data": node, "paths": config.paths, "seed": config.data.seed})
        nodes[key] = OmegaConf.create(plain(root.data))
    return nodes


def mixture_of(sets: DictConfig) -> Mixture:
    """How often an epoch sees each data set: a weight for each of them, or repeats for any of them."""
    from instruct_lit.datasets.mixture import Mixture

    weights = {str(name): given.get("weight") for name, given in sets.items() if given is not None}
    repeats = {str(name): given.get("repeats", 1.0) for name, given in sets.items() if given is not None}
    if all(weight is None for weight in weights.values()):
        return Mixture(repeats=repeats)
    missing = [str(name) for name in sets if weights.get(str(name)) is None]
    mixed = [str(name) for name, given in sets.items() if given is not None and "repeats" in given]
    if missing or mixed:
        raise ConfigError(f"data.sets.{(missing or mixed)[0]}: give every data set a weight, or none")
    return Mixture(weights=weights)


def settings_of_data(config: DictConfig, run: str) -> DictConfig:
    """The group `data`, or by default that of the run; raises ConfigError when there is neither."""
    node = config.get("data")
    if node is None and read_about(bundle := bundle_of(run)):
        node = saved_group(bundle.parent, "data", config.paths.cache)
    if node is None:
        raise ConfigError(NO_DATA.format(run=run))
    return node


def data_of_run(config: DictConfig, run: str, opened: OpenedModel) -> InstructionData:
    """The data module of `settings_of_data` for the opened model of a run, after its setup."""
    folder, node = opened.directory.parent, settings_of_data(config, run)
    seed = config.get("seed", 123)  # which data.seed refers to by default
    base = saved_group(folder, "model", config.paths.cache) if opened.about and node.filters else None
    settings = OmegaConf.create({"paths": config.paths, "batching": {}, "data": node, "seed": seed, "model": base})
    data = data_of(settings, opened.template, opened.tokenizer, opened.model.config.context_length)
    return set_up(data, given=config.get("data") is not None)


def set_up(data: InstructionData, given: bool = True) -> InstructionData:
    """The data module after its setup; of data that are not the run's own the counts are printed, as by `train`."""
    data.prepare_data()
    data.setup()
    if given:
        counts = ", ".join(f"{n} {name[2:]}" for name, n in data.counts.items())
        print("\n  ".join([f"data: {counts}", *data.notes]), flush=True)
    return data


def with_settings_of_run(config: DictConfig, given: Collection[str]) -> DictConfig:
    """The configuration with the run's own model, data and batching, and its bundle's template.

    Args:
        given: groups that the command line names; they are kept.
    """
    parts = {str(key): value for key, value in config.items()}
    if "template" not in given:
        parts["template"] = None  # the bundle has it
    folder = bundle_of(config.run).parent
    for name in ("model", "data", "batching", "adapter"):
        saved = saved_group(folder, name, config.paths.cache) if name not in given else None
        if name == "data" and saved is None and name not in given:
            raise ConfigError(NO_DATA.format(run=config.run))
        parts[name] = saved if saved is not None else parts[name]
    return OmegaConf.create(parts)


def layouts_for(data: DictConfig) -> dict[str, dict[str, Any]]:
    """The settings of every file of `conf/batching` that suits the data, by its name."""
    layouts = {path.stem: dict(OmegaConf.load(path)) for path in sorted((CONF / "batching").glob("*.yaml"))}  # type: ignore[arg-type]
    suitable = ("padded",) if data.pad_to is not None else ("padded", "packed")
    return {name: settings for name, settings in layouts.items() if settings["layout"] in suitable}
