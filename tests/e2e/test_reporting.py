"""Reports: offered until the service answers, accepted once, and what becomes of those it does not take."""

from __future__ import annotations

import pytest

from .conftest import NOOP, World
from .network import Fault, Request


def at_first(count: int, kind: str, fault: Fault):
    """``fault`` for the first ``count`` requests of a kind."""
    left = [count]

    def choose(request: Request) -> Fault | None:
        if request.kind != kind or left[0] == 0:
            return None
        left[0] -= 1
        return fault

    return choose


def by_task(world: World, kinds: tuple[str, ...], faults: dict[str, Fault], count: int) -> None:
    """For each task its own fault, at its first ``count`` requests of these kinds."""
    net = world.net

    def choose(request: Request) -> Fault | None:
        met = [r for r in net.requests if r.task == request.task and r.kind in kinds]
        return faults.get(request.task or "") if request.kind in kinds and len(met) <= count else None

    net.fault = choose


@pytest.mark.slow
def test_a_report_is_offered_until_it_is_taken(world: World) -> None:
    """Weakness 5: a blip at complete lost the result."""
    net = world.net
    faults = [
        Fault("500", status=500),
        Fault("late", delay=5.0),
        Fault("cut"),
        Fault("403", status=403),
        Fault("408", status=408),
        Fault("redirect", status=302, headers={"Location": "/v1/tasks"}),
    ]
    tasks = net.dms.add(NOOP, len(faults))
    by_task(world, ("complete",), dict(zip([task.id for task in tasks], faults, strict=True)), 2)
    node = world.node(REQUEST_TIMEOUT_SECS=1, MAX_CONCURRENCY=len(faults))
    net.wait(lambda: len(net.dms.in_state("completed")) == len(faults), 12, "all completed")
    for task in tasks:
        assert len(net.of("complete", task.id)) == 3 and len(task.outcomes) == 1
    assert {task.attempts for task in tasks} == {1} and not net.of("fail")
    node.stop()


@pytest.mark.slow
@pytest.mark.parametrize("idempotent", [True, False])
def test_a_lost_answer_to_complete(world: World, idempotent: bool) -> None:
    net = world.net
    net.dms.idempotent = idempotent
    [task, after] = net.dms.add(NOOP, 2)
    net.fault = at_first(1, "complete", Fault("lost", apply=True))
    node = world.node()
    net.wait(lambda: len(net.of("complete", task.id)) == 2, 8, "offered again")
    net.wait(lambda: after.state == "completed", 5, "and the node goes on")
    net.quiet(1.2, lambda: len(net.of("complete", task.id)) > 2, "the second answer settles it")
    assert len(task.outcomes) == 1
    ended = [line for line in node.lines if task.id in line and '"ending"' in line]
    assert len(ended) == 1, "one line for the outcome"
    assert ("completed" if idempotent else "unconfirmed") in ended[0]
    node.stop()


@pytest.mark.slow
def test_a_refused_report_is_not_offered_again(world: World) -> None:
    net = world.net
    tasks = net.dms.add(NOOP, 3, max_attempts=1)
    faults = [Fault("refused", status=status) for status in (404, 409, 410)]
    by_task(world, ("complete",), dict(zip([task.id for task in tasks], faults, strict=True)), 99)
    node = world.node(MAX_CONCURRENCY=4)
    net.wait(lambda: len(net.of("complete")) == 3, 10, "three are offered")
    [after] = net.do(lambda: net.dms.add(NOOP))
    net.wait(lambda: after.state == "completed", 5, "the node goes on")
    net.quiet(1.3, lambda: len(net.of("complete")) > 4 or net.of("fail"), "the three are settled")
    assert len([line for line in node.lines if '"ending":"refused"' in line]) == 3
    node.stop()


def test_a_report_the_service_rejects_is_failed_once_then_stuck(world: World) -> None:
    net = world.net
    tasks = net.dms.add(NOOP, 3, max_attempts=1)
    faults = [Fault("rejected", status=status, body=b"no such field") for status in (400, 413, 422)]
    by_task(world, ("complete", "fail"), dict(zip([task.id for task in tasks], faults, strict=True)), 99)
    node = world.node(MAX_CONCURRENCY=4)
    net.wait(lambda: len(net.of("fail")) == 3, 8, "failed instead")
    assert all("report_rejected" in request.json["reason"] for request in net.of("fail"))
    net.quiet(1.5, lambda: len(net.of("fail")) > 3 or len(net.of("complete")) > 3, "each is offered once")
    shown = {entry["task_id"]: entry["state"] for entry in node.status()["tasks"]}
    assert shown == dict.fromkeys((task.id for task in tasks), "stuck")
    for task in tasks:
        assert any(task.id in line and ('"error"' in line or '"warning"' in line) for line in node.lines)
    node.stop()


def test_a_rejected_report_that_can_be_failed(world: World) -> None:
    net = world.net
    [task] = net.dms.add(NOOP, 1, max_attempts=1)
    net.fault = at_first(1, "complete", Fault("rejected", status=422))
    node = world.node()
    net.wait(lambda: task.state == "failed", 8, "failed")
    assert "report_rejected" in task.reason
    assert not [entry for entry in node.status()["tasks"] if entry["state"] == "stuck"]
    node.stop()


@pytest.mark.slow
def test_asking_stops_at_64_undelivered_outcomes(world: World) -> None:
    net = world.net
    net.dms.one_active = net.dms.judge_slots = False
    net.dms.ttl = 120.0
    net.dms.add(NOOP, 100)
    net.fault = lambda request: Fault("500", status=500) if request.kind == "complete" else None
    node = world.node(MAX_CONCURRENCY=8)
    world.signed_in()
    net.wait(lambda: sum(task.attempts for task in net.dms.tasks) >= 64, 60, "64 tasks are leased")
    net.quiet(3.0, lambda: sum(task.attempts for task in net.dms.tasks) >= 64 + 8, "and only what ran then beyond it")
    net.do(lambda: setattr(net, "fault", lambda request: None))
    net.wait(lambda: len(net.dms.in_state("completed")) == 100, 70, "all are delivered in the end")
    assert {task.attempts for task in net.dms.tasks} == {1}
    node.stop()


@pytest.mark.slow
def test_a_result_is_offered_past_the_expiry_of_its_lease(world: World) -> None:
    net = world.net
    net.dms.ttl = 1.0
    [task] = net.dms.add(NOOP, 1, max_attempts=5)
    net.dms._sweep = lambda: None  # type: ignore[method-assign]  # this service sweeps late
    net.fault = lambda request: Fault("500", status=500) if request.kind in ("complete", "heartbeat") else None
    node = world.node()
    net.wait(lambda: net.of("complete"), 10, "offered")
    net.quiet(1.6, lambda: False, "the lease runs out")
    net.do(lambda: setattr(net, "fault", lambda request: None))
    net.wait(lambda: task.state == "completed", 8, "completed")
    node.stop()
