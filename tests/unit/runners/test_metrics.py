"""Counting: a handle that takes any backend, and that nothing a backend raises gets past."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from posemesh import Node, NodeConfig, outcomes
from posemesh.devnet import Devnet, DevnetConfig
from posemesh.runners import metrics
from posemesh.runners.metrics import (
    MetricsBackend,
    MetricsHandle,
    MetricsShare,
    NodeMetrics,
    NoOpMetrics,
    RunnerType,
    TaskOutcome,
    default_metrics,
    noop_metrics,
)
from posemesh.testing import LoopClock, run_virtual, simulated

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


# --- A whole node -------------------------------------------------------------------------------------------------


def worked(backend: MetricsBackend) -> dict[str, str]:
    """The states of one task of each end, after a node that is counted by ``backend`` has left."""

    async def main() -> dict[str, str]:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
            settings = net.node_settings() | {"MAX_CONCURRENCY": "5"}
            node = simulated(Node(NodeConfig.from_env(settings), metrics=backend))

            @node.runner("/good/v1")
            async def good(task: Any) -> None:
                await task.output.put_bytes("a.bin", b"a")

            @node.runner("/bad/v1")
            async def bad(task: Any) -> None:
                raise ValueError("no")

            async def wait(task: Any) -> None:
                await asyncio.Event().wait()

            node.runner("/late/v1", timeout=5)(wait)
            node.runner("/cancelled/v1")(wait)
            node.runner("/left/v1")(wait)
            await node.start()
            jobs = {name: net.submit(f"/{name}/v1", max_attempts=1) for name in ("good", "bad", "late", "cancelled")}
            left = net.submit("/left/v1", max_attempts=1)
            await asyncio.sleep(60)
            net.jobs.cancel(jobs["cancelled"], net.clock.wall())
            await asyncio.sleep(60)
            await node.stop(0)
            return {name: net.jobs.job(job).state.value for name, job in (jobs | {"left": left}).items()}

    return run_virtual(main(), limit=7200)


ENDED = {"good": "completed", "bad": "failed", "late": "failed", "cancelled": "canceled", "left": "failed"}


def test_all_that_a_node_starts_is_completed_once() -> None:
    backend = Everything()
    assert worked(backend) == ENDED
    assert backend.started == ["inline"] * 5 == [kind for kind, _, _ in backend.completed]
    assert sorted(backend.outcomes) == ["canceled", "canceled", "failure", "success", "timeout"]
    assert backend.errors == []
    counts = [said[1] for said in backend.said if said[0] == "active_tasks"]
    assert max(counts) > 1 and counts[-1] == 0
    assert ("bytes_uploaded", 1) in backend.said


def test_a_node_works_whatever_its_backend_raises() -> None:
    with logged() as lines:
        assert worked(Broken()) == ENDED
    assert len([line for line in lines if "Broken raised" in line]) == 1


def test_nodes_that_share_a_backend_are_counted_together() -> None:
    """How many tasks run is no count: what the last node said took the place of all others'."""
    backend = Everything()
    running: dict[MetricsShare, int] = {}
    one, other = (MetricsShare(backend, running) for _ in range(2))
    assert MetricsHandle.of(one) is one
    one.active_tasks(2)
    other.active_tasks(3)
    one.active_tasks(1)
    one.token_rotated()
    one.close()
    other.close()
    assert [said for said in backend.said if said != "token_rotated"] == [
        ("active_tasks", number) for number in (2, 5, 4, 3, 0)
    ]
    assert "token_rotated" in backend.said
    assert running == {}
    assert one.render is None


def test_the_default_counts_where_somebody_could_ask() -> None:
    assert default_metrics(served=False) is noop_metrics()
    backend = default_metrics(served=True)
    render = MetricsShare(backend, {}).render
    assert render is not None and b"dms_active_task" in render()[1]
