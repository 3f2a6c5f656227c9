"""The demo data set: small instructions whose answers can be checked exactly, written by a seeded program."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from random import Random

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import ReadingNotes
from instruct_lit.datasets import demo_words as world
from instruct_lit.datasets.demo_words import CATEGORY_OF, NOUNS, NUMBERS, PHRASINGS, SIZES, article
from instruct_lit.errors import ConfigError

VERSION = 1  # increment it when a seed gives other examples
MOST_EXAMPLES = 1_000_000  # the families have fewer different instructions
Task = tuple[str, str, str]  # instruction, input, output


class DemoSource:
    """`n_examples` different instructions of all families in turn, the same for the same seed.

    No (instruction, input) pair occurs twice, so no test instruction is ever trained on. With `checks` each record
    carries what the form of its answer must satisfy.
    """

    notes = ReadingNotes()
    kind = f"demo {VERSION}"  # of what is written, with its version

    def __init__(self, n_examples: int = 6000, seed: int = 0, name: str = "demo", checks: bool = False) -> None:
        if not 1 <= n_examples <= MOST_EXAMPLES:
            raise ConfigError(f"data.source.n_examples={n_examples}: must be between 1 and {MOST_EXAMPLES}")
        self.name, self.n_examples, self.seed, self.checks = name, n_examples, seed, checks

    def fingerprint(self) -> str:
        """A hash of `kind` and the settings."""
        settings = f"{self.kind} {self.n_examples} {self.seed}{' checks' * self.checks}"
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[Example]:
        random = Random(self.seed)
        seen: set[tuple[str, str]] = set()
        open_families = dict(FAMILIES)
        n_made = 0
        while n_made < self.n_examples and open_families:
            for family in list(open_families):
                for _ in range(50):  # a small family may have no new instruction left
                    instruction, given, output = open_families[family](random)
                    if (instruction, given) not in seen:
                        break
                else:
                    del open_families[family]
                    continue
                seen.add((instruction, given))
                checks = {"checks": checks_of(family, output)} if self.checks else {}
                yield Example(instruction, output, given, {"family": family, **checks})
                n_made += 1
                if n_made == self.n_examples:
                    return


# Tasks on a list of words, by name: fewest and most words, and the answer.
LIST_TASKS: dict[str, tuple[int, int, Callable[[list[str]], str]]] = {
    "first_word": (3, 5, lambda items: items[0]),
    "last_word": (3, 5, lambda items: items[-1]),
    "second_word": (3, 5, lambda items: items[1]),
    "reverse": (3, 4, lambda items: ", ".join(reversed(items))),
    "sort": (3, 3, lambda items: ", ".join(sorted(items))),
    "count": (2, 6, lambda items: str(len(items))),
}
# Tasks on one word, by name: the answer to each word.
WORD_TASKS: dict[str, Mapping[str, str]] = {
    "upper_case": {word: word.upper() for word in NOUNS},
    "lower_case": {word.upper(): word for word in NOUNS},
    "opposite": world.OPPOSITES,
    "plural": world.PLURALS,
    "past_tense": world.PAST,
    "number_in_digits": world.DIGITS,
}


def list_task(name: str, random: Random) -> Task:
    """The list stands in the input, or behind the instruction."""
    low, high, answer = LIST_TASKS[name]
    items = random.sample(NOUNS, random.randint(low, high))
    phrase, text = random.choice(PHRASINGS[name]), ", ".join(items)
    if random.random() < 0.6:
        return phrase + ("?" if phrase.startswith(("Which", "How")) else "."), text, answer(items)
    return f"{phrase}: {text}", "", answer(items)


def word_task(name: str, random: Random) -> Task:
    """A task on one word."""
    word = random.choice(list(WORD_TASKS[name]))
    return *_with_word(random, PHRASINGS[name], word), WORD_TASKS[name][word]


def _with_word(random: Random, phrasings: list[str], word: str) -> tuple[str, str]:
    """The word stands in the instruction (at `{}`), or in the input."""
    phrase = random.choice(phrasings)
    if random.random() < 0.6:
        return phrase.format(f"'{word}'"), ""
    return phrase.format("the given word"), word


def category(random: Random) -> Task:
    word, (one, two, three) = world.three_categories(random)
    phrasings = [
        f"Is {{}} {article(one)}, {article(two)} or {article(three)}?",
        f"Classify {{}} as {one}, {two} or {three}.",
        f"Choose the category of {{}}: {one}, {two}, {three}.",
    ]
    return *_with_word(random, phrasings, word), CATEGORY_OF[word]


def larger(random: Random) -> Task:
    one, two = random.sample(SIZES, 2)
    yes = SIZES.index(one) > SIZES.index(two)
    asked = random.choice(["bigger", "smaller"])
    form = random.choice(["Is {} {} than {}?", "Answer yes or no: is {} {} than {}?", "Tell me, is {} {} than {}?"])
    return form.format(article(one), asked, article(two)), "", "Yes" if yes == (asked == "bigger") else "No"


def after(random: Random) -> Task:
    names = random.choice([world.DAYS, world.MONTHS, NUMBERS])
    place = random.randrange(len(names) - 1)
    form = random.choice(["What comes after {}?", "Which word follows {}?", "Name the one right after {}."])
    return form.format(names[place]), "", names[place + 1]


def replace(random: Random) -> Task:
    name, _, noun, _, sentence = world.event(random)
    old, new = random.choice(
        [
            (noun, random.choice([n for n in NOUNS if n != noun])),
            (name, random.choice([n for n in world.NAMES if n != name])),
        ]
    )
    form = random.choice(["Replace '{}' with '{}'.", "Change '{}' to '{}'.", "Use '{1}' instead of '{0}'."])
    return form.format(old, new), sentence, sentence.replace(old, new, 1)


def who(random: Random) -> Task:
    name, verb, noun, place, sentence = world.event(random)
    asked, answer = random.choice(
        [(["Who is the sentence about?", "Name the person in the sentence.", f"Who {verb} the {noun}?"], name),
         (["Where did it happen?", "Name the place in the sentence.", "In which place was it?"], place)]
    )  # fmt: skip
    return random.choice(asked), sentence, answer


def checks_of(family: str, output: str) -> list[dict[str, object]]:
    """What an answer of a family must satisfy, as the records' field `checks`."""
    n_words = len(output.split())
    found: dict[str, object] = {"n_words": [n_words, n_words]}
    if output.isdigit():
        found["number"] = [int(output), int(output)]
    elif family == "larger":
        found["one_of"] = ["Yes", "No"]
    elif family in ("upper_case", "lower_case"):
        found["regex"] = r"^\p{Lu}+$" if family == "upper_case" else r"^\p{Ll}+$"
    elif family in ("reverse", "sort"):
        found["contains"] = output.split(", ")
    elif family == "replace":
        found["ends_with"] = "."
    return [{kind: value} for kind, value in found.items()]


FAMILIES: dict[str, Callable[[Random], Task]] = {
    **{name: partial(list_task, name) for name in LIST_TASKS},
    **{name: partial(word_task, name) for name in WORD_TASKS if name != "number_in_digits"},
    **{function.__name__: function for function in (category, larger, after)},
    "number_in_digits": partial(word_task, "number_in_digits"),
    **{function.__name__: function for function in (replace, who)},
}
