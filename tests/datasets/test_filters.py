"""Each filter on literal records, their order and their counts."""

from pathlib import Path

import pytest

from instruct_lit.core.data.example import Example
from instruct_lit.datasets.filters import (
    FILTERS,
    Filter,
    FilterChain,
    Function,
    Language,
    Leaks,
    Length,
    NearDuplicates,
    Refusals,
)
from instruct_lit.errors import ConfigError, DataError


def kept(filter: Filter, *examples: Example) -> list[bool]:
    filter.start()
    return [filter.keeps(example) for example in examples]


def test_length_counts_words_of_all_turns() -> None:
    two, talk = Example("one two", "three"), Example("one", "two", "", {}, "system", (("a b c", "d e f"),))
    assert kept(Length(max_prompt_words=3), two, talk) == [True, False]
    assert kept(Length(min_response_words=2), two, talk) == [False, True]
    assert kept(Length(min_prompt_words=2, max_response_words=3), two, talk) == [True, False]
    assert kept(Length(), two, talk) == [True, True]


def test_languages_are_recognised_deterministically() -> None:
    pytest.importorskip("langdetect")
    english = Example("Where does the river flow to in the end?", "It flows into the sea.")
    german = Example("Wohin fließt der Fluss am Ende?", "Er fließt in das Meer.")
    short, numbers = Example("Danke", "Bitte"), Example("1 2 3 4 5", "6 7 8 9 10")
    for _ in range(3):
        assert kept(Language(["en"]), english, german, short, numbers) == [True, False, True, True]
    assert kept(Language(["de", "en"]), english, german) == [True, True]


REFUSED = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot say.",
    "As an AI language model, I have no opinion.",
    "I cannot provide that.",
    "Unfortunately, I am unable to do it.",
    "I don't have access to the internet.",
]
ANSWERED = ["Sorry is a word.", "He said: I cannot come.", "The AI boom.", "As an aid, use a ladder.", "Yes."]


def test_refusals_at_the_beginning_of_any_answer() -> None:
    assert kept(Refusals(), *(Example("q", text) for text in REFUSED)) == [False] * len(REFUSED)
    assert kept(Refusals(), *(Example("q", text) for text in ANSWERED)) == [True] * len(ANSWERED)
    assert kept(Refusals(), Example("q", "Yes.", history=(("a", "I cannot do it."),))) == [False]
    assert kept(Refusals(patterns=["^no$"]), Example("q", "No"), Example("q", REFUSED[0])) == [False, True]


def test_a_near_duplicate_of_an_earlier_example_is_left_out() -> None:
    pytest.importorskip("datasketch")
    text = " ".join(f"word{n}" for n in range(60))
    first, near, far = Example(text, "an answer"), Example(text + "!", "an answer more"), Example(text[::-1], "no")
    filter = NearDuplicates()
    for _ in range(2):  # every reading begins anew
        assert kept(filter, first, near, far, first) == [True, False, True, False]


def test_a_function_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def keep(record):\n    return record['level'] > 1\n")
    mine = Function(str(file))
    assert kept(mine, Example("a", "b", "", {"level": 1}), Example("a", "b", "", {"level": 2})) == [False, True]
    with pytest.raises(DataError, match=r"data.filters.function: keep fails on .*KeyError: 'level'"):
        mine.keeps(Example("a", "b"))
    before = mine.fingerprint()
    file.write_text("def keep(record):\n    return True\n")
    assert Function(str(file)).fingerprint() != before
    with pytest.raises(ConfigError, match=r"mine.py: no function drop in it"):
        Function(str(file), "drop").start()
    file.write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"mine.py: ZeroDivisionError"):
        Function(str(file)).start()
    with pytest.raises(ConfigError, match=r"path=os.system: no such Python file"):
        Function("os.system")


def test_filters_apply_in_order_and_each_counts_what_it_dropped() -> None:
    refused, long = Example("q", "I cannot."), "q " * 9
    examples = [refused, Example(long, "I cannot."), Example(long, "yes"), Example("q", "yes")]
    both = FilterChain([Length(max_prompt_words=3), Refusals()])
    assert list(both(examples)) == [examples[3]]
    assert both.counts == {"n_filtered_length": 2, "n_filtered_refusals": 1}
    turned = FilterChain([Refusals(), Length(max_prompt_words=3)])
    for _ in range(2):  # counted anew
        assert list(turned(examples)) == [examples[3]]
        assert turned.counts == {"n_filtered_refusals": 2, "n_filtered_length": 1}
    assert turned.fingerprints() == both.fingerprints()[::-1]


def test_fingerprints_tell_filters_apart() -> None:
    prints = {f.fingerprint() for f in (Length(), Length(1), Length(0, 1), Refusals(), Refusals(["a"]))}
    assert len(prints) == 5 and set(FILTERS) == {
        "length",
        "language",
        "near_duplicates",
        "leaks",
        "refusals",
        "function",
    }


def test_what_a_benchmark_asks_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    file = tmp_path / "items.jsonl"
    file.write_text(
        '{"question": "Name the three longest rivers of Asia, in order."}\n{"instruction": "Add.", "input": "1 2"}\n'
    )
    asked: list[tuple[str, str | None]] = []

    def suite_items(name: str, data_dir: str | None) -> list[str]:
        asked.append((name, data_dir))
        return ["Which planet has the most moons?\nA. Mars\nB. Saturn\nAnswer:", "Which planet has the most moons?"]

    monkeypatch.setattr(Leaks, "suite_items", staticmethod(suite_items))
    leaks = Leaks(["planets"], [str(file)], "hub")
    chain = FilterChain([leaks])
    dropped = [
        Example("name the three longest rivers of Asia in order", "x"),
        Example("Add.", "3", "1 2"),
        Example("Which planet has the most moons?", "Saturn"),
    ]
    kept = [Example("Multiply these.", "4", "2 2"), Example("Name a colour.", "red")]
    for _ in range(2):
        assert list(chain([*dropped, *kept])) == kept and chain.counts == {"n_filtered_leaks": 3}
    assert asked == [("planets", "hub")]  # once, and not before the first example
    other = Leaks(files=[str(file)], threshold=0.8)
    assert len({leaks.fingerprint(), other.fingerprint()}) == 2 and "function" not in leaks.fingerprint()
    file.write_text('{"text": 1}')
    with pytest.raises(DataError, match="line 1: no text in 'instruction', 'question' or 'prompt'"):
        Leaks(files=[str(file)])
    file.write_text('{"question": "a"}\n{"question": ')
    with pytest.raises(DataError, match=r"items.jsonl, line 2: invalid JSON \(Expecting value\)"):
        Leaks(files=[str(file)])
    for given in ({}, {"files": [str(file)], "threshold": 0}):
        with pytest.raises(ConfigError, match="give suites"):
            Leaks(**given)


def test_impossible_arguments() -> None:
    with pytest.raises(ConfigError, match=r"patterns: invalid regular expression"):
        Refusals(["("])
    pytest.importorskip("datasketch")
    with pytest.raises(ConfigError, match=r"threshold=2: must be above 0 and at most 1"):
        NearDuplicates(2)
