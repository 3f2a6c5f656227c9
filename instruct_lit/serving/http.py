"""HTTP around the completion service: routes, limits, errors in OpenAI's form, and clients that disconnect."""

# No `from __future__ import annotations`: FastAPI reads the types of endpoints, which are imported inside a function.

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from instruct_lit.serving.completions import CompletionService
from instruct_lit.serving.metrics import Metrics
from instruct_lit.serving.protocol import ApiError, Body, ErrorBody

log = logging.getLogger(__name__)
PATHS = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics")


def make_app(
    service: CompletionService,
    api_key: str | None = None,
    max_body_bytes: int = 1_000_000,
    body_timeout_s: float = 10.0,
) -> Any:
    """The FastAPI application; its shutdown closes the service's scheduler.

    Args:
        api_key: required as a bearer token by all paths but `/health` and the description of the API.
        max_body_bytes, body_timeout_s: a longer or slower body is refused.
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
    chat_body, completion_body = (TypeAdapter(kind) for kind in service.bodies)

    def authorise(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not hmac.compare_digest(given.encode(), api_key.encode()):
            raise ApiError(401, "Incorrect API key provided", code="invalid_api_key")

    async def read_body(request: Request, adapter: TypeAdapter[Any]) -> Body:
        authorise(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            # Also keeps other sites' pages out: browsers ask before they send this type to another site.
            raise ApiError(415, "Content-Type must be application/json")
        raw = bytearray()
        try:
            async with asyncio.timeout(body_timeout_s):
                async for chunk in request.stream():
                    raw += chunk
                    if len(raw) > max_body_bytes:
                        raise ApiError(413, f"The body is longer than {max_body_bytes} bytes", code="body_too_large")
        except TimeoutError:
            raise ApiError(408, f"The body took longer than {body_timeout_s:g} s", "timeout_error") from None
        try:
            return await asyncio.to_thread(adapter.validate_json, bytes(raw))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            param = (
                ".".join(str(part) for part in first["loc"][:2] if part == first["loc"][0] or type(part) is int) or None
            )
            raise ApiError(400, f"{param or 'body'}: {first['msg']}", param=param) from error

    async def complete(request: Request, adapter: TypeAdapter[Any]) -> Response:
        body = await read_body(request, adapter)
        job = await asyncio.to_thread(service.prepare, body)
        if body.stream:
            service.submit(job, every_step=True)
            return StreamingResponse(_events(service.chunks(job)), media_type="text/event-stream")
        answer = await _unless_disconnected(request.receive, service.answer(job))
        return Response(status_code=499) if answer is None else JSONResponse(answer)

    def described(adapter: TypeAdapter[Any], name: str) -> dict[str, Any]:
        """The body's schema for the OpenAPI description, since FastAPI does not parse the body itself."""
        schema = adapter.json_schema(ref_template=f"#/components/schemas/{name}.{{model}}")
        definitions.update({f"{name}.{key}": part for key, part in schema.pop("$defs", {}).items()})
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    definitions: dict[str, Any] = {}

    @app.post(PATHS[1], openapi_extra=described(chat_body, "ChatBody"), responses=streamed)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await complete(request, chat_body)

    @app.post(PATHS[2], openapi_extra=described(completion_body, "CompletionBody"), responses=streamed)
    async def completions(request: Request) -> Response:
        """Continue a text."""
        return await complete(request, completion_body)

    @app.get(PATHS[0])
    async def models(request: Request) -> Any:
        """The model that is served."""
        authorise(request)
        return JSONResponse({"object": "list", "data": [service.model()]})

    @app.get(PATHS[0] + "/{name:path}")
    async def model(request: Request, name: str) -> Any:
        """Properties of the model."""
        authorise(request)
        if name != service.chat_model.name:
            raise ApiError(404, f"The model {name!r:.100} does not exist", param="model", code="model_not_found")
        return JSONResponse(service.model())

    @app.get(PATHS[3], responses={503: {"description": "Stopped"}})
    async def health() -> Any:
        """Whether the engine's thread runs."""
        alive = service.scheduler.is_alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, status_code=200 if alive else 503)

    if service.metrics is not None:
        shown = service.metrics
        app.add_middleware(CallCounter, metrics=shown)

        @app.get(PATHS[4], response_class=PlainTextResponse)
        async def metrics(request: Request) -> Response:
            """Metrics for Prometheus."""
            authorise(request)
            return Response(shown.text(), media_type=shown.content_type)

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
    async def on_unexpected_error(request: Request, error: Exception) -> JSONResponse:
        log.exception("an unexpected error in %s", request.url.path, exc_info=error)
        return refusal(ApiError(500, "The server failed; its log has the reason", "server_error"))

    describe = app.openapi

    def openapi() -> dict[str, Any]:
        description = describe()
        description.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        return description

    app.openapi = openapi  # type: ignore[method-assign]
    return app


class CallCounter:
    """ASGI middleware that counts calls by path and status; unknown paths count as one."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counting_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in PATHS else "other"
                self.metrics.calls.labels(path, str(message["status"])).inc()
            await send(message)

        return await self.app(scope, receive, counting_send)


async def _events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[str, None]:
    """Server-sent events of the chunks, with an event for an error: the status has been sent by then."""
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body)}\n\n"
    finally:
        await chunks.aclose()


async def _unless_disconnected(receive: Callable[[], Awaitable[Any]], work: Any) -> Any:
    """The result of the work; None, and the work is cancelled, where the client disconnects first."""

    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        leaving.cancel()
        task.cancel()
        with suppress(asyncio.CancelledError, ApiError):
            await task
