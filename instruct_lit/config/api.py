"""What a notebook needs beside the classes of the core: open a finished model, and ask it."""

from pathlib import Path
from typing import Any

from instruct_lit.core.bundle import OpenedModel
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import CHAT, Template
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings

NANO = Path(__file__).resolve().parents[1] / "nano"  # the small pretrained base that comes with the package


def open_model(run: str | Path, template: Template | str | None = None) -> OpenedModel:
    """Open a run folder, a bundle, or a Hugging Face directory, with its tokenizer and template.

    Args:
        template: replaces the template of the bundle; a Jinja text with `instruction`, `input` and `response`, or the
            name of a template in `conf/template`, such as "alpaca". A base model without a template needs one.

    Raises: CheckpointError where there is no model; ConfigError where a template is needed.
    """
    from instruct_lit.config import model_builders

    return model_builders.open_model(run, _template(template) if isinstance(template, str) else template)


def _template(text: str) -> Template | None:
    if "{{" in text:
        return Template("given", text)
    from omegaconf import OmegaConf

    from instruct_lit.config.compose import CONF, choices_of
    from instruct_lit.errors import ConfigError

    if text not in (names := choices_of("template")):
        raise ConfigError(f"template={text}: no such template; allowed are {', '.join(names)}, or a Jinja text")
    settings: Any = OmegaConf.load(CONF / "template" / f"{text}.yaml")
    if text == CHAT:  # which is in the directory
        return None
    if not isinstance(settings.get("text"), str):
        raise ConfigError(f"template={text}: has no text of its own; give a Jinja text with {{{{ response }}}}")
    return Template(text, settings.text, next_turn=settings.get("next_turn"))


def ask(opened: OpenedModel, instruction: str, input: str = "", settings: SamplingSettings | None = None) -> str:
    """The response of an opened model to one instruction; greedy unless `settings` say otherwise."""
    if not isinstance(instruction, str):
        raise TypeError("ask: one instruction, a text; for many at once see Engine.generate (docs/python-api.md)")
    encoder = Encoder(opened.template, opened.tokenizer, opened.model.config.context_length)
    prompt_ids = encoder.prompt_ids(Example(instruction, "", input))
    return Engine(opened.model, opened.tokenizer).generate([prompt_ids], settings)[0].text
