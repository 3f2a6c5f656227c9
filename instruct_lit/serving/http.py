"""HTTP around the completion service: routes, limits, OpenAI's errors, clients that disconnect, and who may call."""

import asyncio
import base64
import hmac
import json
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from instruct_lit.evaluation.judging.endpoints import is_loopback
from instruct_lit.serving.completions import CompletionService, Job
from instruct_lit.serving.metrics import Metrics
from instruct_lit.serving.protocol import ApiError, Body, ErrorBody, error_response, shutting_down

log = logging.getLogger(__name__)
LARGE_BYTES = 32_768  # a longer body waits for other long ones, not a short one for it
PATHS = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics")
_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/\[\]]+))(?::\d+)?")
_A_TYPE = re.compile(r"(?:str|int|float|bool|none)$|.*\[|[A-Z]")  # in the place of an error: that a value may have
# The page may use its own server and what is written in it, nothing from elsewhere.
PAGE_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'"
)


def make_app(
    service: CompletionService,
    api_key: str | None = None,
    max_body_bytes: int = 1_000_000,
    body_timeout_s: float = 10.0,
    allowed_hosts: Collection[str] = (),
    cors_origins: Collection[str] = (),
) -> Any:
    """The FastAPI application; its shutdown closes the service's scheduler.

    Args:
        api_key: required as a bearer token by all paths but `/health` and the description of the API.
        max_body_bytes, body_timeout_s: a longer or slower body is refused.
        allowed_hosts: names of the server beside those of this machine; none with a key allows every name.
        cors_origins: pages that may use the server.
    """
    from fastapi import FastAPI, Request
    from fastapi.middleware.cors import CORSMiddleware
    from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from pydantic import TypeAdapter, ValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    large = ThreadPoolExecutor(1, "large-bodies")

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        yield
        large.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(service.scheduler.close)

    errors: dict[int | str, dict[str, Any]] = {"default": {"description": "Error", "model": ErrorBody}}
    # FastAPI's pages of the API load scripts from elsewhere; its description is at /openapi.json.
    app = FastAPI(title="instruct-lit", lifespan=lifespan, responses=errors, docs_url=None, redoc_url=None)
    streamed: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
    chat_body, completion_body = (TypeAdapter(kind) for kind in service.bodies)
    definitions: dict[str, Any] = {}

    def authorise(request: Request) -> None:
        given = re.sub("(?i)^bearer +", "", request.headers.get("authorization", ""))
        # Starlette reads a header as Latin-1; some clients write it so, others (curl) in UTF-8.
        read = (given.encode(), given.encode("latin-1"))
        if api_key is not None and not any(hmac.compare_digest(key, api_key.encode()) for key in read):
            raise ApiError(401, "Incorrect API key provided", code="invalid_api_key")

    async def read_body(request: Request) -> bytes:
        authorise(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            # Also keeps other sites' pages out: a browser sends them a preflight request before this type.
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
        except ClientDisconnect:
            raise ApiError(499, "The client disconnected") from None
        return bytes(raw)

    def prepare(raw: bytes, adapter: TypeAdapter[Any]) -> Job:
        try:
            body: Body = adapter.validate_json(raw)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False, include_input=False)
            first = max(errors, key=lambda found: len(found["loc"]))  # of types that a value may have, the nearest
            field, *inside = map(str, first["loc"] or ("",))  # such as messages, 3, content, str
            param = ".".join([field, *(part for part in inside if not _A_TYPE.match(part))])[:100] or None
            raise ApiError(400, f"{param or 'body'}: {first['msg']}", param=param) from error
        return service.prepare(body)

    async def complete(request: Request, adapter: TypeAdapter[Any]) -> Response:
        raw, loop = await read_body(request), asyncio.get_running_loop()
        job = await loop.run_in_executor(large if len(raw) > LARGE_BYTES else None, prepare, raw, adapter)
        if job.body.stream:
            service.submit(job, every_step=True)
            return StreamingResponse(_events(service.chunks(job)), media_type="text/event-stream")
        answer = await _unless_disconnected(request.receive, service.answer(job))
        return Response(status_code=499) if answer is None else JSONResponse(answer)

    @app.post(PATHS[1], openapi_extra=body_schema(chat_body, "ChatBody", definitions), responses=streamed)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await complete(request, chat_body)

    @app.post(PATHS[2], openapi_extra=body_schema(completion_body, "CompletionBody", definitions), responses=streamed)
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
        alive = service.scheduler.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "stopped"}, status_code=200 if alive else 503)

    if (shown := service.metrics) is not None:

        @app.get(PATHS[4], response_class=PlainTextResponse)
        async def metrics(request: Request) -> Response:
            """Metrics for Prometheus."""
            authorise(request)
            return Response(shown.text(), media_type=shown.content_type)

    async def on_error(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        elif not isinstance(error, ApiError):
            log.exception("an unexpected error in %s", request.url.path, exc_info=error)
            error = ApiError(500, "The server failed; its log has the reason", "server_error")
        return error_response(error)

    for kind in (ApiError, HTTPException, Exception):
        app.add_exception_handler(kind, on_error)
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=cors_origins, allow_methods=["*"], allow_headers=["*"])
    if api_key is None or allowed_hosts:
        app.add_middleware(HostGuard, hosts=allowed_hosts, origins=cors_origins)
    app.add_middleware(Calls, metrics=service.metrics)  # the last is the outermost

    app.openapi = partial(described, app.openapi, definitions)  # type: ignore[method-assign]
    return app


def body_schema(adapter: Any, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a body in an endpoint's description.

    Args:
        adapter: pydantic's `TypeAdapter` of the body.
        definitions: receives the schemas of the body's parts.
    """
    schema = adapter.json_schema(ref_template=f"#/components/schemas/{name}.{{model}}")
    definitions.update({f"{name}.{key}": part for key, part in schema.pop("$defs", {}).items()})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def described(describe: Callable[[], dict[str, Any]], definitions: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's description of the application, with the definitions of `body_schema`."""
    description = describe()
    description.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
    return description


class Calls:
    """Counts calls by path and status, and ends those that uvicorn cancels at the shutdown.

    Such a call is answered with status 503; a stream ends with an event of that error.
    """

    def __init__(self, app: Any, metrics: Metrics | None) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start: Any = None

        async def noting_send(message: Any) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                if self.metrics is not None:
                    path = scope["path"] if scope["path"] in PATHS else "other"
                    self.metrics.calls.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        except asyncio.CancelledError:
            error = shutting_down()
            if start is None:
                await error_response(error)(scope, receive, noting_send)
            elif any(value.startswith(b"text/event-stream") for _, value in start["headers"]):
                await send({"type": "http.response.body", "body": f"data: {json.dumps(error.body)}\n\n".encode()})


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


class HostGuard:
    """Refuses calls under a foreign host name, or from a page of one, with status 403.

    Otherwise any web page could reach a server on this machine by DNS rebinding, which lets the page's own name resolve
    to this machine. Names of this machine are always allowed, with any port.

    Args:
        hosts: further names.
        origins: further pages, such as `https://example.org`; `*` allows all.
    """

    def __init__(self, app: Any, hosts: Collection[str] = (), origins: Collection[str] = ()) -> None:
        self.app, self.origins = app, origins
        self.hosts = {"127.0.0.1", "localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and (refusal := self.refusal(scope["headers"])):
            return await error_response(ApiError(403, refusal, code="host_not_allowed"))(scope, receive, send)
        await self.app(scope, receive, send)

    def refusal(self, headers: Collection[tuple[bytes, bytes]]) -> str | None:
        """Why a call with these headers is refused."""
        hosts, origins = ([v.decode("latin-1") for n, v in headers if n == name] for name in (b"host", b"origin"))
        if len(hosts) != 1 or not self.allows(hosts[0]):
            return f"Host {', '.join(hosts)!r:.80}: not a name of this server; allowed_hosts=[…] adds one"
        for origin in origins:
            if not {origin, "*"} & set(self.origins) and not self.allows(origin.partition("://")[2]):
                return f"Origin {origin!r:.80}: not allowed to use this server; cors_origins=[…] adds it"
        return None

    def allows(self, authority: str) -> bool:
        """Whether `name` or `name:port` is one of the server's names."""
        match = _AUTHORITY.fullmatch(authority.lower())
        name = (match[1] or match[2]) if match else ""
        return name in self.hosts or is_loopback(name)


class PagePolicy:
    """Adds `PAGE_POLICY` to every response, so that a browser loads nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", PAGE_POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


class PasswordGuard:
    """Asks a browser for a user name and a password (HTTP Basic authentication)."""

    def __init__(self, app: Any, user: str, password: str) -> None:
        self.app, self.expected = app, b"Basic " + base64.b64encode(f"{user}:{password}".encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "http" and not hmac.compare_digest(given, self.expected):
            from starlette.responses import PlainTextResponse

            ask = PlainTextResponse("A password is required.", 401, {"WWW-Authenticate": 'Basic charset="UTF-8"'})
            return await ask(scope, receive, send)
        await self.app(scope, receive, send)
