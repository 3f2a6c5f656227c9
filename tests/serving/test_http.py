"""The API as OpenAI's client and a bare socket see it."""

import asyncio
import http.client
import json
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlparse

import pytest
import torch

from instruct_lit.core.data.example import Example
from tests.serving.conftest import CHAT, greedy

openai = pytest.importorskip("openai")
QUESTION = [{"role": "user", "content": "Name a colour."}]


def prompt_of(server: SimpleNamespace, **example: Any) -> list[int]:
    return server.chat_model.prompt_ids(Example("Name a colour.", "", **example))


def ask(server: SimpleNamespace, **options: Any) -> Any:
    return server.client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "temperature": 0, **options})


def post(server: SimpleNamespace, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a raw call."""
    with closing(http.client.HTTPConnection(urlparse(server.url).netloc, timeout=30)) as connection:
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        except (BrokenPipeError, ConnectionResetError):  # a server need not read all of it
            pass
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def get(server: SimpleNamespace, path: str) -> bytes:
    with urllib.request.urlopen(server.url + path, timeout=30) as response:
        return response.read()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_models(server: SimpleNamespace) -> None:
    (model,) = server.client.models.list().data
    assert (model.id, model.object, model.max_model_len) == ("tiny", "model", 128)
    assert server.client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="The model 'other' does not exist"):
        server.client.models.retrieve("other")


def test_chat_is_the_engines_answer_to_the_prompt_of_training(server: SimpleNamespace) -> None:
    answer = ask(server, max_tokens=10)
    prompt = prompt_of(server)
    choice = answer.choices[0]
    assert choice.message.content == greedy(server.chat_model, prompt, 10) and choice.message.role == "assistant"
    assert choice.finish_reason == "length" and choice.logprobs is None
    assert vars(answer.usage)["prompt_tokens"] == len(prompt) == answer.usage.total_tokens - 10
    with_input = ask(server, max_tokens=10, extra_body={"input": "red or blue"})
    assert with_input.choices[0].message.content == greedy(
        server.chat_model, prompt_of(server, input="red or blue"), 10
    )


def test_what_a_request_leaves_open_is_the_servers_default(server: SimpleNamespace) -> None:
    answer = server.client.chat.completions.create(model="tiny", messages=QUESTION)
    assert answer.usage.completion_tokens == 24
    assert answer.choices[0].message.content == greedy(server.chat_model, prompt_of(server), 24)


def test_system_and_earlier_turns_where_the_template_has_them(server: SimpleNamespace, start: Callable) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        *QUESTION,
    ]
    with_turns = start(template=CHAT)
    prompt = prompt_of(with_turns, system="Be brief.", history=(("Hello", "Yes?"),))
    text = with_turns.chat_model.tokenizer.decode(prompt)
    assert text == "[Be brief.]\nU: Hello\nB: Yes?<end><|endoftext|>\nU: Name a colour.\nB: "
    assert ask(with_turns, messages=talk, max_tokens=9).choices[0].message.content == greedy(
        with_turns.chat_model, prompt, 9, ("<end>",)
    )
    # A template of single instructions leaves them out, as the bundle's chat template does.
    assert ask(server, messages=talk, max_tokens=9) .choices[0].message.content == greedy(
        server.chat_model, prompt_of(server), 9
    )  # fmt: skip
    for bad in (talk[:3], [*QUESTION, *QUESTION], [talk[2], *QUESTION]):
        with pytest.raises(openai.BadRequestError, match="user and assistant must take turns"):
            ask(server, messages=bad)


def test_streaming_gives_the_same_text_and_usage(server: SimpleNamespace) -> None:
    whole = ask(server, max_tokens=20)
    chunks = list(ask(server, max_tokens=20, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == [] and len(chunks) > 8
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_texts_are_not_shown_streamed_or_not(server: SimpleNamespace) -> None:
    text = greedy(server.chat_model, prompt_of(server), 20)
    stop = text[len(text) // 2 :][:5]
    expected = text[: text.index(stop)]
    answer = ask(server, max_tokens=20, stop=[stop, "never there"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")
    chunks = list(ask(server, max_tokens=20, stop=stop, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    scored = ask(server, max_tokens=20, stop=stop, logprobs=True)
    scored_bytes = b"".join(bytes(t.bytes) for t in scored.choices[0].logprobs.content)
    assert scored_bytes.decode("utf-8", "replace").startswith(expected)


def test_seeds_and_several_choices(server: SimpleNamespace) -> None:
    hot = {"max_tokens": 8, "temperature": 1.0, "top_p": 0.95, "seed": 5}
    once, again = (ask(server, n=3, **hot) for _ in range(2))
    texts = [choice.message.content for choice in once.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    assert once.usage.completion_tokens == 24 and once.usage.prompt_tokens == len(prompt_of(server))
    assert len({ask(server, max_tokens=8, temperature=1.0).choices[0].message.content for _ in range(4)}) > 1
    assert [choice.index for choice in once.choices] == [0, 1, 2]


def test_equal_prompts_are_answered_anew_without_a_seed(server: SimpleNamespace) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": ["x"] * 2, "n": 2, "max_tokens": 8, "temperature": 2}
    free = [choice.text for choice in server.client.completions.create(**options).choices]
    seeded = [choice.text for choice in server.client.completions.create(**options, seed=3).choices]
    assert len(set(free)) == 4 and seeded[:2] == seeded[2:] and len(set(seeded)) == 2


def test_completions_of_texts_and_ids(server: SimpleNamespace) -> None:
    tokenizer = server.chat_model.tokenizer
    prompts = ["Once upon", "A second, longer text"]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    for given in (prompts, ids):
        answer = server.client.completions.create(model="tiny", prompt=given, max_tokens=6, temperature=0)
        assert [c.text for c in answer.choices] == [greedy(server.chat_model, i, 6) for i in ids]
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    one = server.client.completions.create(model="tiny", prompt=ids[0], temperature=0)
    assert one.usage.completion_tokens == 16  # OpenAI's default
    chunks = list(server.client.completions.create(model="tiny", prompt=prompts, max_tokens=6, stream=True))
    for index in range(2):
        assert "".join(c.choices[0].text for c in chunks if c.choices[0].index == index) == answer.choices[index].text


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_echoed_log_probabilities_are_right_to_the_position(server: SimpleNamespace, max_tokens: int) -> None:
    text = "Bäume 🦔 are green"
    answer = server.client.completions.create(
        model="tiny", prompt=text, echo=True, logprobs=2, max_tokens=max_tokens, temperature=0
    )
    choice, found = answer.choices[0], answer.choices[0].logprobs
    tokenizer, prompt = server.chat_model.tokenizer, server.chat_model.tokenizer.encode(text)
    assert choice.text == text + (greedy(server.chat_model, prompt, 4) if max_tokens else "")
    n = len(prompt) + max_tokens
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == n
    with torch.no_grad():
        expected = server.chat_model.model(torch.tensor([prompt]))[0].log_softmax(-1)
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    for place in range(1, len(prompt)):
        assert found.token_logprobs[place] == pytest.approx(expected[place - 1, prompt[place]].item(), abs=1e-4)
        best = {tokenizer.decode([i]) for i in expected[place - 1].topk(2).indices.tolist()}
        if not any("\ufffd" in token for token in best):
            assert set(found.top_logprobs[place]) == best | {found.tokens[place]}  # as OpenAI says
            assert found.top_logprobs[place][found.tokens[place]] == found.token_logprobs[place]
    # The hedgehog is several tokens of one character; every other token is at its offset.
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset:].startswith(token)
    assert sum(token.startswith("bytes:") for token in found.tokens[: len(prompt)]) >= 1


def test_log_probabilities_of_a_chat_streamed_are_the_same(server: SimpleNamespace) -> None:
    whole = ask(server, max_tokens=10, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(whole) == 10 and all(len(t.top_logprobs) == 3 for t in whole)
    assert all(t.token == t.top_logprobs[0].token for t in whole)  # greedy
    chunks = list(ask(server, max_tokens=10, logprobs=True, top_logprobs=3, stream=True))
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [(t.token, t.bytes) for t in streamed] == [(t.token, t.bytes) for t in whole]
    assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in whole], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        (b"{", 400, None, "Invalid JSON"),
        (b'{"model": "\xff\xfe"}', 400, None, "Invalid JSON"),
        (b"[]", 400, None, "should be an object"),
        (b"{}", 400, "model", "Field required"),
        ({"colour": 1}, 400, "colour", "Unexpected"),
        ({"model": "gpt-4"}, 404, "model", "The model 'gpt-4' does not exist; there is 'tiny'"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role", "system"),
        ({"messages": [{"role": "user", "reasoning": "x"}]}, 400, "messages.0.reasoning", "messages.0.reasoning: Unexpected"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, 400, "messages.0.content.0.text",
         "messages.0.content.0.text: Input should be a valid string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
         "messages.0.content.0.type", "messages.0.content.0.type: Input should be 'text'"),
        ({"tool_choice": {"type": "function"}}, 400, "tool_choice.function", "tool_choice.function: Field required"),
        ({"n": 80}, 400, "messages", "messages, n: 80 responses requested at once; at most 72 can be open"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]}, 400,
         "messages.0.tool_calls.0.function.arguments", "arguments: Input should be a valid string"),
        ({"temperature": "hot"}, 400, "temperature", "valid number"),
        ({"temperature": 3}, 400, "temperature", "temperature: Input should be less than or equal to 2"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"max_completion_tokens": 0}, 400, "max_completion_tokens", "greater than or equal to 1"),
        ({"max_tokens": True}, 400, "max_tokens", "valid integer"),
        ({"n": 1000}, 400, "n", "less than or equal to 128"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "at most 4"),
        ({"stop": ""}, 400, "stop", "at least one character"),
        ({"seed": -1}, 400, "seed", "greater than or equal to 0"),
        ({"presence_penalty": 1}, 400, "presence_penalty", "presence_penalty=1.0: not supported by this server; use repetition_penalty"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "must be 0 unless logprobs is true"),
        ({"max_tokens": 126}, 400, "messages", "maximum context length is 128 tokens. However, you requested 13"),
        ({"messages": [{"role": "user", "content": "word " * 500}]}, 400, "messages", "maximum context length"),
    ],
)  # fmt: skip
def test_bad_bodies_are_answered_in_openais_shape(server: SimpleNamespace, body, status, param, message) -> None:
    if isinstance(body, dict):
        body = json.dumps({"model": "tiny", "messages": QUESTION, **body}).encode()
    found, answer = post(server, "/v1/chat/completions", body)
    assert found == status and set(answer) == {"error"}
    assert answer["error"]["param"] == param and message in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": []}, "prompt", "give at least one prompt"),
        ({"prompt": ["x"] * 50, "n": 2}, "prompt", "100 responses requested at once; at most 72 can be open"),
        ({"prompt": [1, 60000]}, "prompt", "token ids are between 0 and 50256"),
        ({"prompt": [1, "x"]}, "prompt.0", "prompt.0: Input should be a valid string"),
        ({"logprobs": 6}, "logprobs", "less than or equal to 5"),
        ({"stream": True, "echo": True}, "stream", "false where echo"),
        ({"best_of": 3}, "best_of", "must be 1, or n"),
    ],
)
def test_bad_completions(server: SimpleNamespace, body: dict, param: str, message: str) -> None:
    status, answer = post(server, "/v1/completions", json.dumps({"model": "tiny", "prompt": "x", **body}).encode())
    assert status == 400 and message in answer["error"]["message"], answer
    assert answer["error"]["param"] == param


def test_paths_methods_types_and_sizes(server: SimpleNamespace, start: Callable) -> None:
    assert post(server, "/v1/nothing", b"{}")[0] == 404
    assert post(server, "/v1/models", b"{}")[0] == 405
    status, answer = post(server, "/v1/completions", b"{}", **{"Content-Type": "text/plain"})
    assert status == 415 and "application/json" in answer["error"]["message"]
    large = json.dumps({"model": "tiny", "prompt": "x" * 10_000_000}).encode()
    status, answer = post(server, "/v1/completions", large)
    assert status == 413 and answer["error"]["code"] == "body_too_large"
    small = start(body_timeout_s=0.2)
    with socket.create_connection(urlparse(small.url).netloc.split(":")) as slow:
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    assert ask(server, max_tokens=1).choices


def test_the_key_is_required_except_for_health(start: Callable) -> None:
    server = start(api_key="sésame")
    wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="other", max_retries=0)
    for call in (wrong.models.list, lambda: wrong.completions.create(model="tiny", prompt="x")):
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            call()
    assert json.loads(get(server, "/health")) == {"status": "ok"}
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()
    assert post(server, "/v1/completions", body, Authorization="Bearer sésame")[0] == 200


def test_the_key_may_have_any_characters_and_its_scheme_any_case(start: Callable) -> None:
    server = start(api_key="schlüssel")
    for scheme, key, expected in (("Bearer", "schlüssel", 200), ("bearer", "schlüssel", 200), ("Bearer", "ü", 401)):
        with closing(http.client.HTTPConnection(urlparse(server.url).netloc, timeout=30)) as connection:
            connection.request("GET", "/v1/models", headers={"Authorization": f"{scheme} {key}".encode()})
            assert connection.getresponse().status == expected


def test_metrics(start: Callable) -> None:
    server = start()
    ask(server, max_tokens=7)
    text = get(server, "/metrics").decode()
    for line in (
        'instruct_lit_http_requests_total{path="/v1/chat/completions",status="200"} 1.0',
        'instruct_lit_requests_total{finish_reason="length"} 1.0',
        'instruct_lit_tokens_total{kind="completion"} 7.0',
        "instruct_lit_first_token_seconds_count 1.0",
        "instruct_lit_rows_active 0.0",
    ):
        assert line in text


def test_concurrent_answers_are_not_mixed(server: SimpleNamespace) -> None:
    questions = [f"Question {n}" + "?" * (n % 4) for n in range(40)]
    expected = [greedy(server.chat_model, server.chat_model.prompt_ids(Example(q, "")), 12) for q in questions]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                call = {"model": "tiny", "messages": [{"role": "user", "content": questions[number]}], "max_tokens": 12}
                if number % 2:
                    return (await client.chat.completions.create(**call)).choices[0].message.content
                stream = await client.chat.completions.create(**call, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, range(40)))

    assert asyncio.run(all_at_once()) == expected and len(set(expected)) > 20


def slow(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05) -> None:
    step = server.engine.step

    def slowly() -> Any:
        time.sleep(seconds)
        return step()

    monkeypatch.setattr(server.engine, "step", slowly)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(start: Callable, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    server = start()
    slow(server, monkeypatch)
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 100, "stream": stream}).encode()
    with socket.create_connection(urlparse(server.url).netloc.split(":")) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        wait_until(lambda: server.engine.n_active == 1)
    wait_until(lambda: server.scheduler.n_open == 0)
    assert server.engine.n_unfinished == 0
    text = get(server, "/metrics").decode()
    assert 'instruct_lit_requests_total{finish_reason="cancelled"} 1.0' in text


def test_a_full_queue_answers_429_and_a_late_answer_504(start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(max_rows=2, max_waiting=1, timeout_s=0.5)
    slow(server, monkeypatch)
    chat = json.dumps({"model": "tiny", "messages": QUESTION, "n": 2}).encode()
    with ask(server, max_tokens=100, stream=True, n=2) as first:
        next(iter(first))
        status, answer = post(server, "/v1/chat/completions", chat)
    assert status == 429 and answer["error"]["code"] == "rate_limit_exceeded"
    assert "has 2 of at most 3 requests; try again later" in answer["error"]["message"]
    with pytest.raises(openai.APIStatusError, match=r"took longer than 0.5 s") as caught:
        ask(server, max_tokens=100)
    assert caught.value.status_code == 504
    with pytest.raises(openai.APIError, match=r"took longer than 0.5 s"):
        list(ask(server, max_tokens=100, stream=True))
    wait_until(lambda: server.scheduler.n_open == 0)


def test_an_engine_failure_is_a_500_and_the_server_stays_up(start: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "_admit", lambda: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="cancelled by the server"):
            ask(server, max_tokens=2)
    assert ask(server, max_tokens=2).usage.completion_tokens == 2


@pytest.mark.slow
def test_thousands_of_connections_are_answered_and_the_server_stays_up(start: Callable) -> None:
    """All connect first, then each sends a call; those that find the queue full get 429."""
    resource = pytest.importorskip("resource")
    server, n_open = start(), 2500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_files = 2 * n_open + 200  # both ends are in this process
    if hard != resource.RLIM_INFINITY and hard < n_files:
        pytest.skip(f"only {hard} files may be open")
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 2}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    call = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    answers: Counter[int] = Counter()

    async def ask_all() -> None:
        host, port = urlparse(server.url).netloc.split(":")
        opened = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(n_open)))

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(call)
            head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()
            status = int(head.split()[1])
            found = json.loads(answer)
            answers[status] += 1
            assert (status == 200 and found["usage"]["completion_tokens"] == 2) or (
                status == 429 and found["error"]["code"] == "rate_limit_exceeded"
            ), answer

        await asyncio.gather(*(one(*ends) for ends in opened))

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n_files), hard))
    try:
        asyncio.run(ask_all())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answers.total() == n_open and answers[200] >= 72 and set(answers) <= {200, 429}, answers
    assert ask(server, max_tokens=2).usage.completion_tokens == 2 and server.scheduler.n_open == 0


@pytest.mark.slow
def test_hundreds_of_idle_connections_do_not_keep_others_out(server: SimpleNamespace) -> None:
    address = urlparse(server.url).netloc.split(":")
    idle = [socket.create_connection(address) for _ in range(400)]
    try:
        assert ask(server, max_tokens=2).usage.completion_tokens == 2
    finally:
        for connection in idle:
            connection.close()
