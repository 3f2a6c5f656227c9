"""A judge in this process: any causal model that transformers opens, held to the form of the verdict."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.model.device import best_device, has_gpu
from instruct_lit.core.optional_imports import load
from instruct_lit.errors import ConfigError, JudgeError
from instruct_lit.evaluation.judging.endpoints import Messages, Refused
from instruct_lit.evaluation.judging.prompt import Verdict
from instruct_lit.evaluation.judging.reply_cache import Reply

_PLACE = "\ue000"  # a private character that stands for a message while its surroundings are rendered


class LocalEndpoint:
    """Answers greedily with the model of a Hugging Face directory, or of a GGUF file in it.

    `constrained` lets it choose among the replies that the verdict allows, token by token, so that every reply can be
    read; otherwise it writes freely, at most `max_tokens` tokens. Control tokens in a message are ordinary text.
    Raises ConfigError when the model cannot be opened or has no chat template.
    """

    def __init__(
        self, model: str, gguf_file: str | None = None, *, max_tokens: int = 256, constrained: bool = True
    ) -> None:
        self.model, self.max_tokens, self.constrained = model, max_tokens, constrained
        self.identity = {
            "kind": "LocalEndpoint", "model": str(Path(model).expanduser().resolve()), "gguf_file": gguf_file,
            "max_tokens": max_tokens, "constrained": constrained,
        }  # fmt: skip
        self._tokenizer, self._network = _open(Path(model).expanduser(), gguf_file)
        if self._tokenizer.chat_template is None:
            raise ConfigError(f"judge.model={model}: no chat template, so it is no model to ask")
        self._tries: dict[tuple[str, ...], dict[int, Any]] = {}

    async def ask(self, messages: Messages, verdict: Verdict) -> Reply:
        """Answer one question; Refused when it does not fit into the model's context."""
        import torch

        start = time.perf_counter()
        ids = self.prompt_ids(messages)
        limit = getattr(self._network.config, "max_position_embeddings", None)
        if limit and len(ids) + self.max_tokens > limit:
            raise Refused(f"{len(ids)} tokens and {self.max_tokens} of reply do not fit into {limit}")
        inputs = torch.tensor([ids], device=self._network.device)
        settings: dict[str, Any] = {"max_new_tokens": self.max_tokens}
        if self.constrained:
            trie = self._trie(verdict.replies)
            settings["prefix_allowed_tokens_fn"] = lambda _, so_far: _next(trie, so_far[len(ids) :].tolist())
        with torch.inference_mode():
            out = self._network.generate(
                inputs, attention_mask=torch.ones_like(inputs), pad_token_id=self._tokenizer.eos_token_id,
                do_sample=False, temperature=None, top_p=None, top_k=None, **settings,
            )  # fmt: skip
        reply = out[0, len(ids) :]
        text = self._tokenizer.decode(reply, skip_special_tokens=True)
        return Reply(text, len(ids), len(reply), time.perf_counter() - start)

    async def __aenter__(self) -> LocalEndpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def check(self) -> None:
        """The model is open already."""

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Token ids of the conversation; what is written in a message gives no control token."""
        places = [{"role": message["role"], "content": _PLACE} for message in messages]
        frame = self._tokenizer.apply_chat_template(places, tokenize=False, add_generation_prompt=True)
        parts = frame.split(_PLACE)
        if len(parts) != len(messages) + 1:
            raise JudgeError(f"judge.model={self.model}: its chat template leaves messages out")
        ids = self._ids(parts[0], special=True)
        for message, part in zip(messages, parts[1:], strict=True):
            ids += self._ids(message["content"].replace(_PLACE, ""), special=False) + self._ids(part, special=True)
        return ids

    def _ids(self, text: str, special: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]

    def _trie(self, replies: Sequence[str]) -> dict[int, Any]:
        """The allowed replies as a tree of tokens, each closed by end-of-text."""
        key = tuple(replies)
        if key not in self._tries:
            root: dict[int, Any] = {}
            for reply in replies:
                node = root
                for token in [*self._ids(reply, special=False), self._tokenizer.eos_token_id]:
                    node = node.setdefault(token, {})
            self._tries[key] = root
        return self._tries[key]


def _next(trie: dict[int, Any], tokens: list[int]) -> list[int]:
    for token in tokens:
        trie = trie[token]
    return list(trie)


def _open(folder: Path, gguf_file: str | None) -> tuple[Any, Any]:
    import torch

    transformers = load("transformers", "judge=local", "hf")
    if not folder.is_dir():
        raise ConfigError(f"judge.model={folder}: no such folder (a Hugging Face directory, or one with a GGUF file)")
    extra = {"gguf_file": gguf_file} if gguf_file else {}
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **extra)
        network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **extra)
    except Exception as error:  # a damaged directory can fail in any way
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"judge.model={folder}: transformers cannot open it ({reason})") from error
    network.to(best_device(), torch.bfloat16 if has_gpu() else torch.float32)
    return tokenizer, network.eval()
