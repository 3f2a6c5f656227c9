"""GPT-2's encoding from files on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_lit.core.data.tokenizer import GPT2Tokenizer, n_shared
from instruct_lit.errors import DataError

TOKENIZER = GPT2Tokenizer()


def test_known_ids() -> None:
    assert TOKENIZER.encode("Hello, world!") == [15496, 11, 995, 0]
    assert (TOKENIZER.eot_id, TOKENIZER.n_vocab) == (50256, 50257)


def test_trap_4_end_of_text_in_a_text_is_ordinary_text() -> None:
    assert TOKENIZER.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert TOKENIZER.encode_batch(["<|endoftext|>"]) == [[27, 91, 437, 1659, 5239, 91, 29]]


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.n_bytes_of[np.array(ids, dtype=int)].sum() == len(text.encode())


def test_end_of_text_counts_no_bytes() -> None:
    assert TOKENIZER.n_bytes_of[50256] == 0 and TOKENIZER.n_bytes_of.min() == 0
    assert TOKENIZER.n_bytes_of[995] == len(" world")


def test_incomplete_characters_are_replaced() -> None:
    ids = TOKENIZER.encode("🙂")
    assert len(ids) > 1 and TOKENIZER.decode(ids[:1]).endswith("\ufffd")


def test_a_vocabulary_of_ones_own_must_be_gpt2s(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vocab.bpe cannot be read .*; it is GPT-2's vocab.bpe"):
        GPT2Tokenizer(tmp_path)
    for name, content in TOKENIZER.vocab_files().items():
        (tmp_path / name).write_bytes(content)
    assert GPT2Tokenizer(tmp_path).encode("Hello") == [15496]
    other = tmp_path / "other"
    other.mkdir()
    for name, content in TOKENIZER.vocab_files().items():
        (other / name).write_bytes(content + b" ")
    with pytest.raises(DataError, match=r"has sha256 .*, GPT-2's vocab.bpe has 1ce16647"):
        GPT2Tokenizer(other)


def test_length_of_a_shared_prefix() -> None:
    for n in range(20):
        assert n_shared([[0] * n + [1] * 5, [0] * n + [2] * 9, [0] * n + [1] * 3], n_own=1) == n
    assert n_shared([[1, 2], [1, 2, 3]], n_own=1) == 1 and n_shared([[1, 2]], n_own=1) == 0
    assert n_shared([np.array([1, 2, 3]), np.array([1, 2, 3, 4])], n_own=2) == 1 and n_shared([[1], [1]], n_own=2) == 0
