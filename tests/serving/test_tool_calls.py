"""Tools through OpenAI's client: what the template writes is read back, whole and streamed, or refused by name."""

import json
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from instruct_lit.config.compose import CONF
from instruct_lit.core.data.example import to_example
from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Hook
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.serving.protocol import CalledFunction, ChatBody, Message, ToolCall
from instruct_lit.serving.tool_calls import example_of_chat
from tests.serving.conftest import CHAT, run_in_thread, tiny_chat_model

openai = pytest.importorskip("openai")
FILE: Any = OmegaConf.load(CONF / "template" / "chatml.yaml")
CHATML = Template(FILE.name, FILE.text, FILE.next_turn)
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "1 + 2?"}
THOUGHTS, CALL = "<think>\nI add.\n</think>\n\n", '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


class Dictated(Hook):
    """Lets the model write the given tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def limit(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        limited = torch.full_like(logits, -torch.inf)
        limited[self.tokens[len(ids)]] = 0
        return limited


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., Any]]:
    """`ask(text, …)`: the response, or its chunks, as if the model had written the text; `ask.prompts` has the prompts."""
    for module in ("fastapi", "uvicorn"):
        pytest.importorskip(module)
    from instruct_lit.serving.completions import CompletionService
    from instruct_lit.serving.http import make_app

    chat_model = tiny_chat_model(CHATML, context_length=512)
    engine, tokenizer = Engine(chat_model.model, chat_model.tokenizer, 4), chat_model.tokenizer
    prompts: list[str] = []
    written = {"text": ""}
    prepare = engine.prepare

    def prepared(prompt: Any, settings: Any, hook: Any = None) -> Any:
        prompts.append(tokenizer.decode(prompt))
        return prepare(prompt, settings, Dictated([*tokenizer.encode(written["text"]), tokenizer.eot_id]))

    engine.prepare = prepared  # type: ignore[method-assign]
    service = CompletionService(chat_model, engine, SamplingSettings(max_new_tokens=99))
    url, stop = run_in_thread(make_app(service))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)

    def run(text: str, messages: Any = (USER,), tools: Any = (TOOL,), **options: Any) -> Any:
        written["text"] = text
        given = {"tools": list(tools)} if tools else {}
        return client.chat.completions.create(model="tiny", messages=list(messages), temperature=0, **given, **options)

    run.prompts = prompts  # type: ignore[attr-defined]
    yield run
    stop()


def streamed(chunks: Any) -> SimpleNamespace:
    """The parts of a streamed response, put together as clients do."""
    found = SimpleNamespace(content="", reasoning_content="", calls=[], reason=None, n_chunks=0)
    for chunk in chunks:
        (choice,) = chunk.choices
        found.n_chunks += 1
        found.content += choice.delta.content or ""
        found.reasoning_content += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or ():
            assert call.index == len(found.calls)
            found.calls.append((call.function.name, json.loads(call.function.arguments)))
        found.reason = choice.finish_reason or found.reason
    return found


@pytest.mark.parametrize(
    ("text", "content", "thoughts", "n_calls"),
    [
        (f"{THOUGHTS}{CALL}", None, "I add.", 1),
        (f"Let me see.\n{CALL}\n{CALL}", "Let me see.", None, 2),
        (f"{THOUGHTS}It is 3.", "It is 3.", "I add.", 0),
        ("a < b and <tools>", "a < b and <tools>", None, 0),
        ("<tool_call>oops</tool_call>", "<tool_call>oops</tool_call>", None, 0),
    ],
)
def test_thoughts_text_and_calls_whole_and_streamed(
    ask: Callable[..., Any], text: str, content: str | None, thoughts: str | None, n_calls: int
) -> None:
    (choice,) = ask(text).choices
    message = choice.message
    assert message.content == content and getattr(message, "reasoning_content", None) == thoughts
    assert [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or ()] == (
        [("add", {"a": 1})] * n_calls
    )
    assert choice.finish_reason == ("tool_calls" if n_calls else "stop")
    found = streamed(ask(text, stream=True))
    assert (found.content or None, found.reasoning_content or None) == (content, thoughts)
    assert found.calls == [("add", {"a": 1})] * n_calls and found.reason == choice.finish_reason
    if content is not None:
        assert found.n_chunks >= 3


def test_a_whole_conversation_is_the_prompt_of_training(ask: Callable[..., Any]) -> None:
    first = ask(f"{THOUGHTS}{CALL}").choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "3"}
    answer = ask("It is 3.", [USER, first.model_dump(), result]).choices[0].message
    assert answer.content == "It is 3."
    record = {
        "tools": [TOOL],
        "messages": [
            USER,
            {"role": "assistant", "content": "", "reasoning_content": "I add.",
             "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "It is 3."},
        ],
    }  # fmt: skip
    (one, written), (prompt, _) = CHATML.turns(to_example(record, "f"))
    assert ask.prompts[-1] == f"{one}{written}<|endoftext|>{prompt}"  # type: ignore[attr-defined]


def test_tool_choice(ask: Callable[..., Any]) -> None:
    rest = ' {"a": 1}}\n</tool_call>'
    named = {"type": "function", "function": {"name": "add"}}
    two = [TOOL, {"type": "function", "function": {"name": "multiply"}}]
    begun_call = ' "add", "arguments":'
    for tools, choice, text, begun in (
        (two, "required", f"{begun_call}{rest}", ""), (two, named, rest, begun_call),
        ([TOOL], "required", rest, begun_call),  # of a single tool the name is known
    ):  # fmt: skip
        message = ask(text, tool_choice=choice, tools=tools).choices[0].message
        assert [(c.function.name, c.function.arguments) for c in message.tool_calls] == [("add", '{"a": 1}')]
        assert ask.prompts[-1].endswith(f'<|im_start|>assistant\n<tool_call>\n{{"name":{begun}')  # type: ignore[attr-defined]
        assert streamed(ask(text, tool_choice=choice, tools=tools, stream=True)).calls == [("add", {"a": 1})]
    assert ask(CALL, tool_choice="none").choices[0].message.content == CALL
    assert "<tools>" not in ask.prompts[-1]  # type: ignore[attr-defined]
    assert len(ask(f"{CALL}\n{CALL}", parallel_tool_calls=False).choices[0].message.tool_calls) == 1


@pytest.mark.parametrize("value", ["NaN", r'"\ud83d"'])
def test_a_call_that_neither_json_nor_utf8_can_hold_stays_in_the_text(ask: Callable[..., Any], value: str) -> None:
    text = CALL.replace("1", value)
    assert ask(text).choices[0].message.content == streamed(ask(text, stream=True)).content == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice={'type'.*tools has add"),
        ({"tools": (), "tool_choice": "required"}, "tool_choice='required': not supported by this server; tools has none"),
        ({"messages": [USER, USER]}, None),
        ({"tools": [TOOL, {"type": "function", "function": {}}]}, "tools.1.function.name: missing; give a text"),
        ({"tools": [{"type": "function", "function": {"name": 3}}]}, "tools.0.function.name: 3; give a text"),
        ({"messages": [{"role": "tool", "content": "3"}]}, r"messages.0: tool may not follow start; allowed are user"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content: null"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{"}}]}, USER]},
            "messages.1.tool_calls: invalid JSON in arguments",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "add", "arguments": "[1]"}}]}, USER]},
            r"messages.1.tool_calls: arguments='\[1]' of .add.; give a JSON object",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused(
    ask: Callable[..., Any], options: dict[str, Any], message: str | None
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask("x", **options)


def test_a_template_whose_calls_cannot_be_read_back_is_refused_by_name(start: Callable[..., SimpleNamespace]) -> None:
    client = start(template=CHAT).client
    with pytest.raises(
        openai.BadRequestError,
        match=r"tools=\[.*: not supported by this server; the template 'turns' of this model has no place for tools",
    ):
        client.chat.completions.create(model="tiny", messages=[USER], tools=[TOOL])


def test_a_call_without_arguments_may_have_an_empty_text() -> None:
    call = ToolCall(function=CalledFunction(name="now", arguments=""))
    said = [
        Message(role="user", content="a"),
        Message(role="assistant", tool_calls=[call]),
        Message(role="tool", content="1", name="now", tool_call_id="c"),
    ]
    *_, called, result, _ = example_of_chat(CHAT, ChatBody(model="tiny", messages=said), False).messages
    assert called["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}
    assert result == {"role": "tool", "content": "1", "name": "now", "tool_call_id": "c"}
