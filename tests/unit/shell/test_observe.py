"""What a node shows: records of moves, one line a task, a snapshot."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from random import Random
from typing import Any
from uuid import UUID

import pytest

from posemesh import NodeConfig, telemetry
from posemesh.engine import Engine
from posemesh.events import (
    HeartbeatAccepted,
    LeaseOffered,
    NodeStarted,
    ProgressMade,
    RegistrationAccepted,
    SignedIn,
)
from posemesh.machines._kernel import Moved
from posemesh.secret import Secret
from posemesh.shell.observe import RECORDS_MAX, Observer
from posemesh.snapshot import Ended
from posemesh.testing import ManualClock, run_virtual
from posemesh.types import HeartbeatAnswer, LeaseEnvelope, TaskIdentity, TaskSpec

CONFIG = NodeConfig(reg_secret=Secret("x" * 8), secp256k1_privhex=Secret("aa" * 32))
ENVELOPE = LeaseEnvelope(
    task=TaskSpec(id=UUID(int=1), capability="/a/v1", job_id=UUID(int=2)),
    domain_id=UUID(int=3),
    domain_server_url="https://d.example",
    access_token=Secret("domain-token"),
)


def engine_with_a_task() -> Engine:
    engine = Engine(CONFIG, ["/a/v1"], Random(1))
    for now, event in enumerate(
        (
            NodeStarted(),
            RegistrationAccepted(),
            SignedIn(token=Secret("node-token"), ttl=1000.0),
            LeaseOffered(envelope=ENVELOPE, ttl=30.0),
            HeartbeatAccepted(lease=1, answer=HeartbeatAnswer(), ttl=30.0),
            ProgressMade(lease=1, progress={"pct": 5}),
        ),
        start=1,
    ):
        engine.handle(event, float(now))
    return engine


def record(number: int = 0, key: int = 0) -> Moved:
    return Moved(machine="lease", key=key, source="a", trigger="T", dest="b", why="so", at=float(number))


@pytest.fixture
def log() -> Iterator[list[dict[str, Any]]]:
    logger = telemetry.logger()
    found: list[dict[str, Any]] = []

    def keep(line: Any) -> None:
        found.append({"level": line.record["level"].name, "message": line.record["message"], **line.record["extra"]})

    sink = logger.add(keep, level="DEBUG", format="{message}")
    logger.enable("posemesh")
    yield found
    logger.disable("posemesh")
    logger.remove(sink)


def test_a_task_gets_one_line_with_its_names(log: list[dict[str, Any]]) -> None:
    observer = Observer(engine_with_a_task(), ManualClock())
    task = TaskIdentity(task_id="t", job_id="j", domain_id=None, capability="/a/v1")
    observer.ended(Ended(lease=1, task=task, ending="refused", reason="409 {gone}"))
    (line,) = log
    assert line["level"] == "INFO"
    assert line["message"] == "task refused: 409 {gone}"
    assert (line["task_id"], line["job_id"], line["capability"]) == ("t", "j", "/a/v1")
    assert "domain_id" not in line


def test_moves_are_told_at_debug(log: list[dict[str, Any]]) -> None:
    observer = Observer(engine_with_a_task(), ManualClock())
    observer.moved([record(key=key) for key in (0, 1, 99)])
    assert [line["level"] for line in log] == ["DEBUG"] * 3
    assert log[0]["message"] == "lease: a --T--> b: so"
    assert log[1]["task_id"] == str(UUID(int=1)) and log[1]["domain_id"] == str(UUID(int=3))
    assert "task_id" not in log[0] and "task_id" not in log[2]


def test_records_begin_with_the_call_and_end_with_the_node() -> None:
    async def main() -> None:
        observer = Observer(engine_with_a_task(), ManualClock())
        observer.moved([record(0)])
        early, late = observer.records(), observer.records()
        observer.moved([record(1)])
        assert (await anext(early)).at == 1.0
        waiting = asyncio.ensure_future(anext(early))
        await asyncio.sleep(1)
        assert not waiting.done()
        observer.moved([record(2), record(3)])
        assert (await waiting).at == 2.0
        observer.close()
        assert [moved.at async for moved in early] == [3.0]
        assert [moved.at async for moved in late] == [1.0, 2.0, 3.0]
        assert len(observer._readers) == 0


def test_a_subscription_nobody_reads_is_let_go() -> None:
    async def main() -> None:
        observer = Observer(engine_with_a_task(), ManualClock())
        for _ in range(3):
            observer.records()
        gc.collect()
        assert len(observer._readers) == 0

    run_virtual(main())


def test_a_waiting_reader_ends_with_the_node() -> None:
    async def main() -> None:
        observer = Observer(engine_with_a_task(), ManualClock())
        reading = asyncio.ensure_future(anext(observer.records(), None))
        await asyncio.sleep(1)
        observer.close()
        assert await reading is None

    run_virtual(main())


def test_a_reader_that_does_not_keep_up_loses_the_oldest() -> None:
    async def main() -> None:
        observer = Observer(engine_with_a_task(), ManualClock())
        records = observer.records()
        for number in range(RECORDS_MAX + 5):
            observer.moved([record(number)])
        observer.close()
        assert [moved.at async for moved in records] == [float(n) for n in range(5, RECORDS_MAX + 5)]

    run_virtual(main())


def test_status() -> None:
    clock = ManualClock()
    clock.advance(10)
    status = Observer(engine_with_a_task(), clock).status({"address": "0x1"})
    assert list(status) == ["node", "machines", "tasks", "counters"]
    assert status["node"] == {"address": "0x1"}
    assert status["machines"]["auth"]["state"] == "signed_in"
    assert status["machines"]["auth"]["since"] == "2026-01-01T00:00:03.000Z"
    assert status["machines"]["auth"]["deadline"].startswith("2026-01-01T00:12:3")
    assert status["machines"]["registration"] == {
        "state": "registered",
        "since": "2026-01-01T00:00:02.000Z",
        "deadline": None,
    }
    (task,) = status["tasks"]
    assert task["task_id"] == str(UUID(int=1))
    assert (task["capability"], task["progress"]) == ("/a/v1", {"pct": 5})
    assert status["counters"] == {"leased": 1}
    assert "token" not in str(status)
