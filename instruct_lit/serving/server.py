"""uvicorn around the application, and the address that it listens on."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from instruct_lit.errors import ConfigError
from instruct_lit.serving.compat_uvicorn import idle_closing_protocol, notifying_server


def run_server(app: Any, host: str, port: int, on_started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; for the arguments see `make_server`."""
    _raise_file_limit()
    asyncio.run(make_server(app, host, port, on_started).serve())


def make_server(app: Any, host: str, port: int, on_started: Callable[[str], None]) -> Any:
    """A `uvicorn.Server`.

    A connection may be without a call for ten seconds, before its first one too; calls that are unfinished five seconds
    after the shutdown are cancelled.

    Args:
        port: 0 takes a free one.
        on_started: called with the URL when the server listens.
    """
    import uvicorn

    config = uvicorn.Config(
        app, host, port, http=idle_closing_protocol(), ws="none", log_level="warning", timeout_keep_alive=10,
        timeout_graceful_shutdown=5, h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    return notifying_server(config, lambda bound: on_started(f"http://{shown}:{bound}"))


def usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises: ConfigError where the port is in use or the address does not belong to this machine.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(f"host={host}, port={port}: {error.strerror}; port=0 takes a free one") from error


def _raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one: every connection is a file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems report an infinite hard limit and refuse it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
