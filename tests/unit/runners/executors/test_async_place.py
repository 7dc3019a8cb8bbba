"""Async user code in a child, here without one: what no test with real processes can time."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from posemesh.outcomes import FailureCode
from posemesh.runners.executors.async_place import AsyncPlace
from posemesh.runners.executors.frames import Done, Frames, from_child, run_of
from posemesh.runners.executors.link import Link
from posemesh.runners.kinds import AsyncRunner
from posemesh.types import LeaseEnvelope, TaskSpec

ORDER = run_of(7, LeaseEnvelope(task=TaskSpec(id=UUID(int=1), capability="/tests/place/v1")))


async def never(task: Any) -> None:
    raise AssertionError("it was to stop before it began")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A child has those of its process to itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


async def served(child: socket.socket, *, stop_first: bool) -> None:
    """An order and a stop in one turn of the loop."""
    place = AsyncPlace(Link(child), AsyncRunner(never))
    serving = asyncio.create_task(place.serve([] if stop_first else [ORDER]))
    await asyncio.sleep(0)
    place._stop()
    if stop_first:
        place._take([ORDER])
    await serving


@pytest.mark.parametrize("stop_first", [False, True])
def test_a_task_that_is_stopped_before_it_begins_never_does(stop_first: bool) -> None:
    """What came before the stop is answered; what comes after it is the next child's."""
    node, child = socket.socketpair()
    with node:
        with child:
            asyncio.run(served(child, stop_first=stop_first))
        said = [from_child(each) for each in Frames().feed(node.recv(10_000))]
    assert [(type(each), each.run) for each in said] == ([] if stop_first else [(Done, ORDER.run)])
    for each in said:
        assert isinstance(each, Done) and each.code is FailureCode.CANCELLED and each.leaving
