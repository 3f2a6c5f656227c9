"""Benchmarks from a configuration: models, request and training data of one, and those inside other commands."""

import os
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config import model_builders as build
from instruct_lit.config.compose import CONF, choices_of, runs_of
from instruct_lit.config.data_builders import data_of_run
from instruct_lit.config.judge_builders import judge_of_suite, remote_model_of, response_judge_of
from instruct_lit.config.provenance import answer_key
from instruct_lit.config.targets import arguments_for, plain
from instruct_lit.core.bundle import bundle_of, read_about
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.core.model.causal import best_device
from instruct_lit.errors import ConfigError, InstructLitError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.leaks import questions_in
from instruct_lit.evaluation.remote_model import RemoteModel
from instruct_lit.evaluation.vllm_engine import VLLMEngine
from instruct_lit.optional_imports import need
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.harness import Tasks, harness_log
from instruct_lit.suites.suite import BenchmarkError, RunRequest, Suite

BARE = Template("bare", "{{ instruction }}{{ response }}")


def request_of(config: DictConfig, out_dir: Path) -> RunRequest:
    """The suite and the settings of a run; those of `benchmark` take precedence over those of the suite."""
    settings = {key: value for key, value in plain(config.benchmark).items() if value is not None}
    suite = Suite(**plain(config.suite) | arguments_for(Suite, settings))
    folders = {"cache": config.paths.cache, "out_dir": out_dir, "log": out_dir / "harness.log"}
    folders["data_dir"] = settings.get("data_dir")
    judge = None
    if config.judge is not None:
        of_suite: Any = OmegaConf.merge(config, {"judge": judge_of_suite(config)})
        judge = response_judge_of(of_suite, pairwise=suite.system == "arena_hard")
    places = {key: path and Path(path).expanduser().resolve() for key, path in folders.items()}
    return RunRequest(suite, judge=judge, **arguments_for(RunRequest, settings) | places)


def training_of_run(config: DictConfig, run: str) -> list[str] | None:
    """The training questions of a run, in which leaks are searched; None where they are unknown or not requested."""
    directory = bundle_of(run)
    is_run = read_about(directory) and (directory.parent / "config.yaml").is_file()
    if not config.benchmark.leaks or not is_run:
        return None
    try:
        data = data_of_run(config, run, build.open_model(run))
    except InstructLitError as error:
        print(f"leaks: not searched, since the training data of {run} cannot be read ({error})")
        return None
    return list(questions_in(*data.examples_of("train")))


def evaluated_models(config: DictConfig) -> Iterator[EvaluatedModel | RemoteModel]:
    """Every model of `run`, and the base that it started from; then the model of `endpoint`.

    A fine-tuned model is prompted as `benchmark.template` says; a directory that is not a bundle of ours with the bare
    text, and so is its base, unless the run's template is the base's own chat template.
    """
    settings = config.benchmark
    given = build.given_template(config)
    runs, seen = runs_of(config), set()
    remote = [f"endpoint/{config.endpoint.model}"] if config.endpoint.url is not None else []
    labels = build.labels_of([*runs, *remote])
    for run, label in zip(runs, labels, strict=False):
        is_foreign = config.template is None and not read_about(bundle_of(run))
        opened = build.open_model(run, BARE if is_foreign else given, as_stored=True)
        modes = ["off"] if is_foreign else ["on", "off"] if settings.template == "both" else [settings.template]
        models = [(label, opened.model, modes)]
        base = build.base_of_run(config, opened) if settings.base else None
        if base is not None:
            models.append((f"{label} before", base, modes if opened.template.name == CHAT else ["off"]))
        for name, model, its_modes in models:
            key = answer_key(model, opened.tokenizer.without_markup())
            # Two runs may have the same base.
            its_modes = [mode for mode in its_modes if model is not base or (key, mode) not in seen]
            if not its_modes:
                continue
            seen |= {(key, mode) for mode in its_modes}
            vllm = None
            if config.engine == "vllm" and model is opened.model:
                vllm = VLLMEngine(model, opened.tokenizer, opened.directory)
            else:
                model.to(best_device())
            of_engine = "" if vllm is None else f"-{vllm.dtype.replace(' ', '-')}"
            cache = AnswerCache(Path(config.paths.cache) / "benchmark" / f"{key}{of_engine}.jsonl")
            for mode in its_modes:
                template, tokenizer = opened.template, opened.tokenizer
                if mode == "off":
                    template, tokenizer = BARE, tokenizer.without_markup()
                yield EvaluatedModel(
                    model, tokenizer, template, cache, settings.max_rows, run=run, label=name, mode=mode, vllm=vllm,
                    cuda_graphs=settings.cuda_graphs,
                )  # fmt: skip
            if vllm is not None:
                vllm.close()
    if remote:
        yield replace(remote_model_of(config), label=labels[-1])


def harness_suite(key: str, name: str, limit: int | None = None) -> Suite:
    """The suite that the value of `key` names; ConfigError where it is not one of lm-evaluation-harness."""
    if name not in (names := choices_of("suite")):
        near = get_close_matches(name, names, n=1)
        raise ConfigError(f"{key}: allowed are {', '.join(names)}{f'; did you mean {near[0]}?' if near else ''}")
    settings = {"tasks": (), **plain(OmegaConf.load(CONF / "suite" / f"{name}.yaml"))}
    suite = Suite(**settings | ({} if limit is None else {"limit": limit}))
    if suite.system != "lm_eval" or not suite.tasks or suite.runs_code:
        raise ConfigError(f"{key}: not a benchmark of lm-evaluation-harness, or it runs code; give another one")
    return suite


def harness_tasks(key: str, name: str, data_dir: str | None, limit: int | None = None) -> Tasks:
    """The tasks of a suite, named by the value of `key`, with their data.

    Raises: ConfigError for another name, BenchmarkError where its data are missing.
    """
    suite = harness_suite(key, name, limit)
    need("lm_eval", key, "benchmark")
    place = key.partition("=")[0]
    print(f"{place}: loading the items of {name}", flush=True)
    try:
        with harness_log(Path(os.devnull)):
            return Tasks(suite, Path(data_dir).expanduser().resolve() if data_dir else None, "error")
    except BenchmarkError as error:  # its message names the keys of `benchmark`
        text = str(error).partition(", or benchmark.on_missing")[0].removeprefix(f"suite={name}: ")
        text = text.replace("benchmark.data_dir", f"{place.rpartition('.')[0]}.data_dir")
        raise BenchmarkError(f"{key}: {text}") from error
