"""python -m instruct_lit.train: fine-tune a GPT to follow instructions, test it, let it answer, and report.

The whole run stands in `train`, top to bottom. Heavy imports wait until the configuration has been checked, so that
`--help` and a mistyped override answer at once.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config import TrainConfig, check_train, differences, flat, run_command, target_of

if TYPE_CHECKING:
    from lightning import Trainer
    from omegaconf import DictConfig

    from instruct_lit.data.datamodule import InstructionData
    from instruct_lit.model.gpt import GPT


def train(config: DictConfig) -> float | None:
    """Run one training as configured and return the value of `optimized_metric`."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    check_train(config)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))

    import torch
    from lightning import seed_everything

    from instruct_lit.bundle import save_bundle
    from instruct_lit.evaluation.responses import exact_match, write_jsonl
    from instruct_lit.training.callbacks import History, Progress
    from instruct_lit.training.hardware import PeakMemory, keep_freed_memory
    from instruct_lit.training.module import InstructionTuner
    from instruct_lit.training.report import plot_losses, print_summary, write_report

    start = time.perf_counter()
    keep_freed_memory()
    seed_everything(config.seed, workers=True, verbose=False)
    model = build_model(config)
    data = build_data(config, model.config.context_length)
    tuner = InstructionTuner(model, *build_optimization(config))
    history = History(run_dir / "history.jsonl")
    trainer = build_trainer(config, [history, Progress(history)])
    memory = PeakMemory(trainer.strategy.root_device.type)

    data.prepare_data()
    data.setup()
    data.split.save(run_dir / "split.json")
    metrics: dict[str, Any] = {f"n_{name}": len(data.examples_of(name)[1]) for name in ("train", "val", "test")}
    metrics |= {name: n for name, n in data.stores["main"].counts.items() if n}
    say(f"data {data.sources['main'].name}: " + ", ".join(f"{n} {name[2:]}" for name, n in metrics.items() if n))

    base_rows = []
    if config.evaluate_base and config.fit:
        base = trainer.validate(tuner, data, verbose=False)[0] | trainer.test(tuner, data, verbose=False)[0]
        metrics |= {f"base/{name}": value for name, value in base.items()}
        base_rows = answer_test_set(config, model, data, "answers before fine-tuning")
        metrics["base/exact_match"] = exact_match(base_rows)
    interrupted = False
    if config.fit:
        try:
            trainer.fit(tuner, data, ckpt_path=_resume_from(config.ckpt_path, run_dir))
        except (KeyboardInterrupt, SystemExit):
            interrupted = True
        best = run_dir / "checkpoints" / "best.ckpt"
        if best.is_file():
            weights = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            tuner.load_state_dict(weights)
        stopper = trainer.early_stopping_callback
        metrics |= {
            "n_steps": trainer.global_step,
            "best_step": history.best_step,
            "stopped_early": bool(stopper is not None and stopper.stopped_epoch) or interrupted,
            "train/tokens": tuner.tokens_seen,
            "tokens_per_s": history.tokens_per_s,
            "training_s": history.training_s,
            "waiting_s": history.waiting_s,
        }
    elif config.ckpt_path:
        tuner.load_state_dict(torch.load(config.ckpt_path, map_location="cpu", weights_only=True)["state_dict"])
    rows = []
    if not interrupted:
        metrics |= trainer.validate(tuner, data, verbose=False)[0] | trainer.test(tuner, data, verbose=False)[0]
        rows = answer_test_set(config, model, data, "answers to the test set")
        metrics["test/exact_match"] = exact_match(rows)
        for row, before in zip(rows, base_rows, strict=False):
            row["base_response"] = before["response"]
        write_jsonl(run_dir / "responses.jsonl", rows)
    metrics |= {"peak_memory_bytes": memory.read(), "seconds": time.perf_counter() - start}
    (run_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    generation = {k: v for k, v in OmegaConf.to_container(config.generation, resolve=True).items() if k != "max_rows"}
    about = {"data": {"name": config.data.name, "fingerprint": data.fingerprint}, "metrics": metrics}
    save_bundle(run_dir / "bundle", model, data.tokenizer, data.template, generation, about)
    for logger in trainer.loggers:
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        logger.log_hyperparams({k: str(v) for k, v in flat(config).items()}, numbers)  # type: ignore[call-arg]
        logger.finalize("success")
    plot_losses(run_dir)
    write_report(run_dir, differences(config, "train"), sys.argv[1:])
    print_summary(run_dir, metrics)
    if interrupted:
        raise KeyboardInterrupt
    return metrics.get(config.optimized_metric) if config.optimized_metric else None


def build_model(config: DictConfig) -> GPT:
    """The GPT that the model group describes, with weights."""
    from instruct_lit.model.gpt import GPTConfig
    from instruct_lit.model.pretrained import load_gpt

    model = config.model
    shape = GPTConfig(
        context_length=model.context_length, d_model=model.d_model, n_layers=model.n_layers, n_heads=model.n_heads
    )
    return load_gpt(
        path=model.path,
        repo=model.repo,
        revision=model.revision,
        pretrained=model.pretrained,
        config=shape,
        dropout=model.dropout,
        activation_checkpointing=model.activation_checkpointing,
        seed=config.seed,
        cache_dir=Path(config.paths.cache) / "hub",
    )


def build_data(config: DictConfig, context_length: int) -> InstructionData:
    """The data module, its length bounded by the model's context."""
    from omegaconf import OmegaConf

    from instruct_lit.config import build
    from instruct_lit.data.datamodule import InstructionData
    from instruct_lit.data.sources import FileSource
    from instruct_lit.data.template import Template
    from instruct_lit.data.tokenizer import GPT2Tokenizer
    from instruct_lit.errors import ConfigError

    data = config.data
    max_length = data.max_length or context_length
    if max_length > context_length:
        raise ConfigError(f"data.max_length={max_length}: the model's context is {context_length} tokens")
    own_files = {
        f"{name}_source": FileSource(data[f"{name}_path"], data.columns, data.on_bad_record, f"{data.name}_{name}")
        for name in ("test", "val")
        if data[f"{name}_path"] is not None
    }
    split = data.split if isinstance(data.split, str) else OmegaConf.to_container(data.split)
    keys = ("seed", "batch_size", "eval_batch_size", "mask_prompt", "on_long", "pad_to", "n_workers")
    return InstructionData(
        build(data.source, "data.source"),
        Template(config.template.name, config.template.text, config.template.path),
        GPT2Tokenizer(),
        Path(config.paths.cache),
        max_length=max_length,
        split=split,
        **{key: data[key] for key in keys},
        **config.batching,
        **own_files,
    )


def build_optimization(config: DictConfig) -> tuple[Any, Any]:
    """Functions that make the optimizer of a model, and the scheduler of an optimizer."""
    from functools import partial

    from omegaconf import OmegaConf

    from instruct_lit.training.optimizer import parameter_groups, schedule

    node = config.optimizer
    make = target_of({k: v for k, v in node.items() if k != "weight_decay"}, "optimizer")
    arguments = {k: v for k, v in OmegaConf.to_container(node, resolve=True).items() if k not in ("_target_", "weight_decay")}

    def make_optimizer(model: Any) -> Any:
        return make(parameter_groups(model.named_parameters(), node.get("weight_decay", 0.0)), **arguments)

    def make_scheduler(optimizer: Any, n_steps: int) -> Any:
        return partial(schedule, optimizer, n_steps)(**config.scheduler)

    return make_optimizer, make_scheduler


def build_trainer(config: DictConfig, ours: list[Any]) -> Trainer:
    """The Lightning trainer with the configured callbacks and loggers, ours in front."""
    from omegaconf import OmegaConf

    from instruct_lit.config import build
    from instruct_lit.training.hardware import default_precision

    callbacks = [build(node, f"callbacks.{k}") for k, node in (config.callbacks or {}).items() if node is not None]
    loggers = [build(node, f"logger.{k}") for k, node in (config.logger or {}).items() if node is not None]
    node = OmegaConf.merge(config.trainer)
    node.precision = node.precision or default_precision(node.accelerator)
    return build(
        node,
        "trainer",
        callbacks=[*ours, *callbacks],
        logger=loggers or False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def answer_test_set(config: DictConfig, model: GPT, data: InstructionData, title: str) -> list[dict[str, Any]]:
    """The model's answers to the test examples, with a progress bar."""
    from omegaconf import OmegaConf
    from tqdm import tqdm

    from instruct_lit.evaluation.responses import answer
    from instruct_lit.generation.engine import Engine
    from instruct_lit.generation.sampling import SamplingSettings

    settings = OmegaConf.to_container(config.generation, resolve=True)
    max_rows = settings.pop("max_rows")
    store, indices = data.examples_of("test")
    chosen = indices[: config.n_test_responses]
    examples = [(int(i), store.example(i), store[i].prompt_ids) for i in chosen]
    settings["stop"] = tuple(settings["stop"])
    with tqdm(total=len(examples), desc=title, unit="answer", dynamic_ncols=True) as bar:
        engine = Engine(model, data.tokenizer, max_rows)
        return answer(engine, data.template, examples, SamplingSettings(**settings), bar.update)


def _resume_from(ckpt_path: str | None, run_dir: Path) -> str | None:
    return str(run_dir / "checkpoints" / "last.ckpt") if ckpt_path == "last" else ckpt_path


def say(text: str) -> None:
    """One line to the person at the terminal."""
    print(text, flush=True)


def main() -> None:
    """Entry point of the command."""
    run_command("train", TrainConfig, train)


if __name__ == "__main__":
    main()
