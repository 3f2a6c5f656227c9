"""The server against its own OpenAPI description: schemathesis draws calls that it allows and calls that it forbids, and
every answer must have the status, type and shape that is described."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
COMPLETIONS = ["/v1/chat/completions", "/v1/completions"]
OTHERS = ["/v1/models", "/v1/models/{name}", "/health", "/metrics"]


@pytest.fixture(scope="module")
def server(start: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return start(max_body_bytes=50_000_000)  # the limit is not in the description, and some drawn bodies exceed it


@pytest.fixture(scope="module")
def schema(server: SimpleNamespace) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_path_is_fuzzed(schema: Any) -> None:
    assert sorted(schema) == sorted(COMPLETIONS + OTHERS)


@pytest.mark.parametrize(
    ("path", "mode"),
    [*((path, mode) for path in COMPLETIONS for mode in (POSITIVE, NEGATIVE)), *((path, POSITIVE) for path in OTHERS)],
)
def test_answers_are_as_described(schema: Any, server: SimpleNamespace, path: str, mode: Any) -> None:
    (operation,) = schema[path].values()
    # Rules between fields and ranges are not in the description, so what it allows may be refused too, as described.
    unchecked = [schemathesis.checks.positive_data_acceptance]
    statuses = set()

    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if mode is POSITIVE and path in COMPLETIONS:
            case.body = {**case.body, "model": "tiny", "max_tokens": 3}
            if "messages" in case.body and len(statuses) == 1:  # few drawn conversations are possible ones
                case.body["messages"] = [{"role": "user", "content": "x"}]
        statuses.add(case.call_and_validate(excluded_checks=unchecked).status_code)

    run()
    assert 200 in statuses or mode is NEGATIVE or path == "/v1/models/{name}", statuses
    assert server.scheduler.thread.is_alive() and server.scheduler.n_open == 0
