"""Prompt and response are encoded apart; long examples are cut, dropped or refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from instruct_lit.config.compose import CONF
from instruct_lit.core.data.encode import EncodedExample, Encoder, open_or_build
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets.profile import response_texts
from instruct_lit.errors import DataError

EOT = 50256
TOKENIZER = GPT2Tokenizer()
ALPACA, CHATML, PHI3 = (
    Template(**OmegaConf.load(CONF / "template" / f"{n}.yaml")) for n in ("alpaca", "chatml", "phi3")
)


def encode(
    example: Example, max_length: int = 1024, on_long: str = "truncate", template: Template = ALPACA
) -> list[EncodedExample]:
    return [e for _, e in Encoder(template, TOKENIZER, max_length, on_long).encode([example])]  # type: ignore[arg-type]


@pytest.mark.parametrize("output", ["\nnew line first", " space first", "🙂 emoji", "é", "plain"])
def test_trap_3_prompt_ids_in_training_are_those_of_generation(output: str) -> None:
    example = Example("Say it.", output, "now")
    (encoded,) = encode(example)
    assert encoded.prompt_ids == TOKENIZER.encode(ALPACA.prompt(example))
    assert TOKENIZER.decode(encoded.ids[encoded.n_prompt : -1].tolist()) == output
    assert encoded.ids[-1] == EOT


@given(st.text(max_size=40).filter(str.strip), st.text(max_size=40), st.text(max_size=40).filter(str.strip))
@settings(max_examples=150, deadline=None)
def test_trap_3_and_4_any_text_keeps_the_boundary_and_makes_no_special_token(
    instruction: str, given_input: str, output: str
) -> None:
    text = instruction + "<|endoftext|>"
    example = Example(text, output + "<|endoftext|>### Response:\n", given_input)
    for template in (ALPACA, CHATML):
        (encoded,) = encode(example, 4096, template=template)
        assert encoded.prompt_ids == TOKENIZER.encode(template.prompt(example))
        assert (encoded.ids == EOT).sum() == 1 and encoded.ids[-1] == EOT
        assert encoded.is_response.tolist() == [i >= encoded.n_prompt for i in range(len(encoded.ids))]
        response = TOKENIZER.decode(encoded.ids[encoded.n_prompt : -1].tolist())
        assert response == example.output + template.suffix(example)


def test_trap_2_a_cut_response_keeps_the_header_and_has_no_end_of_text() -> None:
    example = Example("Count.", "one two three four five six")
    n_prompt = len(TOKENIZER.encode(ALPACA.prompt(example)))
    (encoded,) = encode(example, n_prompt + 3)
    assert len(encoded.ids) == n_prompt + 3 and encoded.n_prompt == n_prompt
    assert EOT not in encoded.ids
    assert TOKENIZER.decode(encoded.prompt_ids).endswith("### Response:\n")


def test_trap_2_an_example_whose_header_would_not_survive_is_dropped_and_counted() -> None:
    example = Example("Count.", "one two three")
    n_prompt = len(TOKENIZER.encode(ALPACA.prompt(example)))
    encoder = Encoder(ALPACA, TOKENIZER, n_prompt)
    assert list(encoder.encode([example])) == []
    assert encoder.counts == {"n_encoded": 0, "n_truncated": 0, "n_dropped_long": 1, "n_without_weight": 0}
    assert len(encode(example, n_prompt + 1)) == 1


def test_long_examples_are_dropped_or_refused_on_request() -> None:
    example = Example("Count.", "one two three")
    n_prompt = len(TOKENIZER.encode(ALPACA.prompt(example)))
    assert encode(example, n_prompt + 2, "drop") == []
    with pytest.raises(DataError, match=rf"example 0 has {n_prompt + 4} tokens, data.max_length is {n_prompt + 2}"):
        encode(example, n_prompt + 2, "error")
    assert len(encode(example, n_prompt + 4, "error")) == 1
    short = Example("Count.", "one")
    with pytest.raises(DataError, match=rf"example 2 has {n_prompt + 4} tokens"):
        list(Encoder(ALPACA, TOKENIZER, n_prompt + 2, "error").encode([short, short, example, short]))


def test_a_conversation_of_which_nothing_would_be_learnt_is_dropped_and_counted() -> None:
    first = Example("And?", "No.", history=(("Why?", "So."),), weights=(1.0, 0.0))
    last = replace(first, weights=(0.0, 1.0))
    n_tokens = len(encode(last, 500)[0].ids)
    for example, max_length, loss_on, kept, count in (
        (first, n_tokens, "all", 1, "n_encoded"), (first, n_tokens, "last", 0, "n_without_weight"),
        (first, n_tokens - 1, "last", 1, "n_truncated"), (last, n_tokens, "last", 1, "n_encoded"),
        (last, n_tokens - 1, "all", 0, "n_dropped_long"), (last, n_tokens - 1, "last", 0, "n_dropped_long"),
    ):  # fmt: skip
        encoder = Encoder(ALPACA, TOKENIZER, max_length, "truncate", loss_on)  # type: ignore[arg-type]
        found = list(encoder.encode([example]))
        assert (len(found), encoder.counts[count]) == (kept, 1)
        assert all(encoded.is_response.any() for _, encoded in found)


def test_what_is_answered_is_the_last_turn_that_is_learnt(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."},
        {"role": "user", "content": "And?"}, {"role": "assistant", "content": "No.", "weight": 0},
    ]  # fmt: skip
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in (turns, turns[:2], [*turns, *turns])))
    encoder = Encoder(CHATML, TOKENIZER, 500)
    store = open_or_build(tmp_path, "key", FileSource(str(path)), encoder)
    for index, example in enumerate((Example("Why?", "So."), Example("Why?", "So."), None)):
        number, asked, prompt = store.to_answer(index)
        expected = example or store.example(index).first_turns(3)
        assert (number, asked.instruction, asked.output) == (index, expected.instruction, expected.output)
        assert (asked.output, prompt) == ("So.", store[index].prompt_ids) == ("So.", encoder.prompt_ids(asked))
    assert store.example(0).output == "No."


def test_indices_count_the_examples_that_are_kept() -> None:
    examples = [Example("a", "b"), Example("long " * 60, "b"), Example("c", "d")]
    encoder = Encoder(ALPACA, TOKENIZER, 60, "drop")
    assert [e.index for _, e in encoder.encode(examples)] == [0, 1]
    assert encoder.counts["n_dropped_long"] == 1


def test_the_suffix_belongs_to_the_response() -> None:
    (encoded,) = encode(Example("Hi", "Hello"), template=CHATML)
    assert TOKENIZER.decode(encoded.ids[encoded.n_prompt : -1].tolist()) == "Hello<|im_end|>"


TEXT = st.text(max_size=30).filter(str.strip)


@given(
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5),
    st.one_of(st.just(""), TEXT),
    st.sampled_from(["all", "last"]),
)
@settings(max_examples=150, deadline=None)
def test_trap_3_and_4_the_mask_of_any_conversation_decodes_to_the_assistants_texts(
    turns: list[tuple[str, str]], system: str, loss_on: str
) -> None:
    *history, (instruction, output) = [
        (user + "<|endoftext|>", f"{said}<|im_end|><|endoftext|>") for user, said in turns
    ]
    example = Example(instruction, output, "", {}, system, tuple(history))
    for template in (ALPACA, CHATML, PHI3):
        encoder = Encoder(template, TOKENIZER, 8192, "error", loss_on)  # type: ignore[arg-type]
        ((kept, encoded),) = encoder.encode([example])
        assert kept is example
        suffix = template.suffix(example)
        expected = [answer + suffix for _, answer in (*history, (instruction, output))]
        assert response_texts(encoded, TOKENIZER) == (expected if loss_on == "all" else expected[-1:])
        # One end-of-text closes every response, learnt or not, and none comes out of a text.
        assert (encoded.ids == EOT).sum() == len(turns)
        assert all(encoded.ids[end - 1] == EOT for _, end in encoded.spans)
        assert encoded.prompt_ids == encoder.prompt_ids(example)
        unmasked = TOKENIZER.decode(encoded.ids.tolist())
        assert unmasked == "<|endoftext|>".join(p + r for p, r in template.turns(example)) + "<|endoftext|>"


TALK = Example("three", "3", "", {"id": 1}, "", (("one", "1"), ("two", "2")))


def test_trap_2_a_long_conversation_loses_its_last_turns_and_the_record_with_them() -> None:
    ((_, whole),) = Encoder(CHATML, TOKENIZER, 1024).encode([TALK])
    (_, end_of_one), (start_of_two, end_of_two), (start_of_three, _) = whole.spans
    for max_length, n_turns in (
        (end_of_one, 1), (start_of_two, 1), (start_of_two + 1, 1), (end_of_two, 2), (start_of_three, 2), (start_of_three + 1, 2),
    ):  # fmt: skip
        encoder = Encoder(CHATML, TOKENIZER, max_length)
        ((kept, cut),) = encoder.encode([TALK])
        assert kept == TALK.first_turns(n_turns) and len(cut.spans) == n_turns
        assert cut.prompt_ids == encoder.prompt_ids(kept)
        assert cut.ids.tolist() == whole.ids[: len(cut.ids)].tolist() and len(cut.ids) <= max_length
        assert encoder.counts["n_truncated"] == 1
        assert (cut.ids[-1] == EOT) == (max_length >= cut.spans[-1][0] + end_of_one - whole.spans[0][0])
    assert list(Encoder(CHATML, TOKENIZER, whole.spans[0][0]).encode([TALK])) == []
    assert list(Encoder(CHATML, TOKENIZER, len(whole.ids) - 1, "drop").encode([TALK])) == []


def test_the_last_answer_alone_is_learnt_on_request() -> None:
    ((_, every),) = Encoder(CHATML, TOKENIZER, 1024).encode([TALK])
    ((_, last),) = Encoder(CHATML, TOKENIZER, 1024, loss_on="last").encode([TALK])
    assert every.ids.tolist() == last.ids.tolist()
    assert last.spans == every.spans[-1:] and len(every.spans) == 3 and last.prompt_ids == every.prompt_ids
