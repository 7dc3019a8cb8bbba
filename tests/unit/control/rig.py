"""What the tests of driver and plane share: runtimes on either store, inputs, and stores that fail when told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from posemesh.control.driver import HostedRuntime
from posemesh.control.records import (
    Durability,
    Ids,
    Input,
    InputId,
    InputKind,
    LogicalRuntimeId,
    Origin,
    ReceiptDraft,
    RunId,
    RuntimeEventEnvelope,
    digest_of,
)
from posemesh.control.reports import Accepted
from posemesh.control.store import Commit, Store, StoreError
from posemesh.testing import ManualClock
from posemesh.types import Artifact, Outcome, OutcomeKind, TaskIdentity

from .stores import KINDS, Reopen, opened

RUNTIME = LogicalRuntimeId("rt:node:1")


class Faulty:
    """A store that raises what ``faults`` has for the next commits, None for one that goes through; where ``happens``
    they happen nevertheless. ``commits`` are those it was given; ``meanwhile`` comes to pass before the next one.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.faults: list[StoreError | None] = []
        self.happens = False
        self.commits: list[Commit] = []
        self.gate: asyncio.Event | None = None
        self.given = asyncio.Event()
        self.meanwhile: Callable[[], Coroutine[Any, Any, Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def close_gate(self) -> None:
        """Let commits wait from now on; ``given`` is set once one does."""
        self.gate = asyncio.Event()
        self.given.clear()

    def open_gate(self) -> None:
        if self.gate is not None:
            self.gate.set()
        self.gate = None

    async def commit(self, commit: Commit) -> None:
        self.commits.append(commit)
        self.given.set()
        if self.gate is not None:
            await self.gate.wait()
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        fault = self.faults.pop(0) if self.faults else None
        if fault is None or self.happens:
            await self.store.commit(commit)
        if fault is not None:
            raise fault


class Rig:
    """One runtime, driven by hand."""

    def __init__(self, store: Store, reopen: Reopen, slots: int = 1) -> None:
        self.store, self.reopen, self.slots = Faulty(store), reopen, slots
        self.clock, self.rng = ManualClock(), Random(1)
        self.ids = Ids(self.clock.wall, self.rng)
        self.events: list[RuntimeEventEnvelope] = []
        self.driver = self.made()

    def made(self) -> HostedRuntime:
        return HostedRuntime(
            RUNTIME, self.store, clock=self.clock, ids=self.ids, slots=self.slots, announce=self.events.append
        )

    async def restart(self) -> Any:
        """As after a crash: what was in memory is gone. The report of its recovery."""
        self.store.store = await self.reopen()
        self.driver = self.made()
        return await self.driver.register()

    def task(self, key: str = "task-1", **changes: Any) -> Input:
        fence = changes.pop("fence", None) or self.driver.next_fence()
        given: dict[str, Any] = {
            "kind": InputKind.TASK,
            "origin": Origin.SERVICE,
            "durability": Durability.DURABLE,
            "idempotency_key": key,
            "fence": fence,
            "capability": "/c/v1",
            "payload": {"task": key},
        }
        return self.input(**given | changes)

    def input(self, **changes: Any) -> Input:
        given: dict[str, Any] = {
            "id": self.ids.input(),
            "kind": InputKind.STEER,
            "at": self.clock.wall(),
            "origin": Origin.OPERATOR,
            "durability": Durability.DURABLE,
        }
        return Input(**given | changes)

    def progress(self, task: str = "task-1", **changes: Any) -> Input:
        given: dict[str, Any] = {
            "kind": InputKind.PROGRESS,
            "origin": Origin.RUNNER,
            "durability": Durability.EPHEMERAL,
            "supersession_key": task,
        }
        return self.input(**given | changes)

    async def accepted(self, given: Input | None = None) -> InputId:
        outcome = await self.driver.accept_input(given or self.task())
        assert isinstance(outcome, Accepted), outcome
        return outcome.input_id

    async def run(self, input_id: InputId, **options: Any) -> RunId:
        return await self.driver.begin((input_id,), "runner-0-1", **options)

    async def done(self, run: RunId, *ids: InputId, **changes: Any) -> Any:
        outcomes = {input_id: outcome() for input_id in ids}
        return await self.driver.complete(draft(run, *ids, **changes), outcomes)

    async def rows(self) -> list[tuple[str, str]]:
        return [(row.id, row.phase) for row in await self.store.inputs(RUNTIME)]


ARTIFACT = Artifact(logical_path="out/a", name="a", data_type="binary", id="1")


def outcome(kind: OutcomeKind = OutcomeKind.COMPLETED, **changes: Any) -> Outcome:
    return Outcome(kind=kind, task=TaskIdentity(task_id="task-1"), **({"artifacts": (ARTIFACT,)} | changes))


def draft(run: RunId, *ids: InputId, **changes: Any) -> ReceiptDraft:
    artifacts = (ARTIFACT,) * len(ids)
    given: dict[str, Any] = {"digest": digest_of(artifacts), "message_count": len(artifacts)}
    return ReceiptDraft(run_id=run, contributing_input_ids=ids, **given | changes)


@asynccontextmanager
async def rig(kind: str, place: Path, *, slots: int = 1) -> AsyncIterator[Rig]:
    async with opened(kind, place) as (store, reopen):
        made = Rig(store, reopen, slots)
        await made.driver.register()
        yield made


def on_both_stores(slots: int = 1) -> Callable[[Callable[[Rig], Coroutine[Any, Any, None]]], Any]:
    """Run the test with a runtime that was registered, in memory and on SQLite."""

    def decorate(test: Callable[[Rig], Coroutine[Any, Any, None]]) -> Any:
        @pytest.mark.parametrize("kind", KINDS)
        def run(kind: str, tmp_path: Path) -> None:
            async def main() -> None:
                async with rig(kind, tmp_path / "state", slots=slots) as made:
                    await test(made)

            asyncio.run(main())

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


__all__ = ("RUNTIME", "Faulty", "Rig", "draft", "on_both_stores", "outcome", "rig")
