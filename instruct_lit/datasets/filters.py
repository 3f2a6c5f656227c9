"""Filters of examples: applied in the order of `data.filters`, each one counting what it left out."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.datasets.near_duplicates import THRESHOLD, NearDuplicateIndex
from instruct_lit.errors import ConfigError, DataError

# How a model says that it will not answer, at the beginning of its answer.
REFUSALS = (
    r"\bas an? (ai|artificial intelligence|(large )?language model|ai language model)\b",
    r"^(i'?m |i am )?(really |very )?(sorry|afraid),? (but )?(that )?i\b",
    r"^(unfortunately,? )?i (cannot|can'?t|can not|won'?t|will not)\b",
    r"^(unfortunately,? )?(i am|i'?m) (not able|unable) to\b",
    r"\bi (do not|don'?t) have (access|the ability|the capability|personal)\b",
)
BEGINNING = 200  # characters of an answer that are searched for a refusal


class Filter:
    """Says which examples stay."""

    name: str

    def start(self) -> None:
        """Forget what was seen; called before the first example of a reading."""

    def keeps(self, example: Example) -> bool:
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Changes when other examples may stay."""
        return f"{self.name} {json.dumps({k: v for k, v in vars(self).items() if not k.startswith('_')}, default=str)}"


class Length(Filter):
    """Keeps examples whose question and answers, all turns together, have between so many words."""

    name = "length"

    def __init__(
        self,
        min_prompt_words: int = 0,
        max_prompt_words: int | None = None,
        min_response_words: int = 0,
        max_response_words: int | None = None,
    ) -> None:
        self.prompt = (min_prompt_words, max_prompt_words)
        self.response = (min_response_words, max_response_words)

    def keeps(self, example: Example) -> bool:
        counts = (len(questions(example).split()), len(answers(example).split()))
        return all(
            low <= n and (high is None or n <= high)
            for n, (low, high) in zip(counts, (self.prompt, self.response), strict=True)
        )


class Language(Filter):
    """Keeps examples in the allowed languages (ISO 639-1 codes), by langdetect, which is seeded.

    A text of fewer than `min_words` words is too short to tell, and stays. Needs the extra `filters`.
    """

    name = "language"

    def __init__(self, allowed: Sequence[str] = ("en",), min_words: int = 5) -> None:
        self.allowed, self.min_words = list(allowed), min_words
        if importlib.util.find_spec("langdetect") is None:
            raise ConfigError("data.filters.language: needs langdetect; pip install 'instruct-lit[filters]'")

    def keeps(self, example: Example) -> bool:
        import langdetect

        langdetect.DetectorFactory.seed = 0
        text = f"{questions(example)}\n{answers(example)}"
        if len(text.split()) < self.min_words:
            return True
        try:
            return langdetect.detect(text[:2000]) in self.allowed
        except langdetect.LangDetectException:  # nothing in it that belongs to a language
            return True


class NearDuplicates(Filter):
    """Leaves out near-duplicates of an earlier example, by the words of questions and answers together."""

    name = "near_duplicates"

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self.start()

    def start(self) -> None:
        self._index = NearDuplicateIndex(self.threshold, what="data.filters.near_duplicates")

    def keeps(self, example: Example) -> bool:
        return not self._index.add(f"{questions(example)}\n{answers(example)}", only_new=True)


class Refusals(Filter):
    """Leaves out examples with an answer that begins with a refusal; `patterns` take the place of `REFUSALS`."""

    name = "refusals"

    def __init__(self, patterns: Sequence[str] = REFUSALS) -> None:
        self.patterns = list(patterns)
        try:
            self._found = re.compile("|".join(f"(?:{pattern})" for pattern in self.patterns), re.IGNORECASE)
        except re.error as error:
            raise ConfigError(f"data.filters.refusals.patterns: no valid regular expression ({error})") from error

    def keeps(self, example: Example) -> bool:
        said = [*(answer for _, answer in example.history), example.output]
        return not any(self._found.search(text.strip()[:BEGINNING].replace("’", "'")) for text in said)


class Function(Filter):
    """Keeps what a user's function says: `function` in the Python file `path` is given a record and returns a bool.

    The file is code that is executed, so only a path that this command's own configuration names is opened, and never
    one that a run folder brings.
    """

    name = "function"

    def __init__(self, path: str, function: str = "keep") -> None:
        self.path, self.function = path, function
        self._file = Path(path).expanduser()
        if self._file.suffix != ".py" or not self._file.is_file():
            raise ConfigError(f"data.filters.function.path={path}: no such Python file (.py)")
        self.sha256 = hashlib.sha256(self._file.read_bytes()).hexdigest()
        self._keep: Callable[[dict[str, Any]], bool] | None = None

    def start(self) -> None:
        spec = importlib.util.spec_from_file_location("instruct_lit_users_filter", self._file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ConfigError(f"data.filters.function.path={self.path}: {type(error).__name__}: {error}") from error
        self._keep = getattr(module, self.function, None)
        if not callable(self._keep):
            raise ConfigError(f"data.filters.function.function={self.function}: no such function in {self.path}")

    def keeps(self, example: Example) -> bool:
        assert self._keep is not None, "start comes first"
        record = example.as_record()
        try:
            return bool(self._keep(record))
        except Exception as error:
            raise DataError(
                f"data.filters.function: {self.function} of {self.path} fails on {str(record)[:100]}: "
                f"{type(error).__name__}: {error}"
            ) from error


FILTERS: dict[str, type[Filter]] = {f.name: f for f in (Length, Language, NearDuplicates, Refusals, Function)}


class filtered:  # reads as a function at its call
    """The examples that every filter keeps; `counts` tells after iterating how many each one left out."""

    def __init__(self, examples: Iterable[Example], filters: Sequence[Filter]) -> None:
        self.examples, self.filters = examples, filters
        self.counts: dict[str, int] = {}

    def __iter__(self) -> Iterator[Example]:
        self.counts = {f"n_filtered_{filter.name}": 0 for filter in self.filters}
        for filter in self.filters:
            filter.start()
        for example in self.examples:
            for filter in self.filters:
                if not filter.keeps(example):
                    self.counts[f"n_filtered_{filter.name}"] += 1
                    break
            else:
                yield example


def questions(example: Example) -> str:
    """What the user said in all turns."""
    return "\n".join([*(user for user, _ in example.history), example.instruction, example.input]).strip()


def answers(example: Example) -> str:
    """What the assistant said in all turns."""
    return "\n".join([*(assistant for _, assistant in example.history), example.output])
