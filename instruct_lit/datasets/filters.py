"""Filters of examples, applied in the order of `data.filters`."""

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import read_records
from instruct_lit.datasets import leaks
from instruct_lit.datasets.near_duplicates import THRESHOLD, NearDuplicateIndex
from instruct_lit.errors import ConfigError, DataError
from instruct_lit.optional_imports import load, need

# How a refusal begins.
REFUSALS = (
    r"\bas an? (ai|artificial intelligence|(large )?language model|ai language model)\b",
    r"^(i'?m |i am )?(really |very )?(sorry|afraid),? (but )?(that )?i\b",
    r"^(unfortunately,? )?i (cannot|can'?t|can not|won'?t|will not)\b",
    r"^(unfortunately,? )?(i am|i'?m) (not able|unable) to\b",
    r"\bi (do not|don'?t) have (access|the ability|the capability|personal)\b",
)
BEGINNING = 200  # characters of an answer that are searched for a refusal


class Filter:
    """Decides which examples are kept."""

    name: str

    def start(self) -> None:
        """Reset; called before the first example of an iteration."""

    def keeps(self, example: Example) -> bool:
        """Whether an example is kept."""
        raise NotImplementedError

    def decide(self, examples: Iterable[Example]) -> Iterator[tuple[Example, bool]]:
        """Every example, and whether it is kept."""
        for example in examples:
            yield example, self.keeps(example)

    def fingerprint(self) -> str:
        """A text that changes with the settings."""
        return f"{self.name} {json.dumps({k: v for k, v in vars(self).items() if not k.startswith('_')}, default=str)}"


class Length(Filter):
    """Keeps examples whose questions and answers, all turns together, have so many words."""

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
        counts = (len(example.user_text.split()), len(assistant_text(example).split()))
        return all(
            low <= n and (high is None or n <= high)
            for n, (low, high) in zip(counts, (self.prompt, self.response), strict=True)
        )


class Language(Filter):
    """Keeps examples in the allowed languages (ISO 639-1 codes), by langdetect, which is seeded.

    A text of fewer than `min_words` words is too short to be recognised, and is kept. Requires the extra `filters`.
    """

    name = "language"

    def __init__(self, allowed: Sequence[str] = ("en",), min_words: int = 5) -> None:
        self.allowed, self.min_words = list(allowed), min_words
        need("langdetect", "data.filters.language", "filters")

    def keeps(self, example: Example) -> bool:
        text = f"{example.user_text}\n{assistant_text(example)}"
        return len(text.split()) < self.min_words or language_of(text) in (None, *self.allowed)


def language_of(text: str, what: str = "data.filters.language", extra: str = "filters") -> str | None:
    """The language of a text (ISO 639-1) by langdetect, which is seeded; None for no letters of any language.

    Raises: ConfigError without langdetect, naming `what` needs it and the extra.
    """
    langdetect = load("langdetect", what, extra)
    langdetect.DetectorFactory.seed = 0
    try:
        return langdetect.detect(text[:2000])
    except langdetect.LangDetectException:
        return None


class NearDuplicates(Filter):
    """Drops near-duplicates of an earlier example, by the words of questions and answers together."""

    name = "near_duplicates"

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self.start()

    def start(self) -> None:
        self._index = NearDuplicateIndex(self.threshold, what="data.filters.near_duplicates")

    def keeps(self, example: Example) -> bool:
        return not self._index.add(f"{example.user_text}\n{assistant_text(example)}", only_new=True)


class Leaks(Filter):
    """Drops examples whose question is an item of `suites` (benchmarks of lm-evaluation-harness) or `files`.

    Args:
        suites, data_dir: names of `suite`, and a folder of data sets as in `benchmark.data_dir`.
        files: records with `instruction` (and `input`), `question` or `prompt`.
        threshold: cosine similarity, see `leaks.LeakFinder`.
    """

    name = "leaks"

    def __init__(
        self,
        suites: Sequence[str] = (),
        files: Sequence[str] = (),
        data_dir: str | None = None,
        threshold: float = leaks.THRESHOLD,
    ) -> None:
        if not (suites or files) or not 0 < threshold <= 1:
            raise ConfigError("data.filters.leaks: give suites=[…] or files=[…], and a threshold above 0 and at most 1")
        self.suites, self.files, self.data_dir, self.threshold = list(suites), list(files), data_dir, threshold
        need("sklearn", "data.filters.leaks", "filters")
        items = [leaks.question(record) for file in self.files for record in _questions(Path(file).expanduser())]
        self.sha256 = hashlib.sha256(json.dumps(items).encode()).hexdigest()
        self._items = items
        self._finder: leaks.LeakFinder | None = None

    @staticmethod
    def suite_items(name: str, data_dir: str | None) -> list[str]:
        """The items of a suite; the configuration provides this function."""
        raise NotImplementedError

    def start(self) -> None:
        if self._finder is None:
            of_suites = [text for name in self.suites for text in self.suite_items(name, self.data_dir)]
            self._finder = leaks.LeakFinder([*self._items, *of_suites], threshold=self.threshold)

    def keeps(self, example: Example) -> bool:
        assert self._finder is not None, "call start first"
        return next(self._finder.find([leaks.question(example.as_record())]), None) is None


def _questions(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of questions, with `instruction`."""
    for place, record in read_records(file):
        fields = record if isinstance(record, dict) else {}
        text = next((fields[f] for f in ("instruction", "question", "prompt") if isinstance(fields.get(f), str)), None)
        if text is None:
            missing = DataError(f"{place}: no text in 'instruction', 'question' or 'prompt'")
            raise record if isinstance(record, DataError) else missing
        yield {**fields, "instruction": text}


class Refusals(Filter):
    """Drops examples with an answer that begins with a refusal; `patterns` replace `REFUSALS`."""

    name = "refusals"

    def __init__(self, patterns: Sequence[str] = REFUSALS) -> None:
        self.patterns = list(patterns)
        try:
            self._refusal = re.compile("|".join(f"(?:{pattern})" for pattern in self.patterns), re.IGNORECASE)
        except re.error as error:
            raise ConfigError(f"data.filters.refusals.patterns: invalid regular expression ({error})") from error

    def keeps(self, example: Example) -> bool:
        answers = [*(answer for _, answer in example.history), example.output]
        return not any(self._refusal.search(text.strip()[:BEGINNING].replace("’", "'")) for text in answers)


class Function(Filter):
    """Keeps examples for which a user's function, `function` in the Python file `path`, returns true for the record.

    The file is executed, so only a path that this command's own configuration names is opened, never one that a run
    folder names.
    """

    name = "function"

    def __init__(self, path: str, function: str = "keep") -> None:
        self.path, self.function = path, function
        self.sha256 = hashlib.sha256(_python_file(path, "data.filters.function.path").read_bytes()).hexdigest()
        self._keep: Callable[[dict[str, Any]], bool] | None = None

    def start(self) -> None:
        self._keep = load_function(self.path, self.function, "data.filters.function.path")

    def keeps(self, example: Example) -> bool:
        assert self._keep is not None, "call start first"
        return bool(call(self._keep, example.as_record(), "data.filters.function"))


def load_function(path: str, name: str, key: str) -> Callable[[dict[str, Any]], Any]:
    """A user's function of a record, from a Python file, which is executed.

    Raises: ConfigError, naming the configuration's key, where there is no such file or function.
    """
    spec = importlib.util.spec_from_file_location("instruct_lit_users_function", _python_file(path, key))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{key}={path}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{key}={path}: no function {name} in it")
    return function


def call(function: Callable[[dict[str, Any]], Any], record: dict[str, Any], key: str) -> Any:
    """What a user's function returns for a record. Raises: DataError where it fails."""
    try:
        return function(record)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{key}: {function.__name__} fails on {str(record)[:100]}: {reason}") from error


def _python_file(path: str, key: str) -> Path:
    file = Path(path).expanduser()
    if file.suffix != ".py" or not file.is_file():
        raise ConfigError(f"{key}={path}: no such Python file (.py)")
    return file


FILTERS: dict[str, type[Filter]] = {f.name: f for f in (Length, Language, NearDuplicates, Leaks, Refusals, Function)}


class FilterChain:
    """Several filters in their order; the data module's `ExampleFilter`. `counts` says how many each one dropped."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = list(filters)
        self.counts: dict[str, int] = {}

    def __call__(self, examples: Iterable[Example]) -> Iterator[Example]:
        self.start()
        for filter in self.filters:
            examples = self._kept(filter, examples)
        yield from examples

    def _kept(self, filter: Filter, examples: Iterable[Example]) -> Iterator[Example]:
        for example, is_kept in filter.decide(examples):
            if is_kept:
                yield example
            else:
                self.counts[f"n_filtered_{filter.name}"] += 1

    def start(self) -> None:
        """Reset all filters and counts."""
        self.counts = {f"n_filtered_{filter.name}": 0 for filter in self.filters}
        for filter in self.filters:
            filter.start()

    def rejects(self, example: Example) -> str | None:
        """The name in `counts` of the first filter that drops an example; None for one that is kept."""
        return next((f"n_filtered_{f.name}" for f in self.filters if not f.keeps(example)), None)

    def fingerprints(self) -> list[str]:
        """The settings of all filters."""
        return [filter.fingerprint() for filter in self.filters]


def assistant_text(example: Example) -> str:
    """What the assistant wrote, all turns together."""
    return "\n".join([*(assistant for _, assistant in example.history), example.output])
