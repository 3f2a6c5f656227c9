"""The bodies of OpenAI's API that are understood here, and its form of errors.

The classes are plain dataclasses, which pydantic (it comes with FastAPI) checks strictly: an unknown field or a wrong
type is an error, as it is there. Fields that are known but not supported are accepted only with the value that asks
for nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

_STRICT = {"extra": "forbid", "strict": True}


@dataclass(kw_only=True)
class ErrorDetail:
    """What went wrong, its type, the field at fault, and a code that programs know."""

    message: str
    type: str
    param: str | None
    code: str | None


@dataclass(kw_only=True)
class ErrorBody:
    """The body of every error, as OpenAI has it."""

    error: ErrorDetail


class ApiError(Exception):
    """An error and its status; `body` is an `ErrorBody`."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None,
        code: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.body = asdict(ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code)))


@dataclass(kw_only=True)
class StreamOptions:
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    include_usage: bool = False
    include_obfuscation: bool = False


@dataclass(kw_only=True)
class TextPart:
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    type: Literal["text"]
    text: str


@dataclass(kw_only=True)
class Message:
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


@dataclass(kw_only=True)
class Body:
    """What both kinds of completion have in common; `top_k` and `repetition_penalty` are ours, as in vLLM."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def check(self) -> None:
        """Raise ApiError for a value outside its range, and for one that asks for what is not supported."""
        rules = {
            "temperature": (self.temperature is None or 0 <= self.temperature <= 2, "between 0 and 2"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1"),
            "repetition_penalty": (self.repetition_penalty is None or 0 < self.repetition_penalty <= 10, "in (0, 10]"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "between 0 and 2**63 - 1"),
            "n": (self.n is None or 1 <= self.n <= 128, "between 1 and 128"),
            "stop": (len(self.stops) <= 4 and all(self.stops), "at most 4 texts of at least one character"),
            "presence_penalty": (not self.presence_penalty, "0; use repetition_penalty"),
            "frequency_penalty": (not self.frequency_penalty, "0; use repetition_penalty"),
            "logit_bias": (not self.logit_bias, "empty"),
            **self.own_rules(),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise ApiError(400, f"{name}={getattr(self, name)!r:.80}: must be {allowed}", param=name)

    def own_rules(self) -> dict[str, tuple[bool, str]]:
        """Rules of the one kind."""
        return {}


@dataclass(kw_only=True)
class ChatBody(Body):
    """`/v1/chat/completions`; `input` is ours: the input of an instruction, as Alpaca's records have it."""

    messages: list[Message]
    input: str = ""
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def own_rules(self) -> dict[str, tuple[bool, str]]:
        return {
            "messages": (0 < len(self.messages) <= 4096, "between 1 and 4096 messages"),
            "max_tokens": (self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            "max_completion_tokens": (
                self.max_completion_tokens is None or self.max_completion_tokens >= 1,
                "at least 1",
            ),
            "top_logprobs": (
                self.top_logprobs is None or (bool(self.logprobs) and 0 <= self.top_logprobs <= 20),
                "between 0 and 20, and goes with logprobs=true",
            ),
        }

    @property
    def n_new(self) -> int | None:
        """Tokens that may be written; `max_tokens` is the older name of `max_completion_tokens`."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def n_logprobs(self) -> int | None:
        """Alternatives per token; None where no log-probabilities are wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None


@dataclass(kw_only=True)
class CompletionBody(Body):
    """`/v1/completions`: text goes on as it is, without a template."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    logprobs: int | None = None
    suffix: str | None = None
    best_of: int | None = None

    def own_rules(self) -> dict[str, tuple[bool, str]]:
        return {
            "max_tokens": (self.max_tokens is None or self.max_tokens >= 0, "at least 0"),
            "logprobs": (self.logprobs is None or 0 <= self.logprobs <= 5, "between 0 and 5"),
            "suffix": (not self.suffix, "empty"),
            "best_of": (self.best_of in (None, 1, self.n or 1), "1, or n"),
            "stream": (not (self.stream and self.echo), "false where echo is true"),
        }

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, texts or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def n_logprobs(self) -> int | None:
        """Alternatives per token; None where no log-probabilities are wanted."""
        return self.logprobs
