"""An OpenAI-compatible endpoint: concurrent responses equal the engine's, errors have OpenAI's form."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.suites.endpoint import NAME, Endpoint
from instruct_lit.suites.evaluated_model import EvaluatedModel

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


def post(url: str, body: Any) -> dict[str, Any]:
    data = body if isinstance(body, bytes) else json.dumps({"model": NAME, **body}).encode()
    call = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture
def endpoint(evaluated: EvaluatedModel) -> Iterator[Endpoint]:
    with Endpoint(evaluated) as endpoint:
        yield endpoint


def expected(evaluated: EvaluatedModel, prompt: str, n: int) -> str:
    (request,) = Engine(evaluated.model, evaluated.tokenizer).generate(
        [evaluated.tokenizer.encode(prompt)], SamplingSettings(max_new_tokens=n)
    )
    return request.text


def test_chat_is_one_instruction_in_the_template(endpoint: Endpoint, evaluated: EvaluatedModel) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    answer = post(f"{endpoint.url}/chat/completions", {"messages": messages, "max_tokens": 5})
    prompt = "### Instruction:\nBe brief.\n\nWhy?\n\n### Response:\n"
    assert answer["choices"][0]["message"]["content"] == expected(evaluated, prompt, 5)
    assert answer["usage"]["completion_tokens"] == 5 and answer["choices"][0]["finish_reason"] == "length"
    assert answer["model"] == NAME


def test_completions_are_the_bare_text_one_for_each_prompt(endpoint: Endpoint, evaluated: EvaluatedModel) -> None:
    body = {"prompt": ["One two", "Three"], "n": 2, "max_tokens": 3, "stop": None, "temperature": 0}
    texts = [choice["text"] for choice in post(f"{endpoint.url}/completions", body)["choices"]]
    one, three = expected(evaluated, "One two", 3), expected(evaluated, "Three", 3)
    assert texts == [one, one, three, three]


def test_many_at_once(endpoint: Endpoint, evaluated: EvaluatedModel) -> None:
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        found[i] = post(f"{endpoint.url}/completions", {"prompt": f"Number {i}", "max_tokens": 6})["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: expected(evaluated, f"Number {i}", 6) for i in range(20)}


def test_a_prompt_longer_than_the_context_is_cut(endpoint: Endpoint, evaluated: EvaluatedModel) -> None:
    answer = post(f"{endpoint.url}/completions", {"prompt": "word " * 2000, "max_tokens": 4})
    assert answer["usage"]["prompt_tokens"] == 508 and evaluated.n_cut == 1


def test_models_and_errors(endpoint: Endpoint) -> None:
    with urllib.request.urlopen(f"{endpoint.url}/models", timeout=30) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == [NAME]
    for path, body, status, message in (
        ("completions", b"{", 400, "Invalid JSON"),
        ("completions", {"max_tokens": 3}, 400, "prompt: Field required"),
        ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature: Input should be greater than or equal"),
        ("chat/completions", {"messages": ["Why?"]}, 400, "messages.0: "),
        ("completions", {"prompt": "a", "max_tokens": 1e999}, 400, "max_tokens: "),
        ("embeddings", {"prompt": "a"}, 404, "POST /v1/embeddings: Not Found"),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(f"{endpoint.url}/{path}", body)
        assert caught.value.code == status and message in json.load(caught.value)["error"]["message"]


def test_a_failing_model_fails_every_request_with_a_status_that_is_not_retried(
    evaluated: EvaluatedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "step", lambda self: 1 / 0)
    with Endpoint(evaluated) as endpoint:
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(f"{endpoint.url}/completions", {"prompt": "a"})
            assert caught.value.code == 400
            assert "the model fails: ZeroDivisionError: " in json.load(caught.value)["error"]["message"]


def test_cached_answers_are_not_generated_again(
    evaluated: EvaluatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, evaluated.cache = {"prompt": "Once", "max_tokens": 4, "n": 2}, AnswerCache(tmp_path / "kept.jsonl")
    with Endpoint(evaluated) as endpoint:
        first = post(f"{endpoint.url}/completions", body)
    monkeypatch.setattr(Engine, "enqueue", lambda *args: 1 / 0)
    evaluated.cache = AnswerCache(tmp_path / "kept.jsonl")
    with Endpoint(evaluated) as endpoint:
        again = post(f"{endpoint.url}/completions", body)
    assert again["choices"] == first["choices"] and again["usage"] == first["usage"]


def test_unknown_fields_and_many_stop_texts_are_accepted(endpoint: Endpoint, evaluated: EvaluatedModel) -> None:
    """Packages send fields of other servers; a run must not fail on them."""
    body = {
        "messages": [{"role": "user", "content": "Why?"}],
        "max_tokens": 3,
        "echo_prompt": True,
        "stop": list("@#$%~"),
    }
    assert post(f"{endpoint.url}/chat/completions", body)["usage"]["completion_tokens"] == 3


def test_the_prompt_ends_where_the_template_ends_a_response(evaluated: EvaluatedModel) -> None:
    evaluated.template = Template("ended", "Q: {{ instruction }}\nA: {{ response }}<end>")
    with Endpoint(evaluated) as endpoint:
        assert endpoint.url.startswith("http://127.0.0.1:")
        answer = post(
            f"{endpoint.url}/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        )
        assert answer["choices"][0]["message"]["content"] == expected(evaluated, "Q: Hi\nA: ", 2)


def test_an_answer_that_cannot_be_cached_is_answered(evaluated: EvaluatedModel, tmp_path: Path) -> None:
    evaluated.cache = AnswerCache(tmp_path / "kept.jsonl")
    evaluated.cache.path = tmp_path  # a folder cannot be written to
    with Endpoint(evaluated) as endpoint:
        for path, prompt in (
            ("completions", {"prompt": "a"}),
            ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ):
            for _ in range(2):
                answer = post(f"{endpoint.url}/{path}", {**prompt, "max_tokens": 3})
                assert answer["usage"]["completion_tokens"] == 3


def test_no_tokens_are_no_tokens(endpoint: Endpoint) -> None:
    answer = post(f"{endpoint.url}/completions", {"prompt": "a b", "max_tokens": 0, "echo": True})
    assert answer["choices"][0]["text"] == "a b" and answer["usage"]["completion_tokens"] == 0


def test_lines_of_the_cache_that_cannot_be_read_are_ignored(tmp_path: Path) -> None:
    kept = AnswerCache(tmp_path / "kept.jsonl")
    kept.add([(("a",), 1)])
    with kept.path.open("ab") as file:  # type: ignore[union-attr]
        file.writelines(b"\n" + line for line in (b"[" * 100_000, b"\xff", b"[{}, 1]", b"3", b'["x"'))
    kept.add([(("b",), 2)])
    assert [AnswerCache(kept.path).get(key) for key in "ab"] == [1, 2]
