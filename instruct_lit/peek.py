"""python -m instruct_lit.peek: look at the data as the model will see them, before a run or after it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from instruct_lit.config.check_data import check_data
from instruct_lit.config.compose import CONF, run_command
from instruct_lit.config.schema import PeekConfig, check_values, missing_runs
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig
    from rich.console import Console

    from instruct_lit.core.bundle import OpenedModel
    from instruct_lit.core.data.collate import Batch
    from instruct_lit.core.data.datamodule import InstructionData
    from instruct_lit.core.model.causal import CausalLM
    from instruct_lit.core.model.gpt import GPTConfig

MAX_BATCHES = 200  # batches of an epoch that are laid out to see what padding costs


def check_peek(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value."""
    problems = check_values(config) + check_data(config.data)
    if config.run is not None:
        problems += missing_runs(config.run)
    if problems:
        raise ConfigError("\n  ".join(problems))


def peek(config: DictConfig) -> None:
    """Print the profile of the data, or one example on its whole way."""
    from hydra.core.hydra_config import HydraConfig

    given = {re.split(r"[.=]", text.lstrip("+"))[0] for text in HydraConfig.get().overrides.task}
    check_peek(config)

    from rich.console import Console

    from instruct_lit.config import builders as build

    opened = None
    if config.run is not None:
        config = as_in_run(config, given)
        opened = build.open_run(config)
        tokenizer, template = opened.tokenizer, opened.template
        context_length = opened.model.config.context_length
    else:
        tokenizer, template = build.language_of(config)
        context_length = build.context_of(config)
    data = build.data_of(config, template, tokenizer, context_length, config.n_streamed)
    data.prepare_data()
    data.setup()
    console = Console()
    if config.data.streaming:
        n_read = len(data.stores["main"])
        console.print(
            f"data.streaming=true: of the stream these are the first {n_read:,} examples, in file order (n_streamed="
            f"{config.n_streamed}); what is held out and the rest of it are not looked at\n",
            style="yellow",
            highlight=False,
        )
    if config.index is None:
        show_profile(console, config, data, opened)
    else:
        show_example(console, config, data, opened)


def as_in_run(config: DictConfig, given: set[str]) -> DictConfig:
    """The configuration with the run's own data, batching and template where the command line names none."""
    from omegaconf import OmegaConf

    from instruct_lit.config.data_builders import data_in
    from instruct_lit.core.bundle import bundle_of

    parts = {str(key): value for key, value in config.items()}
    if "template" not in given:
        parts["template"] = None  # the bundle has it
    saved = bundle_of(config.run).parent / "config.yaml"
    if not saved.is_file():
        if "data" not in given:
            raise ConfigError(
                f"run={config.run}: no run folder, so the data must be given (data=files data.path=…, data=book)"
            )
        return OmegaConf.create(parts)
    of_run = OmegaConf.load(saved)
    of_run.data = data_in(of_run, config.run) if "data" not in given else None
    parts |= {name: OmegaConf.select(of_run, name) for name in ("model", "data", "batching") if name not in given}
    return OmegaConf.create(parts)


def show_example(console: Console, config: DictConfig, data: InstructionData, opened: OpenedModel | None) -> None:
    """Print the way of the example `index`; with a model also the loss of every target."""
    from instruct_lit.datasets.inspect_example import print_walk

    store = data.examples_of(config.split)[0]
    if not 0 <= config.index < len(store):
        raise ConfigError(f"index={config.index}: there are {len(store)} examples, 0 to {len(store) - 1}")
    place = next((name for name in ("train", "val", "test") if config.index in data.examples_of(name)[1]), "no split")
    own = config.split if config.split in data.stores else place
    console.print(f"example {config.index} of data {config.data.name}, in {own}", style="bold", highlight=False)
    encoded = store[config.index]
    losses = None
    if opened is not None:
        losses = losses_of(opened.model, encoded.ids)
    mask_prompt = data.collator.mask_prompt
    print_walk(console, store.example(config.index), encoded, data.tokenizer, mask_prompt, losses, config.all_tokens)


def losses_of(model: CausalLM, ids: np.ndarray) -> list[float]:
    """The loss of every target of one example in nats, prompt and response alike."""
    import torch

    from instruct_lit.core.model.likelihood import token_losses

    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        hidden = model.eval().hidden_states(tokens[None, :-1])[0]
    return token_losses(hidden, model.head_weight, tokens[1:]).tolist()


def show_profile(console: Console, config: DictConfig, data: InstructionData, opened: OpenedModel | None) -> None:
    """Print the profile of the data, what a run will need, and warnings."""
    from instruct_lit.datasets.print_profile import print_profile, print_warnings
    from instruct_lit.datasets.profile import positions_per_token, profile, warnings_of

    layouts = layouts_of(config)
    chosen = next((name for name, settings in layouts.items() if settings == dict(config.batching)), "as given")
    layouts.setdefault(chosen, dict(config.batching))
    store, _ = data.examples_of(config.split)
    costs = {name: positions_per_token(laid_out(data, settings)[1]) for name, settings in layouts.items()}
    found = profile(store, data.template, data.tokenizer, data.collator.mask_prompt, costs)
    console.print(f"data {config.data.name}, template {data.template.name}", style="bold", highlight=False)
    n_val = None
    if not config.data.streaming:
        n_val = len(data.examples_of("val")[1])
        console.print(", ".join(f"{len(data.examples_of(name)[1]):,} {name}" for name in ("train", "val", "test")))
    print_profile(console, found, chosen)
    if config.estimate:
        print_needs(console, config, data, opened)
    print_warnings(console, warnings_of(found, chosen, n_val))


def layouts_of(config: DictConfig) -> dict[str, dict[str, Any]]:
    """The settings of every file in `conf/batching` that can go with the data."""
    from omegaconf import OmegaConf

    layouts = {path.stem: dict(OmegaConf.load(path)) for path in sorted((CONF / "batching").glob("*.yaml"))}  # type: ignore[arg-type]
    return {n: s for n, s in layouts.items() if config.data.pad_to is None or s["layout"] == "padded"}


def laid_out(data: InstructionData, settings: Mapping[str, Any]) -> tuple[int, list[Batch]]:
    """The number of training batches of an epoch in a layout, and the first of them."""
    from instruct_lit.core.data.batching import BatchSampler
    from instruct_lit.core.data.collate import Collator

    store, indices = data.examples_of("train")
    if len(indices) == 0:
        raise ConfigError(f"data.split={data.split_spec}: no example for train, so there are no batches to look at")
    sampler = BatchSampler(
        indices,
        store.lengths[indices],
        data.batching.batch_size,
        seed=data.seed,
        grouping=settings["grouping"],
        max_tokens=settings["max_tokens"],
    )
    plain = data.collator
    collator = Collator(
        plain.pad_id,
        data.tokenizer.n_bytes_of,
        settings["layout"],
        settings["shared_prefix"],
        plain.mask_prompt,
        plain.pad_to,
    )
    return len(sampler), [collator([store[i] for i in batch]) for batch in islice(sampler, MAX_BATCHES)]


def print_needs(console: Console, config: DictConfig, data: InstructionData, opened: OpenedModel | None) -> None:
    """Print the estimate of memory and time for one epoch with the chosen or opened model on this device."""
    from instruct_lit.accel.estimate import estimate
    from instruct_lit.accel.hardware import default_precision
    from instruct_lit.core.model.device import best_device

    shape, name = shape_of(config, opened), config.model.name if opened is None else opened.directory
    if shape is None:
        console.print("\nmemory and time are estimated for GPT-2 only, not for model=hf", highlight=False)
        return
    n_batches, batches = laid_out(data, config.batching)
    by_size = sorted(batches, key=lambda batch: batch.input_ids.numel())
    typical = [by_size[int(len(by_size) * share)] for share in (0.25, 0.5, 0.75)]
    device = best_device()
    precision = default_precision("auto")
    needs = estimate(shape, typical, by_size[-1], device, precision.startswith("bf16"))
    whole, states, activations = (
        f"{n / 2**30:.2f}" for n in (needs.memory_bytes, needs.states_bytes, needs.activations_bytes)
    )
    time = f"{_duration(needs.step_s * n_batches)} per epoch of {n_batches:,} batches ({needs.step_s:.3f} s each)"
    if config.data.streaming:
        time = f"{needs.step_s:.3f} s a batch"
    console.print(
        f"\nmodel {name}, {needs.n_parameters:,} parameters, on {device.type} in {precision} with AdamW\n"
        f"  memory  {whole} GiB and what torch itself takes: {states} weights, gradients\n"
        f"          and moments, {activations} activations of the largest batch\n"
        f"  time    {time}",
        highlight=False,
    )


def shape_of(config: DictConfig, opened: OpenedModel | None) -> GPTConfig | None:
    """The shape of the opened GPT-2, or of the chosen one; None for a model of transformers."""
    from instruct_lit.config import builders as build
    from instruct_lit.core.model.gpt import GPT

    if opened is not None:
        return opened.model.config if isinstance(opened.model, GPT) else None
    return build.shape_of(config) if config.model.kind != "hf" else None


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.0f} s"


def main() -> None:
    """Entry point of the command."""
    run_command("peek", PeekConfig, peek)


if __name__ == "__main__":
    main()
