"""What each operation on a runtime does to its image. Pure: what has to be read first is given, nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

import msgspec

from posemesh.control.errors import DriverValidationFailed
from posemesh.control.image import Image, Run
from posemesh.control.policy import decide, problem_of, strongest
from posemesh.control.records import (
    AbandonReason,
    Boundary,
    BoundaryReceipt,
    EventCategory,
    Input,
    InputId,
    InputPhase,
    ReceiptDraft,
    RunId,
    RuntimeState,
    Signal,
    digest_of,
    encode,
)
from posemesh.control.reports import (
    Accepted,
    AcceptOutcome,
    Deduplicated,
    DestroyReport,
    Rejected,
    ResetReport,
    RetireReport,
    Standing,
)
from posemesh.control.rows import Entry
from posemesh.control.store import OutboxRow, ReceiptRow
from posemesh.events.control import (
    BoundaryRecorded,
    ExecutorAttached,
    ExecutorExited,
    InputAbandoned,
    InputAccepted,
    InputApplied,
    InputConsumed,
    InputRolledBack,
    InputStaged,
    InputSuperseded,
    RunCancelled,
    RunCommitted,
    RunFailed,
    RunPrepared,
    RunRolledBack,
    RuntimeDestroyed,
    RuntimeReset,
    RuntimeRetired,
    StagingRefused,
)
from posemesh.types import Outcome

__all__ = (
    "Disposition",
    "Outcomes",
    "admit",
    "attach",
    "begin",
    "cancel",
    "cancel_input",
    "complete",
    "destroy",
    "executor_exited",
    "fail",
    "refuse_staging",
    "reset",
    "retire",
    "roll_back",
    "settle",
    "take_over",
)

Outcomes = Mapping[InputId, Outcome]


class Disposition(StrEnum):
    """What becomes of the inputs of a run that failed."""

    REPLAY = "replay"
    """Nothing was done: they are tried again, unless they have had their attempts."""
    CONSUMED = "consumed"
    """It failed after doing something, and for good: they are done with."""
    FATE_UNKNOWN = "fate_unknown"
    """Nobody can tell what was done, and doing it twice may harm: they end, and are never run again."""


def standing_of(entry: Entry) -> Standing:
    if not entry.stored.terminal:
        return Standing.IN_FLIGHT
    return Standing.CONSUMED if entry.stored.seed.phase is InputPhase.CONSUMED else Standing.UNDELIVERED


def admit(image: Image, given: Input, found: Entry | None) -> AcceptOutcome:
    """Take in ``given``; ``found`` is what the store has under its key or id. In this order: may the runtime take
    anything, is the input valid, is it new, how is it treated.
    """
    image.fire(InputAccepted())
    problem = problem_of(given)
    if problem is not None:
        return Rejected(reason=problem)
    known = image.entries.get(given.id) or (image.holder(given.idempotency_key) if given.idempotency_key else None)
    known = known or found
    if known is not None and (known.stored.input_id == given.id or known.stored.state.input.fence >= given.fence):
        image.tell(EventCategory.INPUT, "deduplicated", input_id=known.stored.input_id)
        return Deduplicated(
            input_id=given.id,
            existing_id=known.stored.input_id,
            existing_seed=known.stored.seed,
            standing=standing_of(known),
        )
    if known is not None:
        reopen(image, known, given)
    policy = decide(given)
    entry = image.add(given, policy)
    image.record = replace(image.record, fence=max(image.record.fence, given.fence))
    return Accepted(
        input_id=given.id,
        policy=policy,
        state=entry.stored.state,
        seed=entry.stored.seed,
        reopens=known.stored.input_id if known else None,
    )


def reopen(image: Image, known: Entry, given: Input) -> None:
    """The key of ``known`` passes to ``given``, which holds a newer lease."""
    if not known.stored.terminal:
        image.entries.setdefault(known.stored.input_id, known)
        known = image.move(known.stored.input_id, InputSuperseded(by=given.id))
    image.give_up_key(known)


def take_over(image: Image, given: Input, known: Entry, waits: OutboxRow) -> AcceptOutcome:
    """Answer a newer lease of a task whose outcome still ``waits`` with that outcome: nothing is run."""
    image.fire(InputAccepted())
    if given.fence <= max(waits.fence, known.stored.state.input.fence):
        raise DriverValidationFailed(f"expected a lease after number {waits.fence}, got {given.fence}")
    if not known.stored.terminal or known.key != given.idempotency_key:
        raise DriverValidationFailed(f"expected an ended input that holds the key {given.idempotency_key!r}")
    reopen(image, known, given)
    policy = replace(decide(given), lane=None, apply=None)
    entry = image.add(given, policy)
    image.record = replace(image.record, fence=max(image.record.fence, given.fence))
    image.put(msgspec.structs.replace(waits, fence=given.fence, updated=image.now))
    return Accepted(
        input_id=given.id,
        policy=policy,
        state=entry.stored.state,
        seed=entry.stored.seed,
        reopens=known.stored.input_id,
    )


def begin(image: Image, run_id: RunId, ids: Sequence[InputId], *, name: str, drain: bool) -> RunId:
    """``run_id`` takes up ``ids``. The same run again changes nothing."""
    known = image.runs.get(run_id)
    image.fire(RunPrepared(run=run_id, drain=drain))
    if known is not None:
        if known.inputs != tuple(ids):
            raise DriverValidationFailed(f"expected run {run_id} with the inputs {known.inputs}, got {tuple(ids)}")
        return run_id
    if not ids or len(set(ids)) != len(ids):
        raise DriverValidationFailed(f"expected a run to take up inputs, each once, got {tuple(ids)}")
    image.runs[run_id] = Run(name=name, inputs=tuple(ids))
    for input_id in ids:
        image.move(input_id, InputStaged(run=run_id, current=image.runtime.runs))
    image.tell(EventCategory.RUN, "started", run_id=run_id)
    return run_id


def staged(image: Image, run: Run, run_id: RunId) -> tuple[InputId, ...]:
    """What of the run's inputs is still bound to it."""
    entries = ((input_id, image.entries.get(input_id)) for input_id in run.inputs)
    return tuple(
        input_id
        for input_id, entry in entries
        if entry is not None
        and entry.stored.seed.phase is InputPhase.STAGED
        and entry.stored.seed.last_run_id == run_id
    )


def complete(
    image: Image, draft: ReceiptDraft, outcomes: Outcomes, *, cause: str | None = None
) -> BoundaryReceipt | None:
    """The run is done: its receipt, its inputs' end and their outcomes, all at once. ``cause`` where it failed.

    None where nothing that lasts took part. Raises DriverValidationFailed where the draft is not of this run.
    """
    run_id = draft.run_id
    run = image.runs.get(run_id)
    image.fire(RunCommitted(run=run_id) if cause is None else RunFailed(run=run_id, cause=cause))
    assert run is not None
    check(image, run, draft, outcomes)
    lasting = any(image.entries[input_id].lasting for input_id in run.inputs)
    if lasting:
        image.sequence += 1
    first = image.entries[run.inputs[0]].stored.state.policy
    receipt = BoundaryReceipt(
        runtime_id=image.runtime_id,
        run_id=run_id,
        run_name=run.name,
        boundary=first.apply or Boundary.RUN_START,
        contributing_input_ids=run.inputs,
        sequence=max(image.sequence, 1),
        digest=draft.digest,
        message_count=draft.message_count,
    )
    for input_id in run.inputs:
        image.move(input_id, InputApplied(run=run_id))
        image.move(input_id, BoundaryRecorded(run=run_id, sequence=receipt.sequence))
        image.move(input_id, InputConsumed())
    leave(image, run_id, "completed" if cause is None else "failed")
    for input_id, outcome in outcomes.items():
        digest = digest_of(outcome.artifacts)
        image.say(input_id, outcome, run_id=run_id, receipt=receipt.sequence if lasting else None, digest=digest)
    if not lasting:
        return None
    row = ReceiptRow(
        runtime=image.runtime_id,
        run=run_id,
        sequence=receipt.sequence,
        body=encode(receipt).decode(),
        created=image.now,
    )
    image.receipts = (*image.receipts, row)
    return receipt


def check(image: Image, run: Run, draft: ReceiptDraft, outcomes: Outcomes) -> None:
    """Raise DriverValidationFailed where ``draft`` does not say what is known of the run."""
    artifacts = tuple(
        artifact for input_id in run.inputs if input_id in outcomes for artifact in outcomes[input_id].artifacts
    )
    digest = digest_of(artifacts) if outcomes else None
    expected = (run.inputs, digest, len(artifacts))
    got = (draft.contributing_input_ids, draft.digest, draft.message_count)
    if got != expected:
        raise DriverValidationFailed(f"expected a receipt of {expected}, got {got}")
    if draft.sequence not in (None, image.sequence + 1):
        raise DriverValidationFailed(f"expected the receipt's number to be {image.sequence + 1}, got {draft.sequence}")
    if not set(outcomes) <= set(run.inputs):
        raise DriverValidationFailed(f"expected outcomes of {run.inputs}, got some of {tuple(outcomes)}")
    gone = set(run.inputs) - set(staged(image, run, draft.run_id))
    if gone:
        raise DriverValidationFailed(
            f"expected inputs that are the run's, got {sorted(gone)}, which newer leases replaced"
        )


def leave(image: Image, run_id: RunId, name: str) -> None:
    """The run is over; what waits is looked at."""
    del image.runs[run_id]
    image.tell(EventCategory.RUN, name, run_id=run_id)
    if image.batch():
        image.signal = strongest((image.signal, Signal.WAKE_LOOP))


def fail(image: Image, run_id: RunId, cause: str, disposition: Disposition, outcomes: Outcomes) -> None:
    """The run failed. Of ``outcomes`` those are reported whose inputs have ended with it."""
    run = image.runs.get(run_id)
    if disposition is Disposition.CONSUMED and run is not None:
        artifacts = tuple(artifact for outcome in outcomes.values() for artifact in outcome.artifacts)
        draft = ReceiptDraft(
            run_id=run_id,
            contributing_input_ids=run.inputs,
            digest=digest_of(artifacts) if outcomes else None,
            message_count=len(artifacts),
        )
        complete(image, draft, outcomes, cause=cause)
        return
    image.fire(RunFailed(run=run_id, cause=cause))
    assert run is not None
    if disposition is Disposition.FATE_UNKNOWN:
        end(image, run, run_id, AbandonReason.NEVER_EXECUTED, outcomes)
    else:
        give_back(image, run, run_id, outcomes)
    leave(image, run_id, "failed")


def give_back(image: Image, run: Run, run_id: RunId, outcomes: Outcomes) -> None:
    """What is still bound to the run goes back into its lane, behind what waits there."""
    mine = staged(image, run, run_id)
    others = image.batch()
    for input_id in mine:
        image.move(input_id, InputRolledBack(run=run_id))
        if image.entries[input_id].stored.terminal:
            report(image, input_id, run_id, outcomes)
    if others:
        image.defer(mine)


def end(image: Image, run: Run, run_id: RunId, reason: AbandonReason, outcomes: Outcomes) -> None:
    for input_id in staged(image, run, run_id):
        image.move(input_id, InputAbandoned(reason=reason, run=run_id))
        report(image, input_id, run_id, outcomes)


def report(image: Image, input_id: InputId, run_id: RunId | None, outcomes: Outcomes) -> None:
    if input_id in outcomes:
        outcome = outcomes[input_id]
        image.say(input_id, outcome, run_id=run_id, receipt=None, digest=digest_of(outcome.artifacts))


def cancel(image: Image, run_id: RunId, reason: AbandonReason, outcomes: Outcomes) -> None:
    """The run was cancelled, or its lease is lost; its inputs end with that reason."""
    run = image.runs.get(run_id)
    image.fire(RunCancelled(run=run_id))
    assert run is not None
    end(image, run, run_id, reason, outcomes)
    leave(image, run_id, "cancelled")


def roll_back(image: Image, run_id: RunId) -> None:
    """The run is cleared away before it came to any end."""
    run = image.runs.get(run_id)
    image.fire(RunRolledBack(run=run_id))
    assert run is not None
    give_back(image, run, run_id, {})
    leave(image, run_id, "rolled_back")


def cancel_input(image: Image, input_id: InputId, reason: AbandonReason, outcomes: Outcomes) -> None:
    """End an input that waits; one that a run has taken up is cancelled with the run."""
    image.move(input_id, InputAbandoned(reason=reason))
    report(image, input_id, None, outcomes)


def refuse_staging(image: Image, input_id: InputId) -> None:
    """No run would take it: an attempt is counted, and it goes behind what waits."""
    image.move(input_id, StagingRefused(sequence=image.next_position()))
    if image.batch():
        image.signal = strongest((image.signal, Signal.WAKE_LOOP))


def settle(image: Image, entry_id: str, ending: str, problem: str) -> None:
    """Delivery of an outcome ended, or where ``ending`` is empty met a ``problem``."""
    row = image.outbox.get(entry_id)
    if row is None:
        raise DriverValidationFailed(f"expected an outcome that waits for delivery, got {entry_id}, which does not")
    image.put(msgspec.structs.replace(row, ending=ending, problem=problem, updated=image.now))


def attach(image: Image) -> None:
    image.fire(ExecutorAttached())
    image.loop = True
    if image.batch():
        image.signal = strongest((image.signal, Signal.WAKE_LOOP))


def executor_exited(image: Image) -> None:
    """What ran inputs is gone; whatever has not ended is abandoned."""
    image.fire(ExecutorExited())
    image.abandon_all(AbandonReason.STOPPED)
    image.loop, image.signal = False, Signal.NONE
    image.runs.clear()


def retire(image: Image) -> RetireReport:
    """What is there is worked off by what runs inputs; where nothing does, it is abandoned."""
    image.fire(RuntimeRetired())
    image.tell(EventCategory.TOPOLOGY, "retired")
    if image.loop or image.state is RuntimeState.RUNNING:
        image.signal = strongest((image.signal, Signal.WAKE_LOOP)) if image.batch() else image.signal
        return RetireReport(inputs_abandoned=0, inputs_pending_drain=sum(1 for _ in image.open()))
    return RetireReport(inputs_abandoned=image.abandon_all(AbandonReason.RETIRED))


def reset(image: Image) -> ResetReport:
    image.fire(RuntimeReset())
    image.loop, image.signal = False, Signal.NONE
    return ResetReport(inputs_abandoned=image.abandon_all(AbandonReason.RESET))


def destroy(image: Image) -> DestroyReport:
    image.fire(RuntimeDestroyed())
    image.tell(EventCategory.TOPOLOGY, "destroyed")
    abandoned = image.abandon_all(AbandonReason.DESTROYED)
    image.loop, image.signal = False, Signal.NONE
    image.runs.clear()
    return DestroyReport(inputs_abandoned=abandoned)
