"""The relations between the keys of a training configuration."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from instruct_lit.config.check_data import data_relations, forgetting_relations, stream_relations
from instruct_lit.config.satellites import has_satellite
from instruct_lit.config.schema import constructors
from instruct_lit.config.schema.groups import AdapterConfig
from instruct_lit.config.schema.options import Relation
from instruct_lit.core.data.example import listed
from instruct_lit.errors import similar

LOGGED_METRICS = tuple(
    f"{split}/{name}" for split in ("val", "test") for name in ("loss", "perplexity", "response_loss", "bits_per_byte")
) + ("train/loss", "test/exact_match")

LOW_DFT = "the training loss is lowest where a model gives its targets no probability"
ONE_PROCESS = "requires one process on one GPU (trainer=default)"
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
# Set where processes of several machines are started.
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "LSB_JOBID", "KUBERNETES_PORT", "MASTER_ADDR")


def train_relations(config: Any) -> Iterator[Relation]:
    """Relations of a training configuration."""
    callbacks = {str(key): node for key, node in (config.callbacks or {}).items() if OmegaConf.is_dict(node)}
    yield from model_relations(config)
    yield from _adapter_relations(config)
    if is_sharded(config):
        yield from _shard_relations(config, callbacks)
    yield config.compile and not _is_one_process(config), "compile", ONE_PROCESS
    for reason in _reasons_against_graphs(config):
        yield config.cuda_graphs, "cuda_graphs", reason
    data, batching = config.data, config.batching
    reason = f"best_fit requires a token budget, and only it has one; batching.grouping={batching.grouping}"
    yield (batching.grouping == "best_fit") != (batching.max_tokens is not None), "batching.max_tokens", reason
    packs = batching.layout == "packed"
    yield data.pad_to is not None and packs, "data.pad_to", "works only with batching.layout=padded or auto"
    sparse = str(config.optimizer.get("_target_")).endswith(".SparseAdam")
    yield sparse, "optimizer._target_", "it takes sparse gradients, which no weight here has; use optimizer=adamw"
    ranged = config.finder is not None and str(config.finder.get("_target_")).endswith(".LearningRateRange")
    yield config.loss == "dft" and ranged, "loss=dft", f"{LOW_DFT}; search for a rate with loss=cross_entropy"
    yield from _range_relations(config) if ranged else ()
    yield from trainer_relations(config)
    yield from callback_relations(callbacks)
    yield from _metric_relations(config, callbacks)
    path = config.ckpt_path
    missing = path and path != "last" and not Path(path).exists()
    yield missing, "ckpt_path", f"no such checkpoint or run folder{similar(Path(str(path)))}"
    yield from data_relations(data)
    reason = f"requires data=mixture; of data={data.name} nothing would be read"
    yield data.sets and data.source is not None, "data.sets=…", reason
    yield from forgetting_relations(config.forgetting)
    waits = config.forgetting.suite is not None and not _is_one_process(config)
    yield waits, "forgetting.suite", "the other processes would wait for it; give it to evaluate run=… afterwards"
    if data.streaming:
        yield from stream_relations(config)


def _range_relations(config: Any) -> Iterator[Relation]:
    """What would end a learning rate range test before its last rate."""
    n, steps, epochs = config.finder.get("n_steps"), config.trainer.get("max_steps"), config.trainer.get("max_epochs")
    reason = f"a range takes finder.n_steps={n} steps; leave this out, or lower finder.n_steps"
    yield isinstance(n, int) and isinstance(steps, int) and 0 <= steps < n, f"trainer.max_steps={steps}", reason
    yield epochs not in (None, -1), f"trainer.max_epochs={epochs}", reason


def model_relations(config: Any) -> Iterator[Relation]:
    """What GPT-2 needs and a model of transformers does not, and the other way round."""
    model, max_length, path = config.model, config.data.max_length, config.model.path
    folder = Path(path).expanduser() if path else None
    known = model.context_length if model.kind == "hf" or not path else None
    too_long = known is not None and max_length is not None and max_length > known
    yield too_long, "data.max_length", f"the model's context is {known} tokens (model.context_length)"
    every = model.activation_checkpointing
    key = f"model.activation_checkpointing={every}"
    yield not isinstance(every, int) or every < 0, key, "true, false, or n for every n-th block"
    yield model.liger and config.compile, "model.liger", "compile=true fuses the same operations; choose one"
    if model.kind == "hf":
        yield not path, "model.path", "give a hub id or a folder (model=hf)"
        ggufs = sorted(file.name for file in folder.glob("*.gguf")) if folder else []
        missing = folder and model.gguf_file and not (folder / model.gguf_file).is_file()
        yield missing, "model.gguf_file", f"no such file in {path}; there are {listed(ggufs)}"
        needed = folder and not model.gguf_file and ggufs and not (folder / "config.json").is_file()
        yield needed, "model.gguf_file", f"{path} has GGUF files alone; give one of {listed(ggufs)}"
        return
    reason = "the chat template of the model's tokenizer requires model=hf"
    yield config.template.name == "chat", "template=chat", reason
    for key in ("n_layers", "n_heads", "d_model", "context_length"):
        yield model[key] is None, f"model.{key}", "must be a number with model.kind=gpt2"
    unknown = model.pretrained and not path and not model.repo
    yield unknown, "model.path", f"model={model.name} is a folder; give one, or model.pretrained=false"
    divides = not model.n_heads or not model.d_model or model.d_model % model.n_heads == 0
    yield not divides, "model.d_model", f"must be a multiple of model.n_heads={model.n_heads}"
    reason = "no such folder (a bundle or a Hugging Face GPT-2 directory; other models require model=hf)"
    yield folder and not folder.is_dir(), "model.path", reason + (similar(folder) if folder else "")
    for key in ("gguf_file", "trust_remote_code", "new_tokens", "liger"):
        yield model[key], f"model.{key}", "requires model=hf"
    yield model.dtype == "bfloat16", "model.dtype", "requires model=hf"


def trainer_relations(config: Any) -> Iterator[Relation]:
    """Refused and impossible arguments of the trainer.

    `tests/config/test_lightning_options.py` names all, and shows by small runs that what is not refused is obeyed; of
    Lightning's callbacks as well.
    """
    trainer = config.trainer
    for name, reason in constructors.REFUSED_ARGUMENTS.items():
        yield trainer.get(name) is not None, f"trainer.{name}", reason
    for key, rules in constructors.CONSTRUCTOR_KEYS.items():
        name = key.removeprefix("trainer.")
        if name in trainer and not OmegaConf.is_interpolation(trainer, name) and not OmegaConf.is_config(trainer[name]):
            yield from rules.problems(key, trainer[name])
    strategy = trainer.get("strategy")
    allowed = f"allowed are {', '.join(STRATEGIES)}; in shards: trainer=fsdp"
    yield not OmegaConf.is_dict(strategy) and strategy not in STRATEGIES, "trainer.strategy", allowed
    several = isinstance(trainer.num_nodes, int) and trainer.num_nodes > 1
    launched = any(name in os.environ for name in LAUNCHERS)
    yield several and not launched, "trainer.num_nodes", "start the processes with torchrun or SLURM"
    for name in ("max_steps", "max_epochs", "limit_train_batches") if config.fit else ():
        value = trainer.get(name)
        no_step = value == 0 and not isinstance(value, bool)
        yield no_step, f"trainer.{name}={value}", "no step could be made; fit=false trains nothing"
    for what in ("epochs", "steps"):
        least, most = trainer.get(f"min_{what}"), trainer.get(f"max_{what}")
        above = isinstance(least, int) and isinstance(most, int) and 0 <= most < least
        yield above, f"trainer.min_{what}", f"must be at most trainer.max_{what}={most}"
    decay, lowest = config.scheduler.decay, config.scheduler.min_ratio
    reason = "scheduler.decay=constant stays at optimizer.lr; use scheduler=cosine or linear"
    yield decay == "constant" and lowest not in (0, 1), "scheduler.min_ratio", reason
    endless = trainer.get("max_steps", -1) == -1 and trainer.get("max_epochs") == -1
    reason = (
        f"scheduler.decay={config.scheduler.decay} requires the number of steps; give trainer.max_steps, or "
        "scheduler=constant"
    )
    yield config.fit and endless and config.scheduler.decay != "constant", "trainer.max_epochs=-1", reason


def callback_relations(callbacks: Mapping[str, Any]) -> Iterator[Relation]:
    """Refused callbacks, and impossible arguments of others."""
    for key, node in callbacks.items():
        target = str(node.get("_target_"))
        name = target.rpartition(".")[2]
        reason = constructors.REFUSED_CALLBACKS.get(name) if target.startswith("lightning.") else None
        yield reason, f"callbacks.{key}._target_={target}", f"not supported; {reason}"
        for argument, rules in constructors.CALLBACK_RULES.get(name, {}).items():
            yield from rules.problems(f"callbacks.{key}.{argument}", node.get(argument))


def _adapter_relations(config: Any) -> Iterator[Relation]:
    """Adapters and what they exclude."""
    adapter, model = config.adapter, config.model
    names = list(adapter.targets) if OmegaConf.is_list(adapter.targets) else [adapter.targets]
    are_names = names and all(isinstance(name, str) and name for name in names)
    unnamed = adapter.targets is not None and not are_names
    yield unnamed, f"adapter.targets={adapter.targets}", "give endings of module names, or a regular expression"
    frozen = adapter.kind != "none"
    for key in ("rank", "alpha", "dropout", "targets", "merge"):
        unused = not frozen and adapter[key] != getattr(AdapterConfig, key)
        yield unused, f"adapter.{key}", "requires an adapter (adapter=lora)"
    partly = frozen and config.trainable != "all"
    yield config.trainable != "all" and not has_satellite("hf"), "trainable", "requires the folder instruct_lit/hf"
    yield partly, "trainable", "an adapter freezes all other weights; use adapter=none or trainable=all"
    reason = "an adapter freezes the embeddings, so these would not be learnt; use adapter=none"
    yield frozen and model.new_tokens, "model.new_tokens", reason
    if adapter.kind == "qlora":
        yield adapter.merge, "adapter.merge", "merging into 4 bits would round the updates; use adapter.merge=false"
        yield model.kind != "hf", "adapter=qlora", "4-bit weights require model=hf"
    if not adapter.merge:
        no_base = "{} cannot be the base of an adapter in peft; use adapter.merge=true"
        measured = "a model with random weights, unless verify=false says that the run only measures,"
        yield not model.pretrained and config.verify, "adapter.merge", no_base.format(measured)
        yield model.gguf_file, "adapter.merge", no_base.format("a GGUF file")


def is_sharded(config: Any) -> bool:
    """Whether weights are sharded over the devices."""
    strategy = config.trainer.get("strategy")
    return OmegaConf.is_dict(strategy) and str(strategy.get("_target_")).endswith(".FullySharded")


def _shard_relations(config: Any, callbacks: dict[str, Any]) -> Iterator[Relation]:
    """What a sharded model excludes."""
    target = str(config.optimizer.get("_target_"))
    ours = target.startswith("instruct_lit.") and not target.endswith(".adamw")
    yield ours, "optimizer._target_", "cannot work on shards; trainer=fsdp requires optimizer=adamw"
    four_bits = config.adapter.kind == "qlora"
    yield four_bits, "adapter=qlora", "4-bit weights cannot be sharded; use trainer=ddp, or adapter=lora"
    yield config.model.dtype == "bfloat16", "model.dtype", "shards are in one precision; use trainer=ddp, or auto"
    for key, node in callbacks.items():
        averages = str(node.get("_target_")).endswith("WeightAveraging")
        yield averages, f"callbacks.{key}=…", "averages whole weights, which trainer=fsdp does not have; leave it out"


def computes_in_half(config: Any) -> bool:
    """Whether matrices are multiplied in bf16 on a device where that is the default."""
    trainer = config.trainer
    return trainer.precision in (None, "bf16-mixed", "bf16-true") and trainer.accelerator != "cpu"


def wants_graphs(config: Any) -> bool:
    """Whether steps are to be recorded on a GPU that computes in bf16.

    `cuda_graphs=null` records what torch documents or tests, since a recording that fails ends the run: random numbers
    of its default generator (adapter.dropout, neftune_alpha), also where activation checkpointing draws them again.
    With model.dropout the attention kernel draws as well, which depends on the kernel; that requires `true`.
    """
    possible = not config.model.dropout and not _reasons_against_graphs(config)
    return possible if config.cuda_graphs is None else bool(config.cuda_graphs)


def _is_one_process(config: Any) -> bool:
    trainer = config.trainer
    return trainer.strategy == "auto" and trainer.devices in (1, "1") and trainer.num_nodes == 1


def _reasons_against_graphs(config: Any) -> list[str]:
    """Why a step of this run cannot be recorded as CUDA graphs, whatever the machine is."""
    model, trainer, reasons = config.model, config.trainer, [] if _is_one_process(config) else [ONE_PROCESS]
    if trainer.precision not in (None, "bf16-mixed"):
        reasons.append(f"requires trainer.precision=bf16-mixed, given is {trainer.precision}")
    if trainer.get("detect_anomaly"):
        reasons.append("trainer.detect_anomaly cannot look into a recorded step")
    if model.dropout and (config.batching.layout != "padded" or config.batching.shared_prefix):
        reasons.append("the attention of packed documents with model.dropout has no fixed shapes; use batching=padded")
    return reasons


def _metric_relations(config: Any, callbacks: dict[str, Any]) -> Iterator[Relation]:
    """Metrics that are monitored or returned and are never logged, or not at that time."""
    # What a training logs: always the same, the losses of a mixture's data sets, and what callbacks add.
    logged = [
        *LOGGED_METRICS,
        *(f"{split}/loss/{name}" for split in ("val", "test") for name in config.data.sets or {}),
    ]
    for node in callbacks.values():
        if str(node.get("_target_")).endswith(".GenerationQuality"):
            logged += [f"val/{name}" for name in node.get("metrics", ["exact_match"])]
    at_end = [name for name in logged if name != "train/loss"]
    while_training = [name for name in logged if not name.startswith("test/")]
    for key, node in callbacks.items():
        monitor, kind = node.get("monitor"), str(node.get("_target_")).rpartition(".")[2]
        # A pruner may monitor the metric of the sweep, which is logged at the end only.
        wrong = monitor is not None and monitor not in (at_end if kind == "Pruning" else while_training)
        yield wrong, f"callbacks.{key}.monitor={monitor}", f"logged are {', '.join(while_training)}"
        of_dft = config.loss == "dft" and monitor == "train/loss"
        yield of_dft, f"callbacks.{key}.monitor=train/loss", f"with loss=dft {LOW_DFT}; monitor val/loss"
        mode = node.get("mode", "min")
        if monitor is not None and kind != "Pruning" and (expected := _mode_of(str(monitor), mode)) != mode:
            yield f"callbacks: {kind} monitors {monitor} with mode={mode}; use mode={expected}"
    metric = config.optimized_metric
    yield metric is not None and metric not in at_end, "optimized_metric", f"logged are {', '.join(at_end)}"


def _mode_of(metric: str, given: str) -> str:
    """`max` or `min`, whichever is better of a metric; the given one where that is not known."""
    if metric.endswith("loss") or not has_satellite("evaluation"):
        return "min" if metric.endswith("loss") else given
    from instruct_lit.evaluation.metrics import higher_is_better

    return {True: "max", False: "min", None: given}[higher_is_better(metric)]
