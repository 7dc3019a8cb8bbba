"""What a process that is one node's makes of its signals."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from posemesh.signals import HEEDED, Signals


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in HEEDED}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


class Told:
    """A runtime that notes what it is told."""

    def __init__(self) -> None:
        self.orders: list[Any] = []
        self.config = SimpleNamespace(drain_timeout_secs=7.0)

    def drain(self, seconds: float) -> None:
        self.orders.append(seconds)

    def cancel(self) -> None:
        self.orders.append("cancel")


async def sent(number: int) -> None:
    """Once the loop has heard of it."""
    os.kill(os.getpid(), number)
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("number", HEEDED)
def test_the_first_drains_and_the_second_cancels(number: int) -> None:
    async def main() -> None:
        told: Any = Told()
        Signals(lambda: told)
        await sent(number)
        assert told.orders == [7.0]
        await sent(number)
        assert told.orders == [7.0, "cancel"]
        assert {signal.getsignal(each) for each in HEEDED} == {signal.SIG_DFL}, "a third kills"

    asyncio.run(main())


def test_one_that_came_before_there_was_a_node_is_heeded_once() -> None:
    async def main() -> None:
        told: Any = Told()
        there: list[Any] = []
        signals = Signals(lambda: there[0] if there else None)
        signals.heed()
        await sent(signal.SIGTERM)
        there.append(told)
        assert told.orders == []
        signals.heed()
        signals.heed()
        assert told.orders == [7.0]

    asyncio.run(main())
