"""The configuration in a run folder, which may come from a stranger: it is read as plain values and checked before use.

A run writes its config.yaml with every interpolation resolved. So nothing in it is resolved here: no environment
variable is read, no resolver is called, and what leads to code or names a place to write is refused or replaced.
"""

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from instruct_lit.config.check_data import data_relations
from instruct_lit.config.compose import CONF, flat
from instruct_lit.config.schema.groups import AdapterConfig, BatchingConfig, DataConfig, ModelConfig
from instruct_lit.config.schema.options import check_values, violations
from instruct_lit.config.targets import ALLOWED
from instruct_lit.errors import ConfigError

MAX_BYTES = 10_000_000
MAX_DEPTH = 100
_STARTS = (
    yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken
)  # fmt: skip
_ENDS = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
SCHEMAS = {  # the groups that are read
    "model": ModelConfig, "data": DataConfig, "batching": BatchingConfig, "adapter": AdapterConfig
}  # fmt: skip
_FILTERS = {  # that are refused
    "function": "code that a run folder names is never executed",
    "judge": "an endpoint that a run folder names is never asked",
}
# The modules of the sources, which in an older run may be others.
SOURCE_MODULES = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in ALLOWED["source"]}


def read_plain(file: Path) -> Any:
    """The values of a YAML file, its interpolations left as text.

    Raises: ConfigError for a file that is not YAML, too large or too deep, or has aliases, which expand without bound.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{file}: has more than {MAX_BYTES:,} bytes; a run's configuration is smaller")
        text = file.read_text(encoding="utf-8")
        depth = 0
        for token in yaml.scan(text):  # its time grows with the square of the depth
            depth += isinstance(token, _STARTS) - isinstance(token, _ENDS)
            if isinstance(token, yaml.AliasToken):
                raise ConfigError(f"{file}: has YAML aliases, which no run writes; write their values out")
            if depth > MAX_DEPTH:
                raise ConfigError(f"{file}: cannot be read (more than {MAX_DEPTH} levels deep); give another run")
        return OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(f"{file}: cannot be read ({type(error).__name__}: {reason}); give another run") from error


def plain_text(values: Any, key: str) -> str | None:
    """The text at a dotted key of `read_plain`'s values; None for anything else, and for an interpolation."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values if isinstance(values, str) and "${" not in values else None


def saved_group(folder: Path, name: str, cache: str) -> DictConfig | None:
    """A group of a run folder's config.yaml, checked; None where the file or the group is missing.

    Keys of another version of this program are left out, missing ones have their defaults.

    Args:
        folder: the run folder, in which the bundle is.
        name: one of `SCHEMAS`.
        cache: this command's cache folder, which replaces that of the run.

    Raises: ConfigError.
    """
    file = folder / "config.yaml"
    saved = read_plain(file) if file.is_file() else None
    values = saved.get(name) if isinstance(saved, dict) else None
    if values is None:
        return None

    def refused(problem: str) -> ConfigError:
        return ConfigError(f"{file}: {problem}; give {name}=… on the command line")

    if not isinstance(values, dict):
        raise refused(f"{name}={values}: must be a mapping")
    for key, value in flat(values, name).items():
        if "${" in str(value):
            raise refused(f"{key}={value}: an interpolation in a run folder is never resolved")
    schema = SCHEMAS[name]
    known = {field.name for field in dataclasses.fields(schema)}
    values = {key: value for key, value in values.items() if key in known}
    if name == "data":
        base: Any = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "base.yaml"), resolve=False)
        values = {**base, "name": "unnamed", "seed": 123, **_data_without_code(values, file, cache)}
    if name == "model":
        values["trust_remote_code"] = False  # the folder does not decide whether code of a model is trusted
    try:
        group: Any = OmegaConf.merge(OmegaConf.structured(schema), values)
    except OmegaConfBaseException as error:
        raise refused(f"{name}: {str(error).splitlines()[0]}") from error
    relations = data_relations(group) if name == "data" else ()
    if problems := check_values(group, f"{name}.") or violations(group, relations):
        raise refused(problems[0])
    return group


def _data_without_code(values: dict[str, Any], file: Path, cache: str) -> dict[str, Any]:
    """The data group without what leads to code; the sources where this version has them, with this command's cache."""
    filters: Any = values.get("filters")
    for name, never in _FILTERS.items() if isinstance(filters, dict) else ():
        if (given := filters.get(name)) is not None:
            path = given.get("path") if isinstance(given, dict) else given
            raise ConfigError(
                f"{file}: data.filters.{name}{f'={path}' if path else ''}: {never}; give data and filters on the "
                "command line (data=…, data.filters=…)"
            )
    values = _with_own_source(values, cache)
    if isinstance(sets := values.get("sets"), dict):
        values["sets"] = {name: _with_own_source(given, cache) for name, given in sets.items()}
    return values


def _with_own_source(data: Any, cache: str) -> Any:
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(source, dict):
        return data
    target = str(source.get("_target_"))
    if target.startswith("instruct_lit."):
        name = target.rpartition(".")[2]
        source = {**source, "_target_": f"{SOURCE_MODULES.get(name, 'instruct_lit.datasets')}.{name}"}
    return {**data, "source": source | ({"cache_dir": cache} if "cache_dir" in source else {})}
