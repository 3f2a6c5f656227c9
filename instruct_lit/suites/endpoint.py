"""A model behind an OpenAI-compatible API on this machine, for benchmark packages that call models over HTTP.

It is the server of `instruct_lit.serving` with the needs of a benchmark: a prompt longer than the context is truncated,
decoding is greedy by default, and responses are cached, so that an interrupted run resumes.
"""

import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.optional_imports import need
from instruct_lit.serving.chat_model import ChatModel
from instruct_lit.serving.completions import CompletionService, Job
from instruct_lit.serving.http import make_app
from instruct_lit.serving.protocol import ApiError, Body, ChatBody, CompletionBody
from instruct_lit.serving.scheduler import PendingRequest
from instruct_lit.serving.server import make_server
from instruct_lit.serving.tool_calls import text_of
from instruct_lit.suites.evaluated_model import EvaluatedModel

NAME = "instruct-lit"
DEFAULTS = SamplingSettings(max_new_tokens=256)  # of a call without a limit
START_TIMEOUT_S = 60.0


class Endpoint:
    """`with Endpoint(evaluated) as endpoint:` serves the model at `endpoint.url` until the block ends."""

    def __init__(self, evaluated: EvaluatedModel) -> None:
        for module in ("fastapi", "uvicorn"):
            need(module, "suite", "benchmark")
        self.url = ""
        self._started: queue.SimpleQueue[str] = queue.SimpleQueue()
        app = make_app(EvaluationService(evaluated), max_body_bytes=100_000_000, body_timeout_s=60.0)
        self._server = make_server(app, "127.0.0.1", 0, self._started.put)
        self._thread = threading.Thread(target=self._server.run, name="endpoint", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = self._started.get(timeout=START_TIMEOUT_S) + "/v1"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop()
        self._thread.join()


def _lenient(body: Any) -> Any:
    """A body whose unknown fields are ignored: packages also send those of other servers."""
    return type(body.__name__, (body,), {"__pydantic_config__": {"extra": "ignore"}, "MAX_STOPS": 100})


class EvaluationService(CompletionService):
    """The completion calls of a benchmark.

    The messages of a conversation are joined into one instruction, whatever their roles: the model has no roles.
    """

    bodies = _lenient(ChatBody), _lenient(CompletionBody)

    def __init__(self, evaluated: EvaluatedModel) -> None:
        self.evaluated, self._fitting = evaluated, threading.Lock()
        chat_model = ChatModel(NAME, evaluated.model, evaluated.tokenizer, evaluated.template)
        super().__init__(chat_model, evaluated.engine, DEFAULTS, max_waiting=sys.maxsize)

    def prepare(self, body: Body) -> Job:
        """As `CompletionService.prepare`; requests whose answer is cached, without log-probabilities, are finished."""
        job = super().prepare(body)
        for request in job.requests:
            if request.hook is None and (answer := self.evaluated.cache.get(*_key(request))) is not None:
                request.text, request.finish_reason, request.ids, *rest = answer
                request.has_eot = rest == [True]  # older caches do not have it
                self._advance()
        return job

    def prompts(self, body: Body) -> list[tuple[Sequence[int], SamplingSettings]]:
        """The prompts, truncated from the left where they leave no room for the response (`EvaluatedModel.fit`)."""
        settings = self.chat_model.with_stops(replace(self.settings(body), seed=body.seed or 0))
        if isinstance(body, ChatBody):
            n_new = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
            instruction = "\n\n".join(filter(None, map(text_of, body.messages)))
            prompts: list[str | list[int]] = [self.evaluated.template.prompt(Example(instruction, ""))]
        else:
            assert isinstance(body, CompletionBody)
            n_new = body.max_tokens
            prompts = body.prompts
        settings = replace(settings, max_new_tokens=DEFAULTS.max_new_tokens if n_new is None else n_new)
        with self._fitting:  # it counts truncated prompts
            return [self.evaluated.fit(prompt, settings) for prompt in prompts]

    def failure(self) -> ApiError:
        """The error of the engine; its status is one that clients do not retry."""
        return ApiError(400, f"the model fails: {self.scheduler.last_error}", "server_error")

    def on_finished(self, pending: PendingRequest) -> None:
        """Cache the answer."""
        request = pending.request
        if request.finish_reason == "cancelled":
            return
        self._advance()
        if request.hook is None:
            answer = (request.text, request.finish_reason, request.ids, request.has_eot)
            self.evaluated.cache.add([(_key(request), answer)])

    def _advance(self) -> None:
        if self.evaluated.bar is not None:
            self.evaluated.bar.update(1)


def _key(request: Request) -> tuple[Any, ...]:
    return "endpoint", request.prompt_ids, repr(request.settings)
