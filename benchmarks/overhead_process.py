"""What a warm process runner costs a task, beside a bare pipe: the last part of ``overhead.py``.

The pipe's other end is a program that waits for nothing else. This end waits for nothing else either, or is one of the
things on an event loop, as whatever a node speaks with.

``taskset -c 0`` gives the steadiest numbers. About half of a task's time is there because two interpreters take turns,
and find their own code cold each time: a call costs twice what a profile of one end alone says.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from posemesh.runners.api import TaskContext
from posemesh.runners.context import BuildContext
from posemesh.runners.ending import Ending
from posemesh.runners.executors.frames import Done, encode, run_of
from posemesh.runners.executors.process import ProcessRunner
from posemesh.types import LeaseEnvelope, TaskSpec

__all__ = ("compare",)

CAPABILITY: Final = "/benchmarks/process/v1"
LEASE: Final = LeaseEnvelope(
    task=TaskSpec(id=UUID(int=1), job_id=UUID(int=3), capability=CAPABILITY),
    domain_id=UUID(int=2),
    domain_server_url="http://127.0.0.1:9",
)
ECHO: Final = """
import os, sys
comes, goes = map(int, sys.argv[1:])
answer = bytes(goes)
while True:
    left = comes
    while left:
        got = os.read(0, left)
        if not got:
            sys.exit()
        left -= len(got)
    os.write(1, answer)
"""


async def noop(task: TaskContext) -> None:
    """The runner."""


class Job:
    """The node's end of one task that says nothing and asks for nothing."""

    lease = LEASE
    cancelled = False
    stop_reason: str | None = None

    def report(self, message: object) -> None:
        raise AssertionError(message)

    def workspace(self) -> Path:
        raise AssertionError("nobody asked for it")

    async def answer(self, message: object) -> Any:
        raise AssertionError(message)


async def _tasks(runner: ProcessRunner, number: int) -> float:
    """Microseconds a task, one after the other, all in one warm child."""
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    for _ in range(number):
        ended: asyncio.Future[Ending] = loop.create_future()
        runner.build_task(LEASE.task, BuildContext()).start(Job(), ended.set_result)
        ending = await ended
        assert ending.code is None, ending
    return (time.perf_counter() - began) / number * 1e6


@contextmanager
def _echo(goes: int, comes: int) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-I", "-S", "-c", ECHO, str(goes), str(comes)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        yield child
        assert child.stdin is not None
        child.stdin.close()


def _trips(child: subprocess.Popen[bytes], goes: int, comes: int, number: int) -> float:
    """Microseconds a round trip."""
    assert child.stdin is not None and child.stdout is not None
    there, back, message, began = child.stdin.fileno(), child.stdout.fileno(), bytes(goes), time.perf_counter()
    for _ in range(number):
        os.write(there, message)
        left = comes
        while left:
            left -= len(os.read(back, left))
    return (time.perf_counter() - began) / number * 1e6


async def _trips_on_loop(child: subprocess.Popen[bytes], goes: int, comes: int, number: int) -> float:
    """The same where the loop does other work while the answer is on its way, as a node must."""
    assert child.stdin is not None and child.stdout is not None
    there, back, message, loop = child.stdin.fileno(), child.stdout.fileno(), bytes(goes), asyncio.get_running_loop()
    left, answered = comes, loop.create_future()

    def read() -> None:
        nonlocal left
        left -= len(os.read(back, left))
        if not left:
            answered.set_result(None)

    loop.add_reader(back, read)
    began = time.perf_counter()
    for _ in range(number):
        left, answered = comes, loop.create_future()
        os.write(there, message)
        await answered
    spent = time.perf_counter() - began
    loop.remove_reader(back)
    return spent / number * 1e6


async def _compare(number: int, rounds: int) -> None:
    goes = len(encode(run_of(1, LEASE)))
    comes = len(encode(Done(run=1, code=None, message="", chain=[], alone=True, leaving=False)))
    runner = ProcessRunner("noop", CAPABILITY, noop)
    found: list[tuple[float, float, float]] = []
    with _echo(goes, comes) as child:
        for turn in range(rounds + 1):
            task = await _tasks(runner, number)
            trip, on_loop = _trips(child, goes, comes, number), await _trips_on_loop(child, goes, comes, number)
            if turn:  # the first starts and warms all up
                found.append((task, trip, on_loop))
    await runner.close()
    tasks, trips, on_loops = (statistics.median(times) for times in zip(*found, strict=True))
    print(f"a warm process runner, {number} tasks, {rounds} rounds; {goes} bytes there and {comes} back")
    print(f"  task in the child     {tasks:8.0f} us")
    print(f"  bare pipe round trip  {trips:8.0f} us")
    print(f"  factor                {_factor([task / trip for task, trip, _ in found])}; at most 3 is wanted")
    print(f"  bare pipe on a loop   {on_loops:8.0f} us")
    print(f"  factor to that        {_factor([task / on_loop for task, _, on_loop in found])}")


def _factor(factors: list[float]) -> str:
    return f"{statistics.median(factors):8.2f} ({min(factors):.2f} to {max(factors):.2f})"


def compare(number: int, rounds: int) -> None:
    """Run them in turns and print the medians, on the loop that ``Node.run()`` takes."""
    asyncio.run(_compare(number, rounds))


if __name__ == "__main__":
    compare(2000, 7)
