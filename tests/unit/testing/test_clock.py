"""Clocks of tests: they go where they are told, and never back."""

from __future__ import annotations

import asyncio

import pytest

from posemesh.testing import EPOCH, LoopClock, ManualClock, run_virtual


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock()
    assert (clock.monotonic(), clock.wall()) == (0.0, EPOCH)
    clock.advance(2.5)
    clock.advance(0)
    assert (clock.monotonic(), clock.wall()) == (2.5, EPOCH + 2.5)
    assert repr(clock) == "<ManualClock 2.5 s>"


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan")])
def test_a_manual_clock_does_not_go_back(seconds: float) -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="forward"):
        clock.advance(seconds)
    assert clock.monotonic() == 0.0


def test_a_wall_clock_can_be_turned() -> None:
    clock = ManualClock()
    clock.set_wall(EPOCH - 3600)
    clock.advance(1)
    assert (clock.monotonic(), clock.wall()) == (1.0, EPOCH - 3599)


def test_a_loop_clock_moves_with_its_loop() -> None:
    async def main() -> None:
        clock, wrong = LoopClock(), LoopClock(skew=-3600)
        await asyncio.sleep(10)
        assert (clock.monotonic(), clock.wall(), wrong.wall()) == (10.0, EPOCH + 10, EPOCH - 3590)

    run_virtual(main())
