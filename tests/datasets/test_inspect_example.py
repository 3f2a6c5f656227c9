"""One example in the terminal: supervised parts, shifted targets, losses; within 80 columns."""

import io

import numpy as np
import pytest
from rich.console import Console

from instruct_lit.core.data.batching import supervised
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example, to_example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets.inspect_example import conversation, piece, print_example, rendered

TEMPLATE = Template("short", "Q: {{ instruction }}\nA: {{ response }}")
EXAMPLE = Example("Say [/b] é🙂\ttwice", "[bold]é", "", {"level": 3})


def printed(tokenizer: GPT2Tokenizer, **options) -> str:
    (pair,) = Encoder(TEMPLATE, tokenizer, 64).encode([EXAMPLE])
    console = Console(file=io.StringIO(), width=80, force_terminal=options.pop("terminal", None))
    weights = supervised(pair[1], options.pop("mask_prompt", True), options.pop("prompt_weight", 1.0))
    print_example(console, *pair, tokenizer, weights, **options)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_part_is_printed_within_80_columns(tokenizer: GPT2Tokenizer) -> None:
    text = printed(tokenizer, all_tokens=True)
    assert "instruction: Say [/b] é🙂" in text and "level: 3" in text and "input:" not in text
    assert "⟦[bold]é<|endoftext|>⟧" in text.replace("\n", "")
    (pair,) = Encoder(TEMPLATE, tokenizer, 64).encode([EXAMPLE])
    ids = pair[1].ids
    for i in range(len(ids) - 1):  # one row for each shifted pair
        assert any(line.split()[:2] == [str(i), str(ids[i])] and str(ids[i + 1]) in line for line in text.splitlines())
    assert f"{len(ids)} tokens, {len(ids) - pair[1].n_prompt} of {len(ids) - 1} targets are supervised" in text
    assert text.count("yes") == len(ids) - pair[1].n_prompt
    assert max(map(len, text.splitlines())) <= 80


def test_a_long_masked_run_is_shortened(tokenizer: GPT2Tokenizer) -> None:
    shown, whole = printed(tokenizer), printed(tokenizer, all_tokens=True)
    assert "more" in shown and "more" not in whole and len(shown.splitlines()) < len(whole.splitlines())
    assert shown.count("yes") == whole.count("yes")


def test_losses_and_their_mean_over_supervised_targets(tokenizer: GPT2Tokenizer) -> None:
    (pair,) = Encoder(TEMPLATE, tokenizer, 64).encode([EXAMPLE])
    n = len(pair[1].ids) - 1
    losses = [9.0] * (pair[1].n_prompt - 1) + [0.5] * (n - pair[1].n_prompt + 1)
    text = printed(tokenizer, losses=losses)
    assert "mean loss of the supervised targets: 0.500 nats, perplexity 1.65" in text
    assert " 9.000 ██████████" in text and " 0.500 █" in text and "yes" not in text


def test_an_unmasked_prompt_is_supervised(tokenizer: GPT2Tokenizer) -> None:
    text = printed(tokenizer, mask_prompt=False)
    assert "⟦Q: Say" in text and "more" not in text


def test_colours_mark_supervised_parts(tokenizer: GPT2Tokenizer) -> None:
    ids = np.array(tokenizer.encode("one two three"))
    text = rendered(ids, np.array([False, True, True]), tokenizer)
    assert text.plain == "one two three"
    assert [(s.start, s.end, s.style) for s in text.spans] == [(0, 3, "dim"), (3, 13, "bold green")]


def test_no_color_and_a_dumb_terminal_get_brackets(tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1;32m" in printed(tokenizer, terminal=True) and "⟦" not in printed(tokenizer, terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    without = printed(tokenizer, terminal=True)
    assert "⟦[bold]é" in without and "32m" not in without
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in printed(tokenizer, terminal=True)


def test_pieces_show_white_space_and_parts_of_characters(tokenizer: GPT2Tokenizer) -> None:
    assert [piece(tokenizer, i) for i in tokenizer.encode(" a\n\t")] == ["·a", "⏎", "⇥"]
    assert piece(tokenizer, tokenizer.encode("🙂")[0]) == "\ufffd"
    assert piece(tokenizer, tokenizer.eot_id) == "<|endoftext|>"


def test_a_record_cannot_steer_the_terminal(tokenizer: GPT2Tokenizer) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J"
    pairs = Encoder(TEMPLATE, tokenizer, 64).encode([Example(f"a{escape}", f"b{escape}\x9b", "", {"note": escape})])
    console = Console(file=io.StringIO(), width=80)
    for pair in pairs:
        print_example(console, *pair, tokenizer, supervised(pair[1], True), None, True)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    assert "␛" in shown and "]0;owned" in shown, "what is in the record is still to be seen"


def test_roles_tools_calls_thoughts_and_weights_in_their_colours(tokenizer: GPT2Tokenizer) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "", "reasoning_content": "I [add].", "tool_calls": [call], "weight": 0.5},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    ]
    example = to_example({"messages": messages, "tools": [{"name": "add"}]}, "f")
    template = Template("t", "{{ tools }}{{ instruction }}:{{ response }}", " {{ instruction }}:{{ response }}")
    ((_, encoded),) = Encoder(template, tokenizer, 999).encode([example])
    plain = Console(file=io.StringIO(), width=80)
    print_example(plain, example, encoded, tokenizer, supervised(encoded, True))
    shown = plain.file.getvalue()  # type: ignore[attr-defined]
    assert (
        'tool offered: {"name": "add"}\nuser: 1?\nassistant (weight 0.5): thoughts: I [add].\ncalls: {"name"' in shown
    )
    assert "\ntool: 2\nassistant: It is 2.\n" in shown and "messages" not in shown
    assert any(line.endswith(" 0.5") for line in map(str.rstrip, shown.splitlines()))
    styles = {str(span.style) for span in conversation(example).spans}
    assert {"bold blue", "bold green", "bold magenta", "dim", "magenta"} <= styles
    weights = supervised(encoded, True)
    assert {str(span.style) for span in rendered(encoded.ids, weights, tokenizer).spans} == {
        "dim",
        "yellow",
        "bold green",
    }
