"""200 no-op tasks over a network that behaves, and over one that does not."""

from __future__ import annotations

import random
import time

import pytest

from .checks import further, recovered
from .conftest import NOOP, World
from .network import Fault, Request

TASKS = 200


def test_the_network_recovers_the_signer_of_a_published_message() -> None:
    from eth_hash.auto import keccak

    message = (
        b"example.com wants you to sign in with your Ethereum account:\n0xfdbb6caf01414300c16ea14859fec7736d95355f\n\n"
        b"URI: https://example.com\nVersion: 1\nChain ID: 1\nNonce: abc123\nIssued At: 2024-05-01T00:00:00Z"
    )
    signature = bytes.fromhex(
        "390786f1c4840ec337aef7c4a6d15bba128cc308e2f32f4528e2f8dd44f61f35"
        "4a68a45bcf7d39eb724346a02f6eefebd8a39e20ebf68435bfe026ed47b1e5171b"
    )
    digest = keccak(b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message)
    assert recovered(digest, signature, 27) == "0xfdbb6caf01414300c16ea14859fec7736d95355f"


def all_completed(world: World, within: float) -> float:
    """Seconds from the first ask to the last of the tasks."""
    net = world.net
    net.wait(lambda: len(net.dms.in_state("completed")) == len(net.dms.tasks), within, "all tasks completed")
    assert {task.attempts for task in net.dms.tasks} == {1}
    assert all(len(task.outcomes) == 1 for task in net.dms.tasks)
    return time.monotonic() - net.of("ask")[0].at


@pytest.mark.parametrize(
    ("one_active", "slots", "polling"),
    [
        (False, 1, {}),
        (True, 8, {}),
        *further((True, 1, {}), (True, 1, {"POLL_BACKOFF_MS_MIN": 1000, "POLL_BACKOFF_MS_MAX": 30000})),
    ],
    ids=["free", "eight", "one-active", "default-polling"],
)
def test_200_tasks(world: World, one_active: bool, slots: int, polling: dict[str, int]) -> None:
    net = world.net
    net.dms.one_active = one_active
    net.dms.add(NOOP, TASKS)
    node = world.node(MAX_CONCURRENCY=slots, LOG_LEVEL="info", **polling)
    took = all_completed(world, 30)
    assert took < 8, f"{took:.1f} s for {TASKS} tasks that do nothing"
    # One heartbeat, one complete and hardly more than one ask each.
    assert len(net.of("heartbeat")) <= TASKS + 5
    assert len(net.of("complete")) == TASKS
    assert len(net.of("ask")) <= TASKS * 1.25 + 5
    # Connections are kept: the reference opened one for every poll.
    assert len({request.connection for request in net.requests if request.service == "dms"}) <= 4 * slots
    assert len(net.of("register")) == len(net.of("verify")) == 1
    assert node.running
    node.stop()


def faults(rng: random.Random, rate: float, names: tuple[str, ...]):
    """A fault for one request in 1/rate, and never the same request three times."""
    garbage = (b"<html>busy</html>", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"task": 7}', b"{}" * 3)

    def fault(request: Request) -> Fault | None:
        if rng.random() >= rate:
            return None
        name = rng.choice(names)
        if name == "lost" and request.kind == "ask":
            return None  # the lease would be nobody's until it runs out
        if name == "503":
            return Fault(name, status=503, body=b"try later")
        if name == "cut":
            return Fault(name)
        if name == "torn":
            return Fault(name, status=200, torn=True, apply=request.kind != "ask")
        if name == "lost":
            return Fault(name, apply=True)
        if name == "401":
            return Fault(name, status=401, revoke=True) if request.service == "dms" else None
        if name == "garbage":
            return Fault(name, status=200, body=rng.choice(garbage)) if request.kind != "complete" else None
        raise ValueError(name)

    return fault


@pytest.mark.slow
@pytest.mark.parametrize("name", ["503", "cut", "torn", "lost", "401", "garbage", "all"])
def test_200_tasks_whatever_goes_wrong(world: World, name: str) -> None:
    net = world.net
    names = ("503", "cut", "torn", "lost", "401", "garbage") if name == "all" else (name,)
    net.fault = faults(net.rng, 0.05, names)
    net.dms.add(NOOP, TASKS)
    node = world.node(MAX_CONCURRENCY=4, LOG_LEVEL="debug", TOKEN_REAUTH_JITTER_MS=50)
    took = all_completed(world, 55)
    assert took < 50
    assert node.running
    node.stop(10)
