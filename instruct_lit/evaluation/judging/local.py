"""A judge in this process: a finished model or one of transformers, its replies constrained to the verdict's form."""

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instruct_lit.core.bundle import bundle_of, open_model, read_about
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Hook
from instruct_lit.core.generation.responses import closing
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM, best_device
from instruct_lit.errors import ConfigError, InstructLitError
from instruct_lit.evaluation.judging.endpoints import Endpoint, Messages, Refused, Reply
from instruct_lit.evaluation.judging.prompt import Verdict
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.files import load_hf, opening
from instruct_lit.hf.source import HFSource
from instruct_lit.hf.tokenizer import load_tokenizer
from instruct_lit.optional_imports import load


class LocalEndpoint(Endpoint):
    """Replies greedily with the model of a run folder, a bundle, a Hugging Face directory, or a GGUF file in it.

    With `constrained` the model chooses among the replies that the verdict allows, token by token, so that every reply
    can be read; otherwise it writes at most `max_tokens` tokens. Control tokens in a message are ordinary text.

    Raises: ConfigError when the model cannot be opened or has no chat template.
    """

    remedy = "max_tokens= bounds the reply; or give judge.model a model with a longer context"

    def __init__(
        self, model: str, gguf_file: str | None = None, *, max_tokens: int = 256, constrained: bool = True
    ) -> None:
        self.model, self.max_tokens, self.constrained = model, max_tokens, constrained
        folder = bundle_of(Path(model).expanduser().resolve())
        files = [(path.name, path.stat()) for path in sorted(folder.glob("*")) if path.is_file()]  # one trained anew
        self.identity = {
            "kind": "LocalEndpoint", "model": str(folder), "gguf_file": gguf_file, "max_tokens": max_tokens,
            "constrained": constrained, "files": [(name, state.st_size, state.st_mtime_ns) for name, state in files],
        }  # fmt: skip
        network, self.tokenizer, self.template = open_judge(Path(model).expanduser(), gguf_file)
        device = best_device()
        network.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        self._engine = Engine(network, self.tokenizer, max_rows=1)

        self._settings = SamplingSettings(max_new_tokens=max_tokens, stop=closing(self.template))
        self._one_of = cache(lambda replies, before: OneOf(replies, self.tokenizer, [before]))

    async def ask(self, messages: Messages, verdict: Verdict) -> Reply:
        """Answer one question; Refused when it does not fit into the model's context."""
        start = time.perf_counter()
        ids, n_new, limit = self.prompt_ids(messages), self._settings.max_new_tokens, self._engine.context_length
        if len(ids) + n_new > limit:
            raise Refused(f"{len(ids)} tokens and {n_new} of reply do not fit into {limit}")
        hook = self._one_of(tuple(verdict.replies), ids[-1]) if self.constrained else None
        request = self._engine.prepare(ids, self._settings, hook)
        self._engine.enqueue(request)
        while request.finish_reason is None:
            self._engine.step()
        n_reply = len(request.ids) + (request.finish_reason == "stop")  # with the end-of-text
        return Reply(request.text, len(ids), n_reply, time.perf_counter() - start)

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Token ids of a conversation of user and assistant; earlier turns need a template that has a form for them."""
        *earlier, question = [message["content"] for message in messages]
        history = tuple(zip(earlier[::2], earlier[1::2], strict=True)) if self.template.has_turns else ()
        return self.template.prompt_ids(Example(question, "", history=history), self.tokenizer)


class OneOf(Hook):
    """Constrains a response behind the ids `before` to one of the replies, closed by end-of-text."""

    def __init__(self, replies: Sequence[str], tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self.tree: dict[int, Any] = {}
        for reply in replies:
            node = self.tree
            for token in [*tokenizer.encode(reply, before), tokenizer.eot_id]:
                node = node.setdefault(token, {})

    def allowed(self, ids: Sequence[int]) -> list[int]:
        """The tokens that may follow `ids`."""
        node = self.tree
        for token in ids:
            node = node[token]
        return list(node)

    def limit(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        allowed = self.allowed(ids)
        limited = torch.full_like(logits, float("-inf"))
        limited[allowed] = logits[allowed]
        return limited


def open_judge(folder: Path, gguf_file: str | None) -> tuple[CausalLM, Tokenizer, Template]:
    """A bundle with its template, any other directory through transformers with the chat template in it."""
    load("transformers", "judge=local", "hf")
    if not folder.is_dir():
        raise ConfigError(f"judge.model={folder}: no such folder; give a run, a bundle or a Hugging Face directory")
    try:
        if gguf_file is None and read_about(bundle_of(folder)):
            opened = open_model(folder, as_stored=True)
            return opened.model, opened.tokenizer, opened.template
        source = HFSource(str(folder), gguf_file=gguf_file)
        network = load_hf(source, dtype=None)
        with opening(str(folder)):
            tokenizer = load_tokenizer(source)
        if tokenizer.hf.chat_template is None:
            raise ConfigError("no chat template; choose an instruct model")
        return network, *with_chat(tokenizer)
    except InstructLitError as error:
        raise ConfigError(f"judge.model={folder}: {error}"[:300]) from error
