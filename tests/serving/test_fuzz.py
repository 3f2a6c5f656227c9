"""Bodies around what the OpenAPI description allows (for that see `test_schemathesis`): never a 5xx, never another shape."""

import http.client
import json
from contextlib import closing
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlparse

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")
QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def post(server: SimpleNamespace, path: str, body: bytes) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(urlparse(server.url).netloc, timeout=60)) as connection:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()


def check(server: SimpleNamespace, path: str, body: bytes) -> int:
    status, answer = post(server, path, body)
    assert status < 500, (body, answer)
    if status != 200:
        error = json.loads(answer)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
    elif not answer.startswith(b"data: "):
        assert json.loads(answer)["choices"][0]["finish_reason"] in ("stop", "length")
    else:
        assert answer.endswith(b"data: [DONE]\n\n")
    return status


@QUICK
@given(
    body=st.dictionaries(st.sampled_from(["model", "messages", "prompt", "n", "stop", "x"]), ANY) | ANY,
    chat=st.booleans(),
)
def test_any_json(server: SimpleNamespace, body: Any, chat: bool) -> None:
    check(server, "/v1/chat/completions" if chat else "/v1/completions", json.dumps(body).encode())


@QUICK
@given(body=st.binary(max_size=200))
def test_any_bytes(server: SimpleNamespace, body: bytes) -> None:
    assert check(server, "/v1/completions", body) == 400


@QUICK
@given(
    temperature=st.floats(0, 2), top_p=st.floats(0, 1, exclude_min=True), top_k=st.none() | st.integers(1, 60000),
    seed=st.integers(0, 2**63 - 1), repetition_penalty=st.floats(0.1, 10), n=st.integers(1, 3),
)  # fmt: skip
@pytest.mark.slow
def test_every_allowed_setting_of_sampling_gives_an_answer(server: SimpleNamespace, **sampling: Any) -> None:
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 3, "logprobs": 1, **sampling}
    status, answer = post(server, "/v1/completions", json.dumps(body).encode())
    assert status == 200 and len(json.loads(answer)["choices"]) == sampling["n"]
    for choice in json.loads(answer)["choices"]:
        assert all(value <= 0 for value in choice["logprobs"]["token_logprobs"])
