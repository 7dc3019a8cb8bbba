"""What the ledger's rules cost a commit, by ``make bench-ledger``: ``benchmarks/ledger.py [--commits 300] [--rounds 5]
[--at DIR]``.

The store's commits, one by one and with 8 and 64 that wait at a time, beside SQLite's bare commit of one row of the
same size: the same log, the same `synchronous`, the same disk. The bare ones run on the main thread and, as the store's
do, each on a thread of its own: whichever is faster in a round is its yardstick. Prints medians, and the factors of the
rounds. DIR must be on the disk that is meant; in memory there is no disk to wait for and the factor says nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from posemesh.control.ledger import SqliteStore
from posemesh.control.store import Commit, InputRow
from posemesh.shell.offload import HostOffload

WAITING = (1, 8, 64)
BODY = "x" * 500


async def bare(place: Path, commits: int, *, threads: bool) -> float:
    """Commits a second of one row each."""
    db = sqlite3.connect(place, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body TEXT)")
    offload = HostOffload()

    def commit(number: int) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO rows VALUES (?, ?)", (number, BODY))
        db.execute("COMMIT")

    start = time.perf_counter()
    for number in range(commits):
        if threads:
            await offload.call(commit, number)
        else:
            commit(number)
    rate = commits / (time.perf_counter() - start)
    db.close()
    return rate


async def ours(place: Path, commits: int, waiting: int) -> float:
    """Commits a second of an input each, with so many at a time."""
    store = await SqliteStore.open(place, HostOffload())
    rows = (
        InputRow(runtime="rt:bench", id=f"{number:032x}", phase="staged", position=number, key=str(number), body=BODY)
        for number in range(commits)
    )

    async def client() -> None:
        for row in rows:
            await store.commit(Commit(runtime=row.runtime, inputs=(row,)))

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(waiting)))
    rate = commits / (time.perf_counter() - start)
    await store.close()
    return rate


async def one_round(place: Path, commits: int) -> dict[str, float]:
    found = {
        "bare SQLite": await bare(place / "main", commits, threads=False),
        "bare SQLite, a thread each": await bare(place / "threads", commits, threads=True),
    }
    for waiting in WAITING:
        found[f"ledger, {waiting} at a time"] = await ours(place / f"{waiting}", commits * min(waiting, 8), waiting)
    return found


async def main(commits: int, rounds: int, at: Path) -> None:
    results: list[dict[str, float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=at) as place:
            results.append(await one_round(Path(place), commits))
    print(f"{commits} commits, {rounds} rounds, on the disk of {at}")
    for name in results[0]:
        rates = [result[name] for result in results]
        factors = sorted(rate / max(list(found.values())[:2]) for rate, found in zip(rates, results, strict=True))
        print(
            f"  {name:<28} {statistics.median(rates):8.0f} commits/s   "
            f"{statistics.median(factors):6.2f} of the bare rate ({factors[0]:.2f} to {factors[-1]:.2f})"
        )
    print("  at least 0.5 one by one is wanted, growing with those that wait")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--commits", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    asyncio.run(main(options.commits, options.rounds, options.at))
