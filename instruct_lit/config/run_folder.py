"""The configuration and overrides in a run folder, which may come from a stranger: checked before they are used.

A run writes its config.yaml with every interpolation resolved. So nothing in it is resolved here: no environment
variable is read, no resolver is called, and what leads to code or names a place to write is refused or replaced.
Of its overrides what leads to code, changes Hydra itself, or names a place to write is used only where the user repeats
it: the text of every override is checked, and then the configuration that they compose.
"""

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from instruct_lit.config.check_data import data_relations
from instruct_lit.config.compat_hydra import parse_overrides
from instruct_lit.config.compose import CONF, composed, configuration_files, flat, nodes_of
from instruct_lit.config.schema.groups import AdapterConfig, BatchingConfig, DataConfig, ModelConfig
from instruct_lit.config.schema.options import check_values, violations
from instruct_lit.config.targets import ALLOWED, unlisted_targets
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
OVERRIDES = Path(".hydra") / "overrides.yaml"
# What a key leads to, by its last part, unless its value is null or false.
SWITCHES = {
    "_target_": "names a constructor",
    "trust_remote_code": "runs code of a repository",
    "function": "runs a Python file",
    **dict.fromkeys(
        ("dirpath", "save_dir", "default_root_dir", "offline_directory", "dir"), "names a folder to write to"
    ),
}
_PLACE = re.compile(r"[/~\\]|.*(\.\.|://)", re.S)  # what loggers and callbacks would write to, beside the run folder


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


def saved_overrides(run: Path, changes: Collection[str] = ()) -> list[str]:
    """The overrides in a run folder.

    Args:
        changes: overrides that the user gives; a saved one that is among them is trusted.

    Raises: ConfigError for one that is refused, with the change that lets it pass.
    """
    saved = read_plain(run / OVERRIDES)
    if not isinstance(saved, list) or not all(isinstance(override, str) for override in saved):
        raise ConfigError(f"{run / OVERRIDES}: not a list of overrides; give another run")
    untrusted = [override for override in saved if override not in changes]
    for override in untrusted:
        if reason := refusal(override):
            raise ConfigError(
                f"run={run}: an override that {reason} is not used from a run folder; if you trust it, add "
                f"'changes=[\"{override}\"]'"
            )
    try:
        config = OmegaConf.to_container(composed("train", untrusted))
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"run={run}: this version cannot compose its overrides ({reason}); give another run, or train with them"
        ) from error
    for key, value in nodes_of(config):
        runs_code = key.startswith("data.filters.function.") or (key == "model.trust_remote_code" and value)
        if runs_code or key.startswith("data.filters.judge."):
            what = "runs code" if runs_code else "asks an endpoint"
            raise ConfigError(f"run={run}: its overrides compose {key}={value}, which {what}; give another run")
    for key, target in unlisted_targets(config):
        raise ConfigError(f"run={run}: its overrides compose {key}={target}, which is not an allowed target")
    return saved


def check_saved_files(run: Path, changes: Collection[str] = ()) -> None:
    """Raise ConfigError when a run was composed from files of the user's own that `changes` does not name again."""
    file = run / OVERRIDES.with_name("hydra.yaml")
    try:
        used = configuration_files(read_plain(file)["hydra"], "train") if file.is_file() else []
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: not the configuration of Hydra; give another run") from error
    # The program's own conf/ may lie elsewhere today.
    missing = [given for given in used if given not in changes and not given.startswith("--config-path=")]
    if missing:
        raise ConfigError(
            f"run={run}: was started with {' '.join(missing)}, which is not used from a run folder; if you trust it, "
            f"add 'changes={json.dumps(missing, ensure_ascii=False)}'"
        )


def refusal(override: str) -> str | None:
    """Why an override in a run folder is not used again; None for a harmless one."""
    if override.startswith("-"):
        return "is an option of the command line"
    if "${" in override:
        return "is an interpolation"
    try:
        (parsed,) = parse_overrides([override])
        value = None if parsed.is_delete() else parsed.value()
    except (HydraException, RecursionError):
        return "is not an override"
    key = parsed.key_or_group
    if parsed.is_sweep_override():
        return "is a sweep"
    if any((place or "").split(".")[0].split("/")[0] == "hydra" for place in (key, parsed.package)):
        return "changes Hydra itself"
    if ".." in key or key.startswith("/") or not _are_own_choices(key, value):
        return "names a configuration outside of this program's"
    for name, inner in nodes_of(value, key):
        parts = name.split(".")
        switch = next((SWITCHES[part] for part in parts if part in SWITCHES), None)
        if inner not in (None, False) and (switch or name == "template.path"):
            return switch or "names a file"
        if parts[0] in ("logger", "callbacks") and isinstance(inner, str) and _PLACE.match(inner):
            return "names a place to write to"
    return None


def _are_own_choices(key: str, value: Any) -> bool:
    """Whether the value of a group, where `key` is one, is a mapping or choices among the files of `conf/`."""
    folder = CONF / key
    if not folder.is_dir() or value is None or isinstance(value, dict):
        return True
    options = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    return all(str(choice) in options for choice in (value if isinstance(value, list) else [value]))
