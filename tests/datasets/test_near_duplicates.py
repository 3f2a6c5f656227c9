"""Near-duplicates: found where the shingles say so, grouped over chains."""

import numpy as np
import pytest

from instruct_lit.datasets.near_duplicates import NearDuplicateIndex, groups_of, shingles, words
from instruct_lit.errors import ConfigError


def test_shingles_by_hand() -> None:
    assert words("It's a Dog!") == ["it", "s", "a", "dog"]
    assert shingles("a b c d") == {"a b c", "b c d"}
    assert shingles("A, b.") == {"a b"} and words("?!") == ["?", "!"]


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


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
        share = jaccard(one, other)
        if share > 0.85:
            n_near += 1
            assert found, share
        elif share < 0.55:
            n_far += 1
            assert not found, share
    assert n_near > 50 and n_far > 50


def test_groups() -> None:
    texts = ["Say: hello!", "say hello", "Say goodbye", "?", "?"]
    assert groups_of(texts, "nothing").tolist() == [0, 1, 2, 3, 4]
    assert groups_of(texts, "same_prompt").tolist() == [0, 0, 1, 2, 2]
    pytest.importorskip("datasketch")
    base = [f"w{n}" for n in range(60)]
    chain = [" ".join(base[n : n + 50]) for n in (0, 2, 4, 6)]  # each near its neighbour, the ends are not
    assert jaccard(chain[0], chain[1]) > 0.9 and jaccard(chain[0], chain[3]) < 0.8
    found = groups_of(["something else altogether", *chain, "w1"], "near_duplicates")
    assert len(set(found[1:5].tolist())) == 1 and len(set(found.tolist())) == 3


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'instruct-lit\[filters\]'"):
        NearDuplicateIndex()
