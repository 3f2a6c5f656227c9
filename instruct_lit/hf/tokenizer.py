"""A tokenizer of transformers with the interface of ours."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import numpy as np

from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.errors import ConfigError
from instruct_lit.hf.compat_gguf import shared_reader
from instruct_lit.hf.source import HFSource
from instruct_lit.hf.special_tokens import GUARD, SpecialTokens, unprotected

# Byte-level vocabularies write bytes as characters: printable ones as themselves, the others from 256 on (GPT-2).
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
_MARK = "\n"  # stands before a text that continues another


def _is_byte(token: str) -> bool:
    """Whether a token is one byte, as in SentencePiece's vocabularies."""
    return re.fullmatch("<0x[0-9A-F]{2}>", token) is not None


class HFTokenizer:
    """Text to token ids and back with a fast tokenizer of transformers, `hf`.

    `prompt_start` are the ids that the tokenizer puts before every text (`<s>`, for example).

    Args:
        markup: whether the names of special tokens in a text, which comes from a chat template, are special tokens
            unless they are protected (`instruct_lit.hf.special_tokens`). By default they are ordinary text.
        end: the token that closes a response, by default the tokenizer's end-of-text.
        bare: whether `prompt_start` is empty, since the template writes it.

    Raises:
        ConfigError: a slow tokenizer, or one without end-of-text.
    """

    def __init__(self, hf: Any, markup: bool = False, end: str | None = None, bare: bool = False) -> None:
        if not hf.is_fast:
            raise ConfigError(f"model: {type(hf).__name__} is a slow tokenizer; one with a tokenizer.json is needed")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # set explicitly, it does not warn in data workers
        self.hf, self.markup = hf, markup
        closing = end or hf.eos_token
        if closing is None:
            raise ConfigError(f"model: {type(hf).__name__} has no end-of-text token, so no response could end")
        self.end: str = closing
        self.eot_id: int = hf.convert_tokens_to_ids(self.end)
        self.n_vocab: int = max(hf.get_vocab().values()) + 1
        self.prompt_start: tuple[int, ...] = () if bare else tuple(self._text_start())
        added = hf.added_tokens_decoder  # asked once: transformers makes it anew from all added tokens each time
        self._added = frozenset(added)
        self._special_ids = {token_id for token_id, token in added.items() if token.special}
        self.special_tokens = SpecialTokens([added[token_id].content for token_id in self._special_ids])
        # Tokens that take the white space behind or before them (Phi 3's <|end|>).
        self._strips_behind, self._strips_before = (
            {token_id for token_id, token in added.items() if getattr(token, side)} for side in ("rstrip", "lstrip")
        )
        self._mark, *alone = self._ids([_MARK, "a"], specials=False)
        # Whether the tokenizer puts a space before a text (SentencePiece), and behind a special token as well.
        self._puts_space = self._ids([f"{_MARK}a"], specials=False) != [self._mark + alone[0]]
        self._puts_space_behind_specials = self._ids([f"{self.end}a"], specials=True)[0][1:] == alone[0]

    def encode(self, text: str, before: Sequence[int] = ()) -> list[int]:
        """Token ids of a text behind the ids `before`, without these and `prompt_start`."""
        return self.encode_batch([text], [before])[0]

    def encode_batch(self, texts: Sequence[str], before: Sequence[Sequence[int]] = ()) -> list[list[int]]:
        """Encode many texts on all cores, each behind the ids `before` it.

        A tokenizer that puts a space before a text puts none within one, so that the ids are those of the whole text.
        """
        if not texts:
            return []
        continues = [self._continues(ids) for ids in before] or [False] * len(texts)
        if self._strips_behind and before:
            texts = [self._stripped(text, ids) for text, ids in zip(texts, before, strict=True)]
        encoded = self._ids(texts, self.markup, continues)
        for n, text in enumerate(texts):
            if self.markup and GUARD in text:
                encoded[n] = self._protected_ids(text, continues[n])
        return encoded

    def _continues(self, before: Sequence[int]) -> bool:
        """Whether a text behind these ids lacks the space that the tokenizer puts before a text."""
        if not self._puts_space or not before:
            return False
        return before[-1] not in self._added or not self._puts_space_behind_specials

    def _stripped(self, text: str, before: Sequence[int], behind: Sequence[int] = ()) -> str:
        """A text without the white space that a token before it or behind it takes."""
        text = text.lstrip() if before and before[-1] in self._strips_behind else text
        return text.rstrip() if self._strips_before.intersection(behind) else text

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become the replacement character."""
        text = self.hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if "\ufffd" not in text or self._byte_level:
            return text
        # SentencePiece's decoder replaces all tokens of single bytes in a row, whole characters among them too.
        tokens: list[str] = []
        for of_bytes, run in groupby(filter(None, self.hf.convert_ids_to_tokens(list(ids))), _is_byte):
            given = list(run)
            tokens += [bytes(int(t[3:5], 16) for t in given).decode(errors="replace")] if of_bytes else given
        return self.hf.convert_tokens_to_string(tokens)

    def protect(self, text: str) -> str:
        """Text of users for the place between markup, none of which is a special token (`special_tokens`)."""
        return self.special_tokens.protect(text) if self.markup else text

    def unprotect(self, text: str) -> str:
        """The text that `protect` was given."""
        return unprotected(text) if self.markup else text

    def without_markup(self) -> Self:
        """The same tokenizer for text without markup, in which no name is a special token."""
        return type(self)(self.hf) if self.markup else self

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; of a special token those of its name, none of a row that pads the vocabulary."""
        token = self.hf.convert_ids_to_tokens(token_id)
        return self._bytes_of(token_id, token) if token is not None else b""

    def _bytes_of(self, token_id: int, token: str) -> bytes:
        if self._byte_level:
            each = (bytes([_BYTE_OF[char]]) if char in _BYTE_OF else char.encode() for char in token)
            return token.encode() if token_id in self._added else b"".join(each)
        if _is_byte(token):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()  # SentencePiece writes a space so

    @cached_property
    def n_bytes_of(self) -> np.ndarray:
        """Number of UTF-8 bytes of every token `(V,)`, 0 for special tokens and the end of a response."""
        lengths = np.zeros(self.n_vocab, dtype=np.int64)
        for token, token_id in self.hf.get_vocab().items():
            if token_id not in self._special_ids:  # other added tokens are text: Gemma's line breaks, Qwen's <think>
                lengths[token_id] = len(self._bytes_of(token_id, token))
        lengths[self.eot_id] = 0
        return lengths

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that determines the encoding."""
        facts = [self._definition, self.markup, self.eot_id, self.prompt_start, *["continued"] * self._puts_space]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _definition(self) -> dict[str, Any]:
        return json.loads(self.hf.backend_tokenizer.to_str())

    @cached_property
    def _byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(self._definition.get("decoder"))

    def _text_start(self) -> list[int]:
        """The ids that the tokenizer puts before a text."""
        alone, whole = self._ids(["a"], specials=False)[0], self.hf("a")["input_ids"]
        start = next((i for i in range(len(whole)) if whole[i : i + len(alone)] == alone), 0)
        return whole[:start]

    def _ids(self, texts: Sequence[str], specials: bool, continues: Sequence[bool] = ()) -> list[list[int]]:
        """The ids of texts, of those that continue another behind a mark that is taken away."""
        given = [_MARK + text if n < len(continues) and continues[n] else text for n, text in enumerate(texts)]
        found = self.hf(given, add_special_tokens=False, split_special_tokens=not specials)["input_ids"]
        for n in (n for n, mark in enumerate(continues) if mark):
            is_mark = found[n][: len(self._mark)] == self._mark
            found[n] = found[n][len(self._mark) :] if is_mark else self._ids([texts[n]], specials)[0]
        return found

    def _protected_ids(self, text: str, continues: bool) -> list[int]:
        """Ids of a text with guards: split at the unprotected special tokens, the parts between without any."""
        ids: list[int] = []
        start = 0
        for found in [*self.special_tokens.find_all(text), None]:
            token: list[int] = self.hf.convert_tokens_to_ids([found[0]] if found else [])
            between = self._stripped(unprotected(text[start : found.start() if found else None]), ids, token)
            if between:
                ids += self._ids([between], False, [self._continues(ids) if ids else continues])[0]
            if found:
                start = found.end()
            ids += token
        return ids


def has_other_tokenizer(directory: Path) -> bool:
    """Whether a directory with a GPT-2 of another program has a tokenizer that is not GPT-2's, or more tokens."""
    try:
        gpt2 = json.loads(GPT2Tokenizer().vocab_files()["encoder.json"])
        if (file := directory / "tokenizer.json").is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            added = {token["content"] for token in found.get("added_tokens", ())}
            return found["model"]["vocab"] != gpt2 or not added <= set(gpt2)
        if (file := directory / "vocab.json").is_file():
            return json.loads(file.read_text(encoding="utf-8")) != gpt2
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True  # transformers names what is wrong with it
    return any((directory / name).is_file() for name in ("vocab.txt", "spiece.model", "tokenizer.model"))


def add_special_tokens(hf: Any, names: Sequence[str]) -> list[int]:
    """Add the names that are not special tokens yet, and return the ids of those that are new."""
    from tokenizers import AddedToken

    vocabulary, added = hf.get_vocab(), hf.added_tokens_decoder
    new = [name for name in dict.fromkeys(names) if vocabulary.get(name) not in added]
    hf.add_tokens([AddedToken(name, special=True, normalized=False) for name in new], special_tokens=True)
    return [hf.convert_tokens_to_ids(name) for name in new]


def load_tokenizer(source: HFSource | str) -> HFTokenizer:
    """Open the tokenizer of a directory or hub repository; ConfigError where it has none that can be opened."""
    import transformers

    source = HFSource(source) if isinstance(source, str) else source
    try:
        with shared_reader(source.gguf_file):
            # The revision is in the options where the user pins one.
            hf = transformers.AutoTokenizer.from_pretrained(source.path, **source.options())  # nosec B615
    except ValueError as error:
        if "backend tokenizer" not in str(error):
            raise
        raise ConfigError(
            f"model.path={source.path}: it has no tokenizer.json, and no other files of a tokenizer that can be read "
            "here (tokenizer.model needs pip install sentencepiece); put the model's tokenizer there"
        ) from error
    return HFTokenizer(hf)
