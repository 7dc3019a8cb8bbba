"""What it costs a task that user code has a loop of its own: one task on the node's loop and on the runners' thread.

    python benchmarks/offload.py [TASKS]

A task here starts, asks its node for one thing, and ends: one hop there, one back, and what
lies between. Rounds alternate; medians and their ratio are printed: absolute times mean little on a shared machine.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from posemesh.shell.offload import HostOffload, Offload, ThreadOffload

ROUNDS = 7


async def one(offload: Offload) -> None:
    """One task from its start to the news of its end."""
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def answer() -> int:
        return 1

    async def work() -> None:
        await offload.ask(answer)

    offload.start(work, ended.set_result)
    error = await ended
    if error is not None:
        raise error


async def timed(offload: Offload, tasks: int) -> float:
    """Microseconds a task."""
    start = time.perf_counter()
    for _ in range(tasks):
        await one(offload)
    return (time.perf_counter() - start) / tasks * 1e6


async def main(tasks: int) -> None:
    ways: dict[str, Offload] = {"on the node's loop": HostOffload(), "on the runners' thread": ThreadOffload()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for offload in ways.values():
        await timed(offload, tasks // 10)
    for _ in range(ROUNDS):
        for name, offload in ways.items():
            found[name].append(await timed(offload, tasks))
    for name, times in found.items():
        print(f"{name:<24} {statistics.median(times):8.1f} us a task ({min(times):.1f} to {max(times):.1f})")
    ratios = [b / a for a, b in zip(*found.values(), strict=True)]
    print(f"{'ratio':<24} {statistics.median(ratios):8.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    for offload in ways.values():
        offload.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
