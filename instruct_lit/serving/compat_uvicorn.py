"""Undocumented parts of uvicorn, which has no option and no callback for what they do."""

from collections.abc import Callable
from typing import Any


def idle_closing_protocol() -> type:
    """uvicorn's HTTP protocol with a limit on the time in which a connection has no call under way.

    The protocol starts `timeout_keep_alive_task` after every response, and cancels it when data arrives. So a client
    that connects and stays silent, sends a part of a call's head, or never ends a body that has been refused, keeps a
    file open forever. Here the timer runs from the connection on, and data that begin no call move it only once.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class IdleClosingProtocol(H11Protocol):
        due: float | None = None  # the time at which data that begin no call have to have begun one

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self.due = None
            elif self.timeout_keep_alive_task is None and not self.transport.is_closing():
                self.due = self.due or self.loop.time() + self.timeout_keep_alive
                self.timeout_keep_alive_task = self.loop.call_at(self.due, self.timeout_keep_alive_handler)

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
