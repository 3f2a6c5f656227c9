"""Near-duplicates: found where the shingles say so, grouped over chains."""

import sys
import unicodedata

import numpy as np
import pytest

from instruct_lit.datasets.near_duplicates import NearDuplicateIndex, jaccard, near_duplicate_groups, shingles, words
from instruct_lit.errors import ConfigError


def test_shingles_by_hand() -> None:
    assert words("It's a Dog!") == ["it", "s", "a", "dog"]
    assert shingles("a b c d") == {"a b c", "b c d"}
    assert shingles("A, b.") == {"a b"} and words("?!") == ["?", "!"]


def test_words_are_the_same_however_a_text_was_typed() -> None:
    text = "Straße, naïve 日本の ガギグ"
    wanted = ["strasse", "naïve", "日", "本", "の", "ガ", "ギ", "グ"]
    assert words(text) == wanted and words(text.upper()) == wanted
    assert words(unicodedata.normalize("NFD", text)) == wanted
    assert words("\u200b".join("\ufeffnaïve")) == ["naïve"] and words("na\u00adive") == ["naive"]  # invisible
    assert words("ＡＢＣ１２") == ["abc12"] and words("hindi हिन्दी_x") == ["hindi", "हिन्दी", "x"]
    assert words("What is 2² km, or ½?") == ["what", "is", "2²", "km", "or", "½"]  # not 22
    assert shingles("我喜欢吃苹果") == {"我 喜 欢", "喜 欢 吃", "欢 吃 苹", "吃 苹 果"}


def test_jaccard_by_hand() -> None:
    assert jaccard(shingles("a b c d"), shingles("a b c e")) == 1 / 3
    assert jaccard(set(), set()) == 1.0 and jaccard({"a"}, set()) == 0.0


def test_what_is_found_is_what_the_exact_share_says() -> None:
    """On 300 random pairs, away from the threshold where the estimate may go either way."""
    pytest.importorskip("datasketch")
    random = np.random.default_rng(0)
    index = NearDuplicateIndex(0.7)
    n_near = n_far = 0
    for pair in range(300):
        text = [f"w{n}" for n in random.integers(0, 1000, 40)]
        rate = random.choice([0.01, 0.2])
        changed = [word if random.random() > rate else "x" for word in text]
        one, other = " ".join(text), " ".join(changed)
        assert index.add(one) == []
        found = 2 * pair in index.add(other)
        share = jaccard(shingles(one), shingles(other))
        if share > 0.85:
            n_near += 1
            assert found, share
        elif share < 0.55:
            n_far += 1
            assert not found, share
    assert n_near > 50 and n_far > 50


def test_a_near_duplicate_is_added_unless_only_new_ones_are() -> None:
    pytest.importorskip("datasketch")
    text = " ".join(f"w{n}" for n in range(40))
    index = NearDuplicateIndex()
    assert index.add(text) == index.add("something else altogether") == [] and index.add(text + " more") == [0]
    assert index.add(text, only_new=True) == [0, 2] == index.add(text, only_new=True)


def test_near_duplicates_share_a_group_through_a_chain() -> None:
    pytest.importorskip("datasketch")
    base = [f"w{n}" for n in range(60)]
    chain = [" ".join(base[n : n + 50]) for n in (0, 2, 4, 6)]  # each near its neighbour, the ends are not
    similarity = [jaccard(shingles(chain[0]), shingles(other)) for other in chain]
    assert similarity[1] > 0.9 and similarity[3] < 0.8
    ends = [" ".join(base[n : n + 50]) for n in (0, 8, 4)]  # the last is near both, which are not near each other
    assert len(set(near_duplicate_groups(ends[:2]))) == 2 and len(set(near_duplicate_groups(ends))) == 1
    found = near_duplicate_groups(["something else altogether", *chain, "w1"])
    assert len(set(found[1:5].tolist())) == 1 and len(set(found.tolist())) == 3


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ConfigError, match=r"near-duplicates: needs datasketch; pip install -e '.\[filters\]'"):
        NearDuplicateIndex()


@pytest.mark.parametrize("threshold", [0, 1.5])
def test_an_impossible_threshold_is_refused(threshold: float) -> None:
    pytest.importorskip("datasketch")
    with pytest.raises(ConfigError, match=rf"threshold={threshold}: must be above 0 and at most 1"):
        NearDuplicateIndex(threshold)
