"""What a node lets others see: a record of each move for subscribers, lines for the log, a snapshot for ``/status``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from weakref import WeakSet

from posemesh.engine import Engine
from posemesh.machines._kernel import Moved
from posemesh.shell.clock import Clock
from posemesh.snapshot import Ended
from posemesh.telemetry import hears_debug, logger
from posemesh.types import TaskIdentity

__all__ = ("Observer",)

RECORDS_MAX = 10_000
"""A subscriber that does not keep up loses the oldest records beyond this many."""


@dataclass(eq=False)
class _Reader:
    """One subscription: what it has not read, and whether there is any."""

    records: deque[Moved] = field(default_factory=lambda: deque(maxlen=RECORDS_MAX))
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class Observer:
    """One node's. It reads the engine and changes nothing."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        # Weak: a subscription that nobody holds any more, read or not, ends by itself.
        self._readers: WeakSet[_Reader] = WeakSet()
        self._closed = False

    def moved(self, records: Sequence[Moved]) -> None:
        """Machines took events."""
        if hears_debug():
            for record in records:
                self._tell(record)
        if self._readers and records:
            for reader in tuple(self._readers):
                reader.records.extend(records)
                reader.arrived.set()

    def _tell(self, record: Moved) -> None:
        task = self._engine.identity(record.key) if record.key else None
        logger().debug(
            "{machine}: {source} --{trigger}--> {dest}: {why}",
            machine=record.machine,
            source=record.source,
            trigger=record.trigger,
            dest=record.dest,
            why=record.why,
            **_bound(task),
        )

    def ended(self, record: Ended) -> None:
        """A lease is over: the one line each task gets."""
        reason = f": {record.reason}" if record.reason else ""
        logger().info("task {ending}{reason}", **_bound(record.task), ending=record.ending, reason=reason)

    def records(self) -> AsyncIterator[Moved]:
        """Each move from now on, until the node has stopped."""
        reader = _Reader()
        self._readers.add(reader)
        return self._read(reader)

    async def _read(self, reader: _Reader) -> AsyncIterator[Moved]:
        while reader.records or not self._closed:
            reader.arrived.clear()
            while reader.records:
                yield reader.records.popleft()
            if not self._closed:
                await reader.arrived.wait()

    def close(self) -> None:
        """End every subscription once it is read to its end."""
        self._closed = True
        for reader in tuple(self._readers):
            reader.arrived.set()

    def status(self, node: dict[str, Any]) -> dict[str, Any]:
        """``/status``: ``{node, machines: {name: {state, since, deadline}}, tasks, counters}``, times as RFC 3339."""
        statistics = self._engine.statistics()
        offset = self._clock.wall() - self._clock.monotonic()
        return {
            "node": node,
            "machines": {
                name: {"state": m.state, "since": _time(m.since, offset), "deadline": _time(m.deadline, offset)}
                for name, m in statistics.machines.items()
            },
            "tasks": [
                {
                    "task_id": task.task_id,
                    "capability": task.capability,
                    "state": task.state,
                    "progress": task.progress,
                    **({"transfers": task.transfers} if task.transfers else {}),
                    **({"problem": task.problem} if task.problem else {}),
                }
                for task in statistics.tasks
            ],
            "counters": statistics.counters,
        }


def _time(monotonic: float | None, offset: float) -> str | None:
    if not monotonic:
        return None
    return datetime.fromtimestamp(monotonic + offset, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bound(task: TaskIdentity | None) -> dict[str, str]:
    if task is None:
        return {}
    names = {
        "task_id": task.task_id,
        "job_id": task.job_id,
        "capability": task.capability,
        "domain_id": task.domain_id,
    }
    return {name: value for name, value in names.items() if value}
