"""A node's own ledger on both stores, through restarts, lost answers and commits that cross."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from posemesh.control.ledger import SqliteStore
from posemesh.control.node_ledger import NodeLedger
from posemesh.control.store import (
    Commit,
    Conflict,
    InputRow,
    LedgerCorrupt,
    LedgerFailed,
    LedgerFull,
    StaleRows,
    Store,
    StoreError,
)
from posemesh.control.vault import Vault
from posemesh.errors import WireError
from posemesh.secret import Secret
from posemesh.shell.ledger import Ledger
from posemesh.shell.offload import HostOffload
from posemesh.types import Artifact, LeaseEnvelope, Outcome, OutcomeKind, TaskIdentity, TaskSpec
from tests.unit.control.stores import KINDS, RUNTIME, Reopen, a_commit, an_entry, an_input, opened

TASK = UUID(int=1)
ENVELOPE = LeaseEnvelope(
    task=TaskSpec(id=TASK, capability="/c/v1", meta={"size": [1, None]}, inputs_cids=["a"]),
    access_token=Secret("very-secret-token"),
    access_token_expires_at=datetime(2026, 1, 1, tzinfo=UTC),
    lease_expires_at=datetime(2026, 1, 1, tzinfo=UTC),
    domain_server_url="https://domain.example",
)
ARTIFACT = Artifact(logical_path="a/b", name="b", data_type="bin", id="d1")


def outcome(kind: OutcomeKind = OutcomeKind.COMPLETED, task: UUID = TASK) -> Outcome:
    failed = {} if kind is OutcomeKind.COMPLETED else {"code": "runner_error", "message": "it broke"}
    identity = TaskIdentity(task_id=str(task), capability="/c/v1")
    return Outcome(kind=kind, task=identity, artifacts=(ARTIFACT,), details={"n": 1}, **failed)


async def made(store: Store, at: float = 100.0) -> NodeLedger:
    """A node's ledger, as each process opens it anew."""
    beginning = len(await store.inputs(RUNTIME)) * 1000
    names, times = itertools.count(beginning), itertools.count(at)
    return await NodeLedger.open(store, RUNTIME, wall=lambda: next(times), ids=lambda: f"n{next(names)}")


Body = Callable[[Store, Reopen], Awaitable[None]]


@pytest.fixture(params=KINDS)
def on_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Body], None]:
    def run(body: Body) -> None:
        async def main() -> None:
            async with opened(request.param, tmp_path / "state") as (store, reopen):
                await body(store, reopen)

        asyncio.run(main())

    return run


def test_it_is_what_the_node_asks_for() -> None:
    ledger: type[Ledger] = NodeLedger
    assert ledger


@pytest.mark.parametrize("kind", [OutcomeKind.COMPLETED, OutcomeKind.FAILED])
def test_a_report_is_owed_until_it_is_settled_through_every_restart(on_store: Any, kind: OutcomeKind) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(7, ENVELOPE)
        assert ledger.unsettled() == ()
        await ledger.commit_outcome(7, outcome(kind))
        assert ledger.unsettled() == (outcome(kind),)
        for _ in range(2):
            store = await reopen()
            ledger = await made(store)
            assert ledger.interrupted == ()
            (owed,) = ledger.owed
            assert (owed.outcome, owed.fence) == (outcome(kind), 1)
            assert ledger.unsettled() == (outcome(kind),)
            assert ledger.undelivered(str(TASK)) == outcome(kind)
            assert ledger.undelivered("other") is None
        with pytest.raises(KeyError):
            ledger.adopt(1, "other")
        ledger.adopt(1, owed.id)
        ledger.settle(1, "refused", "410 gone")
        ledger.settle(1, "refused")
        assert ledger.unsettled() == ()
        await ledger.close()
        store = await reopen()
        ledger = await made(store)
        assert (ledger.owed, ledger.unsettled()) == ((), ())
        (entry,) = await store.outbox(RUNTIME)
        assert (entry.ending, entry.problem) == ("refused", "410 gone"), "kept as refused"
        assert await store.holder(RUNTIME, str(TASK)) is None

    on_store(body)


@pytest.mark.parametrize("kind", [OutcomeKind.CANCELLED, OutcomeKind.LOST])
def test_what_is_not_reported_is_not_owed_and_ends_all_the_same(on_store: Any, kind: OutcomeKind) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(7, ENVELOPE)
        await ledger.commit_outcome(7, outcome(kind))
        ledger.settle(7, "nothing waits")
        await ledger.close()
        ledger = await made(await reopen())
        assert (ledger.unsettled(), ledger.interrupted) == ((), ())

    on_store(body)


def test_work_that_was_under_way_is_found_after_a_restart_without_its_token(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(7, ENVELOPE)
        store = await reopen()
        ledger = await made(store)
        (left,) = ledger.interrupted
        assert left.envelope.task == ENVELOPE.task
        assert (left.envelope.lease_expires_at, left.envelope.domain_server_url) == (
            ENVELOPE.lease_expires_at,
            ENVELOPE.domain_server_url,
        )
        assert (left.envelope.access_token, left.envelope.access_token_expires_at) == (None, None)
        await ledger.commit_outcome(1, outcome(OutcomeKind.FAILED))
        store = await reopen()
        ledger = await made(store)
        assert ledger.interrupted == (), "failed back in its place"
        assert len(ledger.owed) == 1
        assert [row.phase for row in await store.inputs(RUNTIME)] == ["superseded", "consumed"]

    on_store(body)


def test_a_token_is_on_the_disk_sealed_for_its_wallet_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened("sqlite", tmp_path / "state") as (store, _):
            clock, vault = itertools.count(), Vault(Secret("4c" * 32))
            ledger = await NodeLedger.open(
                store, RUNTIME, wall=lambda: next(clock), ids=lambda: f"v{next(clock)}", vault=vault
            )
            await ledger.commit_accepted(6, replace(ENVELOPE, task=replace(ENVELOPE.task, id=UUID(int=6))))
            for key, token in (("4c" * 32, ENVELOPE.access_token), ("5d" * 32, None)):
                snapshot, vault = await store.snapshot(RUNTIME), Vault(Secret(key))
                (left,) = NodeLedger(store, snapshot, lambda: 0.0, lambda: "", vault).interrupted
                assert left.envelope.access_token == token
                assert (left.envelope.access_token_expires_at is None) is (token is None)
            await ledger.commit_accepted(7, ENVELOPE)
            await ledger.commit_outcome(7, outcome())
            files = list((tmp_path / "state").iterdir())
            written = b"".join(path.read_bytes() for path in files)
            assert b"domain.example" in written
            assert b"very-secret-token" not in written

    asyncio.run(main())


def test_no_token_that_a_service_sends_back_touches_the_disk(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened("sqlite", tmp_path / "state") as (store, _):
            ledger = await made(store)
            await ledger.commit_accepted(7, ENVELOPE)
            await ledger.commit_outcome(7, outcome())
            ledger.settle(7, "refused", 'DMS report answered 404: {"Authorization": "Bearer very-secret-token"}')
            await ledger.close()
            [entry] = await store.outbox(RUNTIME)
            assert (entry.ending, entry.problem[:23]) == ("refused", "DMS report answered 404")
            written = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
            assert b"very-secret-token" not in written

    asyncio.run(main())


@pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: {"a": 1, "b": inner}])
def test_what_could_not_be_read_again_is_not_accepted(on_store: Any, nest: Callable[[Any], Any]) -> None:
    """A task nested as deep as can just be read was on record, and the node did not start any more."""

    def nested(depth: int) -> LeaseEnvelope:
        meta: Any = []
        for _ in range(depth - 1):
            meta = nest(meta)
        return replace(ENVELOPE, task=replace(ENVELOPE.task, meta=meta))

    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        with pytest.raises(WireError, match="nested at most 256 deep"):
            await ledger.commit_accepted(1, nested(257))
        failed = outcome(OutcomeKind.FAILED)
        await ledger.commit_outcome(1, failed)
        await ledger.commit_accepted(2, nested(256))
        again = await made(await reopen())
        assert [each.envelope.task.meta for each in again.interrupted] == [nested(256).task.meta]
        assert [each.outcome for each in again.owed] == [failed]

    on_store(body)


def test_a_task_leased_again_takes_the_place_of_what_it_left(on_store: Any) -> None:
    """Under way, waiting to be delivered, or delivered: each lease is one of its own, with a higher fence."""

    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(1, ENVELOPE)
        await ledger.commit_accepted(2, ENVELOPE)  # the first is under way still, in this process
        await ledger.commit_outcome(1, outcome(OutcomeKind.LOST))
        await ledger.commit_outcome(2, outcome())
        await ledger.commit_accepted(3, ENVELOPE)  # the second's outcome waits
        ledger.settle(2, "delivered")
        await ledger.close()
        await ledger.commit_outcome(3, outcome())
        ledger.settle(3, "delivered")
        await ledger.close()
        await ledger.commit_accepted(4, ENVELOPE)
        rows = await store.inputs(RUNTIME)
        assert [(row.phase, row.fence) for row in rows] == [
            ("superseded", 1),
            ("consumed", 2),
            ("consumed", 3),
            ("staged", 4),
        ]
        assert [row.key for row in rows] == [None, None, None, str(TASK)]
        assert [row.ending for row in await store.outbox(RUNTIME)] == ["delivered", "delivered"]
        ledger = await made(await reopen())
        assert len(ledger.interrupted) == 1

    on_store(body)


def test_a_displaced_lease_that_finished_all_the_same_is_reported(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(1, ENVELOPE)
        await ledger.commit_accepted(2, ENVELOPE)
        await ledger.commit_outcome(1, outcome())
        assert len(ledger.unsettled()) == 1
        rows = await store.inputs(RUNTIME)
        assert [(row.phase, row.key) for row in rows] == [("superseded", None), ("staged", str(TASK))]
        assert rows[0].reason == f"superseded by {rows[1].id}; completed"

    on_store(body)


def test_a_lease_that_could_not_be_read_has_an_end_on_record(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_outcome(7, outcome(OutcomeKind.FAILED))
        (row,) = await store.inputs(RUNTIME)
        assert (row.phase, row.open, row.reason) == ("consumed", False, "runner_error: it broke")
        ledger = await made(await reopen())
        assert ledger.unsettled() == (outcome(OutcomeKind.FAILED),)

    on_store(body)


class Unsure:
    """A store whose disk fails: some commits are refused before they happen, of others the answer is lost."""

    def __init__(self, store: Store, *trouble: str) -> None:
        self._store = store
        self.trouble = list(trouble)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, commit: Commit) -> None:
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble == "full":
            raise LedgerFull("no room")
        await self._store.commit(commit)
        if trouble == "lost":
            raise LedgerFailed("who knows")


@pytest.mark.parametrize("accepting", ["", "full", "lost"])
@pytest.mark.parametrize("ending", ["", "full", "lost"])
@pytest.mark.parametrize("again", ["full", "lost"])
def test_an_outcome_that_is_given_again_is_on_record_once(
    on_store: Any, accepting: str, ending: str, again: str
) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(1, ENVELOPE)  # of an earlier lease, so that a key is handed on
        unsure = Unsure(store, accepting, ending, again)
        ledger._store = unsure  # type: ignore[assignment]
        if accepting:
            with pytest.raises(StoreError):
                await ledger.commit_accepted(2, ENVELOPE)
        else:
            await ledger.commit_accepted(2, ENVELOPE)
        for _ in range(5):
            try:
                await ledger.commit_outcome(2, outcome())
                break
            except StoreError:
                assert ledger.unsettled() == ()
        assert ledger.unsettled() == (outcome(),)
        assert [row.phase for row in await store.inputs(RUNTIME)] == ["superseded", "consumed"]
        assert len(await store.outbox(RUNTIME)) == 1
        assert [owed.outcome for owed in (await made(await reopen())).owed] == [outcome()]

    on_store(body)


def test_an_outcome_whose_answer_was_lost_before_its_task_was_leased_again(on_store: Any) -> None:
    """The newer lease has changed its input since, so that it is not as it was committed: it was refused for ever."""

    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(1, ENVELOPE)
        ledger._store = Unsure(store, "lost")  # type: ignore[assignment]
        with pytest.raises(LedgerFailed):
            await ledger.commit_outcome(1, outcome())
        await ledger.commit_accepted(2, ENVELOPE)
        await ledger.commit_outcome(1, outcome())
        assert ledger.unsettled() == (outcome(),)
        assert len(await store.outbox(RUNTIME)) == len(await store.receipts(RUNTIME)) == 1
        ledger.settle(1, "superseded")
        await ledger.commit_outcome(2, outcome())
        await ledger.close()
        assert [owed.fence for owed in (await made(await reopen())).owed] == [2]

    on_store(body)


def test_a_note_that_is_lost_costs_one_more_offer(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(1, ENVELOPE)
        await ledger.commit_outcome(1, outcome())
        ledger._store = Unsure(store, "full")  # type: ignore[assignment]
        ledger.settle(1, "delivered")
        assert ledger.unsettled() == ()
        await ledger.close()
        ledger = await made(await reopen())
        assert len(ledger.owed) == 1
        await ledger.commit_accepted(1, ENVELOPE)  # and its key is handed on none the less

    on_store(body)


class Watched:
    """A store that notes what it is given, waits before each commit while ``held``, and may ``refuse`` some."""

    def __init__(self, store: Store, refuse: Callable[[Commit], StoreError | None] = lambda commit: None) -> None:
        self._store = store
        self._refuse = refuse
        self.given: list[Commit] = []
        self.held: asyncio.Event | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, commit: Commit) -> None:
        self.given.append(commit)
        if self.held is not None:
            await self.held.wait()
        if error := self._refuse(commit):
            raise error
        await self._store.commit(commit)


def leased(number: int) -> LeaseEnvelope:
    return replace(ENVELOPE, task=replace(ENVELOPE.task, id=UUID(int=number)))


async def delivered(ledger: NodeLedger, *numbers: int) -> None:
    """Leases of as many tasks, whose delivery has ended and is not on record yet."""
    for number in numbers:
        await ledger.commit_accepted(number, leased(number))
        await ledger.commit_outcome(number, outcome(task=UUID(int=number)))
    for number in numbers:
        ledger.settle(number, "delivered")


def test_notes_go_with_the_next_commit(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await delivered(ledger, 1, 2, 3)
        ledger._store = watched = Watched(store)  # type: ignore[assignment]
        await ledger.commit_accepted(4, leased(4))
        assert len(watched.given) == 1
        assert {row.ending for row in await store.outbox(RUNTIME)} == {"delivered"}
        assert [row.key for row in await store.inputs(RUNTIME)] == [None, None, None, str(UUID(int=4))]
        await ledger.commit_accepted(5, leased(1))
        await ledger.commit_outcome(4, outcome(task=UUID(int=4)))
        await ledger.close()
        assert len(watched.given) == 3, "what was written by the way is known"
        assert ledger.unsettled() == (outcome(task=UUID(int=4)),)

    on_store(body)


@pytest.mark.parametrize("error", [LedgerFull, Conflict, StaleRows])
def test_what_is_refused_together_is_given_one_by_one(on_store: Any, error: type[StoreError]) -> None:
    """A note that cannot be written stands in nobody's way, and one that can is not lost with what it went with."""

    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await delivered(ledger, 1, 2)
        ledger._store = watched = Watched(  # type: ignore[assignment]
            store, lambda commit: error("no") if any(row.input == first.id for row in commit.outbox) else None
        )
        first, _ = await store.inputs(RUNTIME)
        await ledger.commit_accepted(3, leased(3))
        assert len(watched.given[0].outbox) == 2
        await ledger.close()
        assert [row.ending for row in await store.outbox(RUNTIME)] == ["", "delivered"]
        assert [row.phase for row in await store.inputs(RUNTIME)] == ["consumed", "consumed", "staged"]
        await ledger.commit_outcome(3, outcome(task=UUID(int=3)))
        assert len(await store.receipts(RUNTIME)) == 3

    on_store(body)


@pytest.mark.parametrize("happens", [True, False])
def test_a_note_outlives_the_commit_it_went_with(on_store: Any, happens: bool) -> None:
    """Whether nobody knows what became of it, or nobody waits for it any more."""

    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await delivered(ledger, 1)
        ledger._store = Unsure(store, "lost" if happens else "full", "full")  # type: ignore[assignment]
        with pytest.raises(StoreError):
            await ledger.commit_accepted(2, leased(2))
        await ledger.close()
        assert [row.ending for row in await store.outbox(RUNTIME)] == ["delivered"]

        ledger._store = watched = Watched(store)  # type: ignore[assignment]
        await delivered(ledger, 3)
        watched.held = asyncio.Event()
        waiting = asyncio.ensure_future(ledger.commit_accepted(4, leased(4)))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(ledger.close())
        await asyncio.sleep(0)
        assert not closing.done(), "the notes are not written yet"
        waiting.cancel()
        watched.held.set()
        await closing
        assert [row.ending for row in await store.outbox(RUNTIME)] == ["delivered", "delivered"]

    on_store(body)


def test_a_task_leased_again_while_its_delivery_is_being_noted(on_store: Any) -> None:
    """The two commits cross; whichever comes second is made anew on what the first left."""

    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        for lease in range(1, 20):
            await ledger.commit_accepted(lease, ENVELOPE)
            await ledger.commit_outcome(lease, outcome())
            ledger.settle(lease, "delivered")
            if lease % 2:
                await asyncio.sleep(0)
        await ledger.close()
        assert {row.ending for row in await store.outbox(RUNTIME)} == {"delivered"}
        assert await store.holder(RUNTIME, str(TASK)) is None
        assert (await made(await reopen())).owed == ()

    on_store(body)


def test_tasks_go_side_by_side(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)

        async def one(number: int) -> None:
            task = UUID(int=number)
            spec = TaskSpec(id=task, capability="/c/v1")
            await ledger.commit_accepted(number, LeaseEnvelope(task=spec))
            await ledger.commit_outcome(number, outcome(task=task))
            if number % 3:
                ledger.settle(number, "delivered")

        await asyncio.gather(*(one(number) for number in range(1, 40)))
        await ledger.close()
        assert len(ledger.unsettled()) == 13
        ledger = await made(await reopen())
        assert sorted(owed.outcome.task.task_id for owed in ledger.owed) == [
            str(UUID(int=number)) for number in range(3, 40, 3)
        ]

    on_store(body)


@pytest.mark.parametrize(
    "rows",
    [
        (an_input(body="{}"),),
        (an_input(body="nonsense"),),
        (an_input(open=False), an_entry(body="{}")),
    ],
)
def test_a_row_without_its_meaning_is_refused_and_stays(on_store: Any, rows: tuple[Any, ...]) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        await store.commit(a_commit(*rows))
        with pytest.raises(LedgerCorrupt, match="left as it is"):
            await made(store)
        assert await store.input(RUNTIME, "i1") == rows[0]

    on_store(body)


def test_an_entry_without_its_input_is_refused(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(1, ENVELOPE)
        await ledger.commit_outcome(1, outcome())
        (row,) = await store.inputs(RUNTIME)
        await store.commit(a_commit(removed=(row,)))
        with pytest.raises(LedgerCorrupt, match="missing"):
            await made(store)

    on_store(body)


def test_what_is_stored_can_be_read_by_people(tmp_path: Path) -> None:
    async def main() -> tuple[InputRow, ...]:
        async with opened("sqlite", tmp_path / "state") as (store, _):
            assert isinstance(store, SqliteStore)
            await (await made(store)).commit_accepted(7, ENVELOPE)
            return await store.inputs(RUNTIME)

    (row,) = asyncio.run(main())
    assert (row.task, row.capability, row.kind, row.created) == (str(TASK), "/c/v1", "task", 101.0)
    assert json.loads(row.body)["envelope"]["task"]["meta"] == {"size": [1, None]}


def test_a_run_that_came_to_its_end_leaves_a_receipt_in_the_same_commit(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        for number, kind in enumerate((OutcomeKind.COMPLETED, OutcomeKind.FAILED, OutcomeKind.COMPLETED), 1):
            task = UUID(int=number)
            await ledger.commit_accepted(number, replace(ENVELOPE, task=replace(ENVELOPE.task, id=task)))
            await ledger.commit_outcome(number, outcome(kind, task), f"run-{number}")
        first, second = await store.receipts(RUNTIME)
        rows = await store.inputs(RUNTIME)
        told = json.loads(second.body)
        assert (first.sequence, second.sequence) == (1, 2), "dense; a failure is no step that was done"
        assert (second.run, told["run_id"], told["run_name"]) == (rows[2].run, rows[2].run, "run-3")
        assert (told["contributing_input_ids"], told["message_count"]) == ([rows[2].id], 1)
        entries = [json.loads(row.body) for row in await store.outbox(RUNTIME)]
        assert [entry["receipt"] for entry in entries] == [1, None, 2]
        assert {entry["digest"] for entry in entries} == {told["digest"]}
        ledger = await made(await reopen())
        await ledger.commit_accepted(9, ENVELOPE)
        await ledger.commit_outcome(9, outcome(), "run-9")

    on_store(body)


def test_receipts_stay_dense_where_commits_between_them_fail(on_store: Any) -> None:
    class Failing:
        """Refuses some commits, each once, as a full disk does."""

        def __init__(self, store: Store) -> None:
            self._store = store
            self.refuse: set[int] = set()
            self._given = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        async def commit(self, commit: Commit) -> None:
            self._given = number = self._given + 1
            await asyncio.sleep(0)
            if number in self.refuse:
                raise LedgerFull("no room")
            await self._store.commit(commit)

    async def body(store: Store, reopen: Reopen) -> None:
        failing: Any = Failing(store)
        ledger = await made(failing)
        tasks = [UUID(int=number) for number in range(1, 13)]
        for number, task in enumerate(tasks, 1):
            await ledger.commit_accepted(number, replace(ENVELOPE, task=replace(ENVELOPE.task, id=task)))
        failing.refuse = {failing._given + place for place in (3, 7)}
        ends = [ledger.commit_outcome(number, outcome(task=task)) for number, task in enumerate(tasks, 1)]
        results = await asyncio.gather(*ends, return_exceptions=True)
        assert [type(result) for result in results if result] == [LedgerFull, LedgerFull]
        for number, (task, result) in enumerate(zip(tasks, results, strict=True), 1):
            if result is not None:
                await ledger.commit_outcome(number, outcome(task=task))
        assert [row.sequence for row in await store.receipts(RUNTIME)] == list(range(1, 13))
        assert len(ledger.unsettled()) == 12

    on_store(body)


def test_work_that_is_resumed_is_another_attempt_of_the_same_input(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        await (await made(store)).commit_accepted(7, ENVELOPE)
        store = await reopen()
        ledger = await made(store)
        (before,) = await store.inputs(RUNTIME)
        (left,) = ledger.interrupted
        assert left.attempts == 1
        ledger.resume(1, left.id)
        with pytest.raises(KeyError):
            ledger.resume(2, left.id)
        await ledger.commit_accepted(1, ENVELOPE)
        (row,) = await store.inputs(RUNTIME)
        assert (row.id, row.position, row.open) == (before.id, before.position, True)
        assert row.run != before.run
        assert row.fence > before.fence
        await ledger.commit_outcome(1, outcome(), "again")
        (row,) = await store.inputs(RUNTIME)
        (receipt,) = await store.receipts(RUNTIME)
        assert (row.phase, row.body, receipt.run) == ("consumed", "{}", row.run)

    on_store(body)


def test_work_that_was_found_and_is_gone_ends_its_input_without_another_attempt(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        await (await made(store)).commit_accepted(7, ENVELOPE)
        store = await reopen()
        ledger = await made(store)
        ledger.resume(1, ledger.interrupted[0].id)
        await ledger.commit_outcome(1, outcome(OutcomeKind.LOST))
        (row,) = await store.inputs(RUNTIME)
        assert (row.phase, row.open, row.key) == ("abandoned", False, None)
        assert await store.receipts(RUNTIME) == ()

    on_store(body)


def test_artifacts_that_are_not_those_of_the_digest_are_damage(on_store: Any) -> None:
    async def body(store: Store, reopen: Reopen) -> None:
        ledger = await made(store)
        await ledger.commit_accepted(7, ENVELOPE)
        await ledger.commit_outcome(7, outcome())
        (entry,) = await store.outbox(RUNTIME)
        changed = msgspec.structs.replace(entry, body=entry.body.replace('"id":"d1"', '"id":"d2"'))
        snapshot = msgspec.structs.replace(await store.snapshot(RUNTIME), outbox=(changed,))
        with pytest.raises(LedgerCorrupt, match="digest"):
            NodeLedger(store, snapshot, lambda: 0.0, lambda: "")

    on_store(body)


@pytest.mark.parametrize("way", ["damaged", "unwritable"])
def test_what_is_wrong_with_a_note_does_not_refuse_another_task(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path, HostOffload())
        ledger = await made(store)
        other = UUID(int=77)
        await ledger.commit_accepted(1, replace(ENVELOPE, task=replace(ENVELOPE.task, id=other)))
        await ledger.commit_outcome(1, outcome(task=other))
        if way == "damaged":
            with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
                db.execute("UPDATE outbox SET body = body || ' '")
                db.commit()
        ledger.settle(1, "refused", "a lone surrogate: \ud800" if way == "unwritable" else "")
        await ledger.commit_accepted(2, ENVELOPE)
        await ledger.close()
        assert [row.task for row in await store.inputs(RUNTIME) if row.open] == [str(ENVELOPE.task.id)]
        await store.close()

    asyncio.run(main())
