"""A command by itself: what waits, what is dropped, and who reads."""

from __future__ import annotations

import asyncio

import pytest

from posemesh.golem.command import HELD_MAX, Command, Counter, Output
from posemesh.testing.loop import run_virtual

PIECE = Output("stdout", b"x" * 65536)


async def no_kill(command: Command, signal: int) -> None:
    raise AssertionError("it was not to be killed")


def test_what_is_not_read_waits() -> None:
    async def test() -> None:
        command = Command("tool", 1, no_kill)
        written = 0

        async def write() -> None:
            nonlocal written
            while True:
                await command.put(PIECE)
                written += 1

        writing = asyncio.create_task(write())
        await asyncio.sleep(1)
        assert written == HELD_MAX // len(PIECE.data) and command.is_full()
        assert await anext(command) == PIECE
        await asyncio.sleep(1)
        assert written == HELD_MAX // len(PIECE.data) + 1
        writing.cancel()

    run_virtual(test())


def test_many_small_events_wait_too() -> None:
    async def test() -> None:
        command = Command("tool", 1, no_kill)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await command.put(Counter("golem.usage.c", 1.0))
        assert len(command._events) < 10_000

    run_virtual(test())


def test_waiting_for_it_reads_it_unless_somebody_else_does() -> None:
    async def test() -> None:
        command = Command("tool", 1, no_kill)
        seen = []

        async def read() -> None:
            async for event in command:
                await asyncio.sleep(1)  # between two events it still reads
                seen.append(event)

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        waiting = asyncio.create_task(command.wait())
        for _ in range(3):
            await command.put(PIECE)
        command.finish(5)
        assert await waiting == 5
        await reading
        assert seen == [PIECE] * 3

    run_virtual(test())


def test_one_that_is_killed_no_longer_waits_to_be_read() -> None:
    async def test() -> None:
        told = []

        async def kill(command: Command, signal: int) -> None:
            told.append(signal)

        command = Command("tool", 1, kill)
        while not command.is_full():
            await command.put(PIECE)
        writing = asyncio.create_task(command.put(PIECE))
        await asyncio.sleep(0)
        await command.kill(15)
        await writing
        assert told == [15]
        command.finish(1)
        await command.kill()  # it is over: nobody is told
        assert told == [15] and await command.wait() == 1

    run_virtual(test())


def test_what_went_wrong_comes_after_what_was_written() -> None:
    async def test() -> None:
        command = Command("tool", 1, no_kill)
        await command.put(PIECE)
        command.finish(None, ValueError("gone"))
        command.finish(0)
        assert await anext(command) == PIECE
        for _ in range(2):
            with pytest.raises(ValueError, match="gone"):
                await anext(command)
        with pytest.raises(ValueError, match="gone"):
            await command.wait()
        assert command.code is None

    run_virtual(test())


def test_its_end_is_told_whenever_it_is() -> None:
    async def test() -> None:
        command = Command("tool", 1, no_kill)
        told: list[str] = []
        command.on_end(lambda: told.append("once"))
        command.finish(0)
        command.finish(0)
        command.on_end(lambda: told.append("at once"))
        assert told == ["once", "at once"]

    run_virtual(test())
