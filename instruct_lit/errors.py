"""The exceptions that a user of the program sees, and the form of their messages.

A message is `<where>: <what is wrong with which value>; <what is allowed or what to do>`. Commands print it without a
traceback and exit with status 2. Contradictions inside the program are asserts.
"""

import difflib
import pickle
import re
from itertools import islice
from pathlib import Path

MAX_LENGTH = 300  # characters of a line of a message
MAX_LINES = 40
_MAX_REMEDY = 200  # characters at the end of a long line that are kept, from the first semicolon in them on
_MAX_NAMES = 10_000  # of a folder that are compared
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    r"""The text with its control characters escaped (`\x1b`), so that it cannot move a terminal's cursor.

    Line feeds and tabs stay. For text of records, models and files that is shown to a person.
    """
    return text.translate(_ESCAPES)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; not that of torch, which proposes to unpickle a file that it refuses."""
    if isinstance(error, pickle.UnpicklingError):
        return "objects beside its tensors, which are never unpickled, or none; save it with safetensors"
    return (str(error).splitlines() or ["no message"])[0]


def quoted(text: object) -> str:
    """The text as the value of an override, in Hydra's grammar, whatever characters it has."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", "\\'"), str(text), flags=re.DOTALL)
    return f"'{escaped}'"


def _shortened(line: str) -> str:
    """The line with its middle left out where it is too long: the place stands first, the remedy last."""
    if len(line) <= MAX_LENGTH:
        return line
    remedy = line.find("; ", len(line) - _MAX_REMEDY)
    end = line[remedy if remedy >= 0 else len(line) - _MAX_REMEDY // 2 :]
    start = line[: MAX_LENGTH - 2 - len(end)]
    if remedy < 0 and ", " in start[-40:] and ", " in end[:40]:  # a list: items that are cut are left out
        start, end = start.rpartition(", ")[0] + ",", f" {end.partition(', ')[2]}"
    return f"{start} …{end}"


def similar(path: Path) -> str:
    """An addition to the message on a missing file or folder: the nearest name beside it, or where it was searched."""
    try:
        names = [entry.name for entry in islice(path.expanduser().resolve().parent.iterdir(), _MAX_NAMES)]
    except OSError:
        return "" if path.is_absolute() else f" in {Path.cwd()}"
    near = [] if path.name in names else difflib.get_close_matches(path.name, names, n=1)  # it may be a file
    return f" (did you mean {path.with_name(near[0])}?)" if near else ""


class InstructLitError(Exception):
    """An error that the user can correct: the message names the place, the value, and what is allowed.

    Control characters in the message are escaped, and lines of more than `MAX_LENGTH` characters lose their middle.
    """

    status = 2  # exit status of a command

    def __init__(self, message: str) -> None:
        lines = [_shortened(line) for line in printable(message).split("\n")]
        if len(lines) > MAX_LINES:
            lines[MAX_LINES:] = [f"  … and {len(lines) - MAX_LINES} more lines"]
        super().__init__("\n".join(lines))


class ConfigError(InstructLitError):
    """A configuration key is unknown, has the wrong type, or contradicts another one."""


class DataError(InstructLitError):
    """A data file, or a record in it, cannot be used."""


class TemplateError(InstructLitError):
    """A prompt template cannot be rendered or has no place for the response."""


class DownloadError(InstructLitError):
    """A file could not be downloaded, or is not the expected one."""


class CheckpointError(InstructLitError):
    """Weights, a bundle or a training checkpoint are missing, damaged, or belong to another model or data set."""


class JudgeError(InstructLitError):
    """A judge cannot be reached, or its replies cannot be stored."""


class TrainingError(InstructLitError):
    """Training cannot continue: NaN or infinite loss, or the device is out of memory."""


class VerificationError(InstructLitError):
    """A written model gives other values than the model that was written."""

    status = 1


class TrialPruned(Exception):
    """A pruner ended a trial of a sweep early; not a failure."""

    status = 3  # exit status of the trial's process
