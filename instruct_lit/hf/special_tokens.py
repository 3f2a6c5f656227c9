"""Names of special tokens in users' text: the one mechanism that keeps them ordinary text.

In the text of a chat template a name like `<|im_start|>` means the token; in text that users wrote the same characters
must be encoded as ordinary text. So every template passes users' text through `Tokenizer.protect`. A tokenizer that
reads no markup (`GPT2Tokenizer`, `HFTokenizer` by default) never encodes a special token and returns it unchanged. One
that reads markup puts `GUARD`, a code point that Unicode excludes from text, inside each name, and ignores guards when
it encodes; a text that has the code point nevertheless gets it doubled.
"""

import os
import re
from collections.abc import Iterable

from instruct_lit.hf.chat_template_export import GUARD, guarded

MAX_DEPTH = 40  # of the tree of names


class SpecialTokens:
    """The names of a vocabulary's special tokens of at least two characters.

    `find` gives the first match of an unprotected name in a text, `find_all` all of them in order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._pattern = re.compile(_longest_of({name for name in names if len(name) > 1}) or r"(?!)")
        self.find, self.find_all = self._pattern.search, self._pattern.finditer

    def protect(self, text: str) -> str:
        """The text with `GUARD` in every name, also in names within names."""
        text = text.replace(GUARD, GUARD * 2)
        while self._pattern.search(text):
            text = self._pattern.sub(lambda found: guarded(found[0]), text)
        return text


def _longest_of(names: Iterable[str], depth: int = 0) -> str:
    """A pattern for the longest name that a text continues with: a tree of characters, since thousands may begin alike.

    Below a depth that no vocabulary needs the pattern is flat, so that compiling it cannot recurse without bound.
    """
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    if depth == MAX_DEPTH:
        return f"(?:{'|'.join(map(re.escape, longest_first))})"
    groups: dict[str, list[str]] = {}
    for name in longest_first:
        groups.setdefault(name[:1], []).append(name)
    may_end = groups.pop("", None) is not None
    branches = []
    for group in groups.values():
        prefix = os.path.commonprefix(group)  # noqa: RUF071 (of characters, as meant)
        branches.append(re.escape(prefix) + _longest_of((name[len(prefix) :] for name in group), depth + 1))
    return f"(?:{'|'.join(branches)}){'?' * may_end}" if branches else ""


def unprotected(text: str) -> str:
    """The text that `SpecialTokens.protect` was given."""
    return re.sub(f"{GUARD}({GUARD}?)", r"\1", text)
