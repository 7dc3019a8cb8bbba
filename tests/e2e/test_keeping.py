"""Keeping a lease: heartbeats in time, cancels at once, losses taken as such."""

from __future__ import annotations

import time
from typing import Any

import pytest

from .conftest import NOOP, World, in_time
from .network import Fault, Request

CAPABILITY = "/test/sleep/v1"

SLEEPING = """
    import asyncio
    import posemesh

    node = posemesh.Node()

    @node.runner("/test/sleep/v1")
    async def work(task):
        await asyncio.sleep({seconds})
"""
SPINNING = """
    import time
    import posemesh

    node = posemesh.Node()

    @node.runner("/test/sleep/v1")
    async def work(task):
        end = time.monotonic() + {seconds}
        while time.monotonic() < end:
            pass
"""
STUBBORN = """
    import asyncio, time
    import posemesh

    node = posemesh.Node()

    @node.runner("/test/sleep/v1")
    async def work(task):
        print("begun", flush=True)
        end = time.monotonic() + {seconds}
        while time.monotonic() < end:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass
        print("ended", flush=True)
"""
SEEN = """
    import asyncio
    import posemesh

    node = posemesh.Node()

    @node.runner("/test/sleep/v1")
    async def work(task):
        print("begun", flush=True)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("cancelled", task.ctrl.is_cancelled(), flush=True)
            raise
"""


def every_fourth(request: Request, seen: dict[str, int]) -> Fault | None:
    if request.kind != "heartbeat":
        return None
    seen["n"] = seen.get("n", 0) + 1
    return Fault("503", status=503) if seen["n"] % 4 == 0 else None


@pytest.mark.slow
@pytest.mark.parametrize("source", [SLEEPING, SPINNING], ids=["sleeps", "spins"])
def test_three_tasks_of_7_s_with_a_lease_of_3_s(world: World, source: str) -> None:
    """Weakness 1: any failed heartbeat was a lost lease. A runner that never awaits costs no lease either."""
    net = world.net
    net.dms.ttl = 3.0
    seen: dict[str, int] = {}
    net.fault = lambda request: every_fourth(request, seen)
    tasks = net.dms.add(CAPABILITY, 3)
    node = world.node(source.format(seconds=7))
    net.wait(lambda: len(net.dms.in_state("completed")) == 3, 40, "three tasks completed")
    assert [task.attempts for task in tasks] == [1, 1, 1]
    assert max(task.longest_gap for task in tasks) < 3.0
    for task in tasks:
        assert len(task.beats) <= 16
    node.stop()


@pytest.mark.slow
def test_heartbeats_that_fail_for_15_s_cost_no_task(world: World) -> None:
    """Weakness 3: the reference failed 8,500 tasks in 10 s while heartbeats were answered 500."""
    net = world.net
    net.dms.ttl = 10.0
    net.dms.add(CAPABILITY, 12)
    began: list[float] = []

    def fault(request: Request) -> Fault | None:
        if request.kind != "heartbeat":
            return None
        began.append(began[0] if began else request.at)
        return Fault("500", status=500, body=b"no") if request.at - began[0] < 15 else None

    net.fault = fault
    node = world.node(SLEEPING.format(seconds=2), POLL_BACKOFF_MS_MIN=1000, POLL_BACKOFF_MS_MAX=30000)
    net.wait(lambda: len(net.dms.in_state("completed")) == 12, 50, "all tasks completed")
    assert not net.of("fail")
    assert {task.attempts for task in net.dms.tasks} == {1}
    in_outage = [task for task in net.dms.tasks if task.closed_at and task.closed_at < began[0] + 15]
    assert len(in_outage) >= 4, "tasks go on in the outage"
    failed = [r for r in net.of("heartbeat") if r.fault]
    assert len(failed) <= 6 * (len(in_outage) + 1), "and their heartbeats back off"
    node.stop()


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-1, 1, None, "null"], ids=["past", "future", "absent", "null"])
def test_an_expiry_that_lies(world: World, hours: Any) -> None:
    """Weakness 15: back-to-back heartbeats, or none at all."""
    from .dds import stamp

    net = world.net
    net.dms.ttl = 20.0

    def lie(document: dict[str, Any]) -> dict[str, Any]:
        if hours is None:
            document.pop("lease_expires_at")
        else:
            document["lease_expires_at"] = None if hours == "null" else stamp(time.time() + hours * 3600)
        return document

    [task] = net.dms.add(CAPABILITY, 1, mangle=lie, mangle_beat=lie, honest=False)
    node = world.node(SLEEPING.format(seconds=5))
    net.wait(lambda: task.state == "completed", 15, "the task completed")
    assert task.attempts == 1
    assert len(task.beats) <= 20
    if hours != 1:
        assert len(task.beats) >= 3, "an unknown expiry is kept alive"
    node.stop()


@pytest.mark.slow
@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_services_whose_clocks_are_off(world: World, skew: float) -> None:
    net = world.net
    net.skew = skew
    net.dms.ttl = 1.5
    [task] = net.dms.add(CAPABILITY)
    node = world.node(SLEEPING.format(seconds=2))
    net.wait(lambda: task.state == "completed", 8, "completed")
    assert task.attempts == 1 and len(task.beats) <= 9
    assert in_time(task.longest_gap, 1.5)
    assert len(net.of("verify")) == 1
    node.stop()


@pytest.mark.parametrize("at", [1, 2], ids=["first-heartbeat", "second"])
def test_a_cancel_ends_the_task_at_once(world: World, at: int) -> None:
    """Weakness 13: the cancel in the first heartbeat's answer was ignored."""
    net = world.net
    net.dms.ttl = 1.5
    [task, after] = net.dms.add(CAPABILITY, 1, cancel_at=at) + net.dms.add(NOOP)
    both = SEEN + '    @node.runner("/posemesh/noop/v1")\n    async def other(task):\n        pass\n'
    node = world.node(both)
    net.wait(lambda: task.state == "canceled", 10, "the cancel was answered")
    since = time.monotonic()
    net.wait(lambda: after.state == "completed", 3, "the next task completed: the slot is free")
    assert in_time(time.monotonic() - since, 1.5)
    assert not net.of("complete", task.id) and not net.of("fail", task.id)
    if at == 1:
        assert "begun" not in node.output
    else:
        node.wait_line("cancelled True", within=1)
    assert len(task.beats) == at
    node.stop()


def test_a_lost_lease_ends_the_task_and_reports_nothing(world: World) -> None:
    net = world.net
    net.dms.ttl = 1.5
    tasks = net.dms.add(CAPABILITY, 3, max_attempts=1)
    statuses = dict(zip([task.id for task in tasks], (404, 409, 410), strict=True))

    def fault(request: Request) -> Fault | None:
        if request.kind != "heartbeat" or len(net.of("heartbeat", request.task)) < 2:
            return None
        next(task for task in tasks if task.id == request.task).state = "failed"
        return Fault("lost lease", status=statuses[request.task or ""], body=b"gone")

    net.fault = fault
    node = world.node(SEEN, MAX_CONCURRENCY=3)
    net.wait(lambda: len(net.dms.in_state("failed")) == 3, 10, "all leases are lost")
    net.quiet(1.0, lambda: len(net.of("heartbeat")) > 6 or net.of("complete") or net.of("fail"), "nothing more is sent")
    assert node.output.count("cancelled True") == 3
    node.stop()


@pytest.mark.slow
def test_an_expired_lease_stops_its_runner_and_is_silent(world: World) -> None:
    """Weakness 12: the expiry of a lease was not enforced."""
    net = world.net
    net.dms.ttl = 2.0
    [task] = net.dms.add(CAPABILITY, 1, max_attempts=1)
    net.fault = lambda request: Fault("500", status=500) if request.kind == "heartbeat" else None
    node = world.node(SEEN)
    node.wait_line("cancelled True")
    took = time.monotonic() - task.leased_at
    assert took > 1.5 and in_time(took, 2.6)
    beats = len(net.of("heartbeat"))
    assert 2 <= beats <= 14, "retried while the lease lasted, with backoff"
    net.quiet(0.8, lambda: len(net.of("heartbeat")) > beats or net.of("complete"), "nothing is sent under it")
    assert task.attempts == 1
    node.stop()


def test_a_task_that_finishes_while_heartbeats_fail_is_completed(world: World) -> None:
    """Weakness 2: the final flush could throw a finished result away."""
    net = world.net
    net.dms.ttl = 6.0
    [task] = net.dms.add(CAPABILITY)
    net.fault = lambda request: Fault("cut") if request.kind == "heartbeat" else None
    source = SLEEPING.format(seconds=0.3) + "        await task.ctrl.progress({'pct': 100})\n"
    node = world.node(source)
    net.wait(lambda: task.state == "completed", 8, "completed without one good heartbeat")
    assert task.attempts == 1 and not net.of("fail")
    node.stop()


def test_progress_and_events_arrive_coalesced_before_complete(world: World) -> None:
    """Weaknesses 4 and 16: one POST per report, and the last ones lost."""
    net = world.net
    [task] = net.dms.add(CAPABILITY)
    node = world.node("""
        import posemesh

        node = posemesh.Node()

        @node.runner("/test/sleep/v1")
        async def work(task):
            for number in range(100):
                task.ctrl.progress({"pct": number})
                await task.ctrl.log_event({"n": number})
    """)
    net.wait(lambda: task.state == "completed", 10, "completed")
    assert task.progress == {"pct": 99}
    assert task.events == [{"n": number} for number in range(100)]
    assert len(task.beats) <= 4
    node.stop()


def test_a_runner_that_raises_is_failed_with_its_reason(world: World) -> None:
    net = world.net
    [task] = net.dms.add(CAPABILITY, 1, max_attempts=1)
    node = world.node("""
        import posemesh

        node = posemesh.Node()

        @node.runner("/test/sleep/v1")
        async def work(task):
            try:
                raise KeyError("inner cause")
            except KeyError as error:
                raise ValueError("the point cloud is empty") from error
    """)
    net.wait(lambda: task.state == "failed", 10, "failed")
    assert "the point cloud is empty" in task.reason
    assert task.outcomes[0][1]["details"]["job"]["task_id"] == task.id
    node.stop()


def test_no_exception_of_user_code_ends_the_node(world: World) -> None:
    """Weakness 11: a panic unwound the node's loop."""
    net = world.net
    names = ("SystemExit", "KeyboardInterrupt", "asyncio.CancelledError", "MemoryError", "GeneratorExit")
    tasks = net.dms.add(CAPABILITY, len(names), max_attempts=1)
    node = world.node(f"""
        import asyncio
        import posemesh

        node = posemesh.Node()
        errors = [{", ".join(names)}]

        @node.runner("/test/sleep/v1")
        async def work(task):
            raise errors.pop(0)()

        @node.runner("/posemesh/noop/v1")
        async def other(task):
            pass
    """)
    net.wait(lambda: len(net.dms.in_state("failed")) == len(names), 10, "each failed back")
    assert all(task.reason for task in tasks)
    [after] = net.do(lambda: net.dms.add(NOOP))
    net.wait(lambda: after.state == "completed", 5, "the node goes on")
    node.stop()


def test_a_runner_that_ignores_its_cancellation_keeps_its_slot_and_shows(world: World) -> None:
    net = world.net
    net.dms.ttl = 1.0
    [task] = net.dms.add(CAPABILITY, 1, cancel_at=2)
    node = world.node(STUBBORN.format(seconds=30))
    net.wait(lambda: task.state == "canceled", 10, "cancelled")
    asks = len(net.of("ask"))
    net.quiet(2.2, lambda: len(net.of("ask")) > asks, "it asks for nothing while the slot is taken")
    [shown] = node.status()["tasks"]
    assert shown["task_id"] == task.id and shown["capability"] == CAPABILITY
    assert node.get("/ready")[0] == 503 or node.status()["machines"]["poller"]["state"] == "full"
    began = time.monotonic()
    node.signal()
    assert node.wait(6) == 0
    assert in_time(time.monotonic() - began, 5), "it does not delay the exit"
    assert not net.of("complete")


@pytest.mark.slow
def test_a_runner_that_spins_on_after_its_cancel_does_not_delay_exit(world: World) -> None:
    net = world.net
    net.dms.ttl = 1.0
    [task] = net.dms.add(CAPABILITY, 1, cancel_at=2)
    node = world.node(SPINNING.format(seconds=60))
    net.wait(lambda: task.state == "canceled", 10, "cancelled")
    began = time.monotonic()
    node.signal()
    assert node.wait(8) == 0
    assert in_time(time.monotonic() - began, 6)
