"""A model's own chat template: the ids of transformers, and learnt is what the model writes, with tools and thoughts."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_lit.core.data.encode import EncodedExample, Encoder
from instruct_lit.core.data.example import Example, to_example
from instruct_lit.errors import TemplateError
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.tokenizer import load_tokenizer

pytest.importorskip("transformers")
# Reduced forms of three families. All but the last close a turn by <|end|>.
HEADER = """{{ '<s>' }}{% if tools %}<|system|>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|end|>
{% endif %}"""
CALLS = """{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"""
# Thoughts are kept in all turns.
KEEPS = (
    HEADER
    + """{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>
{% endif %}{{ m.content }}"""
    + CALLS
    + """<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
)
# Thoughts are those of the last turn; without one it has an empty thought, which opens for generation where disabled.
DROPS = (
    HEADER
    + """{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>
{% if loop.last and m.role == 'assistant' %}<think>{{ m.reasoning_content or '' }}</think>
{% endif %}{{ m.content }}"""
    + CALLS
    + """<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% if enable_thinking is false %}<think></think>
{% endif %}{% endif %}"""
)
# No tools, no system prompt, no generation prompt: a response begins with a space.
INST = """{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]
{%- elif m.role == 'assistant' %} {{ m.content | trim }}</s>{% else %}{{ raise_exception('no ' + m.role) }}{% endif %}
{%- endfor %}"""
TEMPLATES = {"keeps": KEEPS, "drops": DROPS, "inst": INST}
USER, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "the dog"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING = [
    {"role": "system", "content": "be short"}, USER,
    {"role": "assistant", "content": "", "reasoning_content": "what is it", "tool_calls": [CALL]},
    {"role": "tool", "content": "2"}, {"role": "assistant", "content": "it is 2", "reasoning_content": "so"}, USER, ANSWER,
]  # fmt: skip


def case(folder: Path, name: str) -> Any:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.hf.chat_template = TEMPLATES[name]
    return with_chat(tokenizer)


def learnt(encoded: EncodedExample, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(encoded.ids[start:end].tolist()) for start, end in encoded.spans]


def check(records: dict[str, Any], tokenizer: Any, template: Any) -> list[tuple[Example, EncodedExample]]:
    """Encode and compare with transformers: the whole, and what stands before every response."""
    example = to_example(records, "f")
    messages = template.messages(example)
    tools = list(example.tools) or None
    found = list(Encoder(template, tokenizer, 10_000, "error").encode([example]))
    for one, encoded in found:
        given = messages[: len(one.messages) or len(messages)]
        whole = tokenizer.hf.apply_chat_template(given, tools=tools, return_dict=False)
        assert encoded.ids.tolist() == whole[: len(encoded.ids)]
        places = [n for n, m in enumerate(given) if m["role"] == "assistant"][-len(encoded.spans) :]
        for n, (start, _) in zip(places, encoded.spans, strict=True):
            before = tokenizer.hf.apply_chat_template(
                given[:n], tools=tools, add_generation_prompt=True, return_dict=False
            )
            assert encoded.ids[:start].tolist() == before
        assert encoded.prompt_ids == Encoder(template, tokenizer, 10_000).prompt_ids(one)
    return found


def test_tools_calls_results_and_thoughts_are_learnt_as_the_model_writes_them(llama_directory: Path) -> None:
    tokenizer, template = case(llama_directory, "keeps")
    ((example, encoded),) = check({"messages": CALLING, "tools": [TOOL]}, tokenizer, template)
    assert learnt(encoded, tokenizer) == [
        '<think>what is it</think>\n<call>{"name": "add", "arguments": {"a": 1}}</call><|end|>',
        "<think>so</think>\nit is 2<|end|>", "the dog<|end|>",
    ]  # fmt: skip
    assert len(example.messages) == 7


def test_a_template_that_drops_earlier_thoughts_gives_one_example_per_turn(llama_directory: Path) -> None:
    tokenizer, template = case(llama_directory, "drops")
    found = check({"messages": CALLING, "tools": [TOOL]}, tokenizer, template)
    assert [learnt(encoded, tokenizer) for _, encoded in found] == [
        ['<think>what is it</think>\n<call>{"name": "add", "arguments": {"a": 1}}</call><|end|>'],
        ["<think>so</think>\nit is 2<|end|>"],
        ["<think></think>\nthe dog<|end|>"],
    ]
    assert [len(example.messages) for example, _ in found] == [3, 5, 7]


@pytest.mark.parametrize("name", ["keeps", "drops"])
@pytest.mark.parametrize("thoughts", ["drop", "last"])
def test_thoughts_are_dropped_where_asked(llama_directory: Path, name: str, thoughts: str) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = TEMPLATES[name]
    tokenizer, template = with_chat(tokenizer, None, None, thoughts)
    thinking = {**ANSWER, "thinking": "hm"}
    example = to_example({"messages": [USER, thinking, USER, {**thinking, "thinking": "so"}]}, "f")
    found = list(Encoder(template, tokenizer, 10_000).encode([example]))
    first, last = (text for _, encoded in found for text in learnt(encoded, tokenizer))
    empty = "<think></think>\n" if name == "drops" else ""
    assert first == f"{empty}the dog<|end|>"
    assert last == (f"{empty}the dog<|end|>" if thoughts == "drop" else "<think>so</think>\nthe dog<|end|>")
    reopened = with_chat(tokenizer)[1]  # as from a bundle
    assert reopened.turns(example) == template.turns(example) and reopened.text == template.text


def test_a_conversation_with_calls_is_cut_between_turns(llama_directory: Path) -> None:
    tokenizer, template = case(llama_directory, "keeps")
    example = to_example({"messages": CALLING, "tools": [TOOL]}, "f")
    ((_, whole),) = Encoder(template, tokenizer, 10_000).encode([example])
    for n_turns, (_, end) in enumerate(whole.spans):
        encoder = Encoder(template, tokenizer, end - 1)
        found = list(encoder.encode([example]))
        assert encoder.counts["n_truncated" if n_turns else "n_dropped_long"] == 1 and len(found) == (n_turns > 0)
        for cut, encoded in found:
            assert encoded.spans == whole.spans[:n_turns] and len(encoded.ids) == encoded.spans[-1][1]
            assert cut == example.first_turns(n_turns)


def test_weights_of_turns_reach_the_tokens(llama_directory: Path) -> None:
    messages = [USER, {**ANSWER, "weight": 0.5}, USER, {**ANSWER, "train": False}, USER, ANSWER]
    for name in TEMPLATES:
        tokenizer, template = case(llama_directory, name)
        weights: dict[float, int] = {}
        for _, encoded in Encoder(template, tokenizer, 10_000).encode([to_example({"messages": messages}, "f")]):
            for start, end in encoded.spans:
                (weight,) = set(encoded.weights[start:end].tolist())  # type: ignore[index]
                weights[weight] = weights.get(weight, 0) + 1
            assert bool(np.all(encoded.weights[encoded.is_response] > 0))  # type: ignore[index]
        assert weights == {0.5: 1, 1.0: 1}


def test_a_response_begins_where_the_generation_prompt_ends(llama_directory: Path) -> None:
    tokenizer, template = case(llama_directory, "inst")
    ((_, encoded),) = check({"messages": [USER, ANSWER, USER, ANSWER]}, tokenizer, template)
    assert learnt(encoded, tokenizer) == [" the dog</s>"] * 2


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("inst", {"messages": CALLING, "tools": [TOOL]}, r"rejects the conversation \(no system\)"),
        ("inst", {"messages": [USER, ANSWER], "tools": [TOOL]}, "does not render the tool 'add'"),
        # Its name is in the user's text.
        ("inst", {"messages": [{**USER, "content": "add"}, ANSWER], "tools": [TOOL]}, "does not render tools; choose"),
        (
            "inst",
            {"messages": [USER, {**ANSWER, "thinking": "hm"}]},
            "does not render the thoughts of an answer; data.th",
        ),
        ("inst", {"messages": [USER, {**ANSWER, "tool_calls": [CALL]}]}, "does not render the calls of an answer"),
    ],
)
def test_what_a_template_does_not_render_is_refused_by_name(
    llama_directory: Path, name: str, record: dict[str, Any], message: str
) -> None:
    _, template = case(llama_directory, name)
    with pytest.raises(TemplateError, match=message):
        template.renderings(to_example(record, "f"))


def test_an_answer_that_begins_otherwise_than_the_generation_prompt_is_refused(llama_directory: Path) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = KEEPS.replace("<|assistant|>\n{% endif %}", "<|assistant|>\n<think>\n{% endif %}")
    with pytest.raises(TemplateError, match="opens a thought for generation, which the answer does not have; give tho"):
        with_chat(tokenizer)
    tokenizer.hf.chat_template = KEEPS.replace("<|assistant|>\n{% endif %}", "<|assistant|>\n# {% endif %}")
    with pytest.raises(TemplateError, match="begins an answer by 'output<.end.>.*', but for generation by '# '"):
        with_chat(tokenizer)


def test_a_prompt_that_opens_a_thought_requires_one(llama_directory: Path) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = KEEPS.replace("<|assistant|>\n{% endif %}", "<|assistant|>\n<think>{% endif %}")
    tokenizer, template = with_chat(tokenizer)
    ((_, encoded),) = check({"messages": [USER, {**ANSWER, "thinking": "hm"}]}, tokenizer, template)
    assert learnt(encoded, tokenizer) == ["hm</think>\nthe dog<|end|>"]
    with pytest.raises(TemplateError, match=r"opens a thought .* or template.variables.enable_thinking=false"):
        template.turns(Example("the cat", "the dog"))


def test_variables_of_a_template_are_its_defaults_here_and_in_transformers(llama_directory: Path) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = DROPS
    tokenizer, template = with_chat(tokenizer, {"enable_thinking": False})
    ((_, encoded),) = check({"messages": [USER, ANSWER]}, tokenizer, template)
    assert learnt(encoded, tokenizer) == ["the dog<|end|>"] and template.text == tokenizer.hf.chat_template != DROPS
    assert "<think></think>" not in tokenizer.hf.apply_chat_template(
        [USER], add_generation_prompt=True, tokenize=False, enable_thinking=True
    )
    reopened, again = with_chat(load_tokenizer(str(llama_directory)), None)
    reopened.hf.chat_template = template.text
    assert with_chat(reopened)[1].turns(Example("a", "b")) == template.turns(Example("a", "b"))
    with pytest.raises(TemplateError, match="does not read the variable 'thinking'; correct template.variables.think"):
        with_chat(again.tokenizer, {"thinking": True})  # type: ignore[attr-defined]


def test_the_date_of_a_template_is_fixed(llama_directory: Path) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    text = KEEPS.replace("{{ '<s>' }}", "{{ '<s>' + strftime_now('%d %b %Y') }}")
    tokenizer.hf.chat_template = text
    assert with_chat(tokenizer)[1].turns(Example("a", "b"))[0][0].startswith("<s>26 Jul 2024<|user|>")
    tokenizer.hf.chat_template = text
    assert with_chat(tokenizer, {"date": "2026-01-02"})[1].prompt(Example("a", "b")).startswith("<s>02 Jan 2026<|")
    tokenizer.hf.chat_template = text
    with pytest.raises(TemplateError, match="needs a date as 2024-07-26, found 'today'; see template.variables.date"):
        with_chat(tokenizer, {"date": "today"})


@pytest.mark.parametrize("call", [
    "strftime_now(format='%d %b %Y')", "strftime_now ( \"%d %b %Y\" )", "strftime_now('%d' ~ ' %b %Y')",
    "[strftime_now][0](['%d', '%b %Y'] | join(' '))",
])  # fmt: skip
def test_the_date_of_a_computed_format_is_fixed_too(llama_directory: Path, tmp_path: Path, call: str) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = KEEPS.replace(
        "{{ '<s>' }}", f"{{% if strftime_now is defined %}}{{{{ '<s>' ~ {call} }}}}{{% endif %}}"
    )
    _, template = with_chat(tokenizer, {"date": "2026-01-02"})
    assert template.prompt(Example("a", "b")).startswith("<s>02 Jan 2026<|user|>")
    tokenizer.hf.save_pretrained(tmp_path)
    again = with_chat(load_tokenizer(str(tmp_path)))[1]
    assert again.text == template.text and again.prompt(Example("a", "b")).startswith("<s>02 Jan 2026<|user|>")


def test_a_template_that_closes_no_answer_is_learnt_turn_by_turn(llama_directory: Path) -> None:
    """Else the end-of-text of an earlier answer would be in prompts of training, and in none of transformers."""
    tokenizer = load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer, template = with_chat(tokenizer)
    talk = Example("the dog", "and", history=(("the cat", "the dog"),))
    encoded = [one for _, one in Encoder(template, tokenizer, 999).encode([talk])]
    said = [text for pair in (*talk.history, ("the dog", "and")) for text in pair]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    render = functools.partial(tokenizer.hf.apply_chat_template, return_dict=False)
    assert [one.prompt_ids for one in encoded] == [render(messages[:n], add_generation_prompt=True) for n in (1, 3)]
    assert [one.ids.tolist() for one in encoded] == [[*render(messages[:n]), tokenizer.eot_id] for n in (2, 4)]
    assert template.prompt_ids(replace(talk, output=""), tokenizer) == encoded[1].prompt_ids


def test_one_of_several_templates_is_chosen_by_name(llama_directory: Path) -> None:
    def made(variant: str | None) -> Any:
        tokenizer = load_tokenizer(str(llama_directory))
        tokenizer.hf.chat_template = {"default": KEEPS, "rag": INST}
        return with_chat(tokenizer, None, variant)[1].text

    assert (made(None), made("rag")) == (KEEPS, INST)
    with pytest.raises(TemplateError, match="no variant 'tool_use'; template.variant: allowed are default, rag"):
        made("tool_use")


def test_the_first_conversation_of_a_kind_is_compared_with_transformers(
    llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, template = case(llama_directory, "keeps")
    render = tokenizer.hf.apply_chat_template
    monkeypatch.setattr(
        tokenizer.hf, "apply_chat_template", lambda *a, tokenize=True, **o: (
            render(*a, tokenize=tokenize, **o) if not tokenize else [*render(*a, **o)[:-1], 7]
        )
    )  # fmt: skip
    encoder = Encoder(template, tokenizer, 10_000)
    with pytest.raises(
        TemplateError, match=r"has other ids in transformers: from token \d+ on '.n' \[\d+\] here, .* \[7\] t"
    ):
        list(encoder.encode([Example("the cat", "the dog")]))
    list(encoder.encode([Example("the cat", "the dog")]))  # only the first of a kind
    with pytest.raises(TemplateError, match="has other ids"):
        list(encoder.encode([Example("the cat", "the dog", system="be short")]))


def test_the_texts_of_a_conversation_are_protected(llama_directory: Path) -> None:
    tokenizer, template = case(llama_directory, "keeps")
    nasty = [USER, {**ANSWER, "tool_calls": [{**CALL, "function": {"name": "add", "arguments": {"<|end|>": "</s>"}}}]}]
    example = to_example({"messages": nasty, "tools": [TOOL]}, "f")
    ((_, encoded),) = Encoder(template, tokenizer, 10_000).encode([example])
    plain = replace(
        example, messages=tuple(to_example({"messages": [USER, {**ANSWER, "tool_calls": [CALL]}]}, "f").messages)
    )
    ((_, other),) = Encoder(template, tokenizer, 10_000).encode([plain])
    specials = set(tokenizer.hf.added_tokens_decoder)
    assert [i for i in encoded.ids if i in specials] == [i for i in other.ids if i in specials]
    assert learnt(encoded, tokenizer) == [
        'the dog<call>{"name": "add", "arguments": {"<|end|>": "</s>"}}</call><|end|>'
    ]


# Texts without white space around them, which templates may trim, with names of special tokens in them.
TEXT = st.lists(
    st.sampled_from(["the cat", "<|end|>", "<|assistant|>", "</s>", "é🙂", "<think>", "x"]), min_size=1, max_size=3
)
TEXT = TEXT.map("".join)
CALLS_OF = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["add", "look"]), "arguments": st.dictionaries(TEXT, TEXT, max_size=2)}),
    min_size=1, max_size=2,
).map(lambda calls: [{"type": "function", "function": call} for call in calls])  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn, rich: bool) -> dict[str, Any]:
    """Turns with texts and weights, if `rich` also a system prompt, thoughts, calls and results."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(TEXT)}] if rich and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        thoughts = {"reasoning_content": draw(TEXT)} if rich and draw(st.booleans()) else {}
        if rich and draw(st.booleans()):
            messages.append({"role": "assistant", "content": "", "tool_calls": draw(CALLS_OF), **thoughts})
            messages.append({"role": "tool", "content": draw(TEXT)})
        messages.append(
            {"role": "assistant", "content": draw(TEXT), "weight": draw(st.sampled_from([0, 0.5, 1])), **thoughts}
        )
    messages[-1]["weight"] = 1
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("add", "look")]
    return {"messages": messages, "tools": tools if rich else None}


def written(message: dict[str, Any], name: str) -> str:
    """What the assistant writes under one of the templates, by hand."""
    if name == "inst":
        return f" {message['content']}</s>"
    thought = message.get("reasoning_content", "")
    begun = f"<think>{thought}</think>\n" if thought or name == "drops" else ""
    calls = (
        f"<call>{json.dumps({key: call['function'][key] for key in ('name', 'arguments')}, ensure_ascii=False)}</call>"
        for call in message.get("tool_calls", ())
    )
    return begun + message["content"] + "".join(calls) + "<|end|>"


@pytest.mark.parametrize("name", ["keeps", "drops", pytest.param("inst", marks=pytest.mark.slow)])
@given(data=st.data())
def test_the_mask_decodes_to_what_the_assistant_wrote_and_to_nothing_else(
    llama_directory: Path, name: str, data: st.DataObject
) -> None:
    record = data.draw(conversations(name != "inst"))
    tokenizer, template = cases(llama_directory, name)
    example = to_example(record, "f")
    found = list(Encoder(template, tokenizer, 100_000, "error").encode([example]))
    learnt_texts = [text for _, encoded in found for text in learnt(encoded, tokenizer)]
    said = [m for m in record["messages"] if m["role"] == "assistant" and m.get("weight", 1) > 0]
    assert learnt_texts == [written(message, name) for message in said]
    specials = [i for _, e in found for i in e.ids[e.is_response].tolist() if i in tokenizer.hf.added_tokens_decoder]
    assert specials == [tokenizer.eot_id] * len(said)


@functools.cache
def cases(folder: Path, name: str) -> Any:
    return case(folder, name)
