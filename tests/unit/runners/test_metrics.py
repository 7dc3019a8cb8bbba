"""Counting: a handle that takes any backend, and that nothing a backend raises gets past."""

from __future__ import annotations

from typing import Any

from posemesh import outcomes
from posemesh.runners import metrics
from posemesh.runners.metrics import (
    MetricsBackend,
    MetricsHandle,
    NodeMetrics,
    NoOpMetrics,
    RunnerType,
    TaskOutcome,
    noop_metrics,
)

from .routing import Counting, logged


class Everything(Counting):
    """A backend that counts the node too."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Any] = []

    def poll_latency(self, ms: float) -> None:
        self.said.append(("poll_latency", ms))

    def active_tasks(self, n: int) -> None:
        self.said.append(("active_tasks", n))

    def run_latency(self, ms: float) -> None:
        self.said.append(("run_latency", ms))

    def token_rotated(self) -> None:
        self.said.append("token_rotated")

    def bytes_uploaded(self, n: int) -> None:
        self.said.append(("bytes_uploaded", n))

    def bytes_downloaded(self, n: int) -> None:
        self.said.append(("bytes_downloaded", n))


class Broken:
    def __getattr__(self, name: str) -> Any:
        def fail(*values: object) -> None:
            raise ValueError(f"{name} is broken")

        return fail


def use_all(handle: MetricsHandle) -> None:
    handle.task_started(RunnerType.THREAD)
    handle.task_completed(RunnerType.THREAD, TaskOutcome.TIMEOUT, 1.5)
    handle.runner_error(RunnerType.OTHER, "no_runner")
    handle.poll_latency(1)
    handle.active_tasks(2)
    handle.run_latency(3)
    handle.token_rotated()
    handle.bytes_uploaded(4)
    handle.bytes_downloaded(5)


def test_a_backend_inherits_nothing() -> None:
    assert isinstance(Counting(), MetricsBackend) and not isinstance(Counting(), NodeMetrics)
    assert isinstance(Everything(), MetricsBackend) and isinstance(Everything(), NodeMetrics)
    assert isinstance(NoOpMetrics(), MetricsBackend)
    assert isinstance(noop_metrics(), MetricsBackend) and isinstance(noop_metrics(), NodeMetrics)


def test_a_handle_passes_all_of_it_on() -> None:
    backend = Everything()
    use_all(MetricsHandle(backend))
    assert backend.started == ["thread"]
    assert backend.completed == [("thread", "timeout", 1.5)]
    assert backend.errors == [("other", "no_runner")]
    assert backend.said == [
        ("poll_latency", 1),
        ("active_tasks", 2),
        ("run_latency", 3),
        "token_rotated",
        ("bytes_uploaded", 4),
        ("bytes_downloaded", 5),
    ]


def test_what_a_backend_does_not_count_is_left_out() -> None:
    backend = Counting()
    with logged() as lines:
        use_all(MetricsHandle(backend))
        use_all(noop_metrics())
    assert backend.started == ["thread"] and lines == []


def test_what_a_backend_raises_is_logged_once() -> None:
    with logged() as lines:
        handle = MetricsHandle(Broken())
        use_all(handle)
        use_all(handle)
    assert len(lines) == 1
    assert "Broken raised" in lines[0] and "task_started is broken" in lines[0]


def test_a_handle_of_a_handle_is_the_same() -> None:
    handle = MetricsHandle(Counting())
    assert MetricsHandle.of(handle) is handle
    assert isinstance(MetricsHandle.of(Counting()), MetricsHandle)
    assert repr(handle) == "<metrics Counting>"


def test_labels() -> None:
    assert metrics.TaskOutcome is outcomes.TaskOutcome
    known = ["subprocess", "wasm", "container", "inline", "thread", "process", "command", "other"]
    assert [each.value for each in RunnerType] == known
