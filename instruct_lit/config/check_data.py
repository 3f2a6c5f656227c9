"""Relations of the data group that can be checked without reading data."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.schema.options import Relation, Rules, refused, shown
from instruct_lit.core.data.example import FIELDS

ROLES = ("system", "user", "assistant", "tool", "none")


def data_relations(data: Any) -> Iterator[Relation]:
    """Relations of the data group."""
    is_mapping = isinstance(data.split, DictConfig)
    allowed_splits = "allowed are 'book' and a mapping of train, val and test"
    yield not is_mapping and data.split != "book", "data.split", allowed_splits
    for name, share in data.split.items() if is_mapping else ():
        wrong = share is not None and not is_share(share)
        yield wrong, f"data.split.{name}={share}", "give a fraction below 1 or a count"
    source = data.get("source")
    if OmegaConf.is_dict(source) and str(source.get("_target_")).endswith(".FileSource") and source.get("path") is None:
        yield "data.path is missing; data=files data.path=<file or folder>"
    bad_name = Path(data.name).name != data.name or "\\" in data.name or data.name.startswith(".")
    yield bad_name, "data.name", "must be a name of files in the cache, without slashes or a leading dot"
    columns = {str(key): str(value) for key, value in (data.columns or {}).items()}
    allowed = (*FIELDS, "text") if data.role_marks else FIELDS
    for key, field in columns.items():
        yield key not in allowed, f"data.columns.{key}={field}", f"allowed are {', '.join(allowed)}"
        same = [other for other in columns if columns[other] == field]
        reason = f"{' and '.join(same)} are both read from {field!r}; name a field for each"
        yield len(same) > 1 and key == same[0], "data.columns=…", reason
    for role, marks in (data.role_marks or {}).items():
        yield role not in ROLES, f"data.role_marks.{role}={marks}", f"allowed are {', '.join(ROLES)}"
    sets = {str(name): given for name, given in (data.sets or {}).items() if given is not None}
    yield data.streaming and sets, "data.streaming=true", "a mixture cannot be streamed; leave out data.sets"
    if data.sets:
        own = f"data.sets.{next(iter(data.sets))}"
        yield data.path is not None, "data.path", f"a mixture reads the files of its sets; give them as {own}.path"
    elif source is None and not OmegaConf.is_missing(data, "source"):
        yield "data.sets is missing; data=mixture 'data.sets={mine: {path: mine.jsonl}, book: {}}'"
    yield from _mixture_relations(sets, len(data.sets or {}))


def _mixture_relations(sets: dict[str, Any], n_sets: int) -> Iterator[Relation]:
    """Missing files, and impossible weights and repeats of a mixture."""
    shares: list[Any] = []
    for name, given in sets.items():
        yield from Rules("", exists="records").problems(f"data.sets.{name}.path", given.get("path"))
        own = {key: given[key] for key in ("weight", "repeats") if key in given}
        shares += own.values()
        for key, share in own.items():
            yield not is_share(share), f"data.sets.{name}.{key}={share}", "must be a number of at least 0"
    nothing = len(shares) == n_sets > 0 and not any(shares)
    yield nothing, "data.sets=…", "all weights or repeats are 0; at least one must be above 0"


def forgetting_relations(forgetting: Any) -> Iterator[Relation]:
    """Relations of the group forgetting, of training and evaluation."""
    suite = forgetting.suite
    yield suite is not None and not forgetting.enabled, "forgetting.enabled=false", "leave out forgetting.suite as well"
    if suite is not None and forgetting.enabled:
        from instruct_lit.config.benchmark_builders import harness_suite

        yield refused(harness_suite, f"forgetting.suite={suite}", suite)
    for key in ("limit", "data_dir"):
        yield suite is None and forgetting[key] is not None, f"forgetting.{key}", "it is for forgetting.suite=<name>"


def is_share(value: Any) -> bool:
    """Whether a value is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def stream_relations(config: Any) -> Iterator[Relation]:
    """What streaming does not support, and settings that it requires because a stream has no length."""
    data, trainer = config.data, config.trainer
    near = data.keep_together == "near_duplicates" or "near_duplicates" in (data.filters or {})
    yield near, "data.streaming=true", "near-duplicates are not found in a stream; leave them out"
    for name in {"perplexity", "ifd", "judge", "diversity"} & {*(data.filters or {})}:
        yield True, f"data.filters.{name}", "it compares all examples, which a stream does not have; leave it out"
    split = data.split if isinstance(data.split, DictConfig) else {}
    n_train = split.get("train")
    whole = "a stream is trained on whole; limit the run by trainer.max_steps"
    yield isinstance(n_train, int) and n_train > 0, f"data.split.train={n_train}", whole
    for name in ("val", "test"):
        n = split.get(name)
        is_count = isinstance(n, int | float) and n >= 1 and n == int(n)
        reason = f"a stream has no length, so give a count (data.split={{val: 500, test: 500}}), or data.{name}_path"
        yield data[f"{name}_path"] is None and not is_count, f"data.split.{name}={shown(n)}", reason
    max_steps, interval = trainer.get("max_steps"), trainer.get("val_check_interval")
    no_length = "a stream has no length, so give a number of"
    yield max_steps is None or max_steps < 1, f"trainer.max_steps={max_steps}", f"{no_length} steps"
    yield not isinstance(interval, int), f"trainer.val_check_interval={interval}", f"{no_length} batches"
    grouped = config.batching.grouping != "none"
    yield grouped, "batching.grouping", "lengths are unknown in a stream; use batching=packed or batching=padded"
