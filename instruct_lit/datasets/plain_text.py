"""Plain text for pretraining the nano base: notes and small stories about the same small world as the demo data.

It states facts (what stands first, what the plural is, how the list reads backwards) and never gives an instruction;
none of the demo's phrasings or prompt headers occurs in it.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import ReadingNotes
from instruct_lit.datasets import demo_words as world
from instruct_lit.datasets.demo_words import CATEGORIES, CATEGORY_OF, NAMES, NOUNS, NUMBERS, PLACES, SIZES, article

VERSION = 1  # increment it when a seed gives other documents
ALL_WORDS = tuple(sorted({*NOUNS, *world.PLURALS, *world.OPPOSITES, *world.PAST, *SIZES, *PLACES}))


class PlainTextSource:
    """`n_documents` seeded documents; each is an Example without instruction whose output is the text."""

    notes = ReadingNotes()

    def __init__(self, n_documents: int, seed: int = 0, name: str = "nano_text") -> None:
        self.name, self.n_documents, self.seed = name, n_documents, seed

    def fingerprint(self) -> str:
        """A hash of `VERSION` and the settings."""
        return hashlib.sha256(f"plain text {VERSION} {self.n_documents} {self.seed}".encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[Example]:
        random = Random(self.seed)
        for _ in range(self.n_documents):
            yield Example("", document(random))


def document(random: Random) -> str:
    """One document: a list, a sentence or single words, and what can be said about them."""
    return random.choices((_about_a_list, _about_a_sentence, _about_words), (5, 2, 4))[0](random)


Fact = tuple[str, str]  # what is said, and its value


def _about_a_list(random: Random) -> str:
    if random.random() < 0.25:
        common, other = random.sample(list(CATEGORIES), 2)
        odd = random.choice(CATEGORIES[other])
        items = [*random.sample(CATEGORIES[common], 3), odd]
        random.shuffle(items)
    else:
        items, odd = random.sample(NOUNS if random.random() < 0.8 else ALL_WORDS, random.randint(2, 6)), None
    gone = random.choice(items)
    there, absent = random.choice(items), random.choice([w for w in NOUNS if w not in items])
    facts: list[Fact] = [
        (random.choice(["first", "the first word", "it begins with"]), items[0]),
        (random.choice(["last", "the last word", "it ends with"]), items[-1]),
        (random.choice(["second", "the second word", "at place two"]), items[1]),
        (random.choice(["backwards", "in reverse", "reversed"]), ", ".join(reversed(items))),
        (random.choice(["alphabetical", "sorted from A to Z", "in alphabetical order"]), ", ".join(sorted(items))),
        (random.choice(["count", "number of words", "how many"]), str(len(items))),
        (random.choice([f"without '{gone}'", f"'{gone}' removed", f"'{gone}' left out"]),
         ", ".join(item for item in items if item != gone)),
        (random.choice([f"'{there}' in the list", f"contains '{there}'"]), "Yes"),
        (random.choice([f"'{absent}' in the list", f"contains '{absent}'"]), "No"),
        ("the same", ", ".join(items)),
    ]  # fmt: skip
    if odd is not None:
        facts += [(random.choice(["does not belong", "odd one out", "does not fit"]), odd)] * 2
    title = random.choice(["A list", "Words", "On the paper", "Items", "The list"])
    return _notes(random, f"{title}: {', '.join(items)}", facts, random.randint(3, 6))


def _about_a_sentence(random: Random) -> str:
    name, _, noun, place, sentence = world.event(random)
    old, new = random.choice(
        [(noun, random.choice(NOUNS)), (name, random.choice(NAMES)), (place, random.choice(PLACES))]
    )
    changed = sentence.replace(old, new, 1)
    exchanges = [f"'{new}' instead of '{old}'", f"'{old}' replaced with '{new}'", f"'{old}' changed to '{new}'"]
    facts: list[Fact] = [
        (random.choice(["who", "the person", "about"]), name),
        (random.choice(["where", "the place", "in which place"]), place),
        (random.choice(["what", "the thing"]), noun),
        (random.choice(exchanges), changed),
        (random.choice(exchanges), changed),
        ("again", sentence),
    ]  # fmt: skip
    return _notes(random, sentence, facts, random.randint(2, 4))


def _about_words(random: Random) -> str:
    return "\n".join(random.choice(_SAYINGS)(random) for _ in range(random.randint(3, 7)))


def _notes(random: Random, head: str, facts: list[Fact], n_facts: int) -> str:
    chosen = random.sample(facts, min(n_facts, len(facts)))
    return "\n".join([head, *(_said(random, what, value) for what, value in chosen)])


def _said(random: Random, what: str, value: str) -> str:
    """A fact in one line, or as a heading with the value in a line of its own."""
    form = random.random()
    if form < 0.45:
        return f"{what[0].upper()}{what[1:]}:\n{value}\n"
    if form < 0.75:
        return f"{what[0].upper()}{what[1:]}: {value}"
    return f"{what} is {value}"


def _case(random: Random) -> str:
    word = random.choice(NOUNS)
    big = random.random() < 0.5
    large = ["in capital letters", "in upper case", "in all caps"]
    what = random.choice(large if big else ["in small letters", "in lower case", "in lowercase"])
    given, value = (word, word.upper()) if big else (word.upper(), word)
    return _said(random, f"'{given}' {what}", value)


def _form(forms: dict[str, str], phrasings: list[str], random: Random) -> str:
    """A form of a word, such as its plural."""
    word = random.choice(list(forms))
    return _said(random, random.choice(phrasings).format(word), forms[word])


def _category(random: Random) -> str:
    word, (one, two, three) = world.three_categories(random)
    what = random.choice(
        [f"'{word}' among {one}, {two} and {three}", f"{one}, {two} or {three}: '{word}'", f"the category of '{word}'",
         f"the kind of thing that {article(word)} is"]
    )  # fmt: skip
    return _said(random, what, CATEGORY_OF[word])


def _size(random: Random) -> str:
    one, two = random.sample(SIZES, 2)
    relation = random.choice(["bigger", "smaller"])
    true = (SIZES.index(one) > SIZES.index(two)) == (relation == "bigger")
    if random.random() < 0.3:
        first, second = (one, two) if true else (two, one)
        return f"{article(first)} is {relation} than {article(second)}"
    return _said(random, f"{article(one)} {relation} than {article(two)}", "Yes" if true else "No")


def _sequence(random: Random) -> str:
    names = random.choice([world.DAYS, world.MONTHS, NUMBERS])
    place = random.randrange(len(names) - 1)
    if random.random() < 0.2:
        return ", ".join(names[max(0, place - 2) : place + 3])
    what = random.choice(["after {}", "right after {}", "following {}"]).format(names[place])
    return _said(random, what, names[place + 1])


_opposite = partial(_form, world.OPPOSITES, ["the opposite of '{}'", "an antonym of '{}'"])
_plural = partial(_form, world.PLURALS, ["the plural of '{}'", "plural form of '{}'", "many, not one '{}'"])
_past = partial(_form, world.PAST, ["the past tense of '{}'", "past form of '{}'", "yesterday, not '{}'"])
_digits = partial(_form, world.DIGITS, ["'{}' in digits", "numeral for '{}'"])
_SAYINGS: tuple[Callable[[Random], str], ...] = (
    _case, _case, _opposite, _plural, _past, _category, _category, _size, _size, _sequence, _digits,
)  # fmt: skip
