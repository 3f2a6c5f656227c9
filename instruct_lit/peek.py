"""python -m instruct_lit.peek: a data set as the model sees it, and one example on its way to the loss."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from instruct_lit.config.compose import run_command
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from instruct_lit.core.bundle import OpenedModel
    from instruct_lit.core.data.datamodule import InstructionData
    from instruct_lit.core.model.causal import CausalLM


def peek(config: DictConfig) -> None:
    """Print the profile of the data, or one example."""
    given = {re.split(r"[.=]", text.lstrip("+"))[0] for text in HydraConfig.get().overrides.task}
    from instruct_lit.config import model_builders as build
    from instruct_lit.config.data_builders import data_of, with_settings_of_run
    from instruct_lit.reports.tables import LineConsole

    if config.run is None:
        tokenizer, template = build.language_of(config)
        context_length = build.context_of(config)
        opened, model = None, limited_model(config)
    else:
        config = with_settings_of_run(config, given)
        opened = build.open_model(config.run, build.given_template(config))
        tokenizer, template = opened.tokenizer, opened.template
        model, context_length = opened.model, opened.model.config.context_length
    console = LineConsole()

    def note(text: str) -> None:
        console.print(text, style="yellow", markup=False)

    data = data_of(config, template, tokenizer, context_length, config.n_streamed, model)
    data.prepare_data()
    try:
        data.setup()
    except ConfigError as error:
        if not str(error).startswith("data.split") or config.run is not None:
            raise
        note(f"{str(error).partition(';')[0]}; here all are shown as train, which a run refuses")
        config.data.split = {}
        data = data_of(config, template, tokenizer, context_length, config.n_streamed, model)
        data.setup()
    if config.data.streaming:
        note(
            f"data.streaming=true: only the first {len(data.stores['main']):,} examples of the stream, in file order "
            f"(n_streamed={config.n_streamed}), without a split\n"
        )
    for line in data.notes:
        note(line)
    if config.index is None:
        from instruct_lit.datasets.quality import explanations

        for line in explanations(data):
            console.print(line, markup=False)
        show_profile(console, config, data, opened)
    else:
        from instruct_lit.datasets.inspect_example import show_example

        console.print(f"data {config.data.name}", style="bold")
        show_example(console, data, config.split, config.index, model, config.all_tokens)


def limited_model(config: DictConfig) -> CausalLM | None:
    """The model of a profile if its architecture alone, without weights, rules out a batch layout."""
    if config.index is not None or config.model.get("kind") != "hf":
        return None
    from instruct_lit.accel.estimate import counting
    from instruct_lit.config.counted_model import without_weights
    from instruct_lit.core.model.causal import best_device

    with counting(on_gpu=best_device().type == "cuda"):
        model = without_weights(config)
    return model if model.no_layouts else None


def show_profile(console: Console, config: DictConfig, data: InstructionData, opened: OpenedModel | None) -> None:
    """Print the profile of the data, the memory and time of a run, and warnings."""
    from instruct_lit.config.data_builders import layouts_for
    from instruct_lit.datasets.print_profile import print_needs, print_profile, print_warnings
    from instruct_lit.datasets.profile import positions_per_token, profile, training_batches, warnings_of

    layouts = layouts_for(config.data)
    batching = {str(key): getattr(data.batching, str(key)) for key in config.batching}
    chosen = next((name for name, settings in layouts.items() if settings == batching), "configured")
    layouts.setdefault(chosen, batching)
    store, _ = data.examples_of(config.split)
    costs = {name: positions_per_token(training_batches(data, settings)[1]) for name, settings in layouts.items()}
    found = profile(store, data.template, data.tokenizer, data.collator.mask_prompt, costs)
    console.print(f"data {config.data.name}, template {data.template.name}", style="bold")
    n_val = None
    if not config.data.streaming:
        n_val = len(data.examples_of("val")[1])
        console.print(", ".join(f"{len(data.examples_of(name)[1]):,} {name}" for name in ("train", "val", "test")))
    print_profile(console, found, chosen)
    if config.estimate:
        from instruct_lit.accel.estimate import estimate
        from instruct_lit.config.counted_model import without_weights

        n_batches, batches = training_batches(data, batching)
        how = config.compile, config.adapter.kind == "qlora", config.accumulate_grad_batches
        needs = estimate(lambda: without_weights(config, opened), batches, *how)
        name = config.model.name if opened is None else opened.directory
        print_needs(console, str(name), *needs, None if config.data.streaming else n_batches)
    print_warnings(console, warnings_of(found, chosen, n_val))


if __name__ == "__main__":
    run_command("peek", peek)
