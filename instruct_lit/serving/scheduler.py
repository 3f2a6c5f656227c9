"""One thread that owns an engine, so that the requests of many clients share one batch and one copy of the weights.

Other threads put requests into an inbox, which the scheduler reads between two decoding steps; callbacks run in the
scheduler's thread.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import FinishReason, Request
from instruct_lit.errors import InstructLitError

log = logging.getLogger(__name__)


class QueueFullError(InstructLitError):
    """More requests than may wait."""


@dataclass(frozen=True, slots=True)
class Update:
    """The state of a request after a step: the text that no later token changes, and its number of tokens."""

    request: Request
    text: str
    n_tokens: int
    finish_reason: FinishReason | None


OnUpdate = Callable[[Update], None]


@dataclass(eq=False)
class PendingRequest:
    """A request in the scheduler; `on_update` is called after every step, or only once at the end."""

    request: Request
    on_update: OnUpdate
    every_step: bool
    submitted_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None


class Scheduler:
    """Decodes the requests of all clients with one engine.

    Args:
        max_waiting: requests that may wait for a free row of the engine.
        on_finished: called with every request that has ended, for statistics.
    """

    def __init__(
        self, engine: Engine, max_waiting: int = 256, on_finished: Callable[[PendingRequest], None] | None = None
    ) -> None:
        self.engine, self.on_finished = engine, on_finished
        self.limit = engine.max_rows + max_waiting  # requests that may be open at the same time
        self.n_open = 0  # requests that have been accepted and have not finished
        self.last_error: str | None = None  # of the last step that failed
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pending: dict[Request, PendingRequest] = {}  # used by the scheduler's thread only
        self.is_closing = False  # whether `close` has been called
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self.thread.start()

    def submit(self, requests: Sequence[Request], on_update: OnUpdate, every_step: bool) -> None:
        """Accept requests that `engine.prepare` made, all or none.

        Raises: QueueFullError where too many would wait, and after `close`.
        """
        pending = [PendingRequest(request, on_update, every_step) for request in requests]
        with self._lock:
            if self.is_closing or self.n_open + len(pending) > self.limit:
                state = "is shutting down" if self.is_closing else f"has {self.n_open} of at most {self.limit} requests"
                raise QueueFullError(f"the server {state}; try again later")
            self.n_open += len(pending)
            self._inbox.put(partial(self._accept, pending))  # under the lock: before `close` has begun, or never

    def cancel(self, requests: Sequence[Request]) -> None:
        """Cancel requests, waiting or running; finished ones stay unchanged."""
        self._inbox.put(partial(self._cancel, requests))

    def close(self) -> None:
        """Cancel all unfinished requests and end the thread."""
        with self._lock:
            self.is_closing = True
        self._inbox.put(lambda: None)
        self.thread.join()

    def _run(self) -> None:
        while not self.is_closing:
            try:
                self._read_inbox()
                changed = self.engine.step()
            except Exception as error:
                log.exception("a step of generation failed; its requests are cancelled")
                self.last_error = f"{type(error).__name__}: {error}"
                self.engine.clear()
                changed = list(self._pending)
                for request in changed:
                    request.finish_reason = request.finish_reason or "cancelled"
            for request in changed:
                self._notify(request)
        self._inbox.put(lambda: None)  # reading must not block
        self._read_inbox()
        self._cancel(list(self._pending))

    def _read_inbox(self) -> None:
        """Run everything in the inbox; block for it while the engine has nothing to do."""
        if not self.engine.n_unfinished:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def _accept(self, pending: Sequence[PendingRequest]) -> None:
        for one in pending:
            self._pending[one.request] = one
            self.engine.enqueue(one.request)

    def _cancel(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request in self._pending:
                self.engine.cancel(request)
                self._notify(request)

    def _notify(self, request: Request) -> None:
        pending, finished = self._pending[request], request.finish_reason is not None
        if pending.first_token_at is None and request.ids:
            pending.first_token_at = time.monotonic()
        if finished:
            del self._pending[request]
            with self._lock:
                self.n_open -= 1
            try:
                if self.on_finished is not None:
                    self.on_finished(pending)
            except Exception as error:  # such as a full disk: the request is answered all the same
                log.warning("after a response: %s: %s", type(error).__name__, error)
        if finished or pending.every_step:
            try:
                pending.on_update(Update(request, stable_text(request), n_generated(request), request.finish_reason))
            except Exception:  # the client has gone, and its event loop with it
                log.debug("a client cannot be notified", exc_info=True)
                self._cancel([request])


def stable_text(request: Request) -> str:
    """The text that no later token can change: without an incomplete character or the beginning of a stop text."""
    if request.finish_reason is not None:
        return request.text
    end = len(request.text.rstrip("\ufffd"))
    for stop in request.settings.stop:
        overlaps = (n for n in range(min(len(stop) - 1, end), 0, -1) if request.text.startswith(stop[:n], end - n))
        end -= next(overlaps, 0)
    return request.text[:end]


def n_generated(request: Request) -> int:
    """Tokens that the model has generated, with end-of-text."""
    return len(request.ids) + request.has_eot
