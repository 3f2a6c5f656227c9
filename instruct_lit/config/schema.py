"""The schema of every group of `conf/` and of training, and the rules of single values.

Hydra composes `conf/` into these dataclasses, so a misspelt key or a wrong type fails before anything is downloaded.
The rules between the keys of training are in `instruct_lit.config.check_training`; every other command has the schema
and the checks of its own keys in its own file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf


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
    dtype: str | None = None


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
    compile: bool = False
    cuda_graphs: bool | None = None
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
    "generation.dtype": ("bfloat16",),
}
AT_LEAST = {
    "data.batch_size": 1,
    "data.eval_batch_size": 1,
    "data.max_length": 2,
    "data.pad_to": 1,
    "data.shuffle_buffer": 1,
    "data.n_workers": 0,
    "batching.max_tokens": 1,
    "batching.pad_to_multiple_of": 1,
    "generation.max_new_tokens": 1,
    "generation.max_rows": 1,
    "generation.temperature": 0,
    "scheduler.warmup_steps": 0,
    "model.n_layers": 1,
    "model.n_heads": 1,
    "model.d_model": 1,
    "model.context_length": 2,
    "model.dropout": 0,
    "adapter.rank": 1,
    "neftune_alpha": 0,
    "adapter.dropout": 0,
    "seed": 0,
    "n_test_responses": 0,
    "n_responses": 1,
    "n_questions": 1,
}


def missing_runs(runs: Any, key: str = "run") -> list[str]:
    """Problems with the finished models that a command is given, one (`run=…`) or a list of them."""
    given = [] if runs is None else list(runs) if isinstance(runs, list | ListConfig) else [runs]
    kinds = "a run folder, a bundle or a Hugging Face directory"
    if not given:
        return [f"{key}=…: give {kinds}"]
    return [f"{key}={run}: no such folder ({kinds})" for run in given if not Path(str(run)).expanduser().is_dir()]


def check_values(config: DictConfig) -> list[str]:
    """Problems with single values that can be seen without building anything."""
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
