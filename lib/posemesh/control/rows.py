"""Between what a store keeps and what a driver works with; and what a row has to be to be believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from posemesh.control.errors import DriverRecoveryCorruption
from posemesh.control.policy import decide
from posemesh.control.records import (
    POLICY_VERSION,
    TERMINAL_PHASES,
    AbandonReason,
    BoundaryReceipt,
    Durability,
    InputKind,
    InputPhase,
    InputStateSeed,
    OutboxEntry,
    RuntimeRecord,
    StoredInputState,
    TerminalOutcome,
    decode,
    encode,
)
from posemesh.control.store import InputRow, OutboxRow, ReceiptRow, RuntimeRow
from posemesh.errors import WireError
from posemesh.machines.input import InputSubject

__all__ = (
    "Entry",
    "entry_of",
    "outbox_entry_of",
    "receipt_of",
    "record_of",
    "row_of",
    "seed_of",
    "subject_of",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An input in memory. ``version`` is that of its row, 0 where there is none; ``holds`` its key, if it has one."""

    stored: StoredInputState
    version: int = 0
    holds: bool = True

    @property
    def key(self) -> str | None:
        return self.stored.state.input.idempotency_key if self.holds else None

    @property
    def lasting(self) -> bool:
        return self.stored.state.input.durability is not Durability.EPHEMERAL


def subject_of(seed: InputStateSeed) -> InputSubject:
    """The machine's subject that ``seed`` is of: in a lane only if queued, bound to a run only if staged."""
    ended = seed.terminal_outcome
    return InputSubject(
        state=seed.phase,
        run=seed.last_run_id if seed.phase is InputPhase.STAGED else None,
        last_run=seed.last_run_id,
        boundary=seed.last_boundary_sequence,
        sequence=seed.admission_sequence,
        lane=seed.recovery_lane if seed.phase is InputPhase.QUEUED else None,
        recovery_lane=seed.recovery_lane,
        attempts=seed.attempt_count,
        by=ended.by if ended else None,
        reason=ended.reason if ended else None,
    )


def seed_of(subject: InputSubject) -> InputStateSeed:
    """The facts of ``subject``."""
    phase = subject.state
    assert isinstance(phase, InputPhase)
    gave_up = subject.reason is AbandonReason.MAX_ATTEMPTS
    ended = TerminalOutcome(
        phase=phase, by=subject.by, reason=subject.reason, attempts=subject.attempts if gave_up else None
    )
    return InputStateSeed(
        phase=phase,
        last_run_id=subject.last_run,
        last_boundary_sequence=subject.boundary,
        admission_sequence=subject.sequence,
        terminal_outcome=ended if phase in TERMINAL_PHASES else None,
        attempt_count=subject.attempts,
        recovery_lane=subject.recovery_lane,
    )


def row_of(entry: Entry) -> InputRow:
    """The row that ``entry`` is to be written as, after the one it was read from."""
    stored, given = entry.stored, entry.stored.state.input
    ended = stored.seed.terminal_outcome
    return InputRow(
        runtime=stored.runtime_id,
        version=entry.version + 1,
        body=encode(_bare(stored)).decode(),
        id=given.id,
        phase=stored.seed.phase.value,
        open=not stored.terminal,
        position=stored.seed.admission_sequence or 0,
        key=entry.key,
        kind=given.kind.value,
        task=given.idempotency_key or "" if given.kind is InputKind.TASK else "",
        capability=given.capability,
        fence=given.fence,
        run=stored.seed.last_run_id,
        reason=(ended.reason or "") if ended else "",
        created=stored.state.created_at,
        updated=stored.state.updated_at,
    )


def _bare(stored: StoredInputState) -> StoredInputState:
    """Without the lease's token, which is short-lived: a heartbeat brings whoever goes on with the lease a new one."""
    given = stored.state.input
    if given.payload.get("access_token") is None:
        return stored
    bare = replace(given, payload={**given.payload, "access_token": None})
    return replace(stored, state=replace(stored.state, input=bare))


def entry_of(row: InputRow) -> Entry:
    """What ``row`` says. Raises DriverRecoveryCorruption where it does not make sense."""
    try:
        stored = decode(StoredInputState, row.body)
    except WireError as error:
        raise DriverRecoveryCorruption(f"input {row.id}: {error}") from error
    problem = next(_problems(row, stored), "")
    if problem:
        raise DriverRecoveryCorruption(f"input {row.id}: {problem}")
    return Entry(stored=stored, version=row.version, holds=row.key is not None)


def _problems(row: InputRow, stored: StoredInputState) -> Iterator[str]:
    seed, given = stored.seed, stored.state.input
    if (row.runtime, row.id, row.phase) != (stored.runtime_id, given.id, seed.phase.value):
        yield f"its row is of {row.id} in {row.phase}, its body of {given.id} in {seed.phase}"
    if row.open == stored.terminal:
        yield f"it is {seed.phase} and {'open' if row.open else 'closed'}"
    if row.key not in (None, given.idempotency_key):
        yield f"it holds the key {row.key!r} and was given {given.idempotency_key!r}"
    if stored.state.policy.version > POLICY_VERSION:
        yield f"a policy of version {stored.state.policy.version} decided on it; this program knows {POLICY_VERSION}"
    current = stored.state.policy.version == POLICY_VERSION
    if current and not stored.terminal and stored.state.policy != decide(given):
        yield f"what was decided on it is not what a {given.kind} gets"
    if stored.terminal != (seed.terminal_outcome is not None):
        yield f"it is {seed.phase} with the end {seed.terminal_outcome}"
    if seed.terminal_outcome is not None and seed.terminal_outcome.phase is not seed.phase:
        yield f"it is {seed.phase} and ended as {seed.terminal_outcome.phase}"
    if not stored.terminal and seed.phase is not InputPhase.ACCEPTED:
        if seed.recovery_lane is None or seed.recovery_lane is not stored.state.policy.lane:
            yield f"it waits in lane {seed.recovery_lane} and belongs in {stored.state.policy.lane}"
        if seed.admission_sequence is None:
            yield "it has no place in the order of admission"
        elif seed.admission_sequence != row.position:
            yield f"its place is {seed.admission_sequence}, that of its row {row.position}"
    if not stored.terminal and given.kind is InputKind.TASK and not given.payload:
        yield "it is a task without what is to be done"


def record_of(row: RuntimeRow) -> RuntimeRecord:
    """What ``row`` says of a runtime. Raises DriverRecoveryCorruption where it does not make sense."""
    try:
        record = decode(RuntimeRecord, row.body)
    except WireError as error:
        raise DriverRecoveryCorruption(f"runtime {row.runtime}: {error}") from error
    if record.state.value != row.phase:
        raise DriverRecoveryCorruption(f"runtime {row.runtime}: its row is {row.phase}, its body {record.state}")
    return record


def receipt_of(row: ReceiptRow) -> BoundaryReceipt:
    """The receipt in ``row``. Raises DriverRecoveryCorruption where it is none, or another one's."""
    try:
        receipt = decode(BoundaryReceipt, row.body)
    except WireError as error:
        raise DriverRecoveryCorruption(f"receipt {row.sequence} of {row.runtime}: {error}") from error
    if (receipt.runtime_id, receipt.run_id, receipt.sequence) != (row.runtime, row.run, row.sequence):
        raise DriverRecoveryCorruption(f"receipt {row.sequence} of {row.runtime} is one of {receipt.runtime_id}")
    return receipt


def outbox_entry_of(row: OutboxRow) -> OutboxEntry:
    """What ``row`` has to say to the service. Raises DriverRecoveryCorruption where that cannot be read."""
    try:
        return decode(OutboxEntry, row.body)
    except WireError as error:
        raise DriverRecoveryCorruption(f"outbox entry {row.id} of {row.runtime}: {error}") from error
