"""HTTP around the service: routes, limits, errors in OpenAI's shape, and what happens when a client goes away."""

# No `from __future__ import annotations`: FastAPI reads the types of endpoints, which are imported inside a function.

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from instruct_lit.serving.protocol import ApiError, Body, ChatBody, CompletionBody, ErrorBody
from instruct_lit.serving.service import Service
from instruct_lit.serving.telemetry import Telemetry, content_type

log = logging.getLogger(__name__)
BodyT = TypeVar("BodyT", bound=Body)
PATHS = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics")


def make_app(
    service: Service,
    telemetry: Telemetry,
    api_key: str | None = None,
    max_body_bytes: int = 1_000_000,
    body_timeout_s: float = 10.0,
) -> Any:
    """The FastAPI application; its shutdown closes the scheduler.

    With an `api_key` all but `/health` and the API's description wants it as a bearer token. A body longer than
    `max_body_bytes`, or slower than `body_timeout_s`, is refused.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from pydantic import TypeAdapter, ValidationError
    from starlette.exceptions import HTTPException

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        yield
        await asyncio.to_thread(service.scheduler.close)

    errors: dict[int | str, dict[str, Any]] = {"default": {"description": "Error", "model": ErrorBody}}
    app = FastAPI(title="instruct-lit", lifespan=lifespan, responses=errors)
    streamed: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
    adapters: dict[type, Any] = {kind: TypeAdapter(kind) for kind in (ChatBody, CompletionBody)}

    def authorise(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not hmac.compare_digest(given.encode(), api_key.encode()):
            raise ApiError(401, "Incorrect API key provided", code="invalid_api_key")

    async def body_of(request: Request, kind: type[BodyT]) -> BodyT:
        authorise(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            # Also keeps web pages of others out: browsers ask before they send this type to another site.
            raise ApiError(415, "Content-Type must be application/json")
        raw = bytearray()
        try:
            async with asyncio.timeout(body_timeout_s):
                async for chunk in request.stream():
                    raw += chunk
                    if len(raw) > max_body_bytes:
                        raise ApiError(413, f"The body is longer than {max_body_bytes} bytes", code="body_too_large")
        except TimeoutError:
            raise ApiError(408, f"The body did not come within {body_timeout_s:g} s", "timeout_error") from None
        try:
            return await asyncio.to_thread(adapters[kind].validate_json, bytes(raw))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            param = (
                ".".join(str(part) for part in first["loc"][:2] if part == first["loc"][0] or type(part) is int) or None
            )
            raise ApiError(400, f"{param or 'body'}: {first['msg']}", param=param) from error

    async def complete(request: Request, kind: type[Body]) -> Response:
        body = await body_of(request, kind)
        job = await asyncio.to_thread(service.prepare, body)
        if body.stream:
            updates = service.start(job, every_step=True)
            return StreamingResponse(_events(service.pieces(job, updates)), media_type="text/event-stream")
        return await _unless_gone(request.receive, service.answer(job), JSONResponse, Response(status_code=499))

    def described(kind: type) -> dict[str, Any]:
        """The body's schema for the OpenAPI description, since the body is read by hand."""
        schema = adapters[kind].json_schema(ref_template=f"#/components/schemas/{kind.__name__}.{{model}}")
        for name, part in schema.pop("$defs", {}).items():
            definitions[f"{kind.__name__}.{name}"] = part
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    definitions: dict[str, Any] = {}

    @app.post(PATHS[1], openapi_extra=described(ChatBody), responses=streamed)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await complete(request, ChatBody)

    @app.post(PATHS[2], openapi_extra=described(CompletionBody), responses=streamed)
    async def completions(request: Request) -> Response:
        """Go on with a text."""
        return await complete(request, CompletionBody)

    @app.get(PATHS[0])
    async def models(request: Request) -> Any:
        """The model that is served."""
        authorise(request)
        return JSONResponse(service.models())

    @app.get(PATHS[0] + "/{name:path}")
    async def model(request: Request, name: str) -> Any:
        """What is known of the model."""
        authorise(request)
        if name != service.speaker.name:
            raise ApiError(404, f"The model {name!r:.100} does not exist", param="model", code="model_not_found")
        return JSONResponse(service.model())

    @app.get(PATHS[3], responses={503: {"description": "Stopped"}})
    async def health() -> Any:
        """Whether the engine's thread is alive."""
        alive = service.scheduler.is_alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, status_code=200 if alive else 503)

    @app.get(PATHS[4], response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """For Prometheus."""
        authorise(request)
        return Response(telemetry.text(), media_type=content_type())

    def refusal(error: ApiError) -> JSONResponse:
        headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status)
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        return refusal(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.exception("an unexpected error in %s", request.url.path, exc_info=error)
        return refusal(ApiError(500, "The server made a mistake; its log tells more", "server_error"))

    describe = app.openapi

    def openapi() -> dict[str, Any]:
        description = describe()
        description.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        return description

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_middleware(Counted, telemetry=telemetry)
    return app


class Counted:
    """Counts calls by path and status; paths that do not exist are one."""

    def __init__(self, app: Any, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counting_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in PATHS else "other"
                self.telemetry.calls.labels(path, str(message["status"])).inc()
            await send(message)

        return await self.app(scope, receive, counting_send)


async def _events(pieces: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[str, None]:
    try:
        async for piece in pieces:
            yield f"data: {json.dumps(piece, ensure_ascii=False)}\n\n"
        yield "data: [DONE]\n\n"
    except ApiError as error:  # the status has been sent; OpenAI's client raises this form
        yield f"data: {json.dumps(error.body)}\n\n"
    finally:
        await pieces.aclose()


async def _unless_gone(
    receive: Callable[[], Awaitable[Any]], work: Any, respond: Callable[[Any], Any], gone: Any
) -> Any:
    """The response to the work's result; the work is cancelled when the client goes away first."""
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return respond(task.result()) if task.done() else gone
    finally:
        leaving.cancel()
        task.cancel()
        with suppress(asyncio.CancelledError, ApiError):
            await task


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
