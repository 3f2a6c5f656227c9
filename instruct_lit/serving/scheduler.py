"""One thread that owns an engine, so that requests of many clients are written together by one copy of the weights.

Clients of other threads hand requests in through an inbox, which is read between two steps, and are told of every step
by a call in the scheduler's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import FinishReason, Request
from instruct_lit.errors import InstructLitError

log = logging.getLogger(__name__)


class QueueFullError(InstructLitError):
    """There are more requests than may wait."""


@dataclass(frozen=True, slots=True)
class Update:
    """What is certain of a response after a step: its text, its number of tokens, and how it ended."""

    text: str
    n_tokens: int
    finish_reason: FinishReason | None


@dataclass(eq=False)
class PendingRequest:
    """A request in the scheduler; `tell` is called in the scheduler's thread, after each step or only at the end."""

    request: Request
    tell: Callable[[Update], None]
    every_step: bool
    submitted_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None


class Scheduler:
    """Writes the answers of all clients with one engine; at most `max_waiting` requests wait for a row.

    `on_finished` is called with every ticket whose request has ended, for statistics. `close` ends the thread.
    """

    def __init__(
        self, engine: Engine, max_waiting: int = 256, on_finished: Callable[[PendingRequest], None] | None = None
    ) -> None:
        self.engine, self.max_waiting, self._on_finished = engine, max_waiting, on_finished
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[Request, PendingRequest] = {}  # of the scheduler's thread alone
        self.n_open, self._lock = 0, threading.Lock()  # requests that have been accepted and not finished
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def limit(self) -> int:
        """Requests that may be open at the same time."""
        return self.engine.max_rows + self.max_waiting

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(
        self, requests: Sequence[tuple[Request, Callable[[Update], None]]], every_step: bool
    ) -> list[PendingRequest]:
        """Accept requests that the engine has prepared, all or none; QueueFullError when too many would wait."""
        tickets = [PendingRequest(request, tell, every_step) for request, tell in requests]
        with self._lock:
            if self._closing or self.n_open + len(tickets) > self.limit:
                state = "is shutting down" if self._closing else f"has {self.n_open} of at most {self.limit} requests"
                raise QueueFullError(f"the server {state}; try again later")
            self.n_open += len(tickets)
            self._inbox.put(lambda: self._accept(tickets))  # under the lock: before `close` has begun, or never
        return tickets

    def cancel(self, tickets: Sequence[PendingRequest]) -> None:
        """Take requests out, wherever they are; those that have finished stay as they are."""
        self._inbox.put(lambda: self._cancel(tickets))

    def close(self) -> None:
        """Cancel what is unfinished and end the thread."""
        with self._lock:
            self._closing = True
        self._inbox.put(lambda: None)
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            try:
                self._read_inbox()
                changed = self.engine.step()
            except Exception:
                log.exception("a step of generation failed; its requests are cancelled")
                self.engine.clear()
                changed = list(self._tickets)
                for request in changed:
                    request.finish_reason = request.finish_reason or "cancelled"
            for request in changed:
                self._tell(request)
        self._inbox.put(lambda: None)  # reading must not wait
        self._read_inbox()
        self._cancel(list(self._tickets.values()))

    def _read_inbox(self) -> None:
        """Do what waits in the inbox; with nothing to write, wait for it."""
        idle = not self.engine.n_unfinished
        while idle or not self._inbox.empty():
            self._inbox.get()()
            idle = False

    def _accept(self, tickets: Sequence[PendingRequest]) -> None:
        for ticket in tickets:
            self._tickets[ticket.request] = ticket
            self.engine.enqueue(ticket.request)

    def _cancel(self, tickets: Sequence[PendingRequest]) -> None:
        for ticket in tickets:
            if ticket.request in self._tickets:
                self.engine.cancel(ticket.request)
                self._tell(ticket.request)

    def _tell(self, request: Request) -> None:
        ticket = self._tickets[request]
        finished = request.finish_reason is not None
        if ticket.first_token_at is None and request.ids:
            ticket.first_token_at = time.monotonic()
        if finished:
            del self._tickets[request]
            with self._lock:
                self.n_open -= 1
            if self._on_finished is not None:
                self._on_finished(ticket)
        if finished or ticket.every_step:
            try:
                ticket.tell(Update(request.stable_text, len(request.ids), request.finish_reason))
            except Exception:  # a client that has gone, its event loop too
                log.debug("a client cannot be told of its response", exc_info=True)
                self._cancel([ticket])
