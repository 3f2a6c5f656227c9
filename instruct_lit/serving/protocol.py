"""The request bodies of OpenAI's API that the server accepts, and the form of its errors.

The classes are plain dataclasses, which pydantic (a dependency of FastAPI) validates strictly: unknown fields, wrong
types and values out of range are errors. Rules between fields are checked in `completions`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

_STRICT = {"extra": "forbid", "strict": True}


@dataclass(kw_only=True)
class ErrorDetail:
    """Message and type of an error, the field at fault, and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


@dataclass(kw_only=True)
class ErrorBody:
    """The body of every error, in OpenAI's form."""

    error: ErrorDetail


class ApiError(Exception):
    """An error that is sent to the client; `body` is an `ErrorBody`."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None,
        code: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.body = asdict(ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code)))


def _optional(**limits: float) -> Any:
    """A field that may be null, with pydantic's limits (`ge`, `le`, `gt`)."""
    return field(default=None, metadata=limits)


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


@dataclass(kw_only=True)
class Body:
    """The fields that both kinds of completion share; `top_k` and `repetition_penalty` are those of vLLM."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    # Values of fields that are known but not supported: only those that change nothing are accepted.
    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "presence_penalty": "0; use repetition_penalty",
        "frequency_penalty": "0; use repetition_penalty",
        "logit_bias": "empty",
    }
    MAX_STOPS: ClassVar[int] = 4
    model: str
    temperature: float | None = _optional(ge=0, le=2)
    top_p: float | None = _optional(gt=0, le=1)
    top_k: int | None = _optional(ge=1)
    repetition_penalty: float | None = _optional(gt=0, le=10)
    seed: int | None = _optional(ge=0, le=2**63 - 1)
    stop: str | list[str] | None = None
    n: int | None = _optional(ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


@dataclass(kw_only=True)
class ChatBody(Body):
    """`/v1/chat/completions`; `input` is ours: the input that goes with an instruction, as in Alpaca's records."""

    messages: list[Message] = field(metadata={"min_length": 1, "max_length": 4096})
    input: str = ""
    max_tokens: int | None = _optional(ge=1)  # the older name of max_completion_tokens
    max_completion_tokens: int | None = _optional(ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = _optional(ge=0, le=20)


@dataclass(kw_only=True)
class CompletionBody(Body):
    """`/v1/completions`: the text is continued without a template."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {**Body.UNSUPPORTED, "suffix": "empty"}
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = _optional(ge=0)
    echo: bool = False
    logprobs: int | None = _optional(ge=0, le=5)
    suffix: str | None = None
    best_of: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, texts or token ids."""
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
