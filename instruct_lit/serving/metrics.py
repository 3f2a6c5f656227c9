"""The server's metrics for Prometheus: requests, latencies, tokens, and the load of the engine."""

from typing import Any

from instruct_lit.core.generation.engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters in a registry of their own, so that several servers in one process stay apart."""

    def __init__(self, engine: Engine) -> None:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram

        self.content_type = CONTENT_TYPE_LATEST
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "instruct_lit", "registry": self.registry}
        self.calls = Counter("http_requests", "HTTP calls by path and status", ["path", "status"], **own)
        self.requests = Counter("requests", "Requests by finish reason", ["finish_reason"], **own)
        self.tokens = Counter("tokens", "Tokens of prompts and completions", ["kind"], **own)
        self.first_token_s = Histogram(
            "first_token_seconds", "From acceptance to the first token", buckets=_SECONDS, **own
        )
        self.request_s = Histogram("request_seconds", "From acceptance to the last token", buckets=_SECONDS, **own)
        Gauge("rows_active", "Responses being generated", **own).set_function(lambda: engine.n_active)
        waiting = Gauge("requests_waiting", "Requests waiting for a row", **own)
        waiting.set_function(lambda: engine.n_unfinished - engine.n_active)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
