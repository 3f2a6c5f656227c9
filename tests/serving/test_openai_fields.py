"""Every field of OpenAI's API is used, accepted because it has no effect here, or refused with its name and value."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from instruct_lit.serving.protocol import ChatBody, CompletionBody
from tests.serving.conftest import greedy
from tests.serving.test_http import QUESTION, ask, post, prompt_of

openai = pytest.importorskip("openai")
# The fields with their harmless values, and values with an effect that the server does not have.
CHAT: dict[str, tuple[list[Any], list[Any]]] = {
    "audio": ([None], [{"voice": "alloy", "format": "wav"}]),
    "frequency_penalty": ([None, 0, 0.0], [0.5, -2]),
    "function_call": ([None, "none", "auto"], [{"name": "f"}]),
    "functions": ([None, []], [[{"name": "f"}]]),
    "logit_bias": ([None, {}], [{"50256": -100}]),
    "logprobs": ([None, False, True], []),
    "max_completion_tokens": ([None, 2], []),
    "max_tokens": ([None, 2], []),
    "metadata": ([None, {"a": "b"}], []),
    "modalities": ([None, ["text"]], [["text", "audio"]]),
    "moderation": ([None], [{"model": "omni-moderation-latest"}]),
    "n": ([None, 1, 2], []),
    "parallel_tool_calls": ([None, True, False], []),
    "prediction": ([None, {"type": "content", "content": "x"}], []),
    "presence_penalty": ([None, 0], [1]),
    "prompt_cache_key": ([None, "k"], []),
    "prompt_cache_options": ([None, {"mode": "implicit"}], []),
    "prompt_cache_retention": ([None, "24h"], []),
    "reasoning_effort": ([None, "none"], ["low", "high"]),
    "response_format": (
        [None, {"type": "text"}],
        [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}],
    ),
    "safety_identifier": ([None, "someone"], []),
    "seed": ([None, 5], []),
    "service_tier": ([None, "auto", "flex"], []),
    "stop": ([None, [], ["never there"]], []),
    "store": ([None, True, False], []),
    "stream": ([None, False], []),
    "stream_options": ([None, {"include_usage": True}], []),
    "temperature": ([None, 0], []),
    "tool_choice": ([None, "none", "auto"], ["required", {"type": "function", "function": {"name": "f"}}]),
    "tools": ([None, []], [[{"type": "function", "function": {"name": "f"}}]]),
    "top_logprobs": ([None, 0], []),
    "top_p": ([None, 1], []),
    "user": ([None, "someone"], []),
    "verbosity": ([None, "medium"], ["low"]),
    "web_search_options": ([None], [{}, {"search_context_size": "low"}]),
}
COMPLETION: dict[str, tuple[list[Any], list[Any]]] = {
    **{name: CHAT[name] for name in (
        "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "seed", "stop", "stream",
        "stream_options", "temperature", "top_p", "user")},
    "best_of": ([None, 1], []),
    "echo": ([None, False], []),
    "logprobs": ([None, 0, 5], []),
    "suffix": ([None, ""], [" the end"]),
}  # fmt: skip
CASES = [("chat/completions", {"messages": QUESTION}, CHAT), ("completions", {"prompt": "x"}, COMPLETION)]


def test_the_tables_have_every_field_of_openais_client() -> None:
    from openai.types import completion_create_params as completion
    from openai.types.chat import completion_create_params as chat

    for kind, table, own, required in (
        (chat, CHAT, ChatBody, {"messages", "model"}), (completion, COMPLETION, CompletionBody, {"prompt", "model"}),
    ):  # fmt: skip
        fields = {*kind.CompletionCreateParamsBase.__annotations__, "stream"}
        assert fields - required == set(table)
        assert fields <= set(own.__dataclass_fields__)


@pytest.mark.parametrize(
    ("path", "body", "name", "value"),
    [(path, body, name, value) for path, body, table in CASES for name in table for value in table[name][0]],
)
def test_what_has_no_effect_is_accepted(server: SimpleNamespace, path: str, body: dict, name: str, value: Any) -> None:
    limit = {} if "tokens" in name else {"max_tokens": 2}
    status, answer = post(server, f"/v1/{path}", json.dumps({"model": "tiny", **body, **limit, name: value}).encode())
    assert status == 200 and answer["choices"][0]["finish_reason"] in ("length", "stop"), answer


@pytest.mark.parametrize(
    ("path", "body", "name", "value"),
    [(path, body, name, value) for path, body, table in CASES for name in table for value in table[name][1]],
)
def test_what_has_an_effect_is_refused(server: SimpleNamespace, path: str, body: dict, name: str, value: Any) -> None:
    status, answer = post(server, f"/v1/{path}", json.dumps({"model": "tiny", **body, name: value}).encode())
    assert (status, answer["error"]["param"]) == (400, name)
    message = answer["error"]["message"]
    assert message.startswith(f"{name}=") and "not supported by this server; " in message
    assert str(value)[-9:-2] in message or len(str(value)) > 60


def test_the_servers_own_message_can_be_sent_back(server: SimpleNamespace) -> None:
    """Clients append the message of the answer, with its empty fields, to the conversation."""
    first = ask(server, max_tokens=3).choices[0].message
    again = ask(server, messages=[*QUESTION, first, *QUESTION], max_tokens=3)
    whole = {**first.model_dump(), "content": "red", "tool_calls": [], "annotations": []}
    assert again.choices and ask(server, messages=[*QUESTION, whole, *QUESTION], max_tokens=3).choices
    used = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(openai.BadRequestError, match=r"messages.1.tool_calls=.*not supported by this server"):
        ask(server, messages=[*QUESTION, {**whole, "tool_calls": [used]}, *QUESTION])


def test_no_prompt_is_the_beginning_of_a_text(server: SimpleNamespace) -> None:
    answer = server.client.completions.create(model="tiny", prompt=None, max_tokens=3, temperature=0)
    eot_id = server.chat_model.tokenizer.eot_id
    assert answer.choices[0].text == greedy(server.chat_model, [eot_id], 3) and answer.usage.prompt_tokens == 1


@pytest.mark.parametrize("setting", [{"temperature": 1e-38}, {"temperature": 5e-324}, {"temperature": 1e-6},
                                     {"temperature": 1, "top_p": 1e-46}, {"temperature": 2, "top_p": 5e-324}])  # fmt: skip
def test_tiny_settings_are_greedy(server: SimpleNamespace, setting: dict[str, float]) -> None:
    expected = greedy(server.chat_model, prompt_of(server), 8)
    assert ask(server, max_tokens=8, seed=1, **setting).choices[0].message.content == expected
    assert set(expected) != {"!"}


def test_a_probability_of_zero_is_a_number_in_json(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from instruct_lit.serving import logprobs

    real = logprobs.logprobs_of
    monkeypatch.setattr(
        logprobs, "logprobs_of", lambda logits, *rest: real(logits - float("inf") * (logits < 1e9), *rest)
    )
    answer = server.client.completions.create(model="tiny", prompt="x", max_tokens=2, temperature=0, logprobs=1)
    assert answer.choices[0].logprobs.token_logprobs == [-9999.0, -9999.0]
