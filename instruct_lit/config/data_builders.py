"""The data module from a configuration: its sources, one or a mixture of several, and its filters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.compose import CONF
from instruct_lit.config.targets import ALLOWED_SOURCES, build, plain
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from instruct_lit.core.bundle import OpenedModel
    from instruct_lit.core.data.datamodule import InstructionData
    from instruct_lit.core.data.encode import Tokenizer
    from instruct_lit.core.data.template import Template
    from instruct_lit.datasets.filters import Filter
    from instruct_lit.datasets.mixture import Mixture

OF_A_SET = ("data", "path", "columns", "format", "on_bad_record", "source")  # what a set of a mixture may say, and
SHARES = ("weight", "repeats")  # how much of it there is


def data_of(
    config: DictConfig, template: Template, tokenizer: Tokenizer, context_length: int, first: int | None = None
) -> InstructionData:
    """The data module, its length bounded by the model's context.

    With `first` a set that is streamed is not: its first examples are read and stored, all of them for training.
    """
    from instruct_lit.core.data.datamodule import InstructionData
    from instruct_lit.core.data.sources import FileSource, Sharded
    from instruct_lit.datasets.stream_datamodule import First, StreamedData

    data = config.data
    max_length = data.max_length or context_length
    if max_length > context_length:
        raise ConfigError(f"data.max_length={max_length}: the model's context is {context_length} tokens")
    own_files: dict[str, Any] = {
        f"{name}_source": FileSource(
            plain(data[f"{name}_path"]), plain(data.columns), data.on_bad_record, f"{data.name}_{name}", data.format
        )
        for name in ("test", "val")
        if data[f"{name}_path"] is not None
    }
    sources = {
        node.name: build(node.source, f"{key}.source", allowed=ALLOWED_SOURCES)
        for key, node in source_nodes(config).items()
    }
    keys = ("seed", "batch_size", "eval_batch_size", "mask_prompt", "loss_on", "on_long", "pad_to", "n_workers")
    source = sources if data.sets else sources[data.name]
    split = plain(data.split)
    module: Any = InstructionData
    if data.streaming and first is not None:
        source, split = First(source, first), {}
    elif data.streaming:
        if not isinstance(source, Sharded):
            raise ConfigError(f"data.streaming=true: data={data.name} is no set of files that could be streamed")
        module = partial(StreamedData, shuffle_buffer=data.shuffle_buffer)
    return module(
        source,
        template,
        tokenizer,
        Path(config.paths.cache),
        max_length=max_length,
        split=split,
        keep_together=data.keep_together,
        filters=filters_of(data.filters),
        mixture=mixture_of(data.sets) if data.sets else None,
        **{key: data[key] for key in keys},
        **config.batching,
        **own_files,
    )


def source_nodes(config: DictConfig) -> dict[str, DictConfig]:
    """The configuration of every set with a `name` and a `source`, by its key: `data`, or `data.sets.<name>`.

    A set of a mixture is `conf/data/<its name>.yaml`, or the file that its `data` names, or else `files`; what it says
    itself takes the place of what stands there. Raises ConfigError for a key that a set cannot have.
    """
    if not config.data.sets:
        return {"data": config.data}
    options = sorted(path.stem for path in (CONF / "data").glob("*.yaml") if path.stem not in ("base", "mixture"))
    nodes = {}
    for name, given in config.data.sets.items():
        key = f"data.sets.{name}"
        given = given if given is not None else OmegaConf.create({})
        for unknown in sorted({str(k) for k in given} - {*OF_A_SET, *SHARES}):
            raise ConfigError(f"{key}.{unknown}: allowed are {', '.join((*OF_A_SET, *SHARES))}")
        option = given.get("data", name if name in options else "files")
        if option not in options:
            raise ConfigError(f"{key}.data={option}: allowed are {', '.join(options)}")
        own = {k: v for k, v in given.items() if k in OF_A_SET and k != "data"}
        files = [OmegaConf.load(CONF / "data" / f"{stem}.yaml") for stem in ("base", option)]
        node = OmegaConf.merge(*files, own, {"name": name})
        # As the root of the command has it, for the interpolations of the file.
        root = OmegaConf.create({"data": node, "paths": config.paths, "seed": config.data.seed})
        nodes[key] = OmegaConf.create(plain(root.data))
    return nodes


def mixture_of(sets: DictConfig) -> Mixture:
    """How often an epoch sees each set; weights or repeats, for all sets alike."""
    from instruct_lit.datasets.mixture import Mixture

    weights = {str(name): given.get("weight") for name, given in sets.items() if given is not None}
    repeats = {str(name): given.get("repeats", 1.0) for name, given in sets.items() if given is not None}
    if all(weight is None for weight in weights.values()):
        return Mixture(repeats=repeats)
    missing = [str(name) for name in sets if weights.get(str(name)) is None]
    mixed = [str(name) for name, given in sets.items() if given is not None and "repeats" in given]
    if missing or mixed:
        raise ConfigError(f"data.sets.{(missing or mixed)[0]}: give all sets a weight, or all of them repeats")
    return Mixture(weights=weights)


def filters_of(node: DictConfig | None) -> list[Filter]:
    """The filters that `data.filters` names, in its order. Raises ConfigError for an unknown one or its argument."""
    from instruct_lit.datasets.filters import FILTERS

    filters = []
    for name, given in {str(name): given for name, given in (node or {}).items()}.items():
        key = f"data.filters.{name}"
        if name not in FILTERS:
            raise ConfigError(f"{key}: allowed are {', '.join(FILTERS)}")
        if given is None:  # switched off
            continue
        target = {"_target_": f"{FILTERS[name].__module__}.{FILTERS[name].__name__}", **plain(given)}
        filters.append(build(target, key))
    return filters


def data_of_run(config: DictConfig, opened: OpenedModel) -> InstructionData:
    """The data of `data`, or where none are given those that the run was trained with, ready to be read.

    Raises ConfigError when they are neither given nor known.
    """
    saved = opened.directory.parent / "config.yaml"  # of the run folder that the bundle lies in
    node = config.data
    if node is None and opened.about and saved.is_file():
        node = data_in(OmegaConf.load(saved), config.run)
    if node is None:
        raise ConfigError(
            f"run={config.run}: no run folder, so the data must be given (data=files data.path=…, data=book)"
        )
    settings = OmegaConf.create({"paths": config.paths, "batching": {}, "data": node})
    data = data_of(settings, opened.template, opened.tokenizer, opened.model.config.context_length)
    data.prepare_data()
    data.setup()
    return data


def data_in(saved: Any, run: str) -> DictConfig | None:
    """The data of a run's saved configuration, what an older run does not say at its default; nothing of it is code."""
    node = OmegaConf.select(saved, "data")
    refuse_code(node, run)
    if node is None:
        return None
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "base.yaml"), resolve=False)
    return OmegaConf.create({**defaults, **plain(node)})  # type: ignore[dict-item]


def refuse_code(node: DictConfig | None, run: str) -> None:
    """Raise ConfigError where a run folder's data name a user's function: what a folder brings is never executed."""
    function = OmegaConf.select(node, "filters.function") if node is not None else None
    if function is not None:
        raise ConfigError(
            f"run={run}: its data were filtered by {function.get('path')}, and code that a run folder names is not "
            "run; give the data with their filters again (data=…, data.filters=…)"
        )
