"""A process that writes to a ledger and dies on the way, as often as it is told to.

    python -m tests.unit.control.crashing PLACE WAY FIRST LAST STEP

For each number in the range a child is forked that opens the ledger in PLACE/<number>, commits STORY and is killed
where WAY and the number say: at that statement, or at the first write beyond that many bytes of a file. After each
commit that returned the child adds a byte to PLACE/<number>/told.
"""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

from posemesh.control.database import Database
from posemesh.control.store import Commit
from tests.unit.control.stores import a_commit, a_receipt, a_runtime, an_entry, an_input, connecting


def taken(number: int) -> Commit:
    return a_commit(an_input(id=f"i{number}", key=f"t{number}", position=number, body=f'"{"x" * 900}"'))


def finished(number: int) -> Commit:
    done = taken(number).inputs[0].next(phase="consumed", open=False, run=f"r{number}")
    entry = an_entry(id=f"o{number}", input=done.id, sequence=number, body=f'"{"y" * 600}"')
    return a_commit(done, a_receipt(number, run=f"r{number}"), entry, a_runtime(version=number + 1))


# Each is one transaction: single commits, and groups.
STORY: tuple[tuple[Commit, ...], ...] = (
    (a_commit(a_runtime()),),
    (taken(1),),
    (taken(2), taken(3)),
    (finished(1),),
    (finished(2), finished(3)),
    (a_commit(finished(2).outbox[0].next(ending="delivered")),),
    (a_commit(taken(4).inputs[0]), a_commit(removed=(taken(4).inputs[0],))),
)


def connection_that_kills(number: int) -> type[sqlite3.Connection]:
    """Connections that end the process right before or right after one of their calls, counted from 0."""
    calls = 0

    def call() -> None:
        nonlocal calls
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    class Killing(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            call()
            try:
                return super().execute(*args)
            finally:
                call()

        def executemany(self, *args: Any) -> sqlite3.Cursor:
            call()
            return super().executemany(*args)

        def close(self) -> None:
            call()
            super().close()
            call()

    return Killing


def write(place: Path, way: str, number: int) -> None:
    factory = sqlite3.Connection
    if way == "statement":
        factory = connection_that_kills(number)
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    told = os.open(place / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    database = Database.open(place, connecting(factory))
    for group in STORY:
        assert database.write(group) == [None] * len(group)
        os.write(told, b".")
    database.close()
    os._exit(0)


def main(place: Path, way: str, first: int, last: int, step: int) -> None:
    for number in range(first, last, step):
        (place / str(number)).mkdir(parents=True)
        child = os.fork()
        if child == 0:
            write(place / str(number), way, number)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            print(number, os.WEXITSTATUS(status), flush=True)  # noqa: T201
            return
    print("never through", flush=True)  # noqa: T201


if __name__ == "__main__":
    where, way, *numbers = sys.argv[1:]
    main(Path(where), way, *map(int, numbers))
