"""What is made of what a dead process left. Pure: the rows are read before, and written after, if nobody else wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum

from posemesh.control.errors import DriverDestroyed, DriverRecoveryCorruption
from posemesh.control.image import Image
from posemesh.control.policy import strongest
from posemesh.control.records import (
    AbandonReason,
    EventCategory,
    InputPhase,
    Lane,
    RuntimeState,
    Signal,
    StoredInputState,
)
from posemesh.control.reports import RecoveryReport
from posemesh.control.rows import Entry, entry_of, receipt_of, record_of
from posemesh.control.store import LedgerCorrupt, LedgerTooNew, ReceiptRow, RuntimeRow, Snapshot, StoreError
from posemesh.events.control import InputRecovered, RuntimeInitialized, RuntimeRecovered, RuntimeRetired
from posemesh.machines.driver import STORED

__all__ = ("RunStatus", "Verdict", "load", "reconcile", "recover", "run_status", "runs_to_look_up")


class Verdict(StrEnum):
    """What is to be done about a runtime's row, as it was found."""

    REPLACE = "replace"
    """There is none: the runtime is new."""
    CONVERGED = "converged"
    """It is idle, and nothing is to be done."""
    NORMALIZE = "normalize"
    """A dead process left another state: what it means is carried over."""
    REPAIR_BLOCKED = "repair_blocked"
    """It cannot be read, or not by this program. It is left as it is; an operator has to look at it."""
    BACK_OFF = "back_off"
    """It could not be looked at now. That does not mean that there is none."""


def reconcile(found: RuntimeRow | StoreError | None) -> Verdict:
    """Every observation has exactly one verdict."""
    match found:
        case None:
            return Verdict.REPLACE
        case LedgerCorrupt() | LedgerTooNew():
            return Verdict.REPAIR_BLOCKED
        case StoreError():
            return Verdict.BACK_OFF
        case RuntimeRow():
            try:
                record = record_of(found)
            except DriverRecoveryCorruption:
                return Verdict.REPAIR_BLOCKED
            if record.state not in STORED:
                return Verdict.REPAIR_BLOCKED
            return Verdict.CONVERGED if record.state is RuntimeState.IDLE else Verdict.NORMALIZE


def load(image: Image, snapshot: Snapshot, epoch: str) -> None:
    """Take up the runtime for this process: it was retired or destroyed and stays so, or begins idle."""
    row = snapshot.lifecycle
    verdict = reconcile(row)
    if row is not None and verdict is Verdict.REPAIR_BLOCKED:
        record_of(row)
        raise DriverRecoveryCorruption(f"runtime {row.runtime}: no process leaves it {row.phase}")
    if row is not None:
        image.record, image.version = record_of(row), row.version
    state = image.record.state
    retired, destroyed = state is RuntimeState.RETIRED, state is RuntimeState.DESTROYED
    image.fire(RuntimeInitialized(epoch=epoch, retired=retired, destroyed=destroyed))
    if verdict is Verdict.REPLACE:
        image.tell(EventCategory.TOPOLOGY, "created")


def runs_to_look_up(snapshot: Snapshot) -> tuple[str, ...]:
    """The runs whose receipts decide what becomes of their inputs."""
    phases = (InputPhase.APPLIED.value, InputPhase.APPLIED_PENDING_CONSUMPTION.value)
    return tuple(dict.fromkeys(row.run for row in snapshot.inputs if row.run is not None and row.phase in phases))


def recover(
    image: Image, snapshot: Snapshot, receipts: Mapping[str, Iterable[ReceiptRow]], *, same_process: bool = False
) -> RecoveryReport:
    """Put in order what is stored, each row through its machine. ``same_process`` keeps what does not last."""
    image.fire(RuntimeRecovered())
    if snapshot.lifecycle is not None:
        found = record_of(snapshot.lifecycle)
        if found.state is RuntimeState.DESTROYED:
            raise DriverDestroyed("RuntimeRecovered")
        if found.state is RuntimeState.RETIRED and not same_process:
            image.fire(RuntimeRetired())
        image.version = snapshot.lifecycle.version
        image.record = replace(found, state=image.record.state, epoch=image.runtime.epoch or found.epoch)
    passing = {key: entry for key, entry in image.entries.items() if not entry.lasting and not entry.stored.terminal}
    image.entries = {key: entry for key, entry in image.entries.items() if entry.stored.terminal}
    rows = [entry_of(row) for row in snapshot.inputs]
    image.removed = tuple(entry for entry in rows if not entry.lasting)
    discarded = len(image.removed) + (0 if same_process else len(passing))
    image.entries |= {entry.stored.input_id: entry for entry in rows if entry.lasting}
    image.entries |= passing if same_process else {}
    image.position = max(image.position, snapshot.position)
    image.sequence, image.observed = snapshot.sequence, snapshot.observed
    image.outbox = {row.id: row for row in snapshot.outbox}
    image.signal = Signal.NONE
    details = [_normalize(image, entry, receipts) for entry in rows if entry.lasting]
    after = [image.entries[entry.stored.input_id].stored.seed.phase for entry in rows if entry.lasting]
    abandoned = after.count(InputPhase.ABANDONED)
    kept = len(passing) if same_process else 0
    if image.batch():
        image.signal = strongest((image.signal, Signal.WAKE_LOOP))
    return RecoveryReport(
        inputs_recovered=len(after) - abandoned + kept,
        inputs_abandoned=abandoned,
        inputs_requeued=sum("requeued" in line for line in details),
        inputs_discarded=discarded,
        details=tuple(line for line in details if line),
    )


def _normalize(image: Image, entry: Entry, receipts: Mapping[str, Iterable[ReceiptRow]]) -> str:
    """Send one row through its machine; what became of it, in words, empty where it waits as before."""
    stored = entry.stored
    lane = stored.state.policy.lane or Lane.QUEUE
    new = stored.seed.phase is InputPhase.ACCEPTED
    event = InputRecovered(
        receipt=_has_receipt(stored, receipts.get(stored.seed.last_run_id or "", ())),
        lane=lane,
        sequence=image.next_position() if new else stored.seed.admission_sequence or 0,
    )
    moved = image.move(stored.input_id, event)
    count = replace(moved.stored.state, recovery_count=stored.state.recovery_count + 1)
    image.entries[stored.input_id] = replace(moved, stored=replace(moved.stored, state=count))
    seed = moved.stored.seed
    match seed.phase:
        case InputPhase.QUEUED:
            was = stored.seed.phase
            return "" if was is InputPhase.QUEUED else f"requeued {stored.input_id}, which was {was}"
        case InputPhase.CONSUMED:
            return f"found the receipt of {stored.input_id}: it is done"
        case _:
            return f"gave up {stored.input_id} after {seed.attempt_count} attempts"


def _has_receipt(stored: StoredInputState, rows: Iterable[ReceiptRow]) -> bool:
    found = [receipt_of(row) for row in rows]
    sequence = stored.seed.last_boundary_sequence
    pending = stored.seed.phase is InputPhase.APPLIED_PENDING_CONSUMPTION
    return any(
        stored.input_id in receipt.contributing_input_ids and (not pending or receipt.sequence == sequence)
        for receipt in found
    )


class RunStatus(StrEnum):
    """What can be said of a run by its inputs alone."""

    IN_FLIGHT = "in_flight"
    CONSUMED = "consumed"
    ABANDONED = "abandoned"
    DISPLACED = "displaced"
    NO_DURABLE_WITNESS = "no_durable_witness"
    """No input names it as its last: a run that was tried again is found so, and did not fail by that."""


def run_status(inputs: Iterable[StoredInputState]) -> tuple[RunStatus, AbandonReason | None]:
    """The status of the run that was the last of ``inputs``; for Abandoned the reason of the first by admission."""
    found = sorted(inputs, key=lambda stored: (stored.seed.admission_sequence or 0, stored.input_id))
    if not found:
        return RunStatus.NO_DURABLE_WITNESS, None
    if not all(stored.terminal for stored in found):
        return RunStatus.IN_FLIGHT, None
    if any(stored.seed.phase is InputPhase.CONSUMED for stored in found):
        return RunStatus.CONSUMED, None
    for stored in found:
        if stored.seed.phase is InputPhase.ABANDONED and stored.seed.terminal_outcome is not None:
            return RunStatus.ABANDONED, stored.seed.terminal_outcome.reason
    return RunStatus.DISPLACED, None
