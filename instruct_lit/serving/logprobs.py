"""Log-probabilities in the two forms of OpenAI's API, each token at its place in the text."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Any

from instruct_lit.core.generation.request import TokenLogprob

BytesOf = Callable[[int], bytes]


def offsets(tokens: Sequence[TokenLogprob], bytes_of: BytesOf) -> list[int]:
    """The character of the text that each token begins in; the tokens of one character share it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    places, n_characters = [], 0
    for token in tokens:
        places.append(n_characters)
        n_characters += len(decoder.decode(bytes_of(token.token_id)))
    return places


def of_completion(tokens: Sequence[TokenLogprob], places: Sequence[int], bytes_of: BytesOf) -> dict[str, Any]:
    """The form of `/v1/completions`: among the likeliest is, as OpenAI says, always the token itself.

    A token that is no whole text is written as OpenAI does, `bytes:\\xf0\\x9f`.
    """
    return {
        "tokens": [_shown(bytes_of(token.token_id)) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {_shown(bytes_of(i)): value for i, value in (*token.top, (token.token_id, token.logprob))}
            if token.logprob is not None
            else None
            for token in tokens
        ],
        "text_offset": list(places),
    }


def of_chat(tokens: Sequence[TokenLogprob], bytes_of: BytesOf) -> dict[str, Any]:
    """The form of `/v1/chat/completions`."""

    def entry(token_id: int, value: float | None) -> dict[str, Any]:
        raw = bytes_of(token_id)
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
