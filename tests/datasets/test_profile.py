"""What the profile counts, and when it warns."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from instruct_lit.core.data.batching import Collator
from instruct_lit.core.data.encode import EncodedStore, Encoder, open_or_build
from instruct_lit.core.data.example import Example, to_example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets.print_profile import _histogram
from instruct_lit.datasets.profile import (
    Profile,
    header_of,
    histogram,
    kinds_of,
    mask_is_exact,
    oddities,
    positions_per_token,
    profile,
    training_batches,
    warnings_of,
)
from instruct_lit.datasets.stream_datamodule import HeldOut

TEMPLATE = Template("short", "Q: {{ instruction }} {{ input }}\nA: {{ response }}")


def store_of(
    folder: Path, tokenizer: GPT2Tokenizer, examples: list[Example], max_length: int = 64, template: Template = TEMPLATE
) -> EncodedStore:
    return open_or_build(folder, "key", HeldOut("listed", examples, ""), Encoder(template, tokenizer, max_length))


def test_every_figure_by_hand(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    examples = [
        Example("one", "two"),
        Example("one", "three four"),
        Example("five", "five"),
        Example("six", "word " * 40),  # longer than 20 tokens
    ]
    found = profile(store_of(tmp_path, tokenizer, examples, 20), TEMPLATE, tokenizer, True, {"padded": 1.5})
    assert found.n_examples == 4
    # "Q: one \nA: " is Q, :, one, space, newline, A, :, space.
    assert found.prompt_lengths.tolist() == [8, 8, 8, 8]
    assert found.response_lengths.tolist() == [2, 3, 2, 12]
    assert found.supervised_share == pytest.approx((2 + 3 + 2 + 12) / (9 + 10 + 9 + 19))
    assert found.ends_share == 0.75 and found.truncated_share == 0.25
    assert found.header == " \nA: "[1:] and found.header_share == 1
    assert found.mask_share == 1
    assert found.n_repeated_prompts == 1
    assert found.odd == {
        "the response repeats the instruction": [2],
        "the response begins or ends with white space": [3],
    }


def test_the_whole_text_is_supervised_without_mask(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    store = store_of(tmp_path, tokenizer, [Example("one", "two")])
    assert profile(store, TEMPLATE, tokenizer, False, {}).supervised_share == 1


def test_a_mask_that_does_not_match_the_responses_is_found(tokenizer: GPT2Tokenizer) -> None:
    template = Template("t", "{{ instruction }}: {{ response }}", next_turn=" {{ instruction }}: {{ response }}")
    talk = Example("one", "two 🙂", history=(("three", "four"),))
    for loss_on, max_length in (("all", 64), ("last", 64), ("all", 9)):
        ((kept, encoded),) = Encoder(template, tokenizer, max_length, "truncate", loss_on).encode([talk])  # type: ignore[arg-type]
        assert mask_is_exact(kept, encoded, template, tokenizer)
        shifted = replace(encoded, is_response=np.roll(encoded.is_response, -1))
        assert not mask_is_exact(kept, shifted, template, tokenizer)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (
            "{{ instruction }}{% if input %} {{ input }}{% endif %}\n\n\n### Response:\n{{ response }}",
            "\n\n### Response:\n",
        ),
        ("{{ instruction }} {{ input }}{{ response }}", ""),
        ("{{ response }}", ""),
    ],
)
def test_the_header_is_what_all_prompts_end_with(text: str, header: str) -> None:
    assert header_of(Template("t", text)) == header


def test_the_end_of_the_turn_before_is_no_part_of_the_header() -> None:
    template = Template("t", "<|user|>{{ instruction }} {{ input }}<|end|>\n<|model|>\n{{ response }}")
    assert header_of(template, "<|end|>") == "\n<|model|>\n" and header_of(template, "</s>") == "<|end|>\n<|model|>\n"


@pytest.mark.parametrize(
    ("example", "found"),
    [
        (Example("Say hi", "hi"), []),
        (Example("Say hi", "say HI!"), ["the response repeats the instruction"]),
        (Example("Do", "..."), ["the response has no letter or digit"]),
        (Example("Do", "x ### Response: y"), ["a text contains '### Response:'"]),
        (Example("Do <|endoftext|>", "x"), ["a text contains '<|endoftext|>'"]),
        (Example("Do", "x", "\x00"), ["a text has control characters"]),
        (Example("Do", "x", "N/A"), ["the input is a placeholder"]),
        (Example("Do", "I cannot do it."), ["a response begins with a refusal"]),
        (Example("Do", " x"), ["the response begins or ends with white space"]),
    ],
)
def test_odd_records(example: Example, found: list[str]) -> None:
    assert oddities(example, "\n\n### Response:\n") == found


def test_what_padding_costs(tokenizer: GPT2Tokenizer) -> None:
    examples = [Example("one", "two"), Example("one two three", "four five six")]
    encoded = [e for _, e in Encoder(TEMPLATE, tokenizer, 64).encode(examples)]
    lengths = [len(e.ids) - 1 for e in encoded]
    rows = Collator(tokenizer.eot_id, tokenizer.n_bytes_of)(encoded)
    packed = Collator(tokenizer.eot_id, tokenizer.n_bytes_of, "packed")(encoded)
    assert positions_per_token([rows]) == 2 * max(lengths) / sum(lengths)
    assert positions_per_token([packed, packed]) == 1


def test_batches_are_laid_out_as_given_and_not_rounded_up(make_data: Callable) -> None:
    data = make_data(pad_to_multiple_of=32)
    data.prepare_data()
    data.setup()
    given = {"grouping": "none", "max_tokens": None, "layout": "packed", "shared_prefix": False}
    n, batches = training_batches(data, given)
    assert n == len(batches) == 3 and positions_per_token(batches) == 1


def test_histograms_count_everything_once() -> None:
    assert histogram(np.array([3, 3, 4])) == [(3, 3, 2), (4, 4, 1)]
    lengths = np.random.default_rng(0).integers(1, 500, 1000)
    bins = histogram(lengths)
    assert len(bins) <= 10 and sum(n for _, _, n in bins) == 1000
    assert all(n == ((lengths >= low) & (lengths <= high)).sum() for low, high, n in bins)
    assert _histogram("prompt", np.arange(101)).caption == "median 50, 95 % up to 95"


GOOD = Profile(
    {}, 1000, np.full(1000, 20), np.full(1000, 9), 0.4, 1.0, "\nA:", 1.0, 1.0, 0, {}, {"padded": 1.2, "packed": 1.0}
)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({}, None),
        ({"supervised_share": 0.03}, "only 3.0% of the targets are supervised"),
        ({"header": "\n", "header_share": 0.0}, "the template has no header before the response"),
        ({"header_share": 0.9}, "10.0% of the prompts do not end with 'A:'"),
        ({"mask_share": 0.5}, "50.0% of the masks do not decode to the responses"),
        ({"ends_share": 0.0, "counts": {"n_truncated": 1000}}, "no end-of-text is supervised"),
        ({"counts": {"n_truncated": 300}}, "30% of the responses are truncated"),
        ({"counts": {"n_dropped_long": 300}}, "300 examples are too long"),
        ({"costs": {"padded": 2.2, "packed": 1.0}}, "120% padding with batching=padded; batching=packed has 1.00"),
        ({"response_lengths": np.full(1000, 2)}, "half of the responses are a single token or none"),
        ({"n_repeated_prompts": 100}, "100 prompts occur earlier with another response"),
    ],
)
def test_warnings_of_what_usually_goes_wrong(change: dict, warning: str | None) -> None:
    lines = warnings_of(replace(GOOD, **change), "padded", 100)
    assert lines == [] if warning is None else len(lines) == 1 and lines[0].startswith(warning)
    assert warnings_of(GOOD, "padded", 5) == [
        "5 validation examples are too few for early stopping; raise data.split.val"
    ]


def test_what_conversations_have_is_counted() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    turn = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call], "weight": 0.5}
    rich = to_example({"messages": [{"role": "user", "content": "a"}, turn], "tools": [{"name": "add"}]}, "f")
    assert kinds_of(rich) == ["tools", "calls", "thoughts", "weights"]
    assert kinds_of(Example("a", "b", system="c", history=(("d", "e"),))) == ["several turns", "a system prompt"]
