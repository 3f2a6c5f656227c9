"""Leaks: exact, near-duplicate, or thirteen consecutive words."""

import json
import math
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from instruct_lit.datasets.leaks import LeakFinder
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.leaks import Leak, find_leaks, question

LONG = "The committee will meet on the second Monday of every month in the old library building near the harbour."


def test_questions() -> None:
    assert (
        question({"instruction": "Add.", "input": "1 2"}) == "Add.\n1 2"
        and question({"instruction": "Add."}) == "Add.\n"
    )
    assert question({"instruction": "And?", "history": [["Add.", "3"]]}) == "Add.\n3\nAnd?\n"


def test_case_punctuation_and_white_space_do_not_matter() -> None:
    assert find_leaks(["Nothing.", "Name a  COLOUR"], ["name a colour!", "Name a shape."], near=False) == [
        Leak(0, 1, "exact", 1.0)
    ]


def test_thirteen_words_of_a_longer_text() -> None:
    item = "Summarise: " + " ".join(LONG.split()[2:16]) + " and so on"
    found = find_leaks(["short", f"{LONG} Nobody else may come."], [item], near=False)
    assert [(leak.item, leak.train, leak.kind) for leak in found] == [(0, 1, "ngram")]
    twelve = "Summarise: " + " ".join(LONG.split()[2:14])
    assert find_leaks([LONG], [twelve], near=False) == []


def test_the_form_of_unicode_does_not_matter() -> None:
    item = "Café naïve résumé: explain each of these words."
    for written in (unicodedata.normalize("NFD", item), "\u200b".join(item), item.replace("a", "a\u00ad")):
        assert [leak.kind for leak in find_leaks([written], [item], near=False)] == ["exact"], written


@pytest.mark.parametrize("item", ["把下面的句子翻译成英语：我喜欢吃苹果。", "日本で一番高い山は何ですか教えてください"])
def test_a_text_without_spaces_is_found_in_a_longer_one(item: str) -> None:
    found = find_leaks([f"现在请你完成一个任务。{item}谢谢你！"], [item, "写一首短诗"], near=False)
    assert [(leak.item, leak.kind) for leak in found] == [(0, "ngram")]
    assert (
        find_leaks([f"现在{item[:9]}把句子写成两行，谢谢你！"], [item], near=False) == []
    )  # two characters count as a word


def test_a_short_item_is_found_whole_in_a_longer_text() -> None:
    found = find_leaks(
        ["Please answer: name the capital of France! Thanks."],
        ["Name the capital of France.", "The capital of France"],
        near=False,
    )
    assert [(leak.item, leak.kind) for leak in found] == [(0, "ngram")]  # four words are too few


def test_near_duplicates_in_another_order_or_with_another_word() -> None:
    pytest.importorskip("sklearn")
    item = "Name three rivers that flow through the city of Basel."
    changed = [
        "Through the city of Basel flow three rivers: name that!", "Name four rivers that flow through the city of Basel.",
        "Name three rivers that flow throuhg the city of Basel.",
    ]  # fmt: skip
    others = ["Name a mountain in Peru.", "", "?!", "Describe the weather in three words."]
    for text in changed:
        (leak,) = find_leaks([*others, text], ["Paint a mountain.", "", item])
        assert (leak.item, leak.train, leak.kind) == (2, 4, "near") and 0.7 <= leak.similarity <= 1
    assert find_leaks(others[3:], [item, others[0]]) == []


def test_the_similarity_is_the_cosine_of_weighted_character_4_grams() -> None:
    pytest.importorskip("sklearn")

    def grams(text: str) -> Counter[str]:
        return Counter(f" {word} "[i : i + 4] for word in text.lower().split() for i in range(max(1, len(word) - 1)))

    items = ["find the old bridge", "find the new bridge in town", "paint the town red"]
    text = "the old bridge in our town"
    n_items_with = Counter(gram for item in items for gram in grams(item))

    def vector(text: str) -> dict[str, float]:
        weights = {g: (1 + math.log(n)) * (1 + math.log(5 / (1 + n_items_with[g]))) for g, n in grams(text).items()}
        norm = math.sqrt(sum(w * w for w in weights.values()))
        return {g: w / norm for g, w in weights.items()}

    expected = [sum(w * vector(item).get(g, 0) for g, w in vector(text).items()) for item in items]
    found = {leak.item: leak.similarity for leak in LeakFinder(items, threshold=0.01).find(["x", text])}
    assert [found[i] for i in range(3)] == pytest.approx(expected)


def test_the_strongest_kind_is_kept_and_empty_texts_are_no_leak() -> None:
    pytest.importorskip("sklearn")
    assert [leak.kind for leak in find_leaks([LONG.replace("harbour", "port"), LONG], [LONG])] == ["exact"]
    assert find_leaks(["", "?!"], ["", "word"]) == find_leaks([""], ["", "?!"]) == []


def test_the_book_s_own_split_has_leaks(shared_data: Path) -> None:
    """Of its 110 test records two ask word for word what a training record asks."""
    pytest.importorskip("sklearn")
    texts = [question(record) for record in json.loads((shared_data / "instructions" / "book-1100.json").read_text())]
    found = find_leaks(texts[:935], texts[935:1045])
    assert sum(leak.kind == "exact" for leak in found) == 2
    assert any(leak.kind == "near" and "left a message" in texts[leak.train] for leak in found)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ConfigError, match=r"leaks.near=true: needs scikit-learn; pip install -e '.\[filters\]'"):
        find_leaks(["a"], ["a"])
    assert len(find_leaks(["a"], ["a"], near=False)) == 1
