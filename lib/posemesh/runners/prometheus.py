"""Metrics for Prometheus: what ``/metrics`` shows. Needs prometheus-client, the extra ``prometheus``."""

from __future__ import annotations

import threading
from typing import Final

from posemesh.errors import PosemeshError
from posemesh.outcomes import TaskOutcome
from posemesh.runners.metrics import RunnerType

__all__ = ("PrometheusMetrics",)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

RUN_SECS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)
"""Buckets of a run, in seconds: solti-prometheus' of 0.0.2, so that its dashboards fit."""

REQUEST_MS: Final = (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
"""Buckets of a request, in milliseconds: solti-prometheus' for its API."""

LABELS_MAX: Final = 32
"""A label takes so many values; all others count as ``other``. What fills a time series database is new values."""

_OUTCOMES: Final = frozenset(TaskOutcome)

# prometheus-client lets no counter's name end otherwise than in _total; this text format does, and dashboards know
# these names. So these three are kept and written here.
_PLAIN: Final = {
    "token_rotate_count": "Tokens that took the place of an old one.",
    "storage_bytes_uploaded": "Bytes of artifacts that were uploaded.",
    "storage_bytes_downloaded": "Bytes of inputs that were downloaded.",
}


class PrometheusMetrics:
    """A ``MetricsBackend`` and ``NodeMetrics`` with a registry of its own, so that several nodes in a process do not
    mix.

    Raises PosemeshError where prometheus-client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise PosemeshError(
                "metrics for Prometheus need prometheus-client: pip install 'posemesh[prometheus]'"
            ) from error
        registry = self._registry = CollectorRegistry()
        self._started = Counter(
            "posemesh_runner_tasks_started_total", "Runs that were started.", ["runner"], registry=registry
        )
        self._completed = Counter(
            "posemesh_runner_tasks_completed_total", "Runs that ended.", ["runner", "outcome"], registry=registry
        )
        self._duration = Histogram(
            "posemesh_runner_task_duration_seconds",
            "How long runs took.",
            ["runner", "outcome"],
            buckets=RUN_SECS,
            registry=registry,
        )
        self._errors = Counter(
            "posemesh_runner_errors_total",
            "Runners that could not be found, built or started.",
            ["runner", "error"],
            registry=registry,
        )
        self._poll = Histogram(
            "dms_poll_latency_ms", "How long GET /tasks took.", buckets=REQUEST_MS, registry=registry
        )
        self._active = Gauge("dms_active_task", "Tasks that are running.", registry=registry)
        self._run = Histogram(
            "runner_run_latency_ms",
            "How long runs took.",
            buckets=[secs * 1000 for secs in RUN_SECS],
            registry=registry,
        )
        self._lock = threading.Lock()
        self._plain = dict.fromkeys(_PLAIN, 0)
        self._labels: dict[str, set[str]] = {"runner": {*RunnerType}, "error": set()}

    def render(self) -> tuple[str, bytes]:
        """The content type and the body of an answer, in Prometheus' text format."""
        from prometheus_client import generate_latest

        with self._lock:
            plain = dict(self._plain)
        lines = [
            f"# HELP {name} {about}\n# TYPE {name} counter\n{name} {plain[name]}\n" for name, about in _PLAIN.items()
        ]
        return CONTENT_TYPE, generate_latest(self._registry) + "".join(lines).encode()

    def task_started(self, runner_type: RunnerType) -> None:
        self._started.labels(self._label("runner", runner_type)).inc()

    def task_completed(self, runner_type: RunnerType, outcome: TaskOutcome, duration_ms: float) -> None:
        runner = self._label("runner", runner_type)
        ended = outcome if outcome in _OUTCOMES else TaskOutcome.FAILURE
        self._completed.labels(runner, ended).inc()
        self._duration.labels(runner, ended).observe(max(0.0, duration_ms / 1000))

    def runner_error(self, runner_type: RunnerType, error_kind: str) -> None:
        self._errors.labels(self._label("runner", runner_type), self._label("error", error_kind)).inc()

    def poll_latency(self, ms: float) -> None:
        self._poll.observe(max(0.0, ms))

    def active_tasks(self, n: int) -> None:
        self._active.set(max(0, n))

    def run_latency(self, ms: float) -> None:
        self._run.observe(max(0.0, ms))

    def token_rotated(self) -> None:
        self._add("token_rotate_count", 1)

    def bytes_uploaded(self, n: int) -> None:
        self._add("storage_bytes_uploaded", n)

    def bytes_downloaded(self, n: int) -> None:
        self._add("storage_bytes_downloaded", n)

    def _add(self, name: str, n: int) -> None:
        with self._lock:
            self._plain[name] += max(0, n)  # a counter never falls

    def _label(self, name: str, value: str) -> str:
        with self._lock:
            known = self._labels[name]
            if value not in known and len(known) >= LABELS_MAX:
                return RunnerType.OTHER.value
            known.add(value)
            return str(value)
