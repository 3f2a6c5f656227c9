"""uvicorn around the application: says where it listens, and closes connections that never ask for anything."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any


def run_server(app: Any, host: str, port: int, greeting: str) -> None:
    """Serve until Ctrl-C, as `make_server` says."""
    _allow_many_files()
    asyncio.run(make_server(app, host, port, greeting).serve())


def make_server(app: Any, host: str, port: int, greeting: str) -> Any:
    """A uvicorn server; port 0 takes a free one, `greeting` is printed with its `{url}`.

    A connection may be silent for ten seconds, before its first call too; what is unfinished at the end is cancelled
    after five.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                bound = self.servers[0].sockets[0].getsockname()[1]
                shown = f"[{host}]" if ":" in host else host
                print(greeting.replace("{url}", f"http://{shown}:{bound}"), flush=True)

    config = uvicorn.Config(
        app, host, port, http=Protocol, ws="none", log_level="warning", timeout_keep_alive=10,
        timeout_graceful_shutdown=5, h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    return Server(config)


def _allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: every connection is one."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems call the hard limit infinite and refuse it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
