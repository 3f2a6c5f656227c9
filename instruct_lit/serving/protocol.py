"""The request bodies of OpenAI's API that the server accepts, and the form of its errors.

The classes are plain dataclasses, which pydantic (a dependency of FastAPI) validates strictly: unknown fields, wrong
types and values out of range are errors. Rules between fields are checked in `completions`.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal


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


def shutting_down() -> ApiError:
    """The error of a call that the shutdown ends."""
    return ApiError(503, "The server is shutting down", "server_error", code="shutting_down")


def error_response(error: ApiError) -> Any:
    """The response for an error."""
    from fastapi.responses import JSONResponse

    close = {"Connection": "close"}
    headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}, 403: close, 503: close}
    return JSONResponse(error.body, error.status, headers.get(error.status))


def _optional(**limits: float) -> Any:
    """A field that may be null, with pydantic's limits (`ge`, `le`, `gt`)."""
    return field(default=None, metadata=limits)


def _unsupported(*harmless: Any) -> Any:
    """A field that is not supported: null and the values without an effect are accepted, others are refused."""
    return field(default=None, metadata={"harmless": harmless})


@dataclass(kw_only=True)
class Strict:
    """Without unknown fields and with values of the declared types alone."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}


@dataclass(kw_only=True)
class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


@dataclass(kw_only=True)
class TextPart(Strict):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Any = None


@dataclass(kw_only=True)
class CalledFunction(Strict):
    name: str
    arguments: str


@dataclass(kw_only=True)
class ToolCall(Strict):
    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"
    index: int | None = None


@dataclass(kw_only=True)
class Tool(Strict):
    type: Literal["function"]
    function: dict[str, Any]


@dataclass(kw_only=True)
class ChosenFunction(Strict):
    name: str


@dataclass(kw_only=True)
class ChosenTool(Strict):
    type: Literal["function"]
    function: ChosenFunction


@dataclass(kw_only=True)
class Message(Strict):
    """A message, also an assistant's as this or another server has returned it, with all its empty fields."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: Any = _unsupported("")
    audio: Any = _unsupported()
    function_call: Any = _unsupported()
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    annotations: Any = _unsupported([])
    reasoning_content: str | None = None


@dataclass(kw_only=True)
class Body(Strict):
    """The fields that both kinds of completion share; `top_k` and `repetition_penalty` are those of vLLM."""

    MAX_STOPS: ClassVar[int] = 4
    ID_PREFIX: ClassVar[str]
    OBJECT: ClassVar[str]  # the `object` of a response
    PROMPT: ClassVar[str]  # the field of the prompt
    model: str
    temperature: float | None = _optional(ge=0, le=2)
    top_p: float | None = _optional(gt=0, le=1)
    top_k: int | None = _optional(ge=-1)  # 0 and -1: all tokens
    repetition_penalty: float | None = _optional(ge=1e-9, le=10)
    seed: int | None = _optional(ge=0, le=2**63 - 1)
    stop: str | list[str] | None = None
    n: int | None = _optional(ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: float | None = _unsupported(0)
    frequency_penalty: float | None = _unsupported(0)
    logit_bias: dict[str, float] | None = _unsupported({})


@dataclass(kw_only=True)
class ChatBody(Body):
    """`/v1/chat/completions`; `input` is ours: the input of the last instruction, as in Alpaca's records."""

    ID_PREFIX, OBJECT, PROMPT = "chatcmpl", "chat.completion", "messages"
    messages: list[Message] = field(metadata={"min_length": 1, "max_length": 4096})
    input: str = ""
    max_tokens: int | None = _optional(ge=1)  # the older name of max_completion_tokens
    max_completion_tokens: int | None = _optional(ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = _optional(ge=0, le=20)
    response_format: Any = _unsupported({"type": "text"})
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = _unsupported([])
    function_call: Any = _unsupported("none", "auto")
    modalities: Any = _unsupported(["text"])
    audio: Any = _unsupported()
    reasoning_effort: Any = _unsupported("none")
    verbosity: Any = _unsupported("medium")
    web_search_options: Any = _unsupported()
    moderation: Any = _unsupported()
    # Without effect on the response, whatever their value: they concern OpenAI's accounts, caches and prices.
    metadata: dict[str, str] | None = None
    prediction: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None


@dataclass(kw_only=True)
class CompletionBody(Body):
    """`/v1/completions`: the text is continued without a template."""

    ID_PREFIX, OBJECT, PROMPT = "cmpl", "text_completion", "prompt"
    prompt: str | list[str] | list[int] | list[list[int]] | None
    max_tokens: int | None = _optional(ge=0)
    echo: bool | None = None
    logprobs: int | None = _optional(ge=0, le=5)
    suffix: str | None = _unsupported("")
    best_of: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, texts or token ids; null is the beginning of a text."""
        if self.prompt is None:
            return [""]
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
