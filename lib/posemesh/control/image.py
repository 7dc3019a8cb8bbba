"""All that one driver knows of its runtime at one moment, and what every operation makes of it. Pure.

An operation changes a fork; the driver commits what differs and only then puts the fork in the place of the image. So
there is one rule for a commit that fails, whatever was to be committed: nothing has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace

import msgspec

from posemesh.control.errors import DriverValidationFailed, refused
from posemesh.control.policy import strongest
from posemesh.control.records import (
    AbandonReason,
    EventCategory,
    HistoryEntry,
    Input,
    InputId,
    InputKind,
    InputPhase,
    InputState,
    Lane,
    LogicalRuntimeId,
    OutboxEntry,
    PolicyDecision,
    RunId,
    RuntimeEvent,
    RuntimeRecord,
    RuntimeState,
    Signal,
    StoredInputState,
    encode,
)
from posemesh.control.rows import Entry, row_of, seed_of, subject_of
from posemesh.control.store import Commit, OutboxRow, ReceiptRow, RuntimeRow
from posemesh.errors import IllegalTransition
from posemesh.events import Event
from posemesh.events.control import InputAbandoned, InputCoalesced, InputDeferred, InputNoted, InputQueued
from posemesh.machines import driver as driver_machine
from posemesh.machines import input as input_machine
from posemesh.machines._kernel import Tick
from posemesh.machines.driver import RuntimeSubject
from posemesh.types import Outcome, OutcomeKind

__all__ = ("Image", "Run")

_ENDED_KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An attempt in progress: which inputs it took up, in which order, and the router's name for it."""

    name: str
    inputs: tuple[InputId, ...]


@dataclass(eq=False, slots=True, kw_only=True)
class Image:
    """``position`` and ``sequence`` are the last numbers given to an input and to a receipt; ``version`` is that of the
    runtime's row, 0 where there is none. ``loop`` while something is there that runs inputs.

    ``outbox`` is what waits for its delivery. What an operation adds on top, until it is committed: ``changed``
    names entries of the outbox; ``receipts``, ``removed`` and ``events``; ``observed`` where it decides about all open
    inputs.
    """

    runtime_id: LogicalRuntimeId
    now: float = 0.0
    runtime: RuntimeSubject = field(default_factory=RuntimeSubject)
    record: RuntimeRecord = field(default_factory=lambda: RuntimeRecord(state=RuntimeState.INITIALIZING))
    version: int = 0
    entries: dict[InputId, Entry] = field(default_factory=dict)
    runs: dict[RunId, Run] = field(default_factory=dict)
    position: int = 0
    sequence: int = 0
    loop: bool = False
    signal: Signal = Signal.NONE
    projections: dict[str, RuntimeEvent] = field(default_factory=dict)
    outbox: dict[str, OutboxRow] = field(default_factory=dict)
    observed: frozenset[tuple[str, int]] | None = None
    changed: frozenset[str] = frozenset()
    receipts: tuple[ReceiptRow, ...] = ()
    removed: tuple[Entry, ...] = ()
    events: tuple[RuntimeEvent, ...] = ()

    def fork(self) -> Image:
        """A copy that may be changed."""
        return replace(
            self,
            runtime=copy(self.runtime),
            entries=dict(self.entries),
            runs=dict(self.runs),
            projections=dict(self.projections),
            outbox=dict(self.outbox),
        )

    def settled(self) -> Image:
        """This image once it is committed; of ended inputs the latest are kept."""
        kept = dict(self.entries)
        ended = [key for key, entry in kept.items() if entry.stored.terminal]
        for key in ended[: max(0, len(ended) - _ENDED_KEPT)]:
            del kept[key]
        outbox = {key: row for key, row in self.outbox.items() if not row.ending}
        return replace(
            self, entries=kept, outbox=outbox, changed=frozenset(), receipts=(), removed=(), events=(), observed=None
        )

    # -- What it says --------------------------------------------------------------------------------------------

    @property
    def state(self) -> RuntimeState:
        assert isinstance(self.runtime.state, RuntimeState)
        return self.runtime.state

    def open(self) -> Iterator[Entry]:
        """The inputs that have not ended, in the order in which they came."""
        return (entry for entry in self.entries.values() if not entry.stored.terminal)

    def holder(self, key: str) -> Entry | None:
        """The input that holds ``key``, if it is in memory."""
        return next((entry for entry in self.entries.values() if entry.key == key), None)

    def waiting(self, lane: Lane) -> list[Entry]:
        """What is queued in ``lane``, in the order in which it is to be taken."""
        found = [e for e in self.open() if e.stored.seed.phase is InputPhase.QUEUED and self._lane(e) is lane]
        return sorted(found, key=lambda e: (e.stored.seed.admission_sequence or 0, e.stored.input_id))

    @staticmethod
    def _lane(entry: Entry) -> Lane | None:
        return entry.stored.seed.recovery_lane

    def batch(self) -> tuple[InputId, ...]:
        """What is to be run next: of the steer lane all that is taken up at one boundary, else the first task alone,
        else what waits before it. Empty only where neither lane holds work.
        """
        for lane in Lane:
            taken: list[Entry] = []
            for entry in self.waiting(lane):
                alone = entry.stored.state.input.kind is InputKind.TASK
                if taken and (alone or entry.stored.state.policy.apply is not taken[0].stored.state.policy.apply):
                    break
                taken.append(entry)
                if alone:
                    break
            if taken:
                return tuple(entry.stored.input_id for entry in taken)
        return ()

    # -- Moving the machines -------------------------------------------------------------------------------------

    def fire(self, event: Event) -> None:
        """Move the runtime. Raises RuntimeDriverError where its machine refuses."""
        before = self.state
        try:
            driver_machine.MACHINE.fire(self.runtime, Tick(event, self.now))
        except IllegalTransition as error:
            raise refused(error, before) from error
        stored = self.runtime.stored
        assert isinstance(stored, RuntimeState)
        self.record = replace(self.record, state=stored, epoch=self.runtime.epoch or self.record.epoch)
        if self.state is not before:
            self.tell(EventCategory.STATE, "changed", details={"from": before.value, "to": self.state.value})

    def move(self, input_id: InputId, event: Event) -> Entry:
        """Move one input. Raises DriverValidationFailed where its machine refuses, or there is no such input."""
        entry = self.entries.get(input_id)
        if entry is None:
            raise DriverValidationFailed(f"expected an input of {self.runtime_id}, got {input_id}, which is none")
        stored = entry.stored
        subject = subject_of(stored.seed)
        try:
            _, moved = input_machine.MACHINE.fire(subject, Tick(event, self.now))
        except IllegalTransition as error:
            raise refused(error, self.state) from error
        seed = seed_of(subject)
        if seed == stored.seed:
            return entry
        step = HistoryEntry(at=self.now, source=stored.seed.phase, dest=seed.phase, why=moved.why)
        state = replace(stored.state, updated_at=self.now, history=(*stored.state.history, step))
        if seed.terminal_outcome is not None:
            state = replace(state, input=replace(state.input, payload={}))
        changed = replace(entry, stored=replace(stored, state=state, seed=seed))
        self.entries[input_id] = changed
        name = seed.phase.value if seed.phase is not stored.seed.phase else "state_transitioned"
        self.tell(EventCategory.INPUT, name, input_id=input_id, run_id=seed.last_run_id)
        return changed

    def tell(self, category: EventCategory, name: str, **about: object) -> None:
        made = RuntimeEvent(category=category, name=name)
        self.events = (*self.events, replace(made, **about))  # type: ignore[arg-type]

    def next_position(self) -> int:
        self.position += 1
        return self.position

    # -- Inputs --------------------------------------------------------------------------------------------------

    def add(self, given: Input, policy: PolicyDecision) -> Entry:
        """Take in ``given``: queued, or consumed where being on record is all it asked."""
        busy = self.state is RuntimeState.RUNNING
        state = InputState(input=given, policy=policy, created_at=self.now, updated_at=self.now)
        stored = StoredInputState(runtime_id=self.runtime_id, state=state, seed=seed_of(input_machine.InputSubject()))
        self.entries[given.id] = Entry(stored=stored)
        self.tell(EventCategory.INPUT, "accepted", input_id=given.id)
        if policy.lane is None:
            return self.move(given.id, InputNoted(sequence=self.next_position()))
        if policy.coalesce and given.supersession_key is not None:
            for older in self._same(given):
                self.move(older, InputCoalesced(into=given.id))
        entry = self.move(given.id, InputQueued(lane=policy.lane, sequence=self.next_position()))
        self.signal = strongest((self.signal, policy.busy if busy else policy.idle))
        return entry

    def _same(self, given: Input) -> list[InputId]:
        """What waits with the same kind and supersession key."""
        return [
            entry.stored.input_id
            for entry in self.open()
            if entry.stored.input_id != given.id
            and entry.stored.seed.phase is InputPhase.QUEUED
            and entry.stored.state.input.kind is given.kind
            and entry.stored.state.input.supersession_key == given.supersession_key
        ]

    def give_up_key(self, entry: Entry) -> None:
        """``entry`` no longer holds its key."""
        self.entries[entry.stored.input_id] = replace(self.entries.get(entry.stored.input_id, entry), holds=False)

    def abandon_all(self, reason: AbandonReason, *, but: Iterable[InputId] = ()) -> int:
        """End every input that has not ended; how many there were."""
        spared = set(but)
        ids = [entry.stored.input_id for entry in self.open() if entry.stored.input_id not in spared]
        for input_id in ids:
            entry = self.entries[input_id]
            run = entry.stored.seed.last_run_id if entry.stored.seed.phase is InputPhase.STAGED else None
            self.move(input_id, InputAbandoned(reason=reason, run=run))
        return len(ids)

    def defer(self, ids: Iterable[InputId]) -> None:
        """Put them behind what waits."""
        for input_id in ids:
            self.move(input_id, InputDeferred(sequence=self.next_position()))

    def say(
        self, input_id: InputId, outcome: Outcome, *, run_id: RunId | None, receipt: int | None, digest: str
    ) -> None:
        """Put ``outcome`` on its way to the service; only what completed or failed is reported."""
        if outcome.kind not in (OutcomeKind.COMPLETED, OutcomeKind.FAILED):
            return
        sequence = self.record.outbox_sequence + 1
        self.record = replace(self.record, outbox_sequence=sequence)
        said = OutboxEntry(
            id=input_id, input_id=input_id, run_id=run_id, outcome=outcome, digest=digest, receipt=receipt
        )
        row = OutboxRow(
            runtime=self.runtime_id,
            id=said.id,
            input=input_id,
            sequence=sequence,
            fence=self.entries[input_id].stored.state.input.fence,
            body=encode(said).decode(),
            created=self.now,
            updated=self.now,
        )
        self.put(row)

    def put(self, row: OutboxRow) -> None:
        """Have an entry of the outbox written as it is now, once."""
        known = self.outbox.get(row.id)
        version = 1 if known is None else known.version + (row.id not in self.changed)
        self.outbox[row.id] = msgspec.structs.replace(row, version=version)
        self.changed |= {row.id}

    # -- What is to be committed ---------------------------------------------------------------------------------

    def difference(self, base: Image) -> tuple[Commit | None, Image]:
        """What has to be written for ``base`` to become this image, None where that is nothing; and this image with the
        versions that its rows will have.
        """
        rows = []
        entries: dict[InputId, Entry] = {}
        for input_id, entry in self.entries.items():
            if entry.lasting and base.entries.get(input_id) is not entry:
                rows.append(row_of(entry))
                entry = replace(entry, version=entry.version + 1)
            entries[input_id] = entry
        lifecycle, version = None, self.version
        if self.record != base.record:
            version += 1
            lifecycle = RuntimeRow(
                runtime=self.runtime_id,
                version=version,
                phase=self.record.state.value,
                body=encode(self.record).decode(),
                updated=self.now,
            )
        commit = Commit(
            runtime=self.runtime_id,
            lifecycle=lifecycle,
            inputs=tuple(rows),
            receipts=self.receipts,
            outbox=tuple(self.outbox[key] for key in sorted(self.changed)),
            removed=tuple(msgspec.structs.replace(row_of(entry), version=entry.version) for entry in self.removed),
            observed=self.observed,
        )
        after = replace(self, entries=entries, version=version).settled()
        return (commit if any(commit.rows()) or commit.removed else None), after

    def ended_since(self, base: Image) -> Mapping[InputId, Entry]:
        """The inputs that ended since ``base``."""
        return {
            input_id: entry
            for input_id, entry in self.entries.items()
            if entry.stored.terminal and ((before := base.entries.get(input_id)) is None or not before.stored.terminal)
        }
