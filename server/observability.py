"""Figures and logs: Prometheus metrics of one app, structlog to stderr.

No document text, question or id is a label or a log field. A namespace is a label of the bank's
gauges only, and of so many at most as the operator allows.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from server.dependencies import EngineFacade
from server.namespace_gauges import NamespaceGauges

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
OUTCOMES = {
    429: "overloaded",
    499: "client_gone",
    503: "unavailable",
    504: "timeout",
}
STATES = ("starting", "ready", "draining", "stopped", "failed")


class Metrics:
    """Counters and histograms of one server; the engine's observer. Any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "mac_http_requests",
            "HTTP requests by route template and outcome.",
            ("method", "route", "outcome"),
            registry=self.registry,
        )
        self._request_seconds = self._histogram(
            "mac_http_request_seconds", "From request head to the answer's end.", "route", SECONDS
        )
        self.requests_running = Gauge(
            "mac_http_requests_running", "HTTP requests not yet answered.", registry=self.registry
        )
        self._phase_seconds = self._histogram(
            "mac_phase_seconds", "Engine time by phase (queue, select, ...).", "phase", SECONDS
        )
        self._batch_size = self._histogram(
            "mac_batch_size", "Questions or chunks in one batch.", "lane", SIZES
        )
        self._documents = self._counter(
            "mac_documents", "Documents by what became of them.", "operation"
        )
        self._store_errors = self._counter("mac_store_errors", "Failed store calls.", "operation")

    def _histogram(self, name: str, text: str, label: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, (label,), buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(name, text, (label,), registry=self.registry)

    def observe_phase(self, phase: str, seconds: float) -> None:
        self._phase_seconds.labels(phase).observe(seconds)

    def observe_batch(self, lane: str, size: int) -> None:
        self._batch_size.labels(lane).observe(size)

    def count_documents(self, operation: str, amount: int) -> None:
        self._documents.labels(operation).inc(amount)

    def count_store_error(self, operation: str) -> None:
        self._store_errors.labels(operation).inc()

    def observe_request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, outcome_class(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def watch(self, engine: EngineFacade, *, version: str, max_namespaces: int) -> None:
        """Read the engine's gauges at every scrape."""
        self.registry.register(_EngineGauges(engine, version, NamespaceGauges(max_namespaces)))

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class _EngineGauges(Collector):
    """The engine's status as gauges, read when scraped, so that none can be stale."""

    def __init__(self, engine: EngineFacade, version: str, namespaces: NamespaceGauges) -> None:
        self._engine = engine
        self._version = version
        self._namespaces = namespaces

    def describe(self) -> list[Any]:
        return []  # registering must not ask an engine that is not started

    def collect(self) -> Iterator[Any]:
        status = self._engine.status()
        yield InfoMetricFamily(
            "mac_build", "What runs.", {"version": self._version, "model": status.model}
        )
        state = GaugeMetricFamily("mac_engine_state", "1 for the engine's state.", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(name == status.state))
        yield state
        jobs = GaugeMetricFamily("mac_jobs", "Jobs of all servers by state.", labels=["state"])
        for name, amount in status.jobs.items():
            jobs.add_metric([name], amount)
        yield jobs
        ended = CounterMetricFamily(
            "mac_jobs_ended", "What became of jobs on this server.", labels=["outcome"]
        )
        for outcome, amount in status.jobs_ended.items():
            ended.add_metric([outcome], amount)
        yield ended
        yield from self._namespaces.collect(status.namespaces)
        yield from (
            GaugeMetricFamily(name, text, value=value)
            for name, text, value in (
                ("mac_bank_namespaces", "Namespaces, deleted ones too.", len(status.namespaces)),
                ("mac_questions_waiting", "Questions queued.", status.queued_questions),
                ("mac_documents_waiting", "Documents queued.", status.queued_documents),
                (
                    "mac_corrupt_records",
                    "Records met and left out, and not written anew or removed since.",
                    status.num_corrupt,
                ),
                (
                    "mac_store_up",
                    "1 when the store answered last time.",
                    float(status.store_state == "open"),
                ),
                (
                    "mac_replica_lag_seconds",
                    "For how long the bank has not been known to equal the store.",
                    status.lag_s,
                ),
            )
        )
        tiers = GaugeMetricFamily(
            "mac_bank_tier_bytes",
            "Selection keys on the device; modulations in RAM and in mapped files.",
            labels=["tier"],
        )
        for tier, num_bytes in status.tier_bytes.items():
            tiers.add_metric([tier], float(num_bytes))
        yield tiers
        if status.last_step_age_s is not None:
            yield GaugeMetricFamily(
                "mac_engine_last_step_age_seconds",
                "Time since the engine's last step.",
                value=status.last_step_age_s,
            )


def outcome_class(status: int) -> str:
    """A status as one of few label values."""
    if status in OUTCOMES:
        return OUTCOMES[status]
    if status < 400:
        return "ok"
    return "client_error" if status < 500 else "server_error"


def configure_logging(*, level: str, log_format: str) -> None:
    """Send structlog's and every library's records to stderr, one line each."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    renderer = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=())],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # At debug these print each request's address, and with it ids.
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
