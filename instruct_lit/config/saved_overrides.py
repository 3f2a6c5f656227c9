"""The overrides that a run was started with, checked before they are used again: a run folder may be a stranger's.

What leads to code, changes Hydra itself, or names a place to write is used only where the user repeats it. The text of
every override is checked, and then the configuration that they compose.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from instruct_lit.config.compose import CONF, composed, configuration_files, nodes_of
from instruct_lit.config.run_folder import read_plain
from instruct_lit.config.targets import unlisted_targets
from instruct_lit.errors import ConfigError

FILE = Path(".hydra") / "overrides.yaml"
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
TEMPLATE_FILE = "template.path"


def saved_overrides(run: Path, changes: Collection[str] = ()) -> list[str]:
    """The overrides in a run folder.

    Args:
        changes: overrides that the user gives; a saved one that is among them is trusted.

    Raises: ConfigError for one that is refused, with the change that lets it pass.
    """
    saved = read_plain(run / FILE)
    if not isinstance(saved, list) or not all(isinstance(override, str) for override in saved):
        raise ConfigError(f"{run / FILE}: not a list of overrides; give another run")
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
    file = run / FILE.with_name("hydra.yaml")
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
    from instruct_lit.config.compat_hydra import parse_overrides

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
        if inner not in (None, False) and (switch or name == TEMPLATE_FILE):
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
