"""Asking for work: how often, of whom, and what becomes of leases that cannot be run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import NOOP, World, in_time
from .network import Fault, Request

UNKNOWN = "/somebody/elses/v1"
DEFAULT_POLLING = {"POLL_BACKOFF_MS_MIN": None, "POLL_BACKOFF_MS_MAX": None}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_idle_node_spares_a_service_in_trouble(world: World) -> None:
    """Weakness 6: the reference polls every 1 to 2 s for ever."""
    net = world.net
    net.fault = lambda request: Fault("500", status=500) if request.kind == "ask" else None
    node = world.node(**DEFAULT_POLLING)
    world.signed_in()
    net.quiet(60.0, lambda: len(net.of("ask")) > 10, "more than 10 lease requests within 60 s")
    assert len(net.of("ask")) >= 4
    told = time.monotonic()
    node.signal()
    assert node.wait(3) == 0
    assert in_time(time.monotonic() - told, 1)


@pytest.mark.slow
def test_a_queue_of_tasks_without_a_runner(world: World) -> None:
    """The reference burnt 15 attempts in 13 ms."""
    net = world.net
    net.dms.any_capability = True
    net.dms.add(UNKNOWN, 30, max_attempts=3)
    node = world.node(**DEFAULT_POLLING)
    world.signed_in()
    net.quiet(20.0, lambda: sum(task.attempts for task in net.dms.tasks) > 10, "more than 10 leases within 20 s")
    leased = [task for task in net.dms.tasks if task.attempts]
    assert sum(task.attempts for task in leased) >= 3
    assert all(UNKNOWN in task.reason for task in leased if not task.active), "each failed with a reason"
    assert sum(len(task.outcomes) for task in leased) >= sum(task.attempts for task in leased) - 1
    assert not net.of("complete")
    node.stop()


def without(*path: str) -> Callable[[dict[str, Any]], Any]:
    return setting(*path, value=...)


def setting(*path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def mangle(lease: dict[str, Any]) -> dict[str, Any]:
        place = lease
        for name in path[:-1]:
            place = place[name]
        if value is ...:
            place.pop(path[-1], None)
        else:
            place[path[-1]] = value
        return lease

    return mangle


UNDECODABLE = {
    "null-cancel": setting("cancel", value=None),
    "text-cancel": setting("cancel", value="false"),
    "null-inputs": setting("task", "inputs_cids", value=None),
    "number-in-inputs": setting("task", "inputs_cids", value=[1]),
    "empty-url": setting("domain_server_url", value=""),
    "no-url": setting("domain_server_url", value="not a url"),
    "domain-no-uuid": setting("domain_id", value="my-domain"),
    "expiry-no-time": setting("lease_expires_at", value="soon"),
    "expiry-a-number": setting("lease_expires_at", value=1800000000),
    "negative-attempts": setting("task", "attempts", value=-1),
    "priority-a-float": setting("task", "priority", value=0.5),
    "capability-null": setting("task", "capability", value=None),
    "capability-absent": without("task", "capability"),
    "job-no-uuid": setting("task", "job_id", value="7"),
    "token-a-list": setting("access_token", value=["secret"]),
    "prefix-a-number": setting("task", "outputs_prefix", value=7),
}
# These decode, and yet nothing can be run with them.
UNUSABLE = {
    "url-absent": without("domain_server_url"),
    "domain-absent": without("domain_id"),
    "url-of-a-file": setting("domain_server_url", value="file:///etc/passwd"),
}


@pytest.mark.slow
def test_leases_that_cannot_be_used_are_failed_back(world: World) -> None:
    """Weakness 18: such a task was neither run nor failed."""
    net = world.net
    bad = {
        name: net.dms.add(NOOP, 1, max_attempts=1, mangle=mangle)[0]
        for name, mangle in (UNDECODABLE | UNUSABLE).items()
    }
    [after] = net.dms.add(NOOP)
    node = world.node()
    net.wait(lambda: after.state == "completed", 20, "the node gets through all of them")
    assert {name: task.state for name, task in bad.items()} == dict.fromkeys(bad, "failed")
    assert all(len(task.reason) > 10 for task in bad.values())
    assert len(net.of("complete")) == 1
    node.stop()


BODIES = (b"", b"null", b"[]", b"{}", b'{"task": null}', b'{"task": {"id": "x"}}', b"\xff", b"[" * 100_000)


@pytest.mark.slow
def test_answers_that_name_no_task_are_no_hot_loop(world: World) -> None:
    net = world.net
    bodies = iter([*BODIES, b'{"task": {"id": 7}}'])

    def fault(request: Request) -> Fault | None:
        body = next(bodies, None) if request.kind == "ask" else None
        return None if body is None else Fault("garbage", status=200, body=body)

    net.fault = fault
    net.dms.add(NOOP)
    node = world.node(POLL_BACKOFF_MS_MIN=100)
    net.wait(lambda: net.dms.in_state("completed"), 8, "the node goes on")
    asks = [request.at for request in net.of("ask")]
    assert all(b - a > 0.09 for a, b in zip(asks[:9], asks[1:10], strict=False))
    node.stop()


def test_a_cancelled_lease_offered_again_and_again_is_no_hot_loop(world: World) -> None:
    """Weakness 14: 1,816 asks a second."""
    net = world.net
    [task] = net.dms.add(NOOP, 1, mangle=setting("cancel", value=True), sticky=True, max_attempts=10**6)
    node = world.node(POLL_BACKOFF_MS_MIN=200, POLL_BACKOFF_MS_MAX=5000)
    world.signed_in()
    net.quiet(1.5, lambda: len(net.of("ask")) > 5, "it hammers")
    assert not net.of("complete") and not net.of("heartbeat")
    assert task.attempts >= 2
    node.stop()


@pytest.mark.slow
def test_the_same_live_lease_offered_again_and_again_is_no_hot_loop(world: World) -> None:
    net = world.net
    net.dms.one_active = False
    [task] = net.dms.add("/test/sleep/v1", 1, sticky=True)
    node = world.node(
        """
        import asyncio
        import posemesh

        node = posemesh.Node()

        @node.runner("/test/sleep/v1")
        async def work(task):
            print("begun", flush=True)
            await asyncio.sleep(60)
        """,
        MAX_CONCURRENCY=2,
        POLL_BACKOFF_MS_MIN=200,
        POLL_BACKOFF_MS_MAX=5000,
    )
    node.wait_line("begun")
    asks = len(net.of("ask"))
    net.quiet(1.2, lambda: len(net.of("ask")) > asks + 5, "it hammers")
    assert node.output.count("\nbegun") <= 2, "never beyond its slots"
    net.violations.clear()  # the service that lies is at fault


@pytest.mark.slow
def test_retry_after_is_honoured(world: World) -> None:
    net = world.net
    net.fault = lambda request: (
        Fault("later", status=429, headers={"Retry-After": "2"}) if request.kind == "ask" else None
    )
    node = world.node()
    world.signed_in()
    net.wait(lambda: len(net.of("ask")) >= 2, 4, "it asks again")
    first, second = net.of("ask")[:2]
    assert 1.95 <= second.at - first.at < 3
    node.stop()


def test_connections_are_kept_over_polls(world: World) -> None:
    """Weakness 20: one connection for every poll."""
    net = world.net
    node = world.node(POLL_BACKOFF_MS_MIN=10, POLL_BACKOFF_MS_MAX=20)
    net.wait(lambda: len(net.of("ask")) >= 50, 15, "50 asks")
    assert len({request.connection for request in net.of("ask")}) <= 2
    node.stop()


def test_a_trailing_slash_of_the_base_url_doubles_nothing(world: World) -> None:
    """Weakness 21. A double slash is no path of this service, which would note it."""
    net = world.net
    [task] = net.dms.add(NOOP)
    node = world.node(DMS_BASE_URL=net.urls["dms"] + "/v1/", DDS_BASE_URL=net.urls["dds"] + "/")
    net.wait(lambda: task.state == "completed", 10, "completed")
    node.stop()


def test_a_redirect_gets_no_token(world: World) -> None:
    net = world.net
    elsewhere = net.urls["domain"] + "/elsewhere"
    net.fault = lambda request: (
        Fault("redirect", status=307, headers={"Location": elsewhere}) if request.kind == "ask" else None
    )
    node = world.node()
    net.wait(lambda: len(net.of("ask")) >= 2, 10, "it asks again")
    assert not [request for request in net.requests if request.service == "domain"]
    node.stop()


def test_dead_proxies_do_not_touch_loopback(world: World) -> None:
    net = world.net
    [task] = net.dms.add(NOOP)
    dead = "http://127.0.0.1:9"
    node = world.node(HTTP_PROXY=dead, HTTPS_PROXY=dead, http_proxy=dead, https_proxy=dead, ALL_PROXY=dead)
    net.wait(lambda: task.state == "completed", 10, "completed")
    node.stop()


@pytest.mark.slow
def test_a_heartbeat_may_answer_another_task_without_changing_the_report(world: World) -> None:
    """Weakness 17: a heartbeat could silently change the task's id or capability."""
    net = world.net

    def other(answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {"task_id": str(uuid.uuid4())}

    [task] = net.dms.add(NOOP, 1, mangle_beat=other)
    node = world.node(NOOP_SLEEP_SECS=1)
    net.wait(lambda: task.state == "completed", 10, "completed under its own id")
    assert task.attempts == 1
    node.stop()
