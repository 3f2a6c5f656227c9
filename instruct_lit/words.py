"""Words of any script: in those without spaces between words, such as Chinese and Thai, every character is one."""

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(rf"(?V1)[[\w\p{{No}}]--[_{UNSPACED}]]+|[{UNSPACED}]\p{{M}}*")  # without punctuation
_BETWEEN_SPACES = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[^\s{UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text, with the punctuation beside them."""
    return _BETWEEN_SPACES.findall(text)
