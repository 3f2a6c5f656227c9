"""Checks of a response that a record carries: what its instruction demands and a program can verify.

`"checks": [{"n_words": [1, 10]}, {"forbidden": ["very"]}]`: a list of mappings with one kind of `KINDS` each.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import regex

from instruct_lit.errors import DataError
from instruct_lit.evaluation.statistics import Interval, interval
from instruct_lit.optional_imports import load
from instruct_lit.words import UNSPACED, words

FIELD, FUNCTION = "checks", "check_function"  # of a record, and of the row after the user's own function
TIMEOUT_S = 0.5  # of a regular expression, which then does not match
MAX_CHECKS, MAX_CHARACTERS = 50, 10_000  # of a record, and of the JSON of a check
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?")
MAX_PATTERN, MAX_REPEATS = 1000, 10_000  # characters of a regular expression, and the product of its {n}
_REPEATS, _CODE = re.compile(r"\{[\d,]+\}"), re.compile(r"[a-z]{2}(-[a-z]{2})?")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")  # could name other files, or grow without bound


def _within(value: float | None, bounds: Sequence[float | None]) -> bool:
    low, high = bounds
    return value is not None and (low is None or low <= value) and (high is None or value <= high)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _matches(text: str, pattern: str) -> bool:
    try:
        return regex.search(pattern, text, timeout=TIMEOUT_S) is not None
    except (TimeoutError, RecursionError):
        return False


@cache
def _schema(text: str) -> Any:
    """The validator of a JSON schema given as JSON; its own engine searches patterns in linear time."""
    library = load("jsonschema_rs", "a check of json_schema", "evaluate")
    return library.validator_for(json.loads(text), pattern_options=library.RegexOptions())


def _satisfies(text: str, schema: Any) -> bool:
    validator = _schema(json.dumps(schema))
    try:
        return validator.is_valid(json.loads(text))
    except (ValueError, RecursionError):
        return False


def _has_word(text: str, word: str) -> bool:
    letter = rf"[\w--[{UNSPACED}]]"  # no word goes on with a letter of a script without spaces
    return regex.search(rf"(?V1i)(?<!{letter}){regex.escape(word)}(?!{letter})", text) is not None


def _language_of(text: str) -> str | None:
    from instruct_lit.datasets.filters import language_of  # not before a check needs it: the folder may be absent

    return language_of(text, "a check of language", "evaluate")


# Whether a response passes a check, by kind.
KINDS: dict[str, Callable[[str, Any], bool]] = {
    "contains": lambda text, value: all(part in text for part in _texts(value)),
    "forbidden": lambda text, value: not any(_has_word(text, word) for word in _texts(value)),
    "one_of": lambda text, value: text.strip() in value,
    "ends_with": lambda text, value: text.rstrip().endswith(value),
    "regex": _matches,
    "json_schema": _satisfies,
    "number": lambda text, value: _within(_last_number(text), value),
    "n_words": lambda text, value: _within(len(words(text)), value),
    "language": lambda text, value: _language_of(text) == value,
}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_pattern(value: Any) -> bool:
    """Whether a pattern is short and its repetitions, which are compiled one by one, are few."""
    if not _is_text(value) or len(value) > MAX_PATTERN:
        return False
    return math.prod(max(1, int(n)) for n in re.findall(r"\d+", "".join(_REPEATS.findall(value)))) <= MAX_REPEATS


def _are_bounds(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or any(type(v) not in (int, float, type(None)) for v in value):
        return False
    return None in value or value[0] <= value[1]


# What the value of a kind is, and whether one is valid.
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("contains", "forbidden"), ("a text or a list of texts", lambda v: _is_text(v) or _are_texts(v))),
    "one_of": ("a list of texts", _are_texts),
    "ends_with": ("a text", _is_text),
    "regex": (f"a regular expression of at most {MAX_PATTERN} characters and few repetitions", _is_pattern),
    "json_schema": (f"a JSON schema without {_REFERENCES[0]}", lambda v: isinstance(v, dict) and not _refers(v)),
    **dict.fromkeys(("number", "n_words"), ("[lowest, highest], null for no bound", _are_bounds)),
    "language": ("an ISO 639-1 code such as en", lambda v: _is_text(v) and _CODE.fullmatch(v) is not None),
}


def _refers(schema: Any) -> bool:
    values = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return any(key in schema for key in _REFERENCES if isinstance(schema, dict)) or any(map(_refers, values))


def check_record(value: Any, place: str, *_: Any) -> None:
    """Validate the field `checks` of a record.

    Raises: DataError, naming the place, for an unknown or malformed check, and where its library is missing.
    """
    if not isinstance(value, list) or len(value) > MAX_CHECKS:
        raise DataError(f"{place}: 'checks' must be a list of at most {MAX_CHECKS} checks, found {reprlib.repr(value)}")
    for check in value:
        if not isinstance(check, dict) or len(check) != 1 or (kind := next(iter(check))) not in KINDS:
            allowed = f"allowed is a mapping with one of {', '.join(KINDS)}"
            raise DataError(f"{place}: check {reprlib.repr(check)}; {allowed}")
        argument, (meaning, is_valid) = check[kind], _VALUES[kind]
        try:
            valid = is_valid(argument) and len(json.dumps(argument)) <= MAX_CHARACTERS
            if valid:
                KINDS[kind]("a", argument)
        except (ValueError, RecursionError, regex.error) as error:
            raise DataError(f"{place}: check {kind}: invalid value ({str(error)[:100]}); give {meaning}") from error
        if not valid:
            raise DataError(f"{place}: check {kind}: found {reprlib.repr(argument)}; give {meaning}")


def outcomes(row: Mapping[str, Any]) -> dict[str, bool]:
    """For each kind of check of a row whether its response passes all of them; of `function` the user's verdict."""
    found: dict[str, bool] = {}
    for check in row.get(FIELD) or ():
        ((kind, value),) = check.items()
        found[kind] = found.get(kind, True) and KINDS[kind](row["response"], value)
    return found | ({"function": row[FUNCTION]} if FUNCTION in row else {})


def has_checks(row: Mapping[str, Any]) -> bool:
    """Whether a row has anything to check."""
    return bool(row.get(FIELD)) or FUNCTION in row


def passed(row: Mapping[str, Any]) -> float:
    """1 where the response passes every check of its record."""
    return float(all(outcomes(row).values()))


def by_kind(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Interval]:
    """The share of rows with a kind of check that pass all checks of this kind, in the order of their first use."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        for kind, value in outcomes(row).items():
            found.setdefault(kind, []).append(value)
    return {kind: interval(values, seed) for kind, values in found.items()}
