"""Names of special tokens in text: protected they are ordinary text, and protection is undone exactly."""

import re
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_lit.core.data.tokenizer import EOT, GPT2Tokenizer
from instruct_lit.hf.special_tokens import GUARD, SpecialTokens, guarded, unprotected

NAMES = [EOT, "<s>", "</s>", "<|end|>", "end|", "##", "#", "<|"]
PIECES = st.sampled_from([*NAMES, GUARD, "|>", "end", "the cat", "🙂"])
TEXT = st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join)


@given(TEXT)
def test_protection_hides_every_name_and_is_undone(text: str) -> None:
    special = SpecialTokens(NAMES)
    protected = special.protect(text)
    assert special.find(protected) is None and unprotected(protected) == text


@pytest.mark.parametrize(
    ("name", "expected"), [("<|end|>", f"<|{GUARD}end|>"), ("<s>", f"<s{GUARD}>"), ("##", f"#{GUARD}#")]
)
def test_a_guard_is_inside_the_name(name: str, expected: str) -> None:
    assert guarded(name) == expected


def test_names_are_found_in_order_the_longest_first() -> None:
    special = SpecialTokens(["<s>", "<s><s>", "x"])
    assert [found[0] for found in special.find_all("a<s><s><s>x")] == ["<s><s>", "<s>"]
    assert SpecialTokens([]).find("<s>") is None and SpecialTokens([]).protect("a") == "a"


def test_gpt2s_tokenizer_reads_no_markup(tokenizer: GPT2Tokenizer) -> None:
    assert tokenizer.protect(EOT) == EOT and tokenizer.eot_id not in tokenizer.encode(EOT)
    assert tokenizer.without_markup() is tokenizer


@given(st.sets(st.text("ab<", min_size=2, max_size=5), max_size=12), st.text("ab<", max_size=30))
def test_names_are_found_as_by_an_alternation_of_all(names: set[str], text: str) -> None:
    flat = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
    found = [match[0] for match in SpecialTokens(names).find_all(text)]
    assert found == flat.findall(text)


def test_names_that_begin_alike_to_any_depth_are_found() -> None:
    special = SpecialTokens(["a" * n for n in range(2, 200)])
    assert [len(found[0]) for found in special.find_all("a" * 201 + "b" + "a" * 50)] == [199, 2, 50]


def test_the_cost_does_not_grow_with_the_number_of_names() -> None:
    """Of 6,000 names that begin alike, a flat alternation would try each at every `<`."""

    def seconds(n: int) -> float:
        special = SpecialTokens(f"<unused{i}>" for i in range(n))
        return min(timeit.repeat(lambda: special.protect("<unused><" * 5000), number=1, repeat=5))

    assert seconds(6000) < 5 * seconds(60)
