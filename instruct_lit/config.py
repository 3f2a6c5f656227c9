"""Configuration: the schema of every key, and the rules between keys.

Hydra composes `conf/` into these dataclasses, so a misspelt key or a wrong type fails before anything is downloaded.
Importing this module imports nothing heavy; objects are built from a configuration in `instruct_lit.build`.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from instruct_lit.errors import ConfigError, InstructLitError

PACKAGE = Path(__file__).resolve().parent
# In a checkout conf/ lies beside the package, in an installed wheel inside it.
CONF = PACKAGE.parent / "conf" if (PACKAGE.parent / "pyproject.toml").exists() else PACKAGE / "conf"


@dataclass
class ModelConfig:
    name: str = MISSING
    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    pretrained: bool = True
    n_layers: int = 12
    n_heads: int = 12
    d_model: int = 768
    context_length: int = 1024
    dropout: float = 0.0
    activation_checkpointing: bool = False
    lr: float = 5e-5


@dataclass
class DataConfig:
    name: str = MISSING
    source: Any = MISSING
    path: Any = None
    test_path: Any = None
    val_path: Any = None
    columns: Any = None
    on_bad_record: str = "error"
    split: Any = MISSING
    seed: int = MISSING
    batch_size: int = 8
    eval_batch_size: int | None = None
    max_length: int | None = None
    mask_prompt: bool = True
    on_long: str = "truncate"
    pad_to: int | None = None
    n_workers: int = 0


@dataclass
class TemplateConfig:
    name: str = MISSING
    text: str | None = None
    path: str | None = None


@dataclass
class BatchingConfig:
    layout: str = "padded"
    grouping: str = "none"
    shared_prefix: bool = False
    max_tokens: int | None = None


@dataclass
class SchedulerConfig:
    decay: str = "cosine"
    warmup_steps: int = 0
    min_ratio: float = 0.0


@dataclass
class GenerationConfig:
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: list[str] = field(default_factory=list)
    max_rows: int = 32


@dataclass
class PathsConfig:
    cache: str = MISSING
    outputs: str = MISSING


@dataclass
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    optimizer: Any = MISSING
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    callbacks: Any = None
    logger: Any = None
    trainer: Any = MISSING
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = 123
    fit: bool = True
    ckpt_path: str | None = None
    optimized_metric: str | None = "val/loss"
    evaluate_base: bool = True
    n_test_responses: int | None = None


@dataclass
class EvaluateConfig:
    run: str | None = None
    responses: str | None = None
    response_field: str = "response"
    metrics: list[str] = field(default_factory=list)
    by: list[str] = field(default_factory=list)
    data: DataConfig | None = None
    template: TemplateConfig | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    split: str = "test"
    n_responses: int | None = None
    seed: int = 123


CHOICES = {
    "data.on_long": ("truncate", "drop", "error"),
    "data.on_bad_record": ("error", "skip"),
    "batching.layout": ("padded", "packed"),
    "batching.grouping": ("none", "length", "best_fit"),
    "scheduler.decay": ("cosine", "linear", "constant"),
}
AT_LEAST = {
    "data.batch_size": 1,
    "data.n_workers": 0,
    "generation.max_new_tokens": 1,
    "generation.max_rows": 1,
    "generation.temperature": 0,
    "scheduler.warmup_steps": 0,
    "model.dropout": 0,
    "seed": 0,
}
LOGGED_METRICS = tuple(
    f"{split}/{name}" for split in ("val", "test") for name in ("loss", "perplexity", "response_loss", "bits_per_byte")
) + ("train/loss", "test/exact_match")


def run_command(config_name: str, schema: type, verb: Callable[[Any], Any]) -> None:
    """Compose the configuration of one command from the command line and run its verb; the body of an entry point.

    Errors that the user can mend are printed as one message and end the process with status 2.
    """
    import hydra

    register(config_name, schema)
    # Without this Hydra prints errors itself, cut short and with advice that does not help here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    @functools.wraps(verb)
    def guarded(config: DictConfig) -> Any:
        with _one_message(config_name):  # here too, before Hydra adds a line of its own
            return verb(config)

    with _one_message(config_name):
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()


def register(config_name: str, schema: type) -> None:
    """Make a command's schema and the resolvers of `conf/` known to Hydra."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    OmegaConf.register_new_resolver("cache_dir", _cache_dir, replace=True)
    OmegaConf.register_new_resolver("package_dir", lambda: str(PACKAGE), replace=True)


@contextmanager
def _one_message(config_name: str) -> Iterator[None]:
    try:
        yield
    except InstructLitError as error:
        _exit_with(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _exit_with(_explain(error, config_name))
    except KeyboardInterrupt:
        sys.exit(130)


def _exit_with(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _cache_dir() -> str:
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "instruct-lit"
    return os.environ.get("INSTRUCT_LIT_CACHE", str(default))


_NOISE = ("object_type=", "reference_type=", "Config search path:", "provider=")


def _explain(error: Exception, config_name: str) -> str:
    """Hydra's or OmegaConf's message with the key's neighbours behind it, so that a typing error mends itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    if cause is not None and str(cause) not in str(error):
        lines += [line.strip() for line in str(cause).splitlines() if line.strip()]
    message = "\n  ".join(line for line in lines if not line.startswith(_NOISE))
    match = re.search(r"[Kk]ey '([^']+)'", str(cause or error)) or re.search(r"[Kk]ey '([^']+)'", str(error))
    full_key = re.search(r"full_key: (\S+)", str(cause or error)) or re.search(r"override '?([\w.@/]+)", str(error))
    if match and full_key:
        parent = full_key.group(1).rpartition(".")[0]
        allowed = _keys_of(config_name, parent)
        close = difflib.get_close_matches(match.group(1), allowed, n=1)
        if close:
            message += f"\n  did you mean {'.'.join(filter(None, (parent, close[0])))}?"
        if allowed:
            message += f"\n  allowed{f' in {parent}' if parent else ''}: {', '.join(allowed)}"
    return message


def _keys_of(config_name: str, parent: str) -> list[str]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(config_name)
            node = OmegaConf.select(config, parent) if parent else config
            return [str(key) for key in node] if isinstance(node, DictConfig) else []
    except (HydraException, OmegaConfBaseException, ValueError):
        return []


def check_values(config: DictConfig) -> list[str]:
    """Problems with single values and between keys that can be seen without building anything."""
    problems = []
    for key, allowed in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value is not None and value not in allowed:
            problems.append(f"{key}={value}: allowed are {', '.join(allowed)}")
    for key, least in AT_LEAST.items():
        value = OmegaConf.select(config, key)
        if value is not None and value < least:
            problems.append(f"{key}={value}: must be at least {least}")
    return problems


def check_train(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value or combination of a training configuration."""
    problems = check_values(config)
    model, data, batching = config.model, config.data, config.batching
    if not model.path and data.max_length is not None and data.max_length > model.context_length:
        problems.append(
            f"data.max_length={data.max_length}: the model's context is {model.context_length} tokens "
            "(model.context_length)"
        )
    if model.dropout >= 1:
        problems.append(f"model.dropout={model.dropout}: must be below 1")
    if model.d_model % model.n_heads:
        problems.append(f"model.d_model={model.d_model}: must be a multiple of model.n_heads={model.n_heads}")
    if (batching.grouping == "best_fit") != (batching.max_tokens is not None):
        problems.append(
            f"batching.max_tokens={batching.max_tokens}: a token budget goes with batching.grouping=best_fit, "
            f"given is {batching.grouping}"
        )
    if data.pad_to is not None and batching.layout != "padded":
        problems.append(f"data.pad_to={data.pad_to}: only batching.layout=padded pads, given is {batching.layout}")
    for key, node in (config.callbacks or {}).items():
        monitor = node.get("monitor") if node is not None else None
        if monitor is not None and monitor not in LOGGED_METRICS:
            problems.append(f"callbacks.{key}.monitor={monitor}: logged are {', '.join(LOGGED_METRICS)}")
    if config.optimized_metric is not None and config.optimized_metric not in LOGGED_METRICS:
        problems.append(f"optimized_metric={config.optimized_metric}: logged are {', '.join(LOGGED_METRICS)}")
    if config.ckpt_path and config.ckpt_path != "last" and not Path(config.ckpt_path).exists():
        problems.append(f"ckpt_path={config.ckpt_path}: no such checkpoint or run folder")
    for key in ("path", "test_path", "val_path"):
        paths = data[key] if isinstance(data[key], ListConfig) else [data[key]]
        for path in paths:
            if path is not None and not Path(path).expanduser().exists():
                problems.append(f"data.{key}={path}: no such file or folder")
    if model.path and not Path(model.path).expanduser().is_dir():
        problems.append(f"model.path={model.path}: no such folder (a bundle or a Hugging Face GPT-2 directory)")
    if problems:
        raise ConfigError("\n  ".join(problems))


def check_evaluate(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of an evaluation's configuration."""
    problems = check_values(config)
    if config.split not in ("train", "val", "test"):
        problems.append(f"split={config.split}: allowed are train, val, test")
    if (config.run is None) == (config.responses is None):
        problems.append(
            "run=… or responses=…: give one of the two, a model to answer or answers that are there"
        )
    if not config.metrics:
        problems.append("metrics=[]: name at least one")
    if config.responses is not None and not Path(config.responses).expanduser().is_file():
        problems.append(f"responses={config.responses}: no such file")
    if config.run is not None and not Path(config.run).expanduser().is_dir():
        problems.append(f"run={config.run}: no such folder (a run folder, a bundle or a Hugging Face GPT-2 directory)")
    if problems:
        raise ConfigError("\n  ".join(problems))


def differences(config: DictConfig, config_name: str) -> list[tuple[str, Any, Any]]:
    """Every key whose value is not that of the command's defaults: (key, default, value)."""
    from hydra import compose

    default, given = flat(compose(config_name)), flat(config)
    keys = sorted({*default, *given})
    return [(key, default.get(key), given.get(key)) for key in keys if default.get(key) != given.get(key)]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a configuration by its dotted key."""
    container = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(container, dict) or not container:
        return {prefix: container}
    leaves: dict[str, Any] = {}
    for key, value in container.items():
        leaves.update(flat(value, f"{prefix}.{key!s}" if prefix else str(key)))
    return leaves
