"""Text of records and models on a terminal."""

from __future__ import annotations

_CONTROL = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def harmless(text: str) -> str:
    """The text without control characters: neither a record nor a model may move the cursor or rename the window."""
    return text.translate(_CONTROL)
