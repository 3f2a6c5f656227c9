"""What the search for leaks finds: recall on items planted into training texts in six changed forms, and false alarms.

python -m benchmarks.leaks --records ../shared/data/instructions/book-1100.json --mmlu ../shared/data/mmlu/test
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from instruct_lit.datasets.leaks import LeakFinder, question
from instruct_lit.datasets.near_duplicates import words
from instruct_lit.evaluation.leaks import find_leaks

# Rewordings of the usual beginnings and phrases of instructions and questions; every one that applies is made.
PARAPHRASES = (
    (r"^Rewrite", "Rephrase"), (r"^Identify", "Find"), (r"^What is", "Tell me"), (r"^Provide", "Give"), (r"^Create", "Write"),
    (r"^Generate", "Make up"), (r"^Convert", "Change"), (r"^Describe", "Say in your words"), (r"^Classify", "Sort"), (r"^Name", "Mention"),
    (r"^Translate", "Put"), (r"^Define", "Explain"), (r"^List", "Enumerate"), (r"^Suggest", "Propose"), (r"^Calculate", "Work out"),
    (r"^Correct", "Fix"), (r"^Edit", "Correct"), (r"^Explain", "Describe"), (r"^Which of the following", "Which one of these"),
    (r"^Find", "Look for"), (r"^Which", "What"), (r"the following", "this"), (r"sentence", "phrase"), (r"using", "with"),
    (r"synonym for", "word that means"), (r"most likely", "probably"), (r"is called", "is named"), (r"because", "since"),
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def case(text: str, random: Random, others: Sequence[str]) -> str:
    return re.sub(r"[.?!,:;'\"]", "", text).upper()


def one_word(text: str, random: Random, others: Sequence[str]) -> str:
    """A word of more than three letters is replaced by one of another text."""
    found = text.split()
    places = [i for i, word in enumerate(found) if len(word) > 3] or list(range(len(found)))
    found[random.choice(places)] = random.choice(
        [w for w in random.choice(others).split() if len(w) > 3] or ["something"]
    )
    return " ".join(found)


def order(text: str, random: Random, others: Sequence[str]) -> str:
    found = text.split()
    random.shuffle(found)
    return " ".join(found)


def inside(text: str, random: Random, others: Sequence[str]) -> str:
    """Between two other texts."""
    return f"{random.choice(others)} {text} {random.choice(others)}"


def misspelt(text: str, random: Random, others: Sequence[str]) -> str:
    """One letter in 25 is another."""
    letters = list(text)
    for _ in range(max(1, len(letters) // 25)):
        letters[random.randrange(len(letters))] = random.choice(LETTERS)
    return "".join(letters)


def paraphrase(text: str, random: Random, others: Sequence[str]) -> str:
    changed = text
    for pattern, other in PARAPHRASES:
        changed = re.sub(pattern, other, changed, count=1)
    return changed if changed != text else f"I would like to know this: {text[:1].lower()}{text[1:]}"


FORMS: dict[str, Callable[[str, Random, Sequence[str]], str]] = {
    "other case, no punctuation": case, "one word replaced": one_word, "words in random order": order,
    "inside a longer text": inside, "one letter in 25 wrong": misspelt, "reworded by rules": paraphrase,
}  # fmt: skip


def measure(title: str, items: list[str], train: list[str]) -> list[str]:
    """Rows of a table in Markdown: recall for each form, for all items and for those of at least eight words."""
    rows, long = [], {i for i, item in enumerate(items) if len(words(item)) >= 8}
    for form, change in FORMS.items():
        random = Random(0)
        planted = [change(item, random, train) for item in items]
        found = {}
        for near in (True, False):
            leaks = LeakFinder(items, near).find([*train, *planted])
            found[near] = {leak.item for leak in leaks if leak.train == len(train) + leak.item}
        with_words = [f"{len(found[True] & long) / len(long):.2f}", f"{len(found[True]) / len(items):.2f}"]
        rows.append(f"| {title} | {form} | {' | '.join(with_words)} | {len(found[False]) / len(items):.2f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, required=True, help="instructions: 85 % to train, the next 10 % items")
    parser.add_argument("--mmlu", type=Path, help="folder with MMLU's files, of which 2,000 questions are items")
    parser.add_argument("--show", action="store_true", help="print what is reported without anything planted")
    given = parser.parse_args()
    texts = [question(record).strip() for record in json.loads(given.records.read_text(encoding="utf-8"))]
    n_train, n_items = int(0.85 * len(texts)), int(0.1 * len(texts))
    train = texts[:n_train]
    sets = {"records": texts[n_train : n_train + n_items]}
    if given.mmlu is not None:
        questions = []
        for file in sorted(given.mmlu.glob("*.csv")):
            with file.open(encoding="utf-8", newline="") as lines:
                questions += [row[0] for row in csv.reader(lines)]
        sets["MMLU"] = Random(1).sample(questions, 2000)
    print("| items | form | found, of 8 words or more | found, all | without near-duplicates |\n|---|---|---|---|---|")
    for title, items in sets.items():
        print("\n".join(measure(title, items, train)), flush=True)
    for title, items in sets.items():
        start = time.perf_counter()
        leaks = find_leaks(train, items)
        seconds = time.perf_counter() - start
        print(
            f"{title}: {len(leaks)} of {len(items)} items reported with nothing planted in {len(train)} texts ({seconds:.1f} s)"
        )
        for leak in sorted(leaks, key=lambda leak: -leak.similarity) if given.show else ():
            print(f"  {leak.kind} {leak.similarity:.2f}: {items[leak.item]!r:.100} | {train[leak.train]!r:.100}")


if __name__ == "__main__":
    main()
