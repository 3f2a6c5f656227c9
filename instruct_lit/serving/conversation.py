"""From what a person or a program says to the ids a model was trained to answer, and to its answer's end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from instruct_lit.core.bundle import open_model
from instruct_lit.core.data.encode import Encoder, Tokenizer
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.responses import closing
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.device import best_device
from instruct_lit.errors import ConfigError, DataError
from instruct_lit.hf.chat_template import CHAT


@dataclass(frozen=True)
class ChatModel:
    """A model that is talked to: its name, and what turns an example into its prompt."""

    name: str
    model: CausalLM
    tokenizer: Tokenizer
    template: Template

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer."""
        return self.model.config.context_length

    @property
    def has_turns(self) -> bool:
        """Whether the template has a form for a conversation."""
        return self.template.next_turn is not None or self.template.name == CHAT

    @property
    def has_system(self) -> bool:
        """Whether the template has a place for a system prompt."""
        return self.template.name == CHAT or self.template.has_system

    def prompt_ids(self, example: Example) -> list[int]:
        """The ids of the prompt, those of training; an empty prompt is end-of-text, the beginning of a text."""
        ids = Encoder(self.template, self.tokenizer, self.context_length).prompt_ids(example)
        return ids or [self.tokenizer.eot_id]

    def ending(self, settings: SamplingSettings) -> SamplingSettings:
        """The settings with what the template puts behind a response as a stop text."""
        return replace(settings, stop=(*settings.stop, *closing(self.template)))


def example_of(speaker: ChatModel, messages: Sequence[tuple[str, str]], given: str = "") -> Example:
    """The example whose prompt a conversation is: `messages` are (role, text), `given` is the input of the last.

    What the template has no place for (a system prompt, earlier turns) is left out, as by the bundle's chat template.
    Raises DataError for a conversation in which user and assistant do not alternate up to a last user message.
    """
    system = "\n\n".join(text for role, text in messages if role in ("system", "developer"))
    said = [(role, text) for role, text in messages if role in ("user", "assistant")]
    expected = ["user", "assistant"] * (len(said) // 2) + ["user"]
    if [role for role, _ in said] != expected:
        roles = ", ".join(role for role, _ in said[-6:]) or "none"
        raise DataError(f"user and assistant must take turns, and the user speaks last; the roles are: {roles}")
    texts = [text for _, text in said]
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True)) if speaker.has_turns else ()
    return Example(texts[-1], "", given, system=system if speaker.has_system else "", history=history)


def open_speakers(runs: Sequence[str], template: Template | None, device: str | None) -> list[ChatModel]:
    """Open finished models, on a GPU where there is one; each is named after its folder, equal names are numbered.

    Weights that several of them have in common, as adapters on one base do, are in memory once.

    Raises what `bundle.open_model` raises, and ConfigError for a device that is not there.
    """
    device = device or best_device().type
    speakers: list[ChatModel] = []
    for run in runs:
        opened = open_model(run, template, merge=len(runs) == 1)
        folder = opened.directory.resolve()
        name = folder.parent.name if folder.name == "bundle" else folder.name
        n_same = sum(speaker.name.split(" #")[0] == name for speaker in speakers)
        try:
            model = opened.model.to(device).eval()
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device={device}: {str(error).splitlines()[0]}") from error
        share_weights(model, [speaker.model for speaker in speakers])
        speakers.append(
            ChatModel(f"{name} #{n_same + 1}" if n_same else name, model, opened.tokenizer, opened.template)
        )
    return speakers


def share_weights(model: CausalLM, others: Sequence[CausalLM]) -> None:
    """Let every parameter that one of the others has, equal and by the same name, be that one in memory."""
    for other in others:
        theirs = _weights(other)
        for name, parameter in _weights(model).items():
            same = theirs.get(name)
            if same is not None and same.dtype == parameter.dtype and torch.equal(same, parameter):
                parameter.data = same.data


def _weights(model: CausalLM) -> dict[str, torch.nn.Parameter]:
    """The parameters by the names that they have without an adapter."""
    return {name.replace(".base_layer.", "."): parameter for name, parameter in model.named_parameters()}
