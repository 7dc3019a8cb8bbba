"""What a node costs a task, by ``make bench-overhead``: ``benchmarks/overhead.py [--tasks 1000] [--rounds 5]``.

No-op tasks at 1, 8 and 64 slots from a lean task service in a process of its own, which also takes the time. The node,
as ``posemesh-node run`` runs it, and a bare aiohttp client that makes the same requests take turns; one is stopped
meanwhile. The node keeps its ledger, the bare client nothing: so bare SQLite commits are timed on the same disk in each
round, and a task's cycle may take twice the bare client's and two of those. Then a warm process runner beside a bare
pipe that carries messages of the same sizes. Prints medians, the factors of the rounds, and the processor time a task
of each client.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ledger
import overhead_peers
import overhead_process

HERE = Path(__file__).parent
SLOTS = (1, 8, 64)
COMMAND = [sys.executable, "-c", "from posemesh.cli import main; main()"]
AGENTS = {"node": "posemesh", "bare client": "bare"}
"""Who takes turns, by the beginning of their User-Agent."""
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def process(argv: list[str], sign: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running program, and the line in which it printed ``sign``."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options) as running:
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            said.append(line)
            if sign in line:
                break
        else:
            raise SystemExit(f"{' '.join(argv)} ended:\n{''.join(said)}")
        # A full pipe would stop it.
        drain = threading.Thread(target=collections.deque, args=(running.stdout, 0))
        drain.start()
        try:
            yield running, line
        finally:
            running.terminate()
            drain.join()


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=600) as answer:
        return json.load(answer)


def cpu(pid: int) -> float:
    """Seconds of processor time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def node_env(base: str, slots: int, home: str) -> dict[str, str]:
    return {
        **os.environ,
        "DDS_BASE_URL": base,
        "DMS_BASE_URL": f"{base}/v1",
        "REG_SECRET": "benchmark",
        "SECP256K1_PRIVHEX": "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90",
        "MAX_CONCURRENCY": str(slots),
        "POLL_BACKOFF_MS_MIN": "100",
        "POLL_BACKOFF_MS_MAX": "100",
        "ENABLE_NOOP": "true",
        "NOOP_SLEEP_SECS": "0",
        "NODE_PORT": "0",
        "STATE_DIR": home,
        "LOG_LEVEL": "info",
        "LOG_FORMAT": "text",
    }


def measured(base: str, tasks: int, agent: str, pid: int) -> tuple[float, float]:
    """Tasks a second by the service's clock, and milliseconds of processor time a task of the client ``pid``."""
    os.kill(pid, signal.SIGCONT)
    ask(f"{base}/turn?of={agent}")
    before = cpu(pid)
    seconds = ask(f"{base}/measure?tasks={tasks}")["seconds"]
    spent = cpu(pid) - before
    os.kill(pid, signal.SIGSTOP)
    return tasks / seconds, spent / tasks * 1000


def compare(slots: int, tasks: int, rounds: int, home: str) -> None:
    this = str(HERE / "overhead.py")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in AGENTS}
    commits: list[float] = []
    with process([sys.executable, this, "serve"], "http://") as (_, line), ExitStack() as clients:
        base = line.strip()
        node = [*COMMAND, "run", str(HERE / "noop.py")]
        pids = {"posemesh": clients.enter_context(process(node, "offers", env=node_env(base, slots, home)))[0].pid}
        pids["bare"] = clients.enter_context(process([sys.executable, this, "bare", base, str(slots)], "ready"))[0].pid
        for pid in pids.values():
            clients.callback(os.kill, pid, signal.SIGCONT)
            os.kill(pid, signal.SIGSTOP)
        for number in range(rounds + 1):
            for name, agent in AGENTS.items():
                result = measured(base, tasks, agent, pids[agent])
                if number:  # the first round warms all up
                    found[name].append(result)
            if number:
                commits.append(bare_commit(home))
    tell(slots, tasks, found, commits)


def bare_commit(home: str) -> float:
    """Seconds of one, on the disk of the node's ledger."""
    with tempfile.TemporaryDirectory(dir=home) as place:
        return 1 / asyncio.run(ledger.bare(Path(place) / "bare.db", 50, threads=False))


def tell(slots: int, tasks: int, found: dict[str, list[tuple[float, float]]], commits: list[float]) -> None:
    rates = {name: [rate for rate, _ in results] for name, results in found.items()}
    node, bare = rates.values()
    print(f"{slots} slots, {tasks} tasks, {len(node)} rounds")
    for name, results in found.items():
        spent = statistics.median(spent for _, spent in results)
        print(f"  {name:<24} {statistics.median(rates[name]):8.0f} tasks/s   {spent:6.2f} ms of processor time a task")
    factors = sorted(theirs / ours for ours, theirs in zip(node, bare, strict=True))
    middle, low, high = statistics.median(factors), factors[0], factors[-1]
    print(f"  {'factor':<24} {middle:8.2f} ({low:.2f} to {high:.2f})")
    cycles = [
        (slots / ours, 2 * slots / theirs + 2 * commit)
        for ours, theirs, commit in zip(node, bare, commits, strict=True)
    ]
    ratios = sorted(cycle / allowed for cycle, allowed in cycles)
    cycle, allowed = (statistics.median(times) * 1000 for times in zip(*cycles, strict=True))
    print(
        f"  {'a cycle':<24} {cycle:8.2f} ms; at most {allowed:.2f} ms is wanted, of which 2 bare commits are "
        f"{2000 * statistics.median(commits):.2f} ms: {statistics.median(ratios):.2f} of that "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        for slots in SLOTS:
            compare(slots, options.tasks, options.rounds, home)
    overhead_process.compare(2 * options.tasks, options.rounds)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            asyncio.run(overhead_peers.serve())
        case ["bare", base, slots]:
            asyncio.run(overhead_peers.bare(base, int(slots)))
        case _:
            main()
