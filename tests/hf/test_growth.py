"""Opening a tokenizer and a data set takes time in proportion to their size: four times the size, never sixteen."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.tokenizer import HFTokenizer

transformers = pytest.importorskip("transformers")
MOST = 9  # between 4, linear with what is constant, and 16, quadratic
LONG_TEMPLATE = (
    "{%- for message in messages %}{{- '<|' + message.role + '|>' + message.content + '<|end|>' }}{%- endfor %}"
    + "".join(f"{{%- if tools is defined and tools[{n}] is defined %}}{{{{- tools[{n}] }}}}{{%- endif %}}" for n in range(150))
)  # fmt: skip


def made(n_tokens: int, n_added: int) -> HFTokenizer:
    """A tokenizer of byte-level tokens, with added ones that begin alike."""
    import tokenizers

    letters = "".join(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    names = [*letters, *(f"{letters[n % 256]}{letters[n // 256 % 256]}{n}" for n in range(n_tokens - len(letters)))]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({name: n for n, name in enumerate(names)}, []))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens(["<|user|>", "<|assistant|>", "<|end|>", *(f"<unused{n}>" for n in range(n_added))])
    hf = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")
    hf.chat_template = LONG_TEMPLATE
    return HFTokenizer(hf)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds, the lower of two."""
    taken = []
    for _ in range(2):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.slow
def test_opening_a_tokenizer_grows_with_its_size() -> None:
    def opened(hf: object) -> None:
        tokenizer = HFTokenizer(hf)
        assert np.count_nonzero(tokenizer.n_bytes_of) > 60_000
        assert len(tokenizer.fingerprint) == 16
        with_chat(tokenizer)

    small, large = (made(n, added).hf for n, added in ((65_536, 1_500), (262_144, 6_000)))
    assert len(LONG_TEMPLATE) > 10_000
    assert seconds(lambda: opened(large)) < MOST * seconds(lambda: opened(small))


@pytest.mark.slow
def test_encoding_grows_with_the_number_and_the_length_of_records() -> None:
    tokenizer, template = with_chat(made(65_536, 6_000))
    encoder = Encoder(template, tokenizer, 1_000_000)

    def encoded(n: int, words: str) -> None:
        for _ in encoder.encode([Example(f"Say {i}: {words}", f"<p>{i}</p>") for i in range(n)]):
            pass

    short = [seconds(lambda n=n: encoded(n, "the cat")) for n in (25_000, 100_000)]  # type: ignore[misc]
    assert short[1] < MOST * short[0]
    long = [seconds(lambda n=n: encoded(100, "<b>the cat</b> " * n)) for n in (500, 2_000)]  # type: ignore[misc]
    assert long[1] < MOST * long[0]
