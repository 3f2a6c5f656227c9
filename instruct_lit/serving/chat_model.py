"""A finished model to talk to: opened with its tokenizer and template."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from instruct_lit.core.bundle import open_model
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.generation.responses import closing
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM, best_device
from instruct_lit.errors import ConfigError, printable


@dataclass
class ChatModel:
    """A named model with what turns an example into its prompt.

    `context_length` counts the tokens of prompt and response; `stops` are the template's texts that end a response.
    """

    name: str
    model: CausalLM
    tokenizer: Tokenizer
    template: Template

    def __post_init__(self) -> None:
        self.context_length: int = self.model.config.context_length
        self.encoder = Encoder(self.template, self.tokenizer, self.context_length)
        self.stops = closing(self.template)

    def prompt_ids(self, example: Example) -> list[int]:
        """The prompt's token ids as in training; end-of-text, the beginning of a text, for an empty prompt."""
        return self.encoder.prompt_ids(example) or [self.tokenizer.eot_id]

    def with_stops(self, settings: SamplingSettings) -> SamplingSettings:
        """The settings with the template's `stops`."""
        return replace(settings, stop=(*settings.stop, *self.stops))


def open_chat_models(runs: Sequence[str], template: Template | None, device: str | None) -> list[ChatModel]:
    """Open finished models, by default on a GPU if one is available; each is named after its folder, numbered if equal.

    Equal weights, such as the common base of several adapters, are in memory once.

    Raises: what `bundle.open_model` raises, and ConfigError for a device that does not exist.
    """
    device = device or best_device().type
    chat_models: list[ChatModel] = []
    for run in runs:
        opened = open_model(run, template, merge=len(runs) == 1, as_stored=True)
        folder = opened.directory.resolve()
        name = shown_name(folder.parent.name if folder.name == "bundle" else folder.name)
        n_same = sum(other.name.split(" #")[0] == name for other in chat_models)
        try:
            model = opened.model.to(device).eval()
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device={device}: {str(error).splitlines()[0]}") from error
        share_weights(model, [other.model for other in chat_models])
        name = f"{name} #{n_same + 1}" if n_same else name
        chat_models.append(ChatModel(name, model, opened.tokenizer, opened.template))
    return chat_models


def shown_name(folder: str) -> str:
    """A folder's name as it can be shown and sent: in one line, without control characters and undecodable bytes."""
    return " ".join(printable(folder.encode(errors="replace").decode()).split())


def share_weights(model: CausalLM, others: Sequence[CausalLM]) -> None:
    """Let every parameter of a model that is equal to another model's parameter of that name use its memory."""
    for other in others:
        theirs = _weights(other)
        for name, parameter in _weights(model).items():
            same = theirs.get(name)
            if same is not None and same.dtype == parameter.dtype and torch.equal(same, parameter):
                parameter.data = same.data


def _weights(model: CausalLM) -> dict[str, torch.nn.Parameter]:
    """The parameters under the names that they have without an adapter."""
    return {name.replace(".base_layer.", "."): parameter for name, parameter in model.named_parameters()}
