"""Streamed text on a terminal, with lines broken between words."""

import re

from rich.cells import cell_len
from rich.console import Console

from instruct_lit.errors import printable

# A word, or one character where lines may break anywhere: white space, CJK, emoji.
_WORD = r"[^\s\u2e80-\U0010ffff]+"
_PIECE = re.compile(f"{_WORD}|.", re.DOTALL)


class WordWrapper:
    """Prints text as it arrives; on a terminal an incomplete word is held back, and lines break between words.

    Elsewhere (a file, a pipe) lines are not broken. Control characters are escaped.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.held, self.column = console, "", 0
        self.style: str | None = None

    def write(self, text: str, style: str | None = None) -> None:
        """Print the next part of the text."""
        if style != self.style and self.held:
            self._put(self.held)
            self.held = ""
        self.style = style
        if not self.console.is_terminal:
            self._out(text)
            return
        pieces = _PIECE.findall(self.held + text)
        self.held = pieces.pop() if pieces and re.fullmatch(_WORD, pieces[-1]) else ""
        for piece in pieces:
            self._put(piece)
        self.console.file.flush()

    def end(self) -> None:
        """Print the word that is held back, and end the line."""
        self._put(self.held)
        self._out("\n")

    def _put(self, piece: str) -> None:
        if piece == "\n":
            self.column = 0
        elif self.column and self.column + cell_len(piece) > self.console.width:
            self._out("\n")
            self.column, piece = 0, piece.strip()
        self.column += cell_len(piece)
        self._out(piece)

    def _out(self, text: str) -> None:
        self.console.out(printable(text), end="", style=self.style, highlight=False)
