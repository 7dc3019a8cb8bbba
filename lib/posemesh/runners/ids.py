"""Names of runs: which runner, in which lane, and the how manieth build of this process."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass

__all__ = ("RunId", "make_run_id")

_numbers = itertools.count(1)
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class RunId:
    """The name of one build of a task: ``{runner}-{slot}-{seq}``.

    ``seq`` alone tells runs apart, within this process: runners and slots may hold dashes, so a name is not taken apart
    again. After a restart numbers repeat: what lasts is the task's id, which belongs beside it.
    """

    name: str
    seq: int

    def __str__(self) -> str:
        return self.name


def make_run_id(runner: str, slot: str) -> RunId:
    """The next id of this process: numbers start at 1 and rise over all runners, slots and threads."""
    with _lock:
        seq = next(_numbers)
    return RunId(name=f"{runner}-{slot}-{seq}", seq=seq)
