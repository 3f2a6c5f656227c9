"""python -m instruct_lit.train: fine-tune a GPT to follow instructions, test it, let it answer, and report.

The whole run stands in `train`, top to bottom. Heavy imports wait until the configuration has been checked, so that
`--help` and a mistyped override answer at once.
"""

from __future__ import annotations

import copy
import json
import math
import shlex
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config.check_training import check_train, wants_graphs
from instruct_lit.config.compose import differences, flat, run_command
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from lightning import Trainer
    from omegaconf import DictConfig

    from instruct_lit.core.data.datamodule import InstructionData


def train(config: DictConfig) -> float | None:
    """Run one training as configured and return the value of `optimized_metric`."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    check_train(config)
    run_dir = Path(HydraConfig.get().runtime.output_dir)

    from lightning import seed_everything

    from instruct_lit.accel.hardware import PeakMemory, keep_freed_memory, matrix_rate
    from instruct_lit.config import builders as build
    from instruct_lit.config.provenance import provenance, write_provenance
    from instruct_lit.core.bundle import save_bundle
    from instruct_lit.core.generation.responses import exact_match, write_jsonl
    from instruct_lit.core.training.callbacks import History, Progress, ValidateAtEnd
    from instruct_lit.core.training.checkpoints import best_of, find_checkpoint, identity_of
    from instruct_lit.core.training.failures import explained_memory, explained_peers
    from instruct_lit.core.training.module import InstructionTuner
    from instruct_lit.distributed.fsdp import FullySharded, copy_whole, load_weights
    from instruct_lit.distributed.ranks import detach_child_processes, first_rank_first, silence_others
    from instruct_lit.reports.run_page import plot_losses, print_summary, write_report

    start = time.perf_counter()
    build.check_targets(config)
    build.check_machine(config)
    build.sampling_of(config)  # what cannot be generated with shows before the long work
    keep_freed_memory()
    seed_everything(config.seed, workers=True, verbose=False)
    best = OmegaConf.select(config, "callbacks.best_checkpoint") or {}
    history = History(run_dir / "history.jsonl", best.get("monitor", "val/loss"), best.get("mode", "min"))
    trainer = build.trainer_of(config, [history, Progress(history), ValidateAtEnd()])
    silence_others(trainer)
    checkpoint = None
    if trainer.is_global_zero:
        (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        named = any(override.startswith("hydra.run.dir=") for override in HydraConfig.get().overrides.hydra)
        checkpoint = find_checkpoint(config.ckpt_path, run_dir, own_only=named) if config.ckpt_path else None
        if checkpoint is None:  # a run that was ended before its first checkpoint begins again
            history.path.unlink(missing_ok=True)
    with first_rank_first(trainer):
        tokenizer, template = build.language_of(config)
        model = build.model_of(config)
        data = build.data_of(config, template, tokenizer, model.config.context_length)
        data.prepare_data()
    checkpoint = trainer.strategy.broadcast(checkpoint)
    adapter = build.adapt(config, model)
    sharded = isinstance(trainer.strategy, FullySharded)  # its model is another one; the whole one is for the bundle
    trained = copy.deepcopy(model) if sharded else model
    tuner = InstructionTuner(
        trained, *build.optimization_of(config), config.neftune_alpha, config.compile, wants_graphs(config)
    )
    memory = PeakMemory(trainer.strategy.root_device.type)

    data.setup()
    check_parts(data)
    if trainer.is_global_zero:
        data.split.save(run_dir / "split.json")
    tuner.identity = identity_of(model, data, trainer)
    command = ["python", "-m", "instruct_lit.train", *sys.argv[1:]]
    known = {"name": config.data.name, "licence": config.data.licence, "fingerprint": data.fingerprint}
    changed = differences(config, "train")
    origin = provenance(
        command, changed, known, model, run_dir / "split.json",
        trainer.strategy.root_device, trainer.precision, {"seed": config.seed, "data.seed": config.data.seed},
    )  # fmt: skip
    if trainer.is_global_zero:
        write_provenance(run_dir, origin)
    print(f"data {config.data.name}: {described(data)}", flush=True)
    if config.finder is not None:
        build.build(config.finder, "finder")(trainer, tuner, data, run_dir)
        return None
    metrics: dict[str, Any] = dict(data.counts)
    for name, share in data.shares().items():
        metrics |= {f"mixture/{name}/{field}": value for field, value in vars(share).items()}
    rows: list[dict[str, Any]] = []
    base_rows: list[dict[str, Any]] = []
    interrupted = False

    if config.fit:
        if config.evaluate_base:
            base = {**trainer.validate(tuner, data, verbose=False)[0], **trainer.test(tuner, data, verbose=False)[0]}
            base_rows = build.answer_split(
                config,
                trained,
                data,
                "test",
                config.n_test_responses,
                "answers before fine-tuning",
                trainer=trainer,
            )
            if base_rows:
                base["test/exact_match"] = exact_match(base_rows)
            metrics |= {f"base/{name}": value for name, value in base.items()}
        try:
            with (
                explained_peers(trainer.world_size),
                explained_memory(tuner, memory, config.data.batch_size, config.trainer.accumulate_grad_batches),
            ):
                trainer.fit(tuner, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # how Lightning ends after Ctrl-C
            interrupted = True
            detach_child_processes(trainer)
        best_checkpoint = best_of(trainer)
        if best_checkpoint is not None:
            load_weights(best_checkpoint, tuner)
        metrics |= {
            "n_steps": trainer.global_step,
            "best_step": trainer.global_step if best_checkpoint is None else history.best_step,
            "stopped_early": stopped_early(trainer),
            "train/tokens": tuner.tokens_seen,
            **history.figures(model, trainer.world_size * matrix_rate(trainer.strategy.root_device, trainer.precision)),
        }
        if history.best_step:
            metrics["val/loss"] = history.best_loss
    elif checkpoint:
        load_weights(checkpoint, tuner)

    if not interrupted:
        metrics |= trainer.validate(tuner, data, verbose=False)[0]
        metrics |= trainer.test(tuner, data, verbose=False)[0]
        rows = build.answer_split(
            config, trained, data, "test", config.n_test_responses, "answers to the test set", trainer=trainer
        )
        if rows:
            metrics["test/exact_match"] = exact_match(rows)
        for row, before in zip(rows, base_rows, strict=False):
            row["base_response"] = before["response"]
    if sharded:
        copy_whole(trained, model)
    if not trainer.is_global_zero:
        return None
    if not interrupted:
        write_jsonl(run_dir / "responses.jsonl", rows)
    metrics |= data.counts  # of a stream it is known only now what was read
    metrics |= {"interrupted": interrupted, "peak_memory_bytes": memory.read(), "seconds": time.perf_counter() - start}
    (run_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    generation = asdict(build.sampling_of(config))
    about = {"data": known, "command": shlex.join(command), "metrics": metrics, "provenance": origin}
    if adapter is not None and config.adapter.merge:
        adapter.merge()
    write_adapter = None
    if adapter is not None and not config.adapter.merge:
        write_adapter = partial(adapter.save, base=build.base_of(config))
    save_bundle(run_dir / "bundle", model, tokenizer, template, generation, about, write_adapter)
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    for logger in trainer.loggers:
        logger.log_hyperparams({key: str(value) for key, value in flat(config).items()}, numbers)  # type: ignore[call-arg]
        logger.finalize("success")
    plot_losses(run_dir)
    write_report(run_dir, changed, sys.argv[1:])
    print_summary(run_dir, metrics)
    if interrupted:
        print(f"interrupted; to go on: add ckpt_path={run_dir} to the same command", file=sys.stderr)
        sys.exit(130)
    return metrics.get(config.optimized_metric, math.nan) if config.optimized_metric else None


def check_parts(data: InstructionData) -> None:
    """Raise ConfigError when a part of the data that every run needs has no example."""
    uses = {"train": "to learn", "val": "to stop early and to keep the best weights", "test": "to answer"}
    for name, use in uses.items():
        if name in data.stored_parts and len(data.examples_of(name)[1]) == 0:
            file = "" if name == "train" else f", or a file of its own (data.{name}_path=)"
            raise ConfigError(
                f"data.split={data.split_spec}: no example for {name}, and a run needs some {use}; "
                f"give it a fraction or a count of the records{file}"
            )


def described(data: InstructionData) -> str:
    """What became of the examples, and what an epoch sees of each set of a mixture."""
    text = ", ".join(f"{n} {name[2:]}" for name, n in data.counts.items())
    shares = data.shares()
    n_examples, n_tokens = (sum(getattr(s, f) for s in shares.values()) for f in ("n_examples", "n_learnt_tokens"))
    for name, share in shares.items():
        text += (
            f"\n  {name}: {share.n_examples / n_examples:.1%} of an epoch's examples, "
            f"{share.n_learnt_tokens / n_tokens:.1%} of its learnt tokens, each seen {share.repeats:.2f} times"
        )
    return text


def stopped_early(trainer: Trainer) -> bool:
    """Whether early stopping ended the run."""
    from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

    stopper = trainer.early_stopping_callback
    return stopper is not None and stopper.stopping_reason != EarlyStoppingReason.NOT_STOPPED


def main() -> None:
    """Entry point of the command."""
    run_command("train", train)


if __name__ == "__main__":
    main()
