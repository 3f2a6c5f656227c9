"""Log-probabilities in the two forms of OpenAI's API."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Any

from instruct_lit.core.generation.request import TokenLogprob

TokenBytes = Callable[[int], bytes]


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
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {_shown(token_bytes(i)): value for i, value in (*token.top, (token.token_id, token.logprob))}
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
        return {"token": raw.decode("utf-8", "replace"), "logprob": value, "bytes": list(raw)}

    return {
        "content": [
            {**entry(t.token_id, t.logprob), "top_logprobs": [entry(i, value) for i, value in t.top]} for t in tokens
        ],
        "refusal": None,
    }


def _shown(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
