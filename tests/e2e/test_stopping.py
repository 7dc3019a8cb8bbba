"""Signals: drain, cancel, kill; and what a lease gets that arrives after them."""

from __future__ import annotations

import signal
import time

import pytest

from .checks import further
from .conftest import NOOP, World, in_time
from .network import Fault, Request
from .test_keeping import CAPABILITY, SEEN, SLEEPING, SPINNING, STUBBORN


def test_a_running_task_ends_and_is_reported_before_the_exit(world: World) -> None:
    net = world.net
    net.dms.ttl = 1.5
    [task, waiting] = net.dms.add(CAPABILITY, 2)
    node = world.node(SLEEPING.format(seconds=2.5))
    net.wait(lambda: len(task.beats) >= 2, 10, "the task runs")
    beats, asks = len(task.beats), len(net.of("ask"))
    told = time.monotonic()
    node.signal(signal.SIGINT)
    net.wait(lambda: len(task.beats) >= beats + 2, 3, "heartbeats go on")
    assert node.running
    assert node.get("/ready")[0] == 503
    net.wait(lambda: task.state == "completed", 4, "the task completed")
    assert node.wait(1.5) == 0
    assert in_time(time.monotonic() - told, 4)
    assert len(net.of("ask")) == asks and waiting.attempts == 0, "nothing new is leased"
    assert task.attempts == 1 and in_time(task.longest_gap, 1.5)


@pytest.mark.parametrize(
    "source", [SEEN, pytest.param(SPINNING.format(seconds=60), marks=pytest.mark.slow)], ids=["sleeps", "spins"]
)
def test_a_second_signal_cancels_at_once_and_fails_the_task(world: World, source: str) -> None:
    net = world.net
    net.dms.ttl = 3.0
    [task] = net.dms.add(CAPABILITY, 1, max_attempts=1)
    node = world.node(source)
    net.wait(lambda: len(task.beats) >= 2, 10, "the task runs")
    node.signal()
    node.wait_line("told to stop")
    second = time.monotonic()
    node.signal()
    net.wait(lambda: task.state == "failed", 5, "failed back")
    assert "node_shutdown" in task.reason
    assert node.wait(6) == 0
    assert in_time(time.monotonic() - second, 5)
    if "print" in source:
        assert "cancelled True" in node.output


@pytest.mark.slow
def test_a_drain_that_takes_too_long_fails_what_is_left(world: World) -> None:
    """Weakness 9: a shutdown neither cancelled nor failed the running task."""
    net = world.net
    [task] = net.dms.add(CAPABILITY, 1, max_attempts=1)
    node = world.node(SEEN, DRAIN_TIMEOUT_SECS=1)
    node.wait_line("begun")
    told = time.monotonic()
    node.signal()
    net.wait(lambda: task.state == "failed", 5, "failed back")
    assert "node_shutdown" in task.reason
    took = time.monotonic() - told
    assert took > 0.9 and in_time(took, 2)
    assert node.wait(3) == 0


def test_a_third_signal_kills(world: World) -> None:
    net = world.net
    net.dms.ttl = 60.0
    net.dms.add(CAPABILITY)
    net.fault = lambda request: Fault("500", status=500) if request.kind == "fail" else None
    node = world.node(STUBBORN.format(seconds=60))
    node.wait_line("begun")
    node.signal()
    node.wait_line("told to stop")
    node.signal()
    node.wait_line("told to stop at once")  # two signals that both wait are one to the kernel
    third = time.monotonic()
    node.signal()
    assert node.wait(2) == -signal.SIGTERM
    assert in_time(time.monotonic() - third, 1)


def test_a_lease_that_arrives_after_the_signal_is_failed_back(world: World) -> None:
    net = world.net
    [task] = net.dms.add(NOOP, 1, max_attempts=1)
    node_told: list[float] = []

    def fault(request: Request) -> Fault | None:
        if request.kind != "ask" or node_told:
            return None
        node_told.append(request.at)
        node.signal()
        return None

    # The answer leaves only after the node has its signal: the domain token's issue takes a while.
    slow = net.dms._ask
    net.dms._ask = lambda request, wallet: (time.sleep(0.25), slow(request, wallet))[1]  # type: ignore[method-assign]
    net.fault = fault
    node = world.node()
    net.wait(lambda: task.state == "failed", 10, "failed back")
    assert "node_shutdown" in task.reason
    assert node.wait(3) == 0
    assert not net.of("complete")


@pytest.mark.parametrize("when", ["idle", "outage", "hanging"])
def test_an_idle_node_is_gone_in_under_a_second(world: World, when: str) -> None:
    net = world.net
    if when == "outage":
        net.fault = lambda request: Fault("500", status=500) if request.kind == "ask" else None
    if when == "hanging":
        net.fault = lambda request: Fault("hang", delay=20.0) if request.kind == "ask" else None
    node = world.node(POLL_BACKOFF_MS_MIN=1000, POLL_BACKOFF_MS_MAX=30000)
    world.signed_in()
    told = time.monotonic()
    node.signal()
    assert node.wait(3) == 0
    assert in_time(time.monotonic() - told, 1)


@pytest.mark.parametrize("phase", ["unreachable", "verify", *further("challenge", "register")])
def test_a_node_that_has_not_signed_in_stops_as_well(world: World, phase: str) -> None:
    """Weakness 8: waiting for registration and the first login ignored a shutdown."""
    net = world.net
    if phase != "unreachable":
        net.fault = lambda request: Fault("hang", delay=20.0) if request.kind == phase else None
        node = world.node()
        net.wait(lambda: net.of(phase), 10, "the node got there")
    else:
        node = world.node(DDS_BASE_URL="http://127.0.0.1:9")
        node.wait_line("offers")
    told = time.monotonic()
    node.signal()
    assert node.wait(3) == 0
    assert in_time(time.monotonic() - told, 1)


@pytest.mark.slow
def test_an_outcome_is_delivered_before_the_exit(world: World) -> None:
    """Weakness 5: complete was not retried."""
    net = world.net
    net.dms.ttl = 1.5
    [task] = net.dms.add(CAPABILITY)
    net.fault = lambda request: (
        Fault("500", status=500) if request.kind == "complete" and len(net.of("complete")) <= 2 else None
    )
    node = world.node(SLEEPING.format(seconds=2.5))
    net.wait(lambda: len(task.beats) >= 2, 10, "the task runs")
    node.signal()
    net.wait(lambda: task.state == "completed", 8, "completed in the end")
    assert node.wait(2) == 0


@pytest.mark.slow
def test_signals_while_user_code_holds_its_loop(world: World) -> None:
    net = world.net
    net.dms.ttl = 1.5
    [task] = net.dms.add(CAPABILITY)
    node = world.node(SPINNING.format(seconds=3))
    net.wait(lambda: len(task.beats) >= 2, 10, "the task runs")
    node.signal()
    net.wait(lambda: task.state == "completed", 5, "it completes")
    assert in_time(task.longest_gap, 1.5)
    assert node.wait(2) == 0
