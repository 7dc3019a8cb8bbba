"""What is counted, and the one way to count it: a handle that no backend's failure gets past."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import cache
from importlib.util import find_spec
from typing import Protocol, Self, runtime_checkable

from posemesh.outcomes import TaskOutcome
from posemesh.telemetry import logger

__all__ = (
    "MetricsBackend",
    "MetricsHandle",
    "MetricsShare",
    "NoOpMetrics",
    "NodeMetrics",
    "RunnerType",
    "TaskOutcome",
    "default_metrics",
    "noop_metrics",
)


class RunnerType(StrEnum):
    """What runs a task: a label of metrics."""

    SUBPROCESS = "subprocess"
    WASM = "wasm"
    CONTAINER = "container"
    INLINE = "inline"
    THREAD = "thread"
    PROCESS = "process"
    COMMAND = "command"
    OTHER = "other"
    """None of these: a runner of another's making, or no runner at all."""


@runtime_checkable
class MetricsBackend(Protocol):
    """Where runs are counted. Called on the node's loop, so it must not block; may be called from other threads."""

    def task_started(self, runner_type: RunnerType) -> None:
        """User code is about to start."""
        ...

    def task_completed(self, runner_type: RunnerType, outcome: TaskOutcome, duration_ms: float) -> None:
        """It ended, ``duration_ms`` milliseconds later. Once for each ``task_started``."""
        ...

    def runner_error(self, runner_type: RunnerType, error_kind: str) -> None:
        """A runner could not be found, built or started; ``error_kind`` is a ``RunnerError.kind``, one of a few words.

        Besides the outcome of a task, if one was started at all.
        """
        ...


@runtime_checkable
class NodeMetrics(Protocol):
    """What else a backend may count: the node around the runs. All six methods or none."""

    def poll_latency(self, ms: float) -> None:
        """An answer to ``GET /tasks`` took ``ms`` milliseconds."""
        ...

    def active_tasks(self, n: int) -> None:
        """``n`` tasks are running now."""
        ...

    def run_latency(self, ms: float) -> None:
        """A runner took ``ms`` milliseconds, however it ended."""
        ...

    def token_rotated(self) -> None:
        """A new token took the place of an old one."""
        ...

    def bytes_uploaded(self, n: int) -> None:
        """``n`` more bytes of artifacts are on the domain server."""
        ...

    def bytes_downloaded(self, n: int) -> None:
        """``n`` more bytes of inputs are here."""
        ...


class NoOpMetrics:
    """Counts nothing."""

    def task_started(self, runner_type: RunnerType) -> None:
        pass

    def task_completed(self, runner_type: RunnerType, outcome: TaskOutcome, duration_ms: float) -> None:
        pass

    def runner_error(self, runner_type: RunnerType, error_kind: str) -> None:
        pass


class MetricsHandle:
    """A backend as the node uses it: both protocols, and never an exception.

    What the backend does not count is left out. What it raises is logged, the first time only: metrics must not hurt a
    task.
    """

    def __init__(self, backend: MetricsBackend) -> None:
        self._backend = backend
        self._node = backend if isinstance(backend, NodeMetrics) else None
        self._told = False

    @classmethod
    def of(cls, backend: MetricsBackend) -> Self:
        """A handle of ``backend``, or it itself where it is one."""
        return backend if isinstance(backend, cls) else cls(backend)

    def __repr__(self) -> str:
        return f"<metrics {type(self._backend).__name__}>"

    def task_started(self, runner_type: RunnerType) -> None:
        self._safely(lambda: self._backend.task_started(runner_type))

    def task_completed(self, runner_type: RunnerType, outcome: TaskOutcome, duration_ms: float) -> None:
        self._safely(lambda: self._backend.task_completed(runner_type, outcome, duration_ms))

    def runner_error(self, runner_type: RunnerType, error_kind: str) -> None:
        self._safely(lambda: self._backend.runner_error(runner_type, error_kind))

    def poll_latency(self, ms: float) -> None:
        if (node := self._node) is not None:
            self._safely(lambda: node.poll_latency(ms))

    def active_tasks(self, n: int) -> None:
        if (node := self._node) is not None:
            self._safely(lambda: node.active_tasks(n))

    def run_latency(self, ms: float) -> None:
        if (node := self._node) is not None:
            self._safely(lambda: node.run_latency(ms))

    def token_rotated(self) -> None:
        if (node := self._node) is not None:
            self._safely(node.token_rotated)

    def bytes_uploaded(self, n: int) -> None:
        if (node := self._node) is not None:
            self._safely(lambda: node.bytes_uploaded(n))

    def bytes_downloaded(self, n: int) -> None:
        if (node := self._node) is not None:
            self._safely(lambda: node.bytes_downloaded(n))

    def _safely(self, count: Callable[[], None]) -> None:
        try:
            count()
        except Exception as error:
            if not self._told:
                self._told = True
                what = type(self._backend).__name__
                logger().opt(exception=error).warning(f"{what} raised; its metrics are wrong from here on")


class MetricsShare(MetricsHandle):
    """One of several nodes' handles of the same backend, which all count in. What is not a count but a state, how many
    tasks run, is that of all of them together: ``running`` is theirs.
    """

    def __init__(self, backend: MetricsBackend, running: dict[MetricsShare, int]) -> None:
        super().__init__(backend)
        self._running = running
        self.render: Callable[[], tuple[str, bytes]] | None = getattr(backend, "render", None)

    def active_tasks(self, n: int) -> None:
        self._running[self] = n
        super().active_tasks(sum(self._running.values()))

    def close(self) -> None:
        """This node runs nothing any more."""
        self.active_tasks(0)
        del self._running[self]


def default_metrics(*, served: bool) -> MetricsBackend:
    """Prometheus' where somebody could ask for it and its extra is installed."""
    if not served or find_spec("prometheus_client") is None:
        return noop_metrics()
    from posemesh.runners.prometheus import PrometheusMetrics

    return PrometheusMetrics()


@cache
def noop_metrics() -> MetricsHandle:
    """A handle that counts nothing."""
    return MetricsHandle(NoOpMetrics())
