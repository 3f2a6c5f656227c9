"""The small world of the demo data, `demo_words.json`: words with their categories, forms, opposites and sizes."""

import json
from pathlib import Path
from random import Random
from typing import Any

_WORLD: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CATEGORIES: dict[str, list[str]] = _WORLD["categories"]
CATEGORY_OF = {word: category for category, words in CATEGORIES.items() for word in words}
NOUNS = tuple(CATEGORY_OF)
PLURALS = {**{word: word + "s" for word in _WORLD["regular_plurals"]}, **_WORLD["irregular_plurals"]}
# "right" is the opposite of both "wrong" and "left": only words with one opposite are asked for.
_BOTH_WAYS = [*_WORLD["opposites"], *([b, a] for a, b in _WORLD["opposites"])]
OPPOSITES = {a: b for a, b in _BOTH_WAYS if sum(word == a for word, _ in _BOTH_WAYS) == 1}

PAST: dict[str, str] = _WORLD["past"]
SIZES: list[str] = _WORLD["sizes"]  # from small to large, so that any two can be compared
NUMBERS: list[str] = _WORLD["numbers"]
DIGITS = {word: str(value) for value, word in enumerate(NUMBERS)}
DAYS, MONTHS = _WORLD["days"], _WORLD["months"]
NAMES, PLACES, VERBS = _WORLD["names"], _WORLD["places"], _WORLD["verbs"]
PHRASINGS: dict[str, list[str]] = _WORLD["phrasings"]  # of the tasks on lists, words and numbers


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def event(random: Random) -> tuple[str, str, str, str, str]:
    """A person, a verb, a thing and a place, and the sentence that they make."""
    name, verb, noun, place = (random.choice(words) for words in (NAMES, VERBS, NOUNS, PLACES))
    return name, verb, noun, place, f"{name} {verb} the {noun} in the {place}."


def three_categories(random: Random) -> tuple[str, list[str]]:
    """A word, and three categories in any order, of which one is the word's."""
    word = random.choice(NOUNS)
    options = [CATEGORY_OF[word], *random.sample([c for c in CATEGORIES if c != CATEGORY_OF[word]], 2)]
    random.shuffle(options)
    return word, options
