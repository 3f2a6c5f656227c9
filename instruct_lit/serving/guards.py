"""Who may use a server, and what its pages may load: ASGI applications around another."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import re
from collections.abc import Collection
from typing import Any

from instruct_lit.serving.protocol import ApiError, error_response

_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:@/\[\]]+))(?::\d+)?")
# The page may use its own server and what is written in it, nothing from elsewhere.
PAGE_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'; "
    "base-uri 'self'; object-src 'none'"
)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HostGuard:
    """Refuses calls under a foreign host name, or from a page of one, with status 403.

    Otherwise any web page could reach a server on this machine by DNS rebinding, which lets the page's own name resolve
    to this machine. Names of this machine are always allowed, with any port.

    Args:
        hosts: further names.
        origins: further pages, such as `https://example.org`; `*` allows all.
    """

    def __init__(self, app: Any, hosts: Collection[str] = (), origins: Collection[str] = ()) -> None:
        self.app, self.hosts, self.origins = app, {host.lower() for host in hosts}, origins

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
        return is_loopback(name) or name in self.hosts


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
