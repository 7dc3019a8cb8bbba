"""A node that ends without notice and its successor on the same ledger, in virtual time beside the local network.

A process that is killed leaves its files as they are at that moment. So here they are copied then, for the next one;
from there on nothing that the dead node still does reaches the disk or a service.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from posemesh import Node, NodeConfig, telemetry
from posemesh.control.audit import audit
from posemesh.control.database import FILE, reading
from posemesh.control.ledger import SqliteStore
from posemesh.devnet import Devnet, DevnetConfig, cut
from posemesh.testing import FaultPlan, LoopClock, run_virtual, simulated

from .simulation import CAPABILITY, KEY, answering, errors

__all__ = ("errors",)

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class Life:
    """One process of a node. ``dies`` is told of each step of the ledger, by its number and what it is, and says
    whether it was the last.
    """

    def __init__(self, state: Path, dies: Callable[[int, str], bool]) -> None:
        self.state = state
        self.dead = False
        self.steps = 0
        self._dies = dies

    def step(self, what: str) -> None:
        if not self.dead and self._dies(self.steps, what):
            self.die()
        self.steps += 1
        if self.dead:
            raise sqlite3.OperationalError("the process is dead")

    def die(self) -> None:
        shutil.copytree(self.state, self.state.with_name(f"{self.state.name}+")) if self.state.exists() else None
        telemetry.logger().disable("posemesh")
        self.dead = True

    def connection(self) -> type[sqlite3.Connection]:
        life = self

        class Connection(sqlite3.Connection):
            def execute(self, *args: Any) -> sqlite3.Cursor:
                life.step(f"before {args[0]}")
                done = super().execute(*args)
                life.step(f"after {args[0]}")
                return done

            def executemany(self, *args: Any) -> sqlite3.Cursor:
                life.step(f"before {args[0]}")
                return super().executemany(*args)

            def close(self) -> None:
                if not life.dead:
                    life.step("before a close")
                super().close()

        return Connection


class Lives:
    """The local network, and one node's processes one after another. ``runs`` are the tasks whose user code began, in
    order; ``ends`` counts how often it came to an end.
    """

    def __init__(self, net: Devnet, place: Path, settings: dict[str, str]) -> None:
        self.net = net
        self.runs: list[str] = []
        self.ends = 0
        self.fault: Fault | None = None
        self.life = Life(place / "state", lambda number, what: False)
        self.node: Node | None = None
        self.settings = settings
        self._seeds = iter(range(1000))
        net.faults, net.replies = self._before, self._after

    async def _before(self, request: web.Request) -> web.StreamResponse | None:
        if self.life.dead:
            return cut(request)
        return None if self.fault is None else await self.fault(request)

    async def _after(self, request: web.Request, answer: web.StreamResponse) -> web.StreamResponse | None:
        return None if self.life.dead else answer

    async def _run(self, task: Any) -> None:
        task_id = str(task.lease.task.id)
        meta = task.lease.task.meta
        self.runs.append(task_id)
        try:
            await asyncio.sleep(meta.get("secs", 0))
            if self.runs.count(task_id) <= meta.get("failing", 0):
                raise ValueError("no scan in it")
            await task.output.put_bytes(f"{task_id}.bin", task_id.encode())
        finally:
            self.ends += 1

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def live(
        self, dies: Callable[[int, str], bool] = lambda number, what: False, *, restart: str = "replay"
    ) -> None:
        """Start a node, until it has signed in or is dead."""
        state = self.life.state
        if self.life.dead:
            state = state.with_name(f"{state.name}+")
        self.life = Life(state, dies)
        telemetry.logger().enable("posemesh")
        env = self.net.node_settings(KEY) | {"STATE_DIR": str(state)} | self.settings
        node = simulated(Node(NodeConfig.from_env(env)), seed=next(self._seeds), durable=True)
        connect = partial(sqlite3.connect, factory=self.life.connection())
        node._open_store = partial(SqliteStore.open, connect=connect)
        node.runner(CAPABILITY, restart=restart)(self._run)
        self.node = node
        starting = asyncio.ensure_future(node.start())
        await self.until(lambda: starting.done() or self.life.dead)
        if self.life.dead:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        else:
            await starting

    async def bury(self) -> None:
        """Let go of a dead node."""
        assert self.node is not None and self.life.dead
        await self.node._close()

    async def kill(self) -> None:
        """End the node without notice, here and now."""
        if not self.life.dead:
            self.life.die()
        await self.bury()

    async def stop(self) -> None:
        assert self.node is not None
        await self.node.stop(0)

    async def until(self, holds: Callable[[], object], within: float = 3600.0) -> None:
        async with asyncio.timeout(within):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def submit(self, count: int = 1, *, attempts: int = 3, **meta: Any) -> str:
        return self.net.submit(CAPABILITY, count=count, meta=meta, max_attempts=attempts)

    def ended(self, job_id: str) -> bool:
        return self.net.jobs.job(job_id).state.value in ("completed", "failed", "canceled")

    def seen(self, ending: str) -> int:
        return sum(one.path.endswith(ending) for one in self.net.requests)

    def on_record(self, table: str) -> int:
        """How many rows the dead left."""
        left = self.life.state.with_name(f"{self.life.state.name}+")
        if not (left / FILE).exists():
            return 0
        with reading(left) as db:
            (count,) = db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
        return int(count)

    def check(self, job_id: str) -> None:
        """Each task was completed by one report, and what that one says is at the domain."""
        assert self.net.jobs.job(job_id).state.value == "completed"
        receipts = self.net.jobs.receipts[job_id]
        tasks = sorted(task.id for task in self.net.jobs.tasks_of(job_id))
        assert sorted(receipt.task_id for receipt in receipts) == tasks
        for receipt in receipts:
            assert len(receipt.outputs) == 1
            assert self.net.get_data(receipt.outputs[0]) == receipt.task_id.encode()
        # What the process before was told the next one has to ask for: a report's answer, how long a lease lasts.
        asked = ("/complete: 409 lease ended: completed", "409 lease expired", "409 lease ended: expired")
        assert [one for one in self.net.violations if not one.endswith(asked)] == []
        with reading(self.life.state) as db:
            assert audit(db) == []
            (open_still,) = db.execute("SELECT COUNT(*) FROM inputs WHERE open").fetchone()
            (waiting,) = db.execute("SELECT COUNT(*) FROM outbox WHERE ending IS NULL OR ending = ''").fetchone()
        assert (open_still, waiting) == (0, 0)


def live(
    test: Callable[[Lives], Awaitable[Any]], place: Path, *, settings: dict[str, str] | None = None, **network: Any
) -> None:
    async def main() -> None:
        async with Devnet(DevnetConfig(**network), clock=LoopClock(), rng=random.Random(1)) as net:
            await test(Lives(net, place, settings or {}))

    run_virtual(main())


def at(number: int) -> Callable[[int, str], bool]:
    return lambda step, what: step == number


def at_commit(number: int, moment: str) -> Callable[[int, str], bool]:
    """Right before or after the one of that number, counted from 1: the node's, the lease's, its outcome's, its end's.
    A file that is new has had one before.
    """
    seen = [0]

    def dies(step: int, what: str) -> bool:
        seen[0] += what == f"{moment} COMMIT"
        return what == f"{moment} COMMIT" and seen[0] == number + 1

    return dies


# --- Each step of a task ----------------------------------------------------------------------------------------


async def one_task(lives: Lives, step: int) -> bool:
    """Through all of a task's life, if the node is not killed at that step of the ledger. Whether it was."""
    await lives.live(at(step))
    job = lives.submit(1, secs=1.0)
    await lives.until(lambda: lives.life.dead or lives.ended(job))
    if not lives.life.dead:
        await lives.stop()
    killed = lives.life.dead
    if killed:
        await lives.bury()
        taken, finished, ran = lives.on_record("inputs"), lives.on_record("outbox"), len(lives.runs)
        assert taken or not ran, "nothing runs that is not on record"
        await lives.live()
        await lives.until(lambda: lives.ended(job))
        assert len(lives.runs) == (ran if finished else ran + 1), "what is finished does not run again"
        await asyncio.sleep(10)
        await lives.stop()
    lives.check(job)
    reports = lives.seen("/complete")
    await lives.live()
    await asyncio.sleep(10)
    await lives.stop()
    assert lives.seen("/complete") == reports and not lives.seen("/fail"), "what is settled is settled"
    return killed


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_killed_at_any_step_of_the_ledger_in_a_task_s_life(tmp_path: Path, part: int) -> None:
    for step in range(part, 400, 4):
        killed: list[bool] = []

        async def test(lives: Lives, step: int = step, killed: list[bool] = killed) -> None:
            killed.append(await one_task(lives, step))

        live(test, tmp_path / str(step))
        if not killed[0]:
            assert step > 60
            return
    raise AssertionError("never through")


# --- Outages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swept", [False, True], ids=["lease kept", "lease taken back"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_when_its_runner_has_returned_and_the_service_is_down(tmp_path: Path, moment: str, swept: bool) -> None:
    async def test(lives: Lives) -> None:
        await lives.live(at_commit(3, moment))
        job = lives.submit(1, secs=5.0)
        await lives.until(lambda: lives.life.dead)
        assert lives.ends == 1
        lives.fault = answering(503, beginning="/v1/", until=lives.now + 600)
        await lives.bury()
        assert lives.on_record("outbox") == (moment == "after")
        await asyncio.sleep(5)
        await lives.live()
        await lives.until(lambda: lives.ended(job))
        assert lives.now > 600
        await asyncio.sleep(120)
        await lives.stop()
        lives.check(job)
        [task] = lives.net.jobs.tasks_of(job)
        if moment == "before":
            assert len(lives.runs) == task.attempts == 2
        elif not swept:
            assert len(lives.runs) == task.attempts == 1
        else:
            assert task.attempts == 2

    live(test, tmp_path, sweep_interval=1.0 if swept else 3600.0)


def test_an_outcome_waits_through_many_processes(tmp_path: Path) -> None:
    async def test(lives: Lives) -> None:
        lives.fault = answering(503, ending="/complete")
        await lives.live()
        job = lives.submit(1, secs=1.0)
        await lives.until(lambda: lives.seen("/complete"))
        for _ in range(8):
            offers = lives.seen("/complete")
            await lives.kill()
            await lives.live()
            await lives.until(lambda offers=offers: lives.seen("/complete") > offers)  # type: ignore[misc]
        lives.fault = None
        await lives.until(lambda: lives.ended(job))
        await asyncio.sleep(60)
        await lives.stop()
        lives.check(job)
        assert len(lives.runs) == 1

    live(test, tmp_path, lease_ttl=3600.0)


# --- Leased again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True], ids=["living", "killed"])
@pytest.mark.parametrize("how", ["stands", "artifact gone", "failed"])
def test_a_task_is_leased_again_while_its_outcome_waits(tmp_path: Path, how: str, killed: bool) -> None:
    """The service takes reports again only when the task has been given to this node for the second time."""

    async def test(lives: Lives) -> None:
        async def fault(request: web.Request) -> web.Response | None:
            kind = request.path.rpartition("/")[2]
            down = kind in ("complete", "fail") or kind == "heartbeat" and lives.ends
            return web.Response(status=503) if down and task.attempts < 2 else None

        lives.fault = fault
        await lives.live()
        job = lives.submit(1, failing=int(how == "failed"))
        [task] = lives.net.jobs.tasks_of(job)
        await lives.until(lambda: lives.seen("/complete") or lives.seen("/fail"))
        if how == "artifact gone":
            lives.net.domain.items.clear()
        if killed:
            await lives.kill()
            await lives.live()
        await lives.until(lambda: lives.ended(job))
        await asyncio.sleep(60)
        await lives.stop()
        lives.check(job)
        assert task.attempts == 2 and len(lives.runs) == (1 if how == "stands" else 2)

    live(test, tmp_path, lease_ttl=10.0)


@pytest.mark.parametrize("restart", ["replay", "never"])
def test_killed_with_a_result_of_an_earlier_lease_and_a_later_one_under_way(tmp_path: Path, restart: str) -> None:
    """The service took the lease back long before the node expected it, and gave the task to the same node again."""

    async def test(lives: Lives) -> None:
        lives.fault = answering(503, ending="/complete")
        await lives.live(restart=restart)
        job = lives.submit(1, secs=50.0)
        [task] = lives.net.jobs.tasks_of(job)
        await lives.until(lambda: lives.seen("/complete"))
        assert len(lives.runs) == task.attempts == 2 and lives.ends == 1
        await lives.kill()
        lives.fault = None
        await lives.live(restart=restart)
        await lives.until(lambda: lives.ended(job))
        await asyncio.sleep(120)
        await lives.stop()
        lives.check(job)
        assert len(lives.runs) == task.attempts == 2 and not lives.seen("/fail"), "the result that is there counts"

    live(test, tmp_path, settings={"MAX_CONCURRENCY": "2"}, told_expiry_shift=3600.0)


# --- Many -------------------------------------------------------------------------------------------------------


async def forty_tasks(lives: Lives, rng: random.Random, faults: bool) -> None:
    if faults:
        plan = FaultPlan(rng.randrange(1000), rate=0.08, until=300)
        lives.fault = plan.before
    await lives.live()
    job = lives.submit(40, secs=0.5, attempts=100)
    for _ in range(12):
        await lives.kill()
        await asyncio.sleep(rng.uniform(0, 5))
        last = rng.randrange(5, 160)
        await lives.live(lambda step, what, last=last: step >= last)  # type: ignore[misc]
        await lives.until(lambda: lives.life.dead or lives.ended(job))
    await lives.kill()
    await lives.live()
    await lives.until(lambda: lives.ended(job))
    await asyncio.sleep(120)
    assert lives.node and not lives.node.statistics().tasks
    await lives.stop()
    lives.check(job)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_forty_tasks_of_a_node_that_is_killed_a_dozen_times(tmp_path: Path, seed: int) -> None:
    live(
        lambda lives: forty_tasks(lives, random.Random(seed), faults=seed % 2 == 1),
        tmp_path,
        settings={"MAX_CONCURRENCY": "4"},
        lease_ttl=(5.0, 30.0)[seed // 2 % 2],
    )
