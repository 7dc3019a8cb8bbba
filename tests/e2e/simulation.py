"""A whole node and a whole network on one loop whose time is virtual."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from posemesh import Node, NodeConfig, telemetry
from posemesh.devnet import Devnet, DevnetConfig, SeenRequest
from posemesh.testing import LoopClock, run_virtual, simulated

CAPABILITY = "/examples/hello/v1"
KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90"
FLOWS = ("wallet", "callback")
ENDED = ("completed", "failed", "canceled")


class Simulation:
    """``runs`` holds the task ids in the order their user code began, ``stopped`` those that were told to stop."""

    def __init__(self, net: Devnet, node: Node) -> None:
        self.net, self.node = net, node
        self.runs: list[str] = []
        self.stopped: list[str] = []
        node.runner(CAPABILITY)(self._run)

    async def _run(self, task: Any) -> None:
        """``meta``: ``secs`` to take, ``reports`` to make meanwhile, ``put`` and ``get`` for the domain server."""
        meta = task.lease.task.meta
        task_id = str(task.lease.task.id)
        self.runs.append(task_id)
        try:
            for cid in task.lease.task.inputs_cids:
                await task.input.get_bytes_by_cid(cid)
            reports = meta.get("reports", 0)
            for number in range(reports):
                task.ctrl.progress({"pct": 100 * number // reports})
                task.ctrl.log_event({"number": number})
                await asyncio.sleep(meta["secs"] / reports)
            if not reports:
                await asyncio.sleep(meta.get("secs", 0))
            if "raise" in meta:
                raise RuntimeError(meta["raise"])
            if "put" in meta:
                await task.output.put_bytes(meta["put"], b"result")
        except asyncio.CancelledError:
            self.stopped.append(task_id)
            raise

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def submit(self, count: int = 1, *, secs: float = 0.0, attempts: int = 3, **meta: Any) -> str:
        return self.net.submit(CAPABILITY, count=count, meta={"secs": secs} | meta, max_attempts=attempts)

    def state(self, job_id: str) -> str:
        return self.net.jobs.job(job_id).state.value

    async def ended(self, *job_ids: str, within: float = 3600.0) -> None:
        """Wait for the ends of these jobs."""
        async with asyncio.timeout(within):
            while any(self.state(job_id) not in ENDED for job_id in job_ids):  # noqa: ASYNC110
                await asyncio.sleep(0.25)

    async def until(self, holds: Callable[[], object], within: float = 600.0) -> None:
        async with asyncio.timeout(within):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def task(self, job_id: str) -> Any:
        (task,) = self.net.jobs.tasks_of(job_id)
        return task

    def attempts(self, job_id: str) -> list[int]:
        return [task.attempts for task in self.net.jobs.tasks_of(job_id)]

    def seen(self, ending: str, *, status: int | None = None, since: float = 0.0) -> list[SeenRequest]:
        return [
            one
            for one in self.net.requests
            if one.path.endswith(ending) and one.at >= since and status in (None, one.status)
        ]

    def gaps(self) -> list[float]:
        """The times between accepted heartbeats of each task, the last up to its report."""
        by_task: dict[str, list[float]] = {}
        for one in self.net.requests:
            if one.path.startswith("/v1/tasks/") and one.status == 200:
                by_task.setdefault(one.path.split("/")[3], []).append(one.at)
        return [later - sooner for times in by_task.values() for sooner, later in pairwise(times)]

    @property
    def counters(self) -> dict[str, int]:
        return self.node.statistics().counters

    def check(self) -> None:
        """What holds after every run, whatever happened in it."""
        counters = dict(self.counters)
        leased = counters.pop("leased", 0)
        assert sum(counters.values()) == leased, self.node.statistics()
        for receipts in self.net.jobs.receipts.values():
            assert len(receipts) == len({receipt.task_id for receipt in receipts})


def free_port() -> int:
    """One below the range that outgoing connections are given."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def simulate(
    test: Callable[[Simulation], Awaitable[Any]],
    *,
    flow: str = "wallet",
    seed: int = 1,
    skew: float = 0.0,
    start: bool = True,
    limit: float = 5 * 3600.0,
    settings: dict[str, str] | None = None,
    **network: Any,
) -> list[tuple[Any, ...]]:
    """Run ``test`` and return the trace of all requests. ``skew`` is by how much the node's wall clock is wrong."""

    async def main() -> list[tuple[Any, ...]]:
        async with Devnet(DevnetConfig(**network), clock=LoopClock(), rng=random.Random(seed)) as net:
            env = net.node_settings(KEY) | (settings or {})
            if flow == "callback":
                port = free_port()
                env |= {"NODE_URL": f"http://127.0.0.1:{port}", "NODE_PORT": str(port), "NODE_HOST": "127.0.0.1"}
            node = simulated(Node(NodeConfig.from_env(env)), seed=seed, clock=LoopClock(skew=skew))
            simulation = Simulation(net, node)
            if start:
                await node.start()
            try:
                await test(simulation)
            finally:
                await node.stop(0)
            simulation.check()
            return [tuple(one) for one in net.requests]

    return run_virtual(main(), limit=limit)


@pytest.fixture(autouse=True)
def errors() -> Iterator[list[str]]:
    """What the node logs as an error: nothing, unless the test takes it out of the list."""
    log = telemetry.logger()
    found: list[str] = []
    with suppress(ValueError):
        log.remove(0)  # it would write everything
    sink = log.add(lambda line: found.append(str(line)), level="ERROR", format="{message} {exception}")
    log.enable("posemesh")
    yield found
    log.disable("posemesh")
    log.remove(sink)
    assert found == []


def answering(status: int, *, beginning: str = "/", ending: str = "", until: float = float("inf")):
    """A fault hook: this status for such paths until then."""

    async def fault(request: web.Request) -> web.Response | None:
        hit = request.path.startswith(beginning) and request.path.endswith(ending)
        return web.Response(status=status) if hit and asyncio.get_running_loop().time() < until else None

    return fault
