"""The rows in which a node's ledger keeps its leases and outcomes, and what they mean when they are read again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from posemesh.control.policy import DEPTH_MAX, is_too_deep
from posemesh.control.records import (
    Boundary,
    BoundaryReceipt,
    InputId,
    InputKind,
    InputPhase,
    LogicalRuntimeId,
    OutboxEntry,
    RunId,
    decode,
    digest_of,
    encode,
)
from posemesh.control.store import Commit, InputRow, LedgerCorrupt, OutboxRow, ReceiptRow
from posemesh.control.vault import Vault
from posemesh.errors import WireError
from posemesh.types import LeaseEnvelope, Outcome, OutcomeKind

__all__ = (
    "Interrupted",
    "Kept",
    "Owed",
    "displaced",
    "ending",
    "entry_of",
    "given_up",
    "has_receipt",
    "interrupted_of",
    "taken",
    "taken_again",
    "together",
)

_REPORTED: Final = (OutcomeKind.COMPLETED, OutcomeKind.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept of a lease until it ends: what was asked and on whose behalf, its token sealed, and how often it was
    begun here.
    """

    envelope: LeaseEnvelope
    token: str | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """Work that was under way when the node before this one ended. The token of ``envelope`` may be an old one, or
    missing. ``position`` is its place among all that was leased.
    """

    id: str
    envelope: LeaseEnvelope
    attempts: int
    fence: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """An outcome that the service has not answered to. ``position`` is the place of what was leased last before it was
    recorded, None where that is not known.
    """

    id: str
    outcome: Outcome
    fence: int
    position: int | None


def taken(
    runtime: str, id: str, run: str, position: int, envelope: LeaseEnvelope, now: float, vault: Vault | None
) -> InputRow:
    """A lease that was accepted and is to be run, in one row: nothing waits between the two."""
    task = str(envelope.task.id)
    return InputRow(
        runtime=runtime,
        id=id,
        phase=InputPhase.STAGED.value,
        position=position,
        key=task,
        kind=InputKind.TASK.value,
        task=task,
        capability=envelope.task.capability,
        fence=position,
        run=run,
        created=now,
        updated=now,
        body=_kept(envelope, 1, vault),
    )


def taken_again(
    row: InputRow, run: str, fence: int, envelope: LeaseEnvelope, now: float, vault: Vault | None
) -> InputRow:
    """A lease that was found and stands: a new attempt of the same input."""
    attempts = decode(Kept, row.body).attempts + 1
    return row.next(run=run, fence=fence, updated=now, body=_kept(envelope, attempts, vault))


def _kept(envelope: LeaseEnvelope, attempts: int, vault: Vault | None) -> str:
    if is_too_deep([envelope.task.meta, envelope.task.capability_filters]):
        raise WireError(f"expected a task whose JSON is nested at most {DEPTH_MAX} deep, got a deeper one")
    token = None if envelope.access_token is None or vault is None else vault.seal(envelope.access_token)
    expires = None if token is None else envelope.access_token_expires_at
    bare = replace(envelope, access_token=None, access_token_expires_at=expires)
    return encode(Kept(envelope=bare, token=token, attempts=attempts)).decode()


def displaced(holder: InputRow | None, row: InputRow) -> tuple[InputRow, ...]:
    """What an earlier lease of the row's task left, which gives up its key to it."""
    if holder is None or holder.id == row.id:
        return ()
    if not holder.open:
        return (holder.next(key=None, updated=row.updated),)
    reason = f"superseded by {row.id}"
    phase = InputPhase.SUPERSEDED.value
    return (holder.next(key=None, open=False, phase=phase, reason=reason, updated=row.updated, body="{}"),)


def given_up(row: InputRow, reason: str, now: float) -> Commit:
    """The commit with which a lease ends that is neither gone on with nor reported."""
    phase = InputPhase.SUPERSEDED.value
    ended = row.next(key=None, open=False, phase=phase, reason=reason, updated=now, body="{}")
    return Commit(runtime=row.runtime, inputs=(ended,))


def together(commit: Commit, others: Iterable[Commit]) -> Commit:
    """One commit of all these, which write to different rows; only the first adds receipts."""
    inputs, outbox = list(commit.inputs), list(commit.outbox)
    for other in others:
        inputs += other.inputs
        outbox += other.outbox
    return Commit(runtime=commit.runtime, inputs=tuple(inputs), receipts=commit.receipts, outbox=tuple(outbox))


def ending(
    row: InputRow,
    holder: InputRow | None,
    outcome: Outcome,
    *,
    entry: str,
    name: str,
    sequence: int,
    position: int,
    now: float,
) -> Commit:
    """The commit of a lease's end: its input's, the receipt of a run that came to its end (``name`` is the router's for
    it), and what the service is to hear. ``position`` is the last place that was given to an input.
    """
    reported = outcome.kind in _REPORTED
    why = outcome.kind.value if outcome.kind is OutcomeKind.COMPLETED else outcome.reason or outcome.kind.value
    if row.open:
        phase = (InputPhase.CONSUMED if reported else InputPhase.ABANDONED).value
        key = row.task if reported else None
        ended = row.next(open=False, phase=phase, key=key, reason=why, updated=now, body="{}")
        inputs = (*displaced(holder, ended), ended)
    else:  # a newer lease of the task has taken its place meanwhile, and has the key
        ended = row.next(reason=f"{row.reason}; {why}", updated=now)
        inputs = (ended,)
    digest = digest_of(outcome.artifacts)
    receipts = (_receipt(ended, outcome, digest, name, sequence),) if has_receipt(row, outcome) else ()
    number = receipts[0].sequence if receipts else None
    outbox = (_waiting(ended, outcome, entry, digest, number, position),) if reported else ()
    return Commit(runtime=row.runtime, inputs=inputs, outbox=outbox, receipts=receipts)


def has_receipt(row: InputRow, outcome: Outcome) -> bool:
    """Whether a run came to its end."""
    return outcome.kind is OutcomeKind.COMPLETED and row.run is not None


def _receipt(ended: InputRow, outcome: Outcome, digest: str, name: str, sequence: int) -> ReceiptRow:
    assert ended.run is not None
    receipt = BoundaryReceipt(
        runtime_id=LogicalRuntimeId(ended.runtime),
        run_id=RunId(ended.run),
        boundary=Boundary.RUN_START,
        contributing_input_ids=(InputId(ended.id),),
        sequence=sequence,
        run_name=name,
        digest=digest,
        message_count=len(outcome.artifacts),
    )
    body = encode(receipt).decode()
    return ReceiptRow(runtime=ended.runtime, run=ended.run, sequence=sequence, body=body, created=ended.updated)


def _waiting(ended: InputRow, outcome: Outcome, id: str, digest: str, receipt: int | None, position: int) -> OutboxRow:
    run = None if ended.run is None else RunId(ended.run)
    entry = OutboxEntry(
        id=id,
        input_id=InputId(ended.id),
        run_id=run,
        outcome=outcome,
        digest=digest,
        receipt=receipt,
        position=position,
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


def interrupted_of(row: InputRow, vault: Vault | None) -> Interrupted:
    """Raises LedgerCorrupt."""
    try:
        kept = decode(Kept, row.body)
    except WireError as error:
        raise LedgerCorrupt(f"inputs {row.runtime}/{row.id}: {error}; it was left as it is") from None
    token = None if kept.token is None or vault is None else vault.open(kept.token)
    expires = None if token is None else kept.envelope.access_token_expires_at
    envelope = replace(kept.envelope, access_token=token, access_token_expires_at=expires)
    return Interrupted(id=row.id, envelope=envelope, attempts=kept.attempts, fence=row.fence, position=row.position)


def entry_of(row: OutboxRow) -> OutboxEntry:
    """Raises LedgerCorrupt, also where the artifacts are not those that were committed."""
    try:
        entry = decode(OutboxEntry, row.body)
    except WireError as error:
        raise LedgerCorrupt(f"outbox {row.runtime}/{row.id}: {error}; it was left as it is") from None
    if entry.digest != digest_of(entry.outcome.artifacts):
        raise LedgerCorrupt(f"outbox {row.runtime}/{row.id}: its artifacts are not those of its digest; left as it is")
    return entry
