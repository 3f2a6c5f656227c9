"""One instruction with its wanted response: what every data source yields and everything downstream consumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Turn = tuple[str, str]  # what the user said, what the assistant answered


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction, an optional input it applies to, and the wanted output.

    In a conversation these are its last turn; `history` are the turns before it, `system` is the prompt that stands
    before all. `extra` holds the record's other fields (a category, say); they are carried along to responses and
    reports.
    """

    instruction: str
    output: str
    input: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    history: tuple[Turn, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """The example as a JSON-serialisable record in Alpaca's form, extra fields first; `from_record` reads it."""
        conversation = {"system": self.system, "history": [list(turn) for turn in self.history]}
        last = {"instruction": self.instruction, "input": self.input, "output": self.output}
        return {**self.extra, **{key: value for key, value in conversation.items() if value}, **last}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Example:
        """The example that `as_record` wrote."""
        extra = dict(record)
        instruction, given, output = (extra.pop(key) for key in ("instruction", "input", "output"))
        history = tuple((user, assistant) for user, assistant in extra.pop("history", ()))
        return cls(instruction, output, given, extra, extra.pop("system", ""), history)

    def first_turns(self, n_turns: int) -> Example:
        """The conversation cut behind its turn number `n_turns`."""
        if n_turns > len(self.history):
            return self
        instruction, output = self.history[n_turns - 1]
        return Example(instruction, output, "", self.extra, self.system, self.history[: n_turns - 1])
