"""What a runtime has started and left running."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Final, TypeAlias

__all__ = ("Family", "end_all", "kill_all")

LOOK_SECS: Final = 0.01

Process: TypeAlias = tuple[int, int]
"""Its number and its start, in ticks since boot, as the number may be given again."""


class Family:
    """Processes below this one, at any depth. Outside of Linux, none are known (proc(5)).

    It is to be made before any of them is ended: what has lost its parent before is not found.
    """

    def __init__(self) -> None:
        self._known: set[Process] = set()
        self.living()

    def living(self) -> set[int]:
        """Those that have not ended; also those seen before that have lost what started them since."""
        below: dict[int, list[Process]] = {}
        found: set[Process] = set()
        for process, parent in _processes():
            below.setdefault(parent, []).append(process)
            if process in self._known:
                found.add(process)
        todo = [os.getpid(), *(pid for pid, _ in found)]
        while todo:
            new = [process for process in below.get(todo.pop(), ()) if process not in found]
            found.update(new)
            todo += [pid for pid, _ in new]
        self._known = found
        return {pid for pid, _ in found}


def _processes() -> list[tuple[Process, int]]:
    """All that have not ended, each with its parent."""
    found = []
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if len(words) > 19 and words[0] not in b"ZX":
            found.append(((int(name), int(words[19])), int(words[1])))
    return found


async def end_all(family: Family, grace: float, patience: float = 0.5) -> None:
    """Ask all of ``family`` to end; kill what has not ``grace`` seconds later, and wait ``patience`` seconds for it."""
    asked: set[int] = set()
    deadline = time.monotonic() + grace
    while (living := family.living()) and time.monotonic() < deadline:
        _send(living - asked, signal.SIGTERM)
        asked |= living
        await asyncio.sleep(LOOK_SECS)
    deadline = time.monotonic() + patience
    while living:  # once at least, however late it is
        _send(living, signal.SIGKILL)
        if time.monotonic() >= deadline:
            return
        await asyncio.sleep(LOOK_SECS)
        living = family.living()


def kill_all() -> None:
    """At once."""
    family = Family()
    for _ in range(5):  # what forked while it was looked for is found the next time
        living = family.living()
        if not living:
            return
        _send(living, signal.SIGKILL)


def _send(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass
