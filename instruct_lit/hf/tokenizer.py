"""A tokenizer of transformers under the interface of ours, safe from special tokens in users' texts."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from instruct_lit.errors import ConfigError

ESCAPE = "\ufdd0"  # a code point that Unicode keeps out of texts
# Byte-level vocabularies write a byte as a character (GPT-2): itself where it can be seen, the rest from 256 on.
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_UNSEEN = [byte for byte in range(256) if byte not in _SEEN]
_BYTE_OF = {chr(byte): byte for byte in _SEEN} | {chr(256 + n): byte for n, byte in enumerate(_UNSEEN)}


class HFTokenizer:
    """Text to token ids and back with a fast tokenizer of transformers, `hf`.

    The name of a special token in a text is ordinary text. With `markup` (the texts come out of a chat template) it is
    the special token instead, unless it is escaped: `escape` protects what users wrote. `end` names the token that
    closes a response, by default the tokenizer's end of text. What the tokenizer puts before a text (`<s>`, say) are
    the ids `prompt_start`; none if the tokenizer is `bare`, since the template writes it.
    """

    def __init__(self, hf: Any, markup: bool = False, end: str | None = None, bare: bool = False) -> None:
        if not hf.is_fast:
            raise ConfigError(f"model: {type(hf).__name__} is a slow tokenizer; one with a tokenizer.json is needed")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said explicitly, it does not warn in data workers
        self.hf, self.markup = hf, markup
        closing = end or hf.eos_token
        if closing is None:
            raise ConfigError(f"model: {type(hf).__name__} has no end-of-text token, so no response could end")
        self.end: str = closing
        self.eot_id: int = hf.convert_tokens_to_ids(self.end)
        self.n_vocab: int = max(hf.get_vocab().values()) + 1
        self.prompt_start: tuple[int, ...] = () if bare else tuple(self._put_before())
        specials = [t.content for t in hf.added_tokens_decoder.values() if t.special and len(t.content) > 1]
        self._special = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without `prompt_start`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts on all cores."""
        if not texts:
            return []
        encoded = self._ids(texts, specials=self.markup)
        if self.markup:
            for place, text in enumerate(texts):
                if ESCAPE in text:
                    encoded[place] = self._escaped_ids(text)
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 become the replacement character."""
        return self.hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def escape(self, text: str) -> str:
        """The text as `markup` must find it so that nothing in it is a special token."""
        text = text.replace(ESCAPE, ESCAPE * 2)
        return self._special.sub(lambda found: found[0][0] + ESCAPE + found[0][1:], text)

    def unescape(self, text: str) -> str:
        """The text that was escaped."""
        return re.sub(f"{ESCAPE}({ESCAPE}?)", r"\1", text)

    def first_special(self, text: str) -> re.Match[str] | None:
        """Where the first special token of a text is."""
        return self._special.search(text)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; of a special token those of its name."""
        token = self.hf.convert_ids_to_tokens(token_id)
        if token_id in self.hf.added_tokens_decoder:
            return token.encode()
        if self._byte_level:
            return bytes(_BYTE_OF[character] for character in token)
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()  # SentencePiece's sign for a space

    @cached_property
    def n_bytes_of(self) -> np.ndarray:
        """Number of UTF-8 bytes of every token `(V,)`; special tokens count none."""
        lengths = np.zeros(self.n_vocab, dtype=np.int64)
        special = set(self.hf.added_tokens_decoder)
        for number in set(self.hf.get_vocab().values()) - special:
            lengths[number] = len(self.token_bytes(number))
        return lengths

    @property
    def fingerprint(self) -> str:
        """Changes if and only if the encoding may."""
        facts = [self._definition, self.markup, self.eot_id, self.prompt_start]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _definition(self) -> dict[str, Any]:
        return json.loads(self.hf.backend_tokenizer.to_str())

    @cached_property
    def _byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(self._definition.get("decoder"))

    def _put_before(self) -> list[int]:
        alone, whole = self._ids(["a"], specials=False)[0], self.hf("a")["input_ids"]
        place = next((i for i in range(len(whole)) if whole[i : i + len(alone)] == alone), 0)
        return whole[:place]

    def _ids(self, texts: Sequence[str], specials: bool) -> list[list[int]]:
        return self.hf(list(texts), add_special_tokens=False, split_special_tokens=not specials)["input_ids"]

    def _escaped_ids(self, text: str) -> list[int]:
        """Ids of a text with escapes: cut at the special tokens that are meant, the rest without any."""
        ids: list[int] = []
        start = 0
        for found in [*self._special.finditer(text), None]:
            between = self.unescape(text[start : found.start() if found else None])
            if between:
                ids += self._ids([between], specials=False)[0]
            if found:
                ids.append(self.hf.convert_tokens_to_ids(found[0]))
                start = found.end()
        return ids


def without_markup(tokenizer: Any) -> Any:
    """The same tokenizer for bare text, in which nothing is a special token; another than ours as it is."""
    return HFTokenizer(tokenizer.hf) if isinstance(tokenizer, HFTokenizer) and tokenizer.markup else tokenizer


def add_special_tokens(hf: Any, names: Sequence[str]) -> list[int]:
    """Make special tokens of the names that are none yet, and return the ids of those that are new."""
    from tokenizers import AddedToken

    new = [name for name in dict.fromkeys(names) if hf.get_vocab().get(name) not in hf.added_tokens_decoder]
    hf.add_tokens([AddedToken(name, special=True, normalized=False) for name in new], special_tokens=True)
    return [hf.convert_tokens_to_ids(name) for name in new]


def load_tokenizer(path: str, **place: Any) -> HFTokenizer:
    """Open the tokenizer of a directory or hub repository; `place` as for `AutoTokenizer.from_pretrained`."""
    import transformers

    # The revision is in `place` where the user pins one.
    return HFTokenizer(transformers.AutoTokenizer.from_pretrained(path, **place))  # nosec B615
