"""Figures for Prometheus; labels are routes and models of this server, never what a client made up."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters and histograms of one server; names begin with `aura_`."""

    def __init__(self, service: Any) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("aura_requests", "answers given", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "aura_request_seconds", "from arrival to end", ("route",), buckets=SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "aura_first_token_seconds",
            "from arrival to the first token",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self.waited = Histogram("aura_queue_seconds", "in the queue", ("model",), buckets=SECONDS, registry=registry)
        self.tokens = Counter("aura_tokens", "positions", ("model", "kind"), registry=registry)
        self.batch_rows = Histogram(
            "aura_batch_rows", "jobs that share a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        for name, text, read in (
            ("aura_requests_in_work", "requests in work or waiting", lambda: service.in_work),
            ("aura_jobs_waiting", "jobs that have not begun", lambda: service.scheduler.waiting),
            ("aura_realtime_sessions", "open realtime sessions", lambda: service.sessions),
        ):
            Gauge(name, text, registry=registry).set_function(read)

    def answered(self, model: str, completion: Any) -> None:
        """Count one answer's tokens and times."""
        kinds = {
            "audio": completion.audio_tokens,
            "prompt": completion.prompt_tokens - completion.audio_tokens,
            "completion": completion.completion_tokens,
        }
        for kind, number in kinds.items():
            self.tokens.labels(model, kind).inc(number)
        self.waited.labels(model).observe(completion.waited)
        if completion.first_token is not None:
            self.first_token.labels(model).observe(completion.first_token)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
