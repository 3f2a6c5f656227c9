"""Judges over HTTP: OpenAI-compatible endpoints and Ollama's own API.

Both use the client of the extra `judge`, which retries after timeouts, connection errors and the statuses 408, 409, 429
and 5xx with exponential backoff, and respects `Retry-After`.
"""

import asyncio
import ipaddress
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Self

from instruct_lit.errors import JudgeError
from instruct_lit.evaluation.judging.prompt import Verdict
from instruct_lit.optional_imports import load

PAUSE_S = 1.0  # before a request with invalid JSON in its answer is repeated
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """An endpoint's reply: its text, the tokens of prompt and reply (0 where not reported), and its duration."""

    text: str
    n_prompt_tokens: int = 0
    n_reply_tokens: int = 0
    seconds: float = 0.0


class Refused(Exception):
    """The endpoint refuses one question, for example because it is too long; others may still be answered."""


class Endpoint:
    """Replies to messages; `identity` is everything besides the messages that a reply depends on."""

    key = "judge"  # the group of the configuration that it comes from, which messages name
    remedy = "body= changes the fields of a request, such as {max_tokens: null, max_completion_tokens: 1000}"
    model: str
    max_tokens: int | None  # of a reply; None: no limit
    identity: dict[str, Any]

    async def __aenter__(self) -> Self:
        """Connect, where a connection is needed; it belongs to one event loop."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""

    async def check(self) -> None:
        """Raise JudgeError, before long work, for an endpoint that cannot be used."""

    async def ask(self, messages: Messages, verdict: Verdict) -> Reply:
        """Ask one question.

        Raises: Refused when the endpoint refuses the question, JudgeError when it cannot be used.
        """
        raise NotImplementedError


@dataclass(eq=False)
class HttpEndpoint(Endpoint, ABC):
    """An endpoint that takes a JSON body and returns one.

    With `constrained` it is asked for decoding constrained to the JSON schema of the verdict; if it rejects the schema,
    without it from then on.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)  # masked in every message
    _: KW_ONLY
    temperature: float = 0.0
    max_tokens: int | None = 256
    seed: int = 0
    constrained: bool = True
    timeout_s: float = 60.0
    n_retries: int = 5
    body: Mapping[str, Any] | None = None  # fields added to every request; None removes one of ours

    path: ClassVar[str]
    models_path: ClassVar[str]
    # What a reply depends on.
    settings: ClassVar[tuple[str, ...]] = ("url", "model", "temperature", "max_tokens", "seed", "constrained", "body")

    def __post_init__(self) -> None:
        _openai()
        self.url, self.body = self.url.rstrip("/"), dict(self.body or {})
        self.identity = {"kind": type(self).__name__, **{name: getattr(self, name) for name in self.settings}}
        limits = {"max_tokens": self.max_tokens, **self.body}
        self.max_tokens = limits.get("max_completion_tokens", limits["max_tokens"])
        self._client: Any = None

    async def __aenter__(self) -> Self:
        self._client = _openai().AsyncOpenAI(
            base_url=self.url,
            api_key=self.api_key or "none",
            timeout=self.timeout_s,
            max_retries=self.n_retries,
            default_headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else None,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def check(self) -> None:
        """Request the list of models, to find out before long work whether the endpoint accepts requests and the key.

        Raises: JudgeError if it does not, or if its list does not contain the model.
        """
        openai = _openai()
        try:
            answer = await self._client.get(
                self.models_path, cast_to=object, options={"max_retries": min(1, self.n_retries)}
            )
        except (openai.OpenAIError, ValueError) as error:
            is_refused = isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError)
            if isinstance(error, openai.APIStatusError) and not is_refused:
                return  # no list, or overloaded: the questions decide
            raise self._explained(error) from error
        models = self.models(self._json(answer))
        if models and self.model not in models:
            listed = ", ".join(sorted(models)[:8])
            raise JudgeError(
                f"{self.key}.model={self.model}: {self.url} has no such model; it has {listed} (ollama pull "
                f"{self.model})"
            )

    def path_of(self, body: Mapping[str, Any]) -> str:
        """The path that a request goes to."""
        return self.path

    @abstractmethod
    def payload(self, messages: Messages, verdict: Verdict) -> dict[str, Any]:
        """The body of a request."""

    def models(self, answer: Any) -> set[str]:
        """Names in the list of models; empty where the list does not determine them: servers know aliases."""
        return set()

    @abstractmethod
    def reply(self, answer: Any) -> Reply:
        """The reply in the body of an answer; a lookup error where the body has another form."""

    async def ask(self, messages: Messages, verdict: Verdict) -> Reply:
        start = time.perf_counter()
        openai = _openai()
        constrained = self.constrained
        try:
            answer = await self._post(messages, verdict)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not constrained:
                raise Refused(self._hidden(_message(error))) from error
            self.constrained = False  # it may not support schemas
            try:
                return await self.ask(messages, verdict)
            except Refused:
                self.constrained = True  # the schema was not the reason
                raise
        except (openai.OpenAIError, ValueError) as error:
            raise self._explained(error) from error
        try:
            reply = self.reply(self._json(answer))
            if not isinstance(reply.text, str):
                raise TypeError("the content is not a string")
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            text = self._hidden(str(answer))[:200]
            raise JudgeError(
                f"{self.key}.url={self.url}: unexpected form of the answer: {text}; is it this API?"
            ) from error
        return Reply(reply.text, reply.n_prompt_tokens, reply.n_reply_tokens, time.perf_counter() - start)

    async def _post(self, messages: Messages, verdict: Verdict) -> Any:
        body = {**self.payload(messages, verdict), **(self.body or {})}
        body = {key: value for key, value in body.items() if value is not None}
        for _ in range(min(2, self.n_retries)):
            with suppress(ValueError):  # truncated JSON, which the client does not retry, nor an error of status 200
                answer = await self._client.post(self.path_of(body), cast_to=object, body=body)
                if not (isinstance(answer, dict) and answer.get("error")):
                    return answer
            await asyncio.sleep(PAUSE_S)
        return await self._client.post(self.path_of(body), cast_to=object, body=body)

    def _json(self, answer: Any) -> Any:
        """The answer; the client returns a body that is not JSON as a string."""
        if isinstance(answer, str):
            raise JudgeError(
                f"{self.key}.url={self.url}: the answer is not JSON (a web page?); give the root of the API, which for "
                "OpenAI-compatible endpoints mostly ends in /v1"
            )
        return answer

    def _explained(self, error: Exception) -> JudgeError:
        openai = _openai()
        text, key = self._hidden(_message(error)), self.key
        # The client counts in a header of the request; it does not retry after every status.
        n_retries = int(error.request.headers.get("x-stainless-retry-count", 0)) if hasattr(error, "request") else 0
        tried = f"tried {n_retries + 1} times" if n_retries else "tried once"
        causes: list[tuple[Any, str]] = [
            (ValueError, f"invalid JSON in the answer ({text}); is it the endpoint of a model?"),
            (openai.APITimeoutError, f"no answer in time, {tried}; raise {key}.timeout_s or lower {key}.n_concurrent"),
            (openai.APIConnectionError, f"cannot be reached, {tried} ({error.__cause__}); is the server running?"),
            (
                (openai.AuthenticationError, openai.PermissionDeniedError),
                f"the key is refused ({text}); {key}.api_key_env names the variable that holds it",
            ),
            (openai.NotFoundError, f"no model {self.model!r} or no such path ({text}); see {key}.model"),
            (openai.RateLimitError, f"too many requests or no credit, {tried} ({text}); lower {key}.n_concurrent"),
            (Exception, f"{text}, {tried}"),
        ]
        return JudgeError(f"{key}.url={self.url}: {next(cause for kind, cause in causes if isinstance(error, kind))}")

    def _hidden(self, text: str) -> str:
        return text.replace(self.api_key, "***") if self.api_key else text


class OpenAIEndpoint(HttpEndpoint):
    """An endpoint with OpenAI's `/chat/completions`: OpenAI, vLLM, llama.cpp's server, Ollama's `/v1`."""

    path = "/chat/completions"
    models_path = "/models"

    def payload(self, messages: Messages, verdict: Verdict) -> dict[str, Any]:
        form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": verdict.schema}}
        return {
            "model": self.model, "messages": messages, "temperature": self.temperature, "seed": self.seed,
            "max_tokens": self.max_tokens, "response_format": form if self.constrained else None,
        }  # fmt: skip

    def reply(self, answer: Any) -> Reply:
        usage = answer.get("usage") or {}
        text = text_of(answer["choices"][0]["message"]["content"])
        return Reply(text or "", usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)


@dataclass(eq=False)
class OllamaEndpoint(HttpEndpoint):
    """Ollama's `/api/chat`, whose `format` constrains the reply to a JSON schema."""

    n_ctx: int | None = None

    path = "/api/chat"
    models_path = "/api/tags"
    settings = (*HttpEndpoint.settings, "n_ctx")

    def models(self, answer: Any) -> set[str]:
        entries = answer.get("models") if isinstance(answer, dict) else None
        names = {entry["name"] for entry in entries or () if isinstance(entry, dict) and "name" in entry}
        return names | {name.removesuffix(":latest") for name in names}

    def payload(self, messages: Messages, verdict: Verdict) -> dict[str, Any]:
        options = {"temperature": self.temperature, "num_predict": self.max_tokens, "seed": self.seed}
        options |= {"num_ctx": self.n_ctx} if self.n_ctx else {}  # Ollama truncates longer prompts silently
        form = verdict.schema if self.constrained else None
        return {"model": self.model, "messages": messages, "stream": False, "options": options, "format": form}

    def reply(self, answer: Any) -> Reply:
        text = answer["message"]["content"]
        return Reply(text, answer.get("prompt_eval_count") or 0, answer.get("eval_count") or 0)


def text_of(content: Any) -> Any:
    """The content of a message, without thoughts where it is a list of parts, as in Mistral's API."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    return content


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _message(error: Exception) -> str:
    """The message that the endpoint sent, otherwise the error's."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else body
    words = inner.get("message") if isinstance(inner, dict) else inner
    status = getattr(error, "status_code", None)
    text = " ".join(str(words or error).split())[:300]
    return f"status {status}: {text}" if status else text


def _openai() -> Any:
    for name in ("openai", "httpx", "httpx2"):  # a line per request would break the progress bar
        logging.getLogger(name).setLevel(logging.WARNING)
    return load("openai", "judge", "judge")
