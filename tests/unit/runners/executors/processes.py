"""What tests with real processes need: programs in a few lines, and a look at who is left."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import TypeVar

T = TypeVar("T")

LIMIT_SECS = 60.0

DAEMON = """
def daemon():
    "A process that nobody waits for, in a session of its own; its number once it runs."
    import os, signal, time
    told, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            os.write(tell, str(os.getpid()).encode())
            os.close(tell)
            time.sleep(1000)
        os._exit(0)
    os.close(tell)
    os.wait()
    return int(os.read(told, 20))
"""


def python(source: str) -> list[str]:
    """The command of a program that may call ``daemon()``."""
    return [sys.executable, "-I", "-S", "-u", "-c", DAEMON + dedent(source)]


def finished(work: Callable[[], Awaitable[T]]) -> T:
    """The result of a test with a loop of its own."""

    async def limited() -> T:
        async with asyncio.timeout(LIMIT_SECS):
            return await work()

    return asyncio.run(limited())


def is_alive(pid: int) -> bool:
    """Whether it runs: one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except OSError:
        return False


def living(mark: str) -> list[int]:
    """The processes with ``mark`` in the environment that they began with."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in environ and is_alive(int(name)):
            found.append(int(name))
    return found


def children() -> list[int]:
    """The processes of this one, ended or not."""
    found: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has ended; its children are another one's now
            found += map(int, (thread / "children").read_text().split())
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until it holds. For what ends by itself and cannot be waited for."""
    limit = time.monotonic() + LIMIT_SECS
    while not condition():
        assert time.monotonic() < limit, "it does not come true"
        time.sleep(0.01)
