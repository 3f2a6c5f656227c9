"""Names of special tokens in users' text: the one mechanism that keeps them ordinary text.

In the text of a chat template a name like `<|im_start|>` means the token; in text that users wrote the same characters
must be encoded as ordinary text. So every template passes users' text through `Tokenizer.protect`. A tokenizer that
reads no markup (`GPT2Tokenizer`, `HFTokenizer` by default) never encodes a special token and returns it unchanged. One
that reads markup puts `GUARD`, a code point that Unicode excludes from text, inside each name, and ignores guards when
it encodes; a text that has the code point nevertheless gets it doubled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from instruct_lit.hf.chat_template_export import GUARD, guarded


class SpecialTokens:
    """The names of a vocabulary's special tokens of at least two characters."""

    def __init__(self, names: Iterable[str]) -> None:
        longest_first = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def protect(self, text: str) -> str:
        """The text with `GUARD` in every name, also in names within names."""
        text = text.replace(GUARD, GUARD * 2)
        while self._pattern.search(text):
            text = self._pattern.sub(lambda found: guarded(found[0]), text)
        return text

    def find(self, text: str) -> re.Match[str] | None:
        """The first unprotected name in a text."""
        return self._pattern.search(text)

    def find_all(self, text: str) -> Iterator[re.Match[str]]:
        """The unprotected names in a text in order."""
        return self._pattern.finditer(text)


def unprotected(text: str) -> str:
    """The text that `SpecialTokens.protect` was given."""
    return re.sub(f"{GUARD}({GUARD}?)", r"\1", text)
