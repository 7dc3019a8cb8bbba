"""The driver of one hosted runtime: it takes inputs in, has them run, and keeps the record of what became of them.

What a call did is on record when it returns. One that raises has changed nothing, but for one thing: where the disk
failed nobody knows until the next call, which finds out first. A caller that leaves does not stop what it asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

from posemesh.control import operations, recovery
from posemesh.control.desk import Desk
from posemesh.control.errors import DriverNotFound
from posemesh.control.image import Image
from posemesh.control.operations import Disposition, Outcomes
from posemesh.control.records import (
    AbandonReason,
    BoundaryReceipt,
    EventCategory,
    Ids,
    Input,
    InputId,
    InputPhase,
    InputState,
    LogicalRuntimeId,
    ReceiptDraft,
    RunId,
    RuntimeEvent,
    RuntimeEventEnvelope,
    RuntimeState,
    Signal,
    StoredInputState,
    TerminalOutcome,
)
from posemesh.control.reports import (
    Accepted,
    AcceptOutcome,
    DestroyReport,
    RecoveryReport,
    RecycleReport,
    ResetReport,
    RetireReport,
)
from posemesh.control.rows import Entry, entry_of
from posemesh.control.store import OutboxRow, ReceiptRow, Snapshot, Store
from posemesh.events import Event
from posemesh.events.control import (
    Obligation,
    ObligationClosed,
    RuntimeEventPublished,
    RuntimeRecycled,
    RuntimeRegistered,
    StopRequested,
    UnregisterBegun,
    Unregistered,
)
from posemesh.machines.driver import RuntimeSubject
from posemesh.shell.clock import Clock

__all__ = ("HostedRuntime", "RuntimeDriver")

_Looked: TypeAlias = tuple[Snapshot, Mapping[str, tuple[ReceiptRow, ...]]]


@runtime_checkable
class RuntimeDriver(Protocol):
    """What takes in the inputs of one runtime and knows what became of them. It raises RuntimeDriverError."""

    async def accept_input(self, input: Input) -> AcceptOutcome:
        """Take in ``input``; what is durable is on record when this returns."""
        ...

    async def on_runtime_event(self, event: RuntimeEventEnvelope) -> None:
        """Be told of an event."""
        ...

    async def recover(self) -> RecoveryReport:
        """Read again what is on record, and put it in order."""
        ...

    def runtime_state(self) -> RuntimeState: ...

    def input_state(self, input_id: InputId) -> InputState | None:
        """What is known around an input, None where it is not in memory: one that never was, or ended long ago."""
        ...

    def input_phase(self, input_id: InputId) -> InputPhase | None: ...

    def input_last_run_id(self, input_id: InputId) -> RunId | None: ...

    def input_last_boundary_sequence(self, input_id: InputId) -> int | None: ...

    def stored_input_state(self, input_id: InputId) -> StoredInputState | None: ...

    def active_input_ids(self) -> list[InputId]:
        """Inputs that have not ended, in the order in which they came."""
        ...


class HostedRuntime(RuntimeDriver):
    """The driver, on ``store``, for one loop. ``register`` comes first.

    ``clock`` gives the times that are recorded; ``slots`` is how many runs there may be at a time. ``announce`` is told
    of everything that happened, once it is on record; it must not raise.
    """

    def __init__(
        self,
        runtime_id: LogicalRuntimeId,
        store: Store,
        *,
        clock: Clock,
        ids: Ids,
        slots: int = 1,
        announce: Callable[[RuntimeEventEnvelope], None] | None = None,
    ) -> None:
        self.runtime_id = runtime_id
        self._store = store
        self._ids = ids
        image = Image(runtime_id=runtime_id, runtime=RuntimeSubject(slots=slots))
        self._desk = Desk(image, store, clock, ids, announce)
        self._fence = 0

    @property
    def _image(self) -> Image:
        return self._desk.image

    async def _fire(self, event: Event) -> None:
        await self._desk.do(lambda image, _: image.fire(event))

    async def _known(self, given: Input) -> Entry | None:
        """What the store has under an input's key or id and memory has not."""
        key = given.idempotency_key
        if given.id in self._image.entries or (key and self._image.holder(key)):
            return None
        row = await self._store.holder(self.runtime_id, key) if key else None
        row = row or await self._store.input(self.runtime_id, given.id)
        return entry_of(row) if row else None

    async def _read(self) -> _Looked:
        """What is on record of the runtime, and the receipts that decide about its inputs."""
        snapshot = await self._store.snapshot(self.runtime_id)
        runs = recovery.runs_to_look_up(snapshot)
        return snapshot, {run: await self._store.receipts(self.runtime_id, run=run) for run in runs}

    # -- What it takes in and tells --------------------------------------------------------------------------------

    async def accept_input(self, input: Input) -> AcceptOutcome:
        return await self._desk.do(
            lambda image, found: operations.admit(image, input, found), lambda: self._known(input)
        )

    async def accept_and_begin(self, input: Input, name: str = "") -> tuple[AcceptOutcome, RunId | None]:
        """Take in ``input`` and, if it is new, begin a run of it alone, in one commit. ``name`` is the router's."""
        run_id = self._ids.run()

        def apply(image: Image, found: Entry | None) -> tuple[AcceptOutcome, RunId | None]:
            outcome = operations.admit(image, input, found)
            if not isinstance(outcome, Accepted):
                return outcome, None
            return outcome, operations.begin(image, run_id, (input.id,), name=name, drain=False)

        return await self._desk.do(apply, lambda: self._known(input))

    async def take_over(self, input: Input, waits: OutboxRow) -> AcceptOutcome:
        """Answer a newer lease of a task with the outcome that still ``waits`` for delivery, and run nothing."""

        def apply(image: Image, found: Entry | None) -> AcceptOutcome:
            known = image.holder(input.idempotency_key or "") or found
            current = image.outbox.get(waits.id)
            if known is None or current is None:
                return operations.admit(image, input, found)
            return operations.take_over(image, input, known, current)

        return await self._desk.do(apply, lambda: self._known(input))

    async def on_runtime_event(self, event: RuntimeEventEnvelope) -> None:
        """Of all categories only a projection changes anything: it is the latest of its name (EventCategory)."""
        if event.runtime_id != self.runtime_id:
            raise DriverNotFound(event.runtime_id)

        def apply(image: Image, _: None) -> None:
            image.fire(RuntimeEventPublished())
            if event.event.category is EventCategory.PROJECTION:
                image.projections[event.event.name] = event.event

        await self._desk.do(apply)

    def next_fence(self) -> int:
        """The number of a new lease: higher than any before, also of processes before."""
        self._fence = max(self._fence, self._image.record.fence) + 1
        return self._fence

    async def wait(self, input_id: InputId) -> TerminalOutcome | None:
        """How an input ends, once it has; None where it had ended before. Raises
        DriverRecoveryCorruption where recovery does not find it any more.
        """
        return await self._desk.wait(input_id)

    # -- Its life --------------------------------------------------------------------------------------------------

    async def register(self) -> RecoveryReport:
        """Take the runtime up for this process, and put its inputs in order; of a destroyed one nothing is read."""
        epoch = self._ids()

        def apply(image: Image, looked: _Looked) -> RecoveryReport:
            if image.state is not RuntimeState.INITIALIZING:
                image.fire(RuntimeRegistered(epoch=image.runtime.epoch or epoch))
                return RecoveryReport(inputs_recovered=0, inputs_abandoned=0, inputs_requeued=0)
            snapshot, receipts = looked
            recovery.load(image, snapshot, epoch)
            if image.record.state is RuntimeState.DESTROYED:
                return RecoveryReport(inputs_recovered=0, inputs_abandoned=0, inputs_requeued=0)
            return recovery.recover(image, snapshot, receipts)

        return await self._desk.do(apply, self._read, alone=True)

    async def recover(self) -> RecoveryReport:
        return await self._desk.do(lambda image, looked: recovery.recover(image, *looked), self._read, alone=True)

    async def recycle(self) -> RecycleReport:
        """Begin anew with the same inputs, in the same order; whoever waits for one goes on waiting."""

        def apply(image: Image, looked: _Looked) -> RecycleReport:
            transferred = sum(1 for _ in image.open())
            image.fire(RuntimeRecycled())
            image.tell(EventCategory.TOPOLOGY, "recycled")
            image.loop = image.state is RuntimeState.ATTACHED
            recovery.recover(image, *looked, same_process=True)
            return RecycleReport(inputs_transferred=transferred)

        return await self._desk.do(apply, self._read, alone=True)

    async def retire(self) -> RetireReport:
        return await self._desk.do(lambda image, _: operations.retire(image))

    async def reset(self) -> ResetReport:
        return await self._desk.do(lambda image, _: operations.reset(image))

    async def destroy(self) -> DestroyReport:
        return await self._desk.do(lambda image, _: operations.destroy(image))

    async def attach(self) -> None:
        """What runs inputs is ready."""
        await self._desk.do(lambda image, _: operations.attach(image))

    async def request_stop(self) -> None:
        """What runs inputs is to end; ``executor_exited`` tells that it has."""
        await self._fire(StopRequested())

    async def executor_exited(self) -> None:
        await self._desk.do(lambda image, _: operations.executor_exited(image))

    async def begin_unregister(self) -> None:
        """Begin nothing more. ``close`` each obligation, then ``unregister``."""
        await self._fire(UnregisterBegun())

    async def close(self, obligation: Obligation, *, forced: bool = False) -> None:
        await self._fire(ObligationClosed(obligation=obligation, forced=forced))

    async def unregister(self) -> None:
        """Let go of the runtime. What is on record stays as it is, for the next process."""

        def apply(image: Image, _: None) -> None:
            record = image.record
            image.fire(Unregistered(epoch=image.runtime.epoch))
            image.record = record

        await self._desk.do(apply)

    def forced(self) -> frozenset[Obligation]:
        """The obligations that were cut short when it was let go of."""
        return self._image.runtime.forced

    # -- Runs ------------------------------------------------------------------------------------------------------

    def next_batch(self) -> tuple[InputId, ...]:
        """What is to be run next; empty only where nothing waits."""
        return self._image.batch()

    def take_signal(self) -> Signal:
        """The strongest signal since it was last taken."""
        signal, self._image.signal = self._image.signal, Signal.NONE
        return signal

    async def begin(self, ids: Iterable[InputId], name: str = "", *, drain: bool = False) -> RunId:
        """Begin a run of ``ids``; that it has them is on record when this returns. ``drain`` for a retired runtime."""
        taken, run_id = tuple(ids), self._ids.run()
        return await self._desk.do(lambda image, _: operations.begin(image, run_id, taken, name=name, drain=drain))

    async def complete(self, draft: ReceiptDraft, outcomes: Outcomes | None = None) -> BoundaryReceipt | None:
        """The run is done: receipt, inputs and outcomes in one commit. None where it was of nothing that lasts."""
        return await self._desk.do(lambda image, _: operations.complete(image, draft, outcomes or {}))

    async def fail(self, run_id: RunId, cause: str, disposition: Disposition, outcomes: Outcomes | None = None) -> None:
        """The run failed, because of ``cause``. Of ``outcomes`` those are reported whose inputs end with it."""
        await self._desk.do(lambda image, _: operations.fail(image, run_id, cause, disposition, outcomes or {}))

    async def cancel(
        self,
        run_id: RunId,
        reason: AbandonReason = AbandonReason.CANCELLED,
        outcomes: Outcomes | None = None,
    ) -> None:
        await self._desk.do(lambda image, _: operations.cancel(image, run_id, reason, outcomes or {}))

    async def roll_back(self, run_id: RunId) -> None:
        """The run came to no end at all; what it had taken up is tried again."""
        await self._desk.do(lambda image, _: operations.roll_back(image, run_id))

    async def cancel_input(
        self,
        input_id: InputId,
        reason: AbandonReason = AbandonReason.CANCELLED,
        outcomes: Outcomes | None = None,
    ) -> None:
        """End an input that waits. What a run has taken up is cancelled with the run."""
        await self._desk.do(lambda image, _: operations.cancel_input(image, input_id, reason, outcomes or {}))

    async def refuse_staging(self, input_id: InputId) -> None:
        """No run would take it now."""
        await self._desk.do(lambda image, _: operations.refuse_staging(image, input_id))

    # -- Outbox ----------------------------------------------------------------------------------------------------

    def undelivered(self) -> tuple[OutboxRow, ...]:
        """Outcomes that wait for their delivery, the oldest first."""
        return tuple(sorted(self._image.outbox.values(), key=lambda row: row.sequence))

    async def settle(self, entry_id: str, ending: str, problem: str = "") -> None:
        """The delivery of an outcome ended, or with an empty ``ending`` met a problem and goes on."""
        await self._desk.do(lambda image, _: operations.settle(image, entry_id, ending, problem))

    # -- What is known ---------------------------------------------------------------------------------------------

    def runtime_state(self) -> RuntimeState:
        return self._image.state

    def input_state(self, input_id: InputId) -> InputState | None:
        stored = self.stored_input_state(input_id)
        return stored.state if stored else None

    def input_phase(self, input_id: InputId) -> InputPhase | None:
        stored = self.stored_input_state(input_id)
        return stored.seed.phase if stored else None

    def input_last_run_id(self, input_id: InputId) -> RunId | None:
        stored = self.stored_input_state(input_id)
        return stored.seed.last_run_id if stored else None

    def input_last_boundary_sequence(self, input_id: InputId) -> int | None:
        stored = self.stored_input_state(input_id)
        return stored.seed.last_boundary_sequence if stored else None

    def stored_input_state(self, input_id: InputId) -> StoredInputState | None:
        entry = self._image.entries.get(input_id)
        return entry.stored if entry else None

    def active_input_ids(self) -> list[InputId]:
        return [entry.stored.input_id for entry in self._image.open()]

    def projection(self, name: str) -> RuntimeEvent | None:
        """The latest projection of that name that the runtime was told of."""
        return self._image.projections.get(name)
