"""Log-probabilities of a request's tokens, and the two forms of OpenAI's API for them."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instruct_lit.core.generation.request import Hook
from instruct_lit.core.model.causal import CHUNK, CausalLM

TokenBytes = Callable[[int], bytes]
LEAST = -9999.0  # stands for minus infinity, which JSON does not have, as in OpenAI's API


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a token given all before it, under the model's own distribution (temperature 1).

    `top` are the most likely tokens at its position, best first. The first token of a text has no probability.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class LogprobRecorder(Hook):
    """Records log-probabilities of the chosen tokens, also end-of-text, and with `reads_prompt` of the prompt's.

    Args:
        n_top: number of most likely tokens to record at each position.
    """

    def __init__(self, n_top: int, reads_prompt: bool = False) -> None:
        self.n_top, self.reads_prompt = n_top, reads_prompt
        self.prompt: list[TokenLogprob] = []
        self.response: list[TokenLogprob] = []

    def on_prompt(self, ids: Sequence[int], hidden: Tensor, model: CausalLM) -> None:
        self.prompt = [TokenLogprob(ids[0], None)]
        for start in range(0, len(ids) - 1, CHUNK):
            targets = ids[start + 1 : start + 1 + CHUNK]
            self.prompt += logprobs_of(model.logits(hidden[start : start + len(targets)]), targets, self.n_top)

    def on_token(self, token: int, logits: Tensor) -> None:
        self.response += logprobs_of(logits[None], [token], self.n_top)


def logprobs_of(logits: Tensor, ids: Sequence[int], n_top: int) -> list[TokenLogprob]:
    """Log-probabilities of the tokens `ids` `(M,)` under `logits` `(M, V)`, and of the `n_top` most likely ones."""
    log_probabilities = logits.float().log_softmax(-1)
    chosen = log_probabilities.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].tolist()
    top = log_probabilities.topk(n_top, dim=-1)
    rows = zip(ids, chosen, top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenLogprob(i, value, tuple(zip(t, v, strict=True))) for i, value, t, v in rows]


def text_offsets(tokens: Sequence[TokenLogprob], token_bytes: TokenBytes) -> list[int]:
    """The index of the character of the text in which each token begins; tokens of one character share it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, n_characters = [], 0
    for token in tokens:
        offsets.append(n_characters)
        n_characters += len(decoder.decode(token_bytes(token.token_id)))
    return offsets


def completion_logprobs(
    tokens: Sequence[TokenLogprob], offsets: Sequence[int], token_bytes: TokenBytes
) -> dict[str, Any]:
    r"""The form of `/v1/completions`; as in OpenAI's, the most likely tokens always include the token itself.

    A token that is not valid UTF-8 by itself is shown as OpenAI shows it, `bytes:\xf0\x9f`.
    """
    return {
        "tokens": [_shown(token_bytes(token.token_id)) for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [
            {_shown(token_bytes(i)): _finite(value) for i, value in (*token.top, (token.token_id, token.logprob))}
            if token.logprob is not None
            else None
            for token in tokens
        ],
        "text_offset": list(offsets),
    }


def chat_logprobs(tokens: Sequence[TokenLogprob], token_bytes: TokenBytes) -> dict[str, Any]:
    """The form of `/v1/chat/completions`."""

    def entry(token_id: int, value: float | None) -> dict[str, Any]:
        raw = token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(value), "bytes": list(raw)}

    return {
        "content": [
            {**entry(t.token_id, t.logprob), "top_logprobs": [entry(i, value) for i, value in t.top]} for t in tokens
        ],
        "refusal": None,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None else max(LEAST, value)


def _shown(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
