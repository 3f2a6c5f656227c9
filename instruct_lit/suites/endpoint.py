"""A model behind OpenAI's HTTP interface on this machine, for evaluation systems that know no other.

It is for a harness beside it, while it runs: no streaming, no log-probabilities, one model. Requests that come
together are answered together. `serving` is not used for it: it stands on `evaluation`, not the other way round,
it needs a web framework that a benchmark can do without, and here answers are kept for a run that is interrupted.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.engine import Engine, Request
from instruct_lit.core.generation.responses import closing
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import InstructLitError
from instruct_lit.suites.harness_model import EvaluatedModel, until
from instruct_lit.suites.suite import BenchmarkError

NAME = "instruct-lit"
MAX_NEW_TOKENS = 256  # where a request names no limit


@dataclass
class _Job:
    """A prompt on its way: `answer` is text, finish reason, and tokens of prompt and answer."""

    prompt: str
    settings: SamplingSettings
    done: threading.Event = field(default_factory=threading.Event)
    answer: tuple[str, str, int, int] | None = None
    error: Exception | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return "endpoint", self.prompt, repr(self.settings)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # a harness may open a connection for every item at once


class Endpoint:
    """`with Endpoint(subject) as endpoint:` answers at `endpoint.url` until the block ends.

    The messages of a conversation are one instruction, in their order: an instruction model knows no roles.
    """

    def __init__(self, subject: EvaluatedModel) -> None:
        self.subject = subject
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._threads = [
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True),
            threading.Thread(target=self._write, daemon=True),
        ]

    @property
    def url(self) -> str:
        """Where the interface begins."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Endpoint:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def answer(self, prompts: list[str], settings: SamplingSettings) -> list[_Job]:
        """Answer prompts; returns when all are answered."""
        jobs = [_Job(prompt, settings) for prompt in prompts]
        for job in jobs:
            self._jobs.put(job)
        for job in jobs:
            job.done.wait()
            if job.error is not None:
                raise job.error
        return jobs

    def chat_prompt(self, messages: list[dict[str, Any]]) -> str:
        """The prompt of a conversation: all its messages as one instruction."""
        texts = [_text_of(message.get("content")) for message in messages]
        return self.subject.template.prompt(Example("\n\n".join(text for text in texts if text), ""))

    def _write(self) -> None:
        """Answer what comes; if the engine fails, everything that waits and comes fails with it."""
        running: dict[int, tuple[_Job, Request]] = {}
        try:
            self._write_on(running)
        except Exception as error:
            jobs = [job for job, _ in running.values()]
            while (job := jobs.pop() if jobs else self._jobs.get()) is not None:
                job.error = BenchmarkError(f"the model fails: {type(error).__name__}: {error}")
                job.done.set()

    def _write_on(self, running: dict[int, tuple[_Job, Request]]) -> None:
        """Submit what has come, write a token for all, again and again; waits where there is nothing to do."""
        engine = Engine(self.subject.model, self.subject.tokenizer, self.subject.max_rows)
        while True:
            try:
                while True:
                    job = self._jobs.get(block=not running)
                    if job is None:
                        return
                    if (kept := self.subject.kept.get(*job.key)) is not None:
                        self._finish(job, kept)
                        continue
                    request = engine.submit(*self.subject.fit(job.prompt, job.settings))
                    running[request.number] = (job, request)
            except queue.Empty:
                pass
            for request in engine.step():
                if request.finish_reason is not None:
                    job, _ = running.pop(request.number)
                    text = until(request.text, job.settings.stop)
                    answer = (text, request.finish_reason, len(request.prompt_ids), len(request.ids))
                    self.subject.kept.add([(job.key, answer)])
                    self._finish(job, answer)

    def _finish(self, job: _Job, answer: tuple[str, str, int, int]) -> None:
        job.answer = answer
        if self.subject.bar is not None:
            self.subject.bar.update(1)
        job.done.set()


def _text_of(content: Any) -> str:
    if isinstance(content, list):  # parts, of which only texts can be asked
        return "\n".join(part.get("text", "") for part in content)
    return str(content or "")


def _settings_of(body: dict[str, Any], ends: tuple[str, ...]) -> SamplingSettings:
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    return SamplingSettings(
        max_new_tokens=int(body.get("max_completion_tokens") or body.get("max_tokens") or MAX_NEW_TOKENS),
        # Greedy where a harness says nothing, so that it is repeatable.
        temperature=float(body.get("temperature") or 0.0),
        top_p=float(body["top_p"]) if body.get("top_p") else None,
        seed=int(body.get("seed") or 0),
        stop=(*filter(None, stops), *ends),
    )


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.rstrip("/") == "/v1/models":
                self._send(200, {"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": NAME}]})
            else:
                self._send(404, _error(f"no such place: {self.path}"))

        def do_POST(self) -> None:
            try:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                chat = self.path.endswith("/chat/completions")
                if not chat and not self.path.endswith("/completions"):
                    self._send(404, _error(f"no such place: {self.path}"))
                    return
                prompts = [endpoint.chat_prompt(body["messages"])] if chat else _as_list(body["prompt"])
                settings = _settings_of(body, closing(endpoint.subject.template))
                jobs = endpoint.answer([p for p in prompts for _ in range(int(body.get("n") or 1))], settings)
                self._send(200, _response(jobs, chat))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, InstructLitError) as error:
                self._send(400, _error(f"{type(error).__name__}: {error}"))

        def _send(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _as_list(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [str(text) for text in prompt]


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


def _response(jobs: list[_Job], chat: bool) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    n_prompt = n_written = 0
    for index, job in enumerate(jobs):
        assert job.answer is not None
        text, reason, n_prompt_tokens, n_new_tokens = job.answer
        content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choices.append({"index": index, "finish_reason": reason, "logprobs": None, **content})
        n_prompt += n_prompt_tokens
        n_written += n_new_tokens
    kind = "chat.completion" if chat else "text_completion"
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_written, "total_tokens": n_prompt + n_written}
    return {
        "id": f"{NAME}-{time.time_ns()}",
        "object": kind,
        "created": int(time.time()),
        "model": NAME,
        "choices": choices,
        "usage": usage,
    }
