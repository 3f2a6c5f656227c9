"""The undocumented parts of uvicorn that `compat_uvicorn` uses still exist."""

import asyncio
import inspect

import pytest

uvicorn = pytest.importorskip("uvicorn")


def test_the_protocol_has_a_keep_alive_timer() -> None:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    source = inspect.getsource(H11Protocol)
    for attribute in ("timeout_keep_alive_task", "timeout_keep_alive", "timeout_keep_alive_handler", "loop"):
        assert f"self.{attribute}" in source or hasattr(H11Protocol, attribute), f"H11Protocol.{attribute} is gone"
    assert "self.timeout_keep_alive_task.cancel()" in source, "H11Protocol no longer cancels timeout_keep_alive_task"


def test_the_server_has_startup_started_and_servers() -> None:
    assert asyncio.iscoroutinefunction(uvicorn.Server.startup), "uvicorn.Server.startup is gone"
    assert list(inspect.signature(uvicorn.Server.startup).parameters) == ["self", "sockets"]
    source = inspect.getsource(uvicorn.Server)
    for attribute in ("started", "servers", "should_exit"):
        assert f"self.{attribute}" in source, f"uvicorn.Server.{attribute} is gone"
