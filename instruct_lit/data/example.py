"""One instruction with its wanted response: what every data source yields and everything downstream consumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction, an optional input it applies to, and the wanted output.

    `extra` holds the record's other fields (a category, say); they are carried along to responses and reports.
    """

    instruction: str
    output: str
    input: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        """The example as a JSON-serialisable record in Alpaca's form, extra fields behind the three of the form."""
        return {**self.extra, "instruction": self.instruction, "input": self.input, "output": self.output}
