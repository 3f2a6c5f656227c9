"""The schema of every group of `conf/` and of training, and the rules between keys.

Hydra composes `conf/` into these dataclasses, so a misspelt key or a wrong type fails before anything is downloaded.
Every other command has the schema and the checks of its own keys in its own file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from instruct_lit.check_data import check_data, check_streamed_training
from instruct_lit.errors import ConfigError


@dataclass
class ModelConfig:
    name: str = MISSING
    kind: str = "gpt2"
    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    pretrained: bool = True
    gguf_file: str | None = None
    trust_remote_code: bool = False
    new_tokens: list[str] = field(default_factory=list)
    n_layers: int | None = 12
    n_heads: int | None = 12
    d_model: int | None = 768
    context_length: int | None = 1024
    dropout: float = 0.0
    activation_checkpointing: bool = False
    lr: float = 5e-5


@dataclass
class AdapterConfig:
    kind: str = "none"
    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: Any = None
    merge: bool = True
    lr: float = MISSING


@dataclass
class DataConfig:
    name: str = MISSING
    licence: str | None = None
    source: Any = MISSING
    sets: Any = None
    filters: Any = None
    keep_together: str = "same_prompt"
    path: Any = None
    test_path: Any = None
    val_path: Any = None
    columns: Any = None
    format: str = "auto"
    on_bad_record: str = "error"
    split: Any = MISSING
    streaming: bool = False
    shuffle_buffer: int = 10000
    seed: int = MISSING
    batch_size: int = 8
    eval_batch_size: int | None = None
    max_length: int | None = None
    mask_prompt: bool = True
    loss_on: str = "all"
    on_long: str = "truncate"
    pad_to: int | None = None
    n_workers: int = 0


@dataclass
class TemplateConfig:
    name: str = MISSING
    text: str | None = None
    path: str | None = None
    next_turn: str | None = None


@dataclass
class BatchingConfig:
    layout: str = "padded"
    grouping: str = "none"
    shared_prefix: bool = False
    max_tokens: int | None = None
    pad_to_multiple_of: int = 1


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
    max_rows: int = 64


@dataclass
class JudgeConfig:
    name: str = MISSING
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    gguf_file: str | None = None
    n_ctx: int | None = None
    path: str | None = None
    prompt: str = "reference"
    pairwise_prompt: str = "pairwise"
    scale: list[int] = field(default_factory=lambda: [0, 100])
    explain: bool = False
    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    constrained: bool = True
    n_asks: int = 3
    n_concurrent: int = 8
    n_retries: int = 5
    timeout_s: float = 120.0
    body: Any = None
    paid: bool = False
    confirmed: bool = False
    usd_per_million_tokens: list[float] | None = None
    calibrate: str | None = None


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
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    trainable: str = "all"
    neftune_alpha: float | None = None
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
    finder: Any = None
    optimized_metric: str | None = "val/loss"
    evaluate_base: bool = True
    n_test_responses: int | None = None


CHOICES = {
    "model.kind": ("gpt2", "hf"),
    "adapter.kind": ("none", "lora", "dora", "qlora"),
    "data.on_long": ("truncate", "drop", "error"),
    "data.format": ("auto", "alpaca", "sharegpt", "messages"),
    "data.loss_on": ("all", "last"),
    "data.keep_together": ("same_prompt", "near_duplicates", "nothing"),
    "data.on_bad_record": ("error", "skip"),
    "batching.layout": ("padded", "packed"),
    "batching.grouping": ("none", "length", "best_fit"),
    "scheduler.decay": ("cosine", "linear", "constant"),
}
AT_LEAST = {
    "data.batch_size": 1,
    "data.shuffle_buffer": 1,
    "data.n_workers": 0,
    "batching.pad_to_multiple_of": 1,
    "generation.max_new_tokens": 1,
    "generation.max_rows": 1,
    "generation.temperature": 0,
    "scheduler.warmup_steps": 0,
    "model.dropout": 0,
    "adapter.rank": 1,
    "neftune_alpha": 0,
    "adapter.dropout": 0,
    "seed": 0,
    "n_test_responses": 0,
    "n_responses": 1,
    "n_questions": 1,
}
LOGGED_METRICS = tuple(
    f"{split}/{name}" for split in ("val", "test") for name in ("loss", "perplexity", "response_loss", "bits_per_byte")
) + ("train/loss", "test/exact_match")


def missing_runs(runs: Any, key: str = "run") -> list[str]:
    """Problems with the finished models that a command is given, one (`run=…`) or a list of them."""
    given = [] if runs is None else list(runs) if isinstance(runs, list | ListConfig) else [runs]
    kinds = "a run folder, a bundle or a Hugging Face directory"
    if not given:
        return [f"{key}=…: give {kinds}"]
    return [f"{key}={run}: no such folder ({kinds})" for run in given if not Path(str(run)).expanduser().is_dir()]


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


def logged_metrics(config: Any) -> tuple[str, ...]:
    """Names of what a training logs: always the same, the losses of a mixture's sets, and what callbacks add."""
    nodes = [node for node in (config.callbacks or {}).values() if node is not None]
    ours = [node for node in nodes if str(node.get("_target_")).endswith(".GenerationQuality")]
    of_sets = tuple(f"{split}/loss/{name}" for split in ("val", "test") for name in config.data.sets or {})
    return (
        LOGGED_METRICS
        + of_sets
        + tuple(f"val/{name}" for node in ours for name in node.get("metrics", ["exact_match"]))
    )


def check_train(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value or combination of a training configuration."""
    problems = check_values(config)
    model, data, batching = config.model, config.data, config.batching
    known = model.context_length if model.kind == "hf" or not model.path else None
    if known is not None and data.max_length is not None and data.max_length > known:
        problems.append(
            f"data.max_length={data.max_length}: the model's context is {model.context_length} tokens "
            "(model.context_length)"
        )
    if model.dropout >= 1:
        problems.append(f"model.dropout={model.dropout}: must be below 1")
    problems += _problems_of_kind(model)
    if config.template.name == "chat" and model.kind != "hf":
        problems.append("template=chat: the chat template of the model's tokenizer goes with model=hf")
    problems += _problems_of_adapter(config) + _problems_of_shards(config)
    if (batching.grouping == "best_fit") != (batching.max_tokens is not None):
        problems.append(
            f"batching.max_tokens={batching.max_tokens}: a token budget goes with batching.grouping=best_fit, "
            f"given is {batching.grouping}"
        )
    if data.pad_to is not None and batching.layout != "padded":
        problems.append(f"data.pad_to={data.pad_to}: only batching.layout=padded pads, given is {batching.layout}")
    logged = logged_metrics(config)
    for key, node in (config.callbacks or {}).items():
        monitor = node.get("monitor") if node is not None else None
        if monitor is not None and monitor not in logged:
            problems.append(f"callbacks.{key}.monitor={monitor}: logged are {', '.join(logged)}")
    if config.optimized_metric is not None and config.optimized_metric not in logged:
        problems.append(f"optimized_metric={config.optimized_metric}: logged are {', '.join(logged)}")
    if config.ckpt_path and config.ckpt_path != "last" and not Path(config.ckpt_path).exists():
        problems.append(f"ckpt_path={config.ckpt_path}: no such checkpoint or run folder")
    problems += check_data(data)
    if data.streaming:
        problems += check_streamed_training(config)
    if problems:
        raise ConfigError("\n  ".join(problems))


def _problems_of_adapter(config: Any) -> list[str]:
    """Adapters and what they do not go together with."""
    adapter, problems = config.adapter, []
    if adapter.kind != "none" and config.trainable != "all":
        problems.append(f"trainable={config.trainable}: an adapter freezes all else, so it goes with adapter=none only")
    if adapter.kind != "none" and config.model.new_tokens:
        problems.append(
            f"model.new_tokens={config.model.new_tokens}: an adapter freezes the embeddings, so they would not be "
            "learnt; use adapter=none"
        )
    if adapter.dropout >= 1:
        problems.append(f"adapter.dropout={adapter.dropout}: must be below 1")
    if adapter.kind == "qlora" and adapter.merge:
        problems.append("adapter.merge=true: merging into 4 bits would round the updates; keep the adapter apart")
    if adapter.kind == "qlora" and config.model.kind != "hf":
        problems.append("adapter=qlora: 4-bit weights go with model=hf")
    if not adapter.merge and not config.model.pretrained:
        problems.append("adapter.merge=false: nobody else has the base of model.pretrained=false")
    if not adapter.merge and config.model.gguf_file:
        problems.append("adapter.merge=false: peft could not open its base, a GGUF file; merge, or save the base first")
    return problems


def _problems_of_shards(config: Any) -> list[str]:
    """What does not go together with a model in shards."""
    strategy = config.trainer.get("strategy")
    if not OmegaConf.is_dict(strategy) or not str(strategy.get("_target_")).endswith(".FullySharded"):
        return []
    problems = []
    optimizer = str(config.optimizer.get("_target_"))
    if optimizer.startswith("instruct_lit.") and not optimizer.endswith(".adamw"):
        problems.append(
            f"optimizer._target_={optimizer}: cannot work on shards; trainer=fsdp goes with optimizer=adamw"
        )
    if config.adapter.kind == "qlora":
        problems.append("adapter=qlora: 4-bit weights cannot be sharded; use trainer=ddp, or adapter=lora")
    for key, node in (config.callbacks or {}).items():
        if node is not None and str(node.get("_target_")).endswith("WeightAveraging"):
            problems.append(f"callbacks.{key}: averages whole weights; trainer=fsdp goes without it")
    return problems


def _problems_of_kind(model: Any) -> list[str]:
    """What GPT-2 needs and a model of transformers does not, and the other way round."""
    if model.kind == "hf":
        gguf = Path(model.path).expanduser() / model.gguf_file if model.path and model.gguf_file else None
        return (
            [f"model.gguf_file={model.gguf_file}: no such file in {model.path}"] if gguf and not gguf.is_file() else []
        )
    problems = [
        f"model.{key}=null: the shape of a GPT-2 wants a number"
        for key in ("n_layers", "n_heads", "d_model", "context_length")
        if model[key] is None
    ]
    if not problems and model.d_model % model.n_heads:
        problems.append(f"model.d_model={model.d_model}: must be a multiple of model.n_heads={model.n_heads}")
    if model.path and not Path(model.path).expanduser().is_dir():
        problems.append(
            f"model.path={model.path}: no such folder (a bundle or a Hugging Face GPT-2 directory; other "
            "models go with model=hf)"
        )
    problems += [
        f"model.{key}={model[key]}: goes with model=hf"
        for key in ("gguf_file", "trust_remote_code", "new_tokens")
        if model[key]
    ]
    return problems
