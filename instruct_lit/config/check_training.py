"""The rules between the keys of a training configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from instruct_lit.config.check_data import check_data, check_streamed_training
from instruct_lit.config.check_lightning import check_lightning
from instruct_lit.config.schema import check_values
from instruct_lit.errors import ConfigError

GROUPS = ("optimizer", "trainer", "callbacks", "logger", "finder", "data.sets")
LOGGED_METRICS = tuple(
    f"{split}/{name}" for split in ("val", "test") for name in ("loss", "perplexity", "response_loss", "bits_per_byte")
) + ("train/loss", "test/exact_match")


def logged_metrics(config: Any) -> tuple[str, ...]:
    """Names of what a training logs: always the same, the losses of a mixture's sets, and what callbacks add."""
    ours = [node for node in _callbacks(config).values() if str(node.get("_target_")).endswith(".GenerationQuality")]
    of_sets = tuple(f"{split}/loss/{name}" for split in ("val", "test") for name in config.data.sets or {})
    return (
        LOGGED_METRICS
        + of_sets
        + tuple(f"val/{name}" for node in ours for name in node.get("metrics", ["exact_match"]))
    )


def _callbacks(config: Any) -> dict[str, Any]:
    """The nodes of the callbacks that are not switched off."""
    return {str(key): node for key, node in (config.callbacks or {}).items() if OmegaConf.is_dict(node)}


def check_train(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value or combination of a training configuration."""
    problems = check_values(config)
    if not_mappings := _not_mappings(config):  # nothing can be looked up in them
        raise ConfigError("\n  ".join(problems + not_mappings))
    model, data, batching = config.model, config.data, config.batching
    known = model.context_length if model.kind == "hf" or not model.path else None
    if known is not None and data.max_length is not None and data.max_length > known:
        problems.append(
            f"data.max_length={data.max_length}: the model's context is {model.context_length} tokens "
            "(model.context_length)"
        )
    problems += _problems_of_kind(model)
    if config.template.name == "chat" and model.kind != "hf":
        problems.append("template=chat: the chat template of the model's tokenizer goes with model=hf")
    problems += _problems_of_adapter(config) + _problems_of_shards(config) + _problems_of_gpu(config)
    if (batching.grouping == "best_fit") != (batching.max_tokens is not None):
        problems.append(
            f"batching.max_tokens={batching.max_tokens}: a token budget goes with batching.grouping=best_fit, "
            f"given is {batching.grouping}"
        )
    if data.pad_to is not None and batching.layout != "padded":
        problems.append(f"data.pad_to={data.pad_to}: only batching.layout=padded pads, given is {batching.layout}")
    problems += _problems_of_nodes(config) + check_lightning(config) + _problems_of_metrics(config)
    if config.ckpt_path and config.ckpt_path != "last" and not Path(config.ckpt_path).exists():
        problems.append(f"ckpt_path={config.ckpt_path}: no such checkpoint or run folder")
    problems += check_data(data)
    if data.streaming:
        problems += check_streamed_training(config)
    if problems:
        raise ConfigError("\n  ".join(problems))


def _not_mappings(config: Any) -> list[str]:
    """Groups that are no mapping and should be one."""
    groups = {group: OmegaConf.select(config, group) for group in GROUPS}
    return [
        f"{group}={node}: must be a mapping"
        for group, node in groups.items()
        if not OmegaConf.is_dict(node) and not (node is None and group not in ("optimizer", "trainer"))
    ]


def _problems_of_nodes(config: Any) -> list[str]:
    """Constructors that are no mapping, and targets of an adapter that are no names."""
    problems = []
    for group in ("callbacks", "logger"):
        for key, node in (config[group] or {}).items():
            if node is not None and not OmegaConf.is_dict(node):
                problems.append(f"{group}.{key}={node}: null switches it off")
    targets = config.adapter.targets
    names = list(targets) if OmegaConf.is_list(targets) else [targets]
    if targets is not None and not (names and all(isinstance(name, str) and name for name in names)):
        problems.append(f"adapter.targets={targets}: give endings of module names, or a regular expression")
    return problems


def _problems_of_metrics(config: Any) -> list[str]:
    """Metrics that are watched or returned and are never logged, or not at that time."""
    problems = []
    at_end = [name for name in logged_metrics(config) if name != "train/loss"]
    while_training = [name for name in logged_metrics(config) if not name.startswith("test/")]
    for key, node in _callbacks(config).items():
        monitor, prunes = node.get("monitor"), str(node.get("_target_")).endswith(".Pruning")  # it may watch in vain
        if monitor is not None and monitor not in (at_end if prunes else while_training):
            problems.append(f"callbacks.{key}.monitor={monitor}: logged are {', '.join(while_training)}")
    if config.optimized_metric is not None and config.optimized_metric not in at_end:
        problems.append(f"optimized_metric={config.optimized_metric}: logged are {', '.join(at_end)}")
    return problems


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
    for key, node in _callbacks(config).items():
        if str(node.get("_target_")).endswith("WeightAveraging"):
            problems.append(f"callbacks.{key}: averages whole weights; trainer=fsdp goes without it")
    return problems


def _problems_of_gpu(config: Any) -> list[str]:
    """What `compile` and `cuda_graphs` do not go together with."""
    problems = [f"compile=true: {reason}" for reason in _against_compile(config)] if config.compile else []
    if config.cuda_graphs:
        problems += [f"cuda_graphs=true: {reason}" for reason in _against_graphs(config)]
    return problems


def wants_graphs(config: Any) -> bool:
    """Whether steps are to be recorded on a GPU that computes in bf16."""
    return bool(config.cuda_graphs) if config.cuda_graphs is not None else not _against_graphs(config)


def _against_compile(config: Any) -> list[str]:
    """Why a step of this run cannot be made for one GPU, whatever the machine is."""
    trainer = config.trainer
    reasons: list[str] = []
    if trainer.strategy != "auto" or trainer.devices not in (1, "1") or trainer.num_nodes != 1:
        reasons.append("goes with one process on one GPU (trainer=default)")
    return reasons


def _against_graphs(config: Any) -> list[str]:
    """Why it cannot be recorded, either."""
    model, trainer, reasons = config.model, config.trainer, _against_compile(config)
    if trainer.precision not in (None, "bf16-mixed"):
        reasons.append(f"goes with trainer.precision=bf16-mixed, given is {trainer.precision}")
    if trainer.get("detect_anomaly"):
        reasons.append("a step that is recorded cannot be looked into, so it goes without trainer.detect_anomaly")
    draws = model.dropout or config.adapter.dropout or config.neftune_alpha is not None
    if draws or model.activation_checkpointing:
        reasons.append(
            "a step that is recorded cannot draw anew, so it goes without model.dropout, adapter.dropout, "
            "model.activation_checkpointing and neftune_alpha"
        )
    return reasons


def _problems_of_kind(model: Any) -> list[str]:
    """What GPT-2 needs and a model of transformers does not, and the other way round."""
    if model.kind == "hf":
        if not model.path:
            return ["model.path=null: give a hub id or a folder (model=hf)"]
        gguf = Path(model.path).expanduser() / model.gguf_file if model.gguf_file else None
        return (
            [f"model.gguf_file={model.gguf_file}: no such file in {model.path}"] if gguf and not gguf.is_file() else []
        )
    problems = [
        f"model.{key}=null: the shape of a GPT-2 wants a number"
        for key in ("n_layers", "n_heads", "d_model", "context_length")
        if model[key] is None
    ]
    if model.pretrained and not model.path and not model.repo:
        problems.append(f"model.path=null: model={model.name} is a folder; give one, or model.pretrained=false")
    if model.n_heads and model.d_model and model.d_model % model.n_heads:
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
