"""One node's ledger over a store: what the node's commands ask for, and what a node that starts finds there.

A lease that was taken is an input, open until its outcome is committed; the outcome of a run is an outbox entry, which
waits until the service has answered. Both hold the task's id as a key for so long, so that a task that is leased again
takes the place of what an earlier lease of it left.

No token is kept. The task's own token is short-lived, and the next heartbeat brings a new one to a node that finds its
lease alive after a restart; the reports need the node's token alone. What is kept of a lease is what was asked and on
whose behalf, readable by the node's user only.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Self

from posemesh.control.records import InputId, InputKind, InputPhase, OutboxEntry, decode, encode
from posemesh.control.store import (
    Commit,
    Conflict,
    InputRow,
    LedgerCorrupt,
    OutboxRow,
    RuntimeRow,
    Snapshot,
    StaleRows,
    Store,
    StoreError,
)
from posemesh.errors import WireError
from posemesh.events import LeaseId
from posemesh.telemetry import logger
from posemesh.types import LeaseEnvelope, Outcome, OutcomeKind

__all__ = ("Interrupted", "NodeLedger", "Owed")

_REPORTED: Final = (OutcomeKind.COMPLETED, OutcomeKind.FAILED)
_CROSSED_MAX: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """Work that was under way when the node before this one ended. ``envelope`` has no token."""

    id: str
    envelope: LeaseEnvelope
    fence: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """An outcome that the service has not answered to."""

    id: str
    outcome: Outcome
    fence: int
    since: float


class NodeLedger:
    """The :class:`posemesh.shell.ledger.Ledger` of the node called ``runtime``. Leases are numbered anew by each
    process, so what an earlier one left is found by task, and offered under a number given with :meth:`adopt`.

    ``wall`` gives seconds since the epoch, ``ids`` names that were never given before.
    """

    def __init__(self, store: Store, snapshot: Snapshot, wall: Callable[[], float], ids: Callable[[], str]) -> None:
        self._store = store
        self._runtime = snapshot.runtime
        self._wall = wall
        self._ids = ids
        self._position = snapshot.position
        self._inputs: dict[LeaseId, InputRow] = {}
        self._holders = {row.key: row for row in snapshot.inputs if row.key is not None}
        self._outbox = {row.id: row for row in snapshot.outbox}
        self._outcomes = {row.id: _entry(row).outcome for row in snapshot.outbox}
        self._entries: dict[LeaseId, str] = {}
        self._commits: dict[LeaseId, Callable[[], Commit]] = {}
        self._notes: set[asyncio.Task[None]] = set()
        #: What the node before this one left behind, as it was found when this one was opened.
        self.interrupted = tuple(_interrupted(row) for row in snapshot.inputs)
        self.owed = tuple(
            Owed(id=row.id, outcome=self._outcomes[row.id], fence=row.fence, since=row.created)
            for row in snapshot.outbox
        )

    @classmethod
    async def open(cls, store: Store, runtime: str, *, wall: Callable[[], float], ids: Callable[[], str]) -> Self:
        """The ledger of ``runtime`` in ``store``. Raises StoreError, LedgerCorrupt for a row without its meaning."""
        snapshot = await store.snapshot(runtime)
        if snapshot.lifecycle is None:
            await store.commit(
                Commit(runtime=runtime, lifecycle=RuntimeRow(runtime=runtime, phase="idle", updated=wall()))
            )
        ledger = cls(store, snapshot, wall, ids)
        for row in snapshot.outbox:  # its input has ended, so that it is not among the open ones, and holds its key
            if (found := await store.input(runtime, row.input)) is None:
                raise LedgerCorrupt(
                    f"outbox {runtime}/{row.id}: its input {row.input} is missing; it was left as it is"
                )
            if found.key is not None:
                ledger._holders[found.key] = found
        return ledger

    async def commit_accepted(self, lease: LeaseId, envelope: LeaseEnvelope) -> None:
        row = self._inputs[lease] = self._taken(envelope)
        commit = await self._commit(
            row.task, lambda: Commit(runtime=self._runtime, inputs=(*self._displaced(row), row))
        )
        self._note_rows(commit)

    async def commit_outcome(self, lease: LeaseId, outcome: Outcome) -> None:
        if lease not in self._commits:
            if lease not in self._inputs:
                self._inputs[lease] = self._unread(outcome)
            entry, now = self._ids(), self._wall()
            # Given again where its answer was lost, it is the same commit, whose store sees that it has happened.
            self._commits[lease] = lambda: self._ended(self._inputs[lease], outcome, entry, now)
        commit = await self._commit(outcome.task.task_id, self._commits[lease])
        self._note_rows(commit)
        for waiting in commit.outbox:
            self._outbox[waiting.id] = waiting
            self._outcomes[waiting.id] = outcome
            self._entries[lease] = waiting.id
        del self._inputs[lease], self._commits[lease]

    def settle(self, lease: LeaseId, ending: str, problem: str = "") -> None:
        """Note how the outcome's delivery ended, and what stood in its way. A note that cannot be written costs one
        more offer after the next start.
        """
        entry = self._entries.pop(lease, None)
        if entry is None:
            return
        task = self._outcomes.pop(entry).task.task_id
        note = asyncio.ensure_future(self._note(task, self._outbox.pop(entry), ending, problem))
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)

    def unsettled(self) -> tuple[Outcome, ...]:
        """Outcomes whose delivery has not ended, those of earlier processes first."""
        return tuple(self._outcomes.values())

    def adopt(self, lease: LeaseId, id: str) -> None:
        """Offer what is owed as ``id`` under the number ``lease``: after a restart, or since its task was leased
        again. Raises KeyError for what is not owed.
        """
        if id not in self._outbox:
            raise KeyError(id)
        self._entries = {each: entry for each, entry in self._entries.items() if entry != id}
        self._entries[lease] = id

    def owed_for(self, task_id: str) -> Owed | None:
        """The outcome that waits to be delivered for that task."""
        for id, outcome in self._outcomes.items():
            if outcome.task.task_id == task_id:
                row = self._outbox[id]
                return Owed(id=id, outcome=outcome, fence=row.fence, since=row.created)
        return None

    async def close(self) -> None:
        """Let the notes be written. The store is left open for whom it belongs to."""
        while self._notes:
            await asyncio.wait(tuple(self._notes))

    # --- Rows ---------------------------------------------------------------------------------------------------

    def _taken(self, envelope: LeaseEnvelope) -> InputRow:
        self._position += 1
        now = self._wall()
        kept = replace(envelope, access_token=None, access_token_expires_at=None)
        return InputRow(
            runtime=self._runtime,
            id=self._ids(),
            phase=InputPhase.STAGED.value,
            position=self._position,
            key=str(envelope.task.id),
            kind=InputKind.TASK.value,
            task=str(envelope.task.id),
            capability=envelope.task.capability,
            fence=self._position,
            created=now,
            updated=now,
            body=encode(kept).decode(),
        )

    def _unread(self, outcome: Outcome) -> InputRow:
        """For a lease that was never on record, as it could not be read: only its end will be."""
        self._position += 1
        return InputRow(
            runtime=self._runtime,
            version=0,
            id=self._ids(),
            phase=InputPhase.ACCEPTED.value,
            position=self._position,
            kind=InputKind.TASK.value,
            task=outcome.task.task_id,
            capability=outcome.task.capability,
            fence=self._position,
            created=self._wall(),
        )

    def _displaced(self, row: InputRow) -> tuple[InputRow, ...]:
        """What an earlier lease of the same task left, which gives up its key."""
        holder = self._holders.get(row.task)
        if holder is None or holder.id == row.id:
            return ()
        if not holder.open:
            return (holder.next(key=None, updated=row.updated),)
        reason = f"superseded by {row.id}"
        phase = InputPhase.SUPERSEDED.value
        return (holder.next(key=None, open=False, phase=phase, reason=reason, updated=row.updated),)

    def _ended(self, row: InputRow, outcome: Outcome, entry: str, now: float) -> Commit:
        """The commit of an end: the input's, with what the service is to hear of it."""
        reported = outcome.kind in _REPORTED
        why = outcome.kind.value if outcome.kind is OutcomeKind.COMPLETED else outcome.reason or outcome.kind.value
        if row.open:
            phase = (InputPhase.CONSUMED if reported else InputPhase.ABANDONED).value
            key = row.task if reported else None
            ended = row.next(open=False, phase=phase, key=key, reason=why, updated=now)
            inputs = (*self._displaced(ended), ended)
        else:  # a newer lease of the task has taken its place meanwhile, and has the key
            ended = row.next(reason=f"{row.reason}; {why}", updated=now)
            inputs = (ended,)
        outbox = (_waiting(ended, outcome, entry),) if reported else ()
        return Commit(runtime=self._runtime, inputs=inputs, outbox=outbox)

    async def _note(self, task: str, row: OutboxRow, ending: str, problem: str) -> None:
        now = self._wall()

        def ended() -> Commit:
            holder = self._holders.get(task)
            released = (holder.next(key=None, updated=now),) if holder and holder.id == row.input else ()
            entry = row.next(ending=ending, problem=problem, updated=now)
            return Commit(runtime=self._runtime, outbox=(entry,), inputs=released)

        try:
            self._note_rows(await self._commit(task, ended))
        except StoreError as error:
            logger().opt(exception=error).warning(
                f"the ledger did not take note that the outcome of task {task} was {ending}; it is offered once more "
                "after the next start"
            )

    async def _commit(self, task: str, build: Callable[[], Commit]) -> Commit:
        """Commit what ``build`` makes. Commits of one task may cross, as when it is leased again just when its outcome
        is delivered: what came second is made anew on what the first one left.
        """
        for _ in range(_CROSSED_MAX):
            commit = build()
            with suppress(StaleRows, Conflict):
                await self._store.commit(commit)
                return commit
            await self._observe(task)
        commit = build()
        await self._store.commit(commit)
        return commit

    async def _observe(self, task: str) -> None:
        """Read the task's rows again."""
        holder = await self._store.holder(self._runtime, task)
        for lease, row in tuple(self._inputs.items()):
            if row.task == task:
                found = await self._store.input(self._runtime, row.id)
                self._inputs[lease] = found or replace(row, version=0)
        self._holders.pop(task, None)
        if holder is not None:
            self._holders[task] = holder

    def _note_rows(self, commit: Commit) -> None:
        """Who holds the key of a task now, and what others' rows have become by it."""
        for row in commit.inputs:
            held = self._holders.get(row.task)
            if row.key is not None:
                self._holders[row.task] = row
            elif held is not None and held.id == row.id:
                del self._holders[row.task]
            for lease, mine in self._inputs.items():
                if mine.id == row.id:
                    self._inputs[lease] = row


def _waiting(ended: InputRow, outcome: Outcome, id: str) -> OutboxRow:
    entry = OutboxEntry(
        id=id,
        input_id=InputId(ended.id),
        run_id=None,
        outcome=outcome,
        digest=hashlib.sha256(encode(outcome.artifacts)).hexdigest(),
    )
    return OutboxRow(
        runtime=ended.runtime,
        id=id,
        input=ended.id,
        sequence=ended.position,
        fence=ended.fence,
        created=ended.updated,
        updated=ended.updated,
        body=encode(entry).decode(),
    )


def _interrupted(row: InputRow) -> Interrupted:
    try:
        envelope = decode(LeaseEnvelope, row.body)
    except WireError as error:
        raise LedgerCorrupt(f"inputs {row.runtime}/{row.id}: {error}; it was left as it is") from None
    return Interrupted(id=row.id, envelope=envelope, fence=row.fence, since=row.created)


def _entry(row: OutboxRow) -> OutboxEntry:
    try:
        return decode(OutboxEntry, row.body)
    except WireError as error:
        raise LedgerCorrupt(f"outbox {row.runtime}/{row.id}: {error}; it was left as it is") from None
