"""Undocumented parts of uvicorn, which has no option and no callback for what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def idle_closing_protocol() -> type:
    """uvicorn's HTTP protocol with its keep-alive timer started at the connection, not only after a first response.

    Without it a client that connects and stays silent keeps a file open forever. The protocol sets
    `timeout_keep_alive_task` after every response, and cancels it when data arrives.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class IdleClosingProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    return IdleClosingProtocol


def notifying_server(config: Any, on_started: Callable[[int], None]) -> Any:
    """A `uvicorn.Server` that calls `on_started` with its port once it listens, with a method `stop`.

    `startup` is the one method that runs between binding and serving, `servers` are asyncio's with the bound sockets,
    and `should_exit` is what the signal handlers set, for which there is no method.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_started(self.servers[0].sockets[0].getsockname()[1])

        def stop(self) -> None:
            self.should_exit = True

    return Server(config)
