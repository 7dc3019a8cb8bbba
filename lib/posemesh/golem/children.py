"""What a runtime has started and left running."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Final

__all__ = ("descendants", "end_all", "kill_all")

LOOK_SECS: Final = 0.01


def descendants() -> set[int]:
    """Processes below this one that have not ended, at any depth (proc(5)). Outside of Linux, none are known."""
    below: dict[int, set[int]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return set()
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if len(words) > 1 and words[0] not in b"ZX":
            below.setdefault(int(words[1]), set()).add(int(name))
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        new = below.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


async def end_all(grace: float, patience: float = 0.5) -> None:
    """Ask all of them to end; kill what has not, ``grace`` seconds later, and wait for that, ``patience`` seconds."""
    asked: set[int] = set()
    deadline = time.monotonic() + grace
    while (living := descendants()) and time.monotonic() < deadline:
        _send(living - asked, signal.SIGTERM)
        asked |= living
        await asyncio.sleep(LOOK_SECS)
    deadline += patience
    while living and time.monotonic() < deadline:
        _send(living, signal.SIGKILL)
        await asyncio.sleep(LOOK_SECS)
        living = descendants()


def kill_all() -> None:
    """At once."""
    for _ in range(5):  # what forked while it was looked for is found the next time
        living = descendants()
        if not living:
            return
        _send(living, signal.SIGKILL)


def _send(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass
