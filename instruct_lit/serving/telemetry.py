"""What Prometheus reads: requests, latencies, tokens, and how full the engine is."""

from __future__ import annotations

import time
from typing import Any

from instruct_lit.core.generation.engine import Engine
from instruct_lit.serving.scheduler import PendingRequest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Telemetry:
    """Counters in a registry of their own, so that several servers of one process stay apart."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        prefix, registry = "instruct_lit", self.registry
        self.calls = Counter(
            f"{prefix}_http_requests", "Calls by path and status", ["path", "status"], registry=registry
        )
        self.requests = Counter(
            f"{prefix}_requests", "Requests by how they ended", ["finish_reason"], registry=registry
        )
        self.tokens = Counter(f"{prefix}_tokens", "Tokens read and written", ["kind"], registry=registry)
        self.first_token = Histogram(
            f"{prefix}_first_token_seconds", "From acceptance to the first token", buckets=_SECONDS, registry=registry
        )
        self.whole = Histogram(
            f"{prefix}_request_seconds", "From acceptance to the last token", buckets=_SECONDS, registry=registry
        )
        self.active = Gauge(f"{prefix}_rows_active", "Responses being written", registry=registry)
        self.waiting = Gauge(f"{prefix}_requests_waiting", "Requests waiting for a row", registry=registry)

    def watch(self, engine: Engine) -> None:
        """Read the gauges from this engine."""
        self.active.set_function(lambda: engine.n_active)
        self.waiting.set_function(lambda: engine.n_unfinished - engine.n_active)

    def on_finished(self, ticket: PendingRequest) -> None:
        """Count a request that has ended."""
        self.requests.labels(str(ticket.request.finish_reason)).inc()
        self.tokens.labels("prompt").inc(len(ticket.request.prompt_ids))
        self.tokens.labels("completion").inc(len(ticket.request.ids))
        if ticket.first_token_at is not None:
            self.first_token.observe(ticket.first_token_at - ticket.submitted_at)
        self.whole.observe(time.monotonic() - ticket.submitted_at)

    def text(self) -> bytes:
        """The exposition format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


def content_type() -> Any:
    """The media type of `Telemetry.text`."""
    from prometheus_client import CONTENT_TYPE_LATEST

    return CONTENT_TYPE_LATEST
