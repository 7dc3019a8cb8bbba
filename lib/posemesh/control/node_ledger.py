"""One node's ledger over a store: what the node's commands ask for, and what a node that starts finds there.

A lease that was taken is an input, open until its outcome is committed; the outcome of a run is an outbox entry, which
waits until the service has answered. Both hold the task's id as a key for so long, so that a task that is leased again
takes the place of what an earlier lease of it left. What is kept is readable by the node's user only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from posemesh.control.node_rows import (
    Interrupted,
    Owed,
    displaced,
    ending,
    entry_of,
    given_up,
    has_receipt,
    interrupted_of,
    taken,
    taken_again,
    together,
)
from posemesh.control.records import InputKind, InputPhase, RuntimeRecord, RuntimeState, encode
from posemesh.control.store import (
    Commit,
    Conflict,
    InputRow,
    LedgerBusy,
    LedgerClosed,
    LedgerCorrupt,
    LedgerFailed,
    OutboxRow,
    RuntimeRow,
    Snapshot,
    StaleRows,
    Store,
)
from posemesh.control.vault import Vault
from posemesh.events import LeaseId
from posemesh.telemetry import logger, scrub
from posemesh.types import LeaseEnvelope, Outcome

__all__ = ("Interrupted", "NodeLedger", "Owed")

_CROSSED_MAX: Final = 5
_IDLE: Final = encode(RuntimeRecord(state=RuntimeState.IDLE)).decode()
_OWN: Final = (StaleRows, Conflict, LedgerBusy, LedgerClosed, LedgerFailed)
"""What a commit is refused with, or cannot be told of, on its own account, whatever is noted along with it."""
NOTE_SECS: Final = 0.2
"""The note of a delivery's end waits no longer than this for a commit that it can go with."""


@dataclass(eq=False, slots=True)
class _Pending:
    """A commit that has not been answered. Given again it is the same, so that the store sees where it has happened;
    it is made anew only where others were before it.

    ``lost`` is what nobody will know where it is a note that is not written.
    """

    task: str
    build: Callable[[], Commit]
    lost: str = ""
    commit: Commit | None = None

    def made(self) -> Commit:
        if self.commit is None:
            self.commit = self.build()
        return self.commit


class NodeLedger:
    """The :class:`posemesh.shell.ledger.Ledger` of the node called ``runtime``. Leases are numbered anew by each
    process: what an earlier one left is given a number with :meth:`adopt` and :meth:`resume`.

    ``wall`` gives seconds since the epoch, ``ids`` names that were never given before. Without a ``vault`` no token is
    kept.
    """

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        wall: Callable[[], float],
        ids: Callable[[], str],
        vault: Vault | None = None,
    ) -> None:
        self._store = store
        self._runtime = snapshot.runtime
        self._wall = wall
        self._ids = ids
        self._vault = vault
        self._position = snapshot.position
        self._sequence = snapshot.sequence
        self._leases: dict[LeaseId, str] = {}
        self._inputs: dict[str, InputRow] = {}
        self._open = {row.id: row for row in snapshot.inputs}
        self._holders = {row.key: row for row in snapshot.inputs if row.key is not None}
        self._outbox = {row.id: row for row in snapshot.outbox}
        entries = {row.id: entry_of(row) for row in snapshot.outbox}
        self._outcomes = {id: entry.outcome for id, entry in entries.items()}
        self._entries: dict[LeaseId, str] = {}
        self._pending: dict[LeaseId, _Pending] = {}
        self._due: list[_Pending] = []
        self._noting: asyncio.TimerHandle | None = None
        self._notes: set[asyncio.Future[None]] = set()
        self._gate = asyncio.Lock()
        self._unsure = 0
        #: What the node before this one left behind, as it was found when this one was opened, the oldest first.
        self.interrupted = tuple(interrupted_of(row, vault) for row in snapshot.inputs)
        self.owed = tuple(
            Owed(id=row.id, outcome=entry.outcome, fence=row.fence, position=entry.position)
            for row, entry in zip(snapshot.outbox, entries.values(), strict=True)
        )

    @classmethod
    async def open(
        cls,
        store: Store,
        runtime: str,
        *,
        wall: Callable[[], float],
        ids: Callable[[], str],
        vault: Vault | None = None,
    ) -> Self:
        """The ledger of ``runtime`` in ``store``. Raises StoreError, LedgerCorrupt for a row without its meaning."""
        snapshot = await store.snapshot(runtime)
        if snapshot.lifecycle is None:
            await store.commit(
                Commit(
                    runtime=runtime,
                    lifecycle=RuntimeRow(runtime=runtime, phase=RuntimeState.IDLE.value, body=_IDLE, updated=wall()),
                )
            )
        ledger = cls(store, snapshot, wall, ids, vault)
        for row in snapshot.outbox:  # its input has ended, so that it is not among the open ones, and holds its key
            if (found := await store.input(runtime, row.input)) is None:
                raise LedgerCorrupt(
                    f"outbox {runtime}/{row.id}: its input {row.input} is missing; it was left as it is"
                )
            if found.key is not None:
                ledger._holders[found.key] = found
        return ledger

    async def commit_accepted(self, lease: LeaseId, envelope: LeaseEnvelope) -> None:
        """A lease that was resumed is another attempt of its input."""
        now, run = self._wall(), self._ids()
        self._position += 1
        found = self._leases.get(lease)
        if found is None:
            row = taken(self._runtime, self._ids(), run, self._position, envelope, now, self._vault)
            # Before the commit is answered: its end may be committed while that is still unknown.
            self._begin(lease, row)
            await self._commit(_Pending(row.task, lambda: self._accepted(row)))
        else:
            fence = self._position
            pending = _Pending(
                self._inputs[found].task,
                lambda: Commit(
                    runtime=self._runtime,
                    inputs=(taken_again(self._inputs[found], run, fence, envelope, now, self._vault),),
                ),
            )
            await self._commit(pending)

    def _begin(self, lease: LeaseId, row: InputRow) -> None:
        self._leases[lease] = row.id
        self._inputs[row.id] = row

    def _accepted(self, row: InputRow) -> Commit:
        return Commit(runtime=self._runtime, inputs=(*displaced(self._holders.get(row.task), row), row))

    async def commit_outcome(self, lease: LeaseId, outcome: Outcome, name: str = "") -> None:
        """``name`` is the router's for the run that came to it."""
        if lease not in self._pending:
            if lease not in self._leases:
                self._begin(lease, self._unread(outcome))
            entry, now, id = self._ids(), self._wall(), self._leases[lease]
            self._pending[lease] = _Pending(
                outcome.task.task_id, lambda: self._ended(self._inputs[id], outcome, entry, name, now)
            )
        commit = await self._commit(self._pending[lease])
        for waiting in commit.outbox:
            self._outbox[waiting.id] = waiting
            self._outcomes[waiting.id] = outcome
            self._entries[lease] = waiting.id
        del self._inputs[self._leases.pop(lease)], self._pending[lease]

    def settle(self, lease: LeaseId, ending: str, problem: str = "") -> None:
        """Note how the outcome's delivery ended, and what stood in its way: with the next commit, or soon. A note that
        is not written costs one more offer after the next start.
        """
        entry = self._entries.pop(lease, None)
        if entry is None:
            return
        task = self._outcomes.pop(entry).task.task_id
        # What a service answers may hold the token that it was sent.
        row = self._outbox.pop(entry).next(ending=ending, problem=scrub(problem), updated=self._wall())
        lost = f"the outcome of task {task} was {ending}; it is offered once more"
        self._take_note(_Pending(task, lambda: self._settled(task, row), lost))

    def unsettled(self) -> tuple[Outcome, ...]:
        """Outcomes whose delivery has not ended, those of earlier processes first."""
        return tuple(self._outcomes.values())

    def adopt(self, lease: LeaseId, id: str) -> None:
        """Offer what is owed as ``id`` under the number ``lease``. Raises KeyError for what is not owed."""
        if id not in self._outbox:
            raise KeyError(id)
        self._entries[lease] = id

    def resume(self, lease: LeaseId, id: str) -> None:
        """Go on with the interrupted ``id`` under the number ``lease``. Raises KeyError for what was not."""
        self._begin(lease, self._open.pop(id))

    def drop(self, id: str, reason: str) -> None:
        """Do not go on with the interrupted ``id``, nor report it. Raises KeyError for what was not interrupted."""
        row, now = self._open.pop(id), self._wall()
        lost = f"a lease of task {row.task} was given up; it is found once more"
        self._take_note(_Pending(row.task, lambda: given_up(row, reason, now), lost))

    def undelivered(self, task_id: str) -> Outcome | None:
        """The latest outcome of that task whose delivery has not ended."""
        return next((each for each in reversed(self._outcomes.values()) if each.task.task_id == task_id), None)

    async def close(self) -> None:
        """Let the notes be written. The store is left open for whom it belongs to."""
        self._note_all()
        while self._notes:
            await asyncio.wait(tuple(self._notes))

    # --- Rows ---------------------------------------------------------------------------------------------------

    def _unread(self, outcome: Outcome) -> InputRow:
        """For a lease that was never on record, as it could not be read, or its result was there: only its end is."""
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

    def _ended(self, row: InputRow, outcome: Outcome, entry: str, name: str, now: float) -> Commit:
        self._sequence += has_receipt(row, outcome)
        holder = self._holders.get(row.task)
        return ending(
            row,
            holder,
            outcome,
            entry=entry,
            name=name,
            sequence=self._sequence,
            position=self._position,
            now=now,
        )

    def _settled(self, task: str, entry: OutboxRow) -> Commit:
        holder = self._holders.get(task)
        released = (holder.next(key=None, updated=entry.updated),) if holder and holder.id == entry.input else ()
        return Commit(runtime=self._runtime, outbox=(entry,), inputs=released)

    # --- Notes --------------------------------------------------------------------------------------------------

    def _take_note(self, note: _Pending) -> None:
        self._due.append(note)
        if self._noting is None:
            self._noting = asyncio.get_running_loop().call_later(NOTE_SECS, self._note_all)

    def _take_due(self) -> list[_Pending]:
        if self._noting is not None:
            self._noting.cancel()
            self._noting = None
        due, self._due = self._due, []
        return due

    def _note_all(self) -> None:
        self._note_each(self._take_due())

    def _note_each(self, notes: Iterable[_Pending]) -> None:
        for note in notes:
            noted = asyncio.ensure_future(self._note(note))
            self._notes.add(noted)
            noted.add_done_callback(self._notes.discard)

    async def _note(self, note: _Pending) -> None:
        try:
            await self._commit(note)
        except Exception as error:
            logger().opt(exception=error).warning(f"the ledger did not take note that {note.lost} after the next start")

    # --- Commits ------------------------------------------------------------------------------------------------

    async def _commit(self, pending: _Pending) -> Commit:
        """Commit what is pending. Commits of one task may cross, as when it is leased again just when its outcome is
        delivered: what came second is made anew on what the first one left. Receipts are numbered as they are given, so
        where one commit fails those behind it have wrong numbers: all go one by one then, until all is well again.
        """
        if not self._unsure:
            with suppress(StaleRows, Conflict):
                return await (self._give_with_notes(pending) if self._due else self._give(pending))
        self._unsure += 1
        try:
            async with self._gate:
                return await self._mend(pending)
        finally:
            self._unsure -= 1

    async def _mend(self, pending: _Pending) -> Commit:
        for _ in range(_CROSSED_MAX):
            if pending.commit is not None:
                with suppress(StaleRows, Conflict):
                    return await self._give(pending)
            found = await self._observe(pending.task)
            if pending.commit is not None and pending.commit.outbox and {*pending.commit.outbox} <= {*found.outbox}:
                return pending.commit  # its answer was lost, and a newer lease has changed its other rows since
            pending.commit = pending.build()
        return await self._give(pending)

    async def _give(self, pending: _Pending) -> Commit:
        commit = pending.made()
        await self._store.commit(commit)
        self._note_rows(commit)
        return commit

    async def _give_with_notes(self, pending: _Pending) -> Commit:
        """What is pending and the notes that are due, as one commit. What refuses one of them refuses all: each is
        given by itself then.
        """
        commit, due = pending.made(), self._take_due()
        others = [note for note in due if note.task != pending.task]  # those of one task may write to the same rows
        self._note_each(note for note in due if note.task == pending.task)
        whole = together(commit, [note.made() for note in others])
        noted = asyncio.get_running_loop().create_future()
        self._notes.add(noted)
        try:
            await self._store.commit(whole)
        except BaseException as error:
            self._note_each(others)
            if not isinstance(error, Exception) or isinstance(error, _OWN):
                raise
            return await self._give(pending)  # less may find room, and what is wrong with a note does not concern it
        finally:
            self._notes.discard(noted)
            noted.set_result(None)
        self._note_rows(whole)
        return commit

    async def _observe(self, task: str) -> Snapshot:
        """Read again what the task's rows are, and the number of the last receipt."""
        snapshot = await self._store.snapshot(self._runtime)
        self._sequence = snapshot.sequence
        holder = await self._store.holder(self._runtime, task)
        for row in tuple(self._inputs.values()):
            if row.task == task:
                found = await self._store.input(self._runtime, row.id)
                self._inputs[row.id] = found or msgspec.structs.replace(row, version=0)
        self._holders.pop(task, None)
        if holder is not None:
            self._holders[task] = holder
        return snapshot

    def _note_rows(self, commit: Commit) -> None:
        """Who holds the key of a task now, and what others' rows have become by it."""
        for row in commit.inputs:
            held = self._holders.get(row.task)
            if row.key is not None:
                self._holders[row.task] = row
            elif held is not None and held.id == row.id:
                del self._holders[row.task]
            if row.id in self._inputs:
                self._inputs[row.id] = row
