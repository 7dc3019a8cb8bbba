"""What a runtime promises, one test a behaviour, on both stores. The numbers are those of the list it was built to.

These do not apply, or are shown elsewhere:

* 6: a key whose input ended without being worked off stays bound to it for its lease; it is a newer lease of the
  task, and nothing else, that opens it anew. Both are shown.
* 19: no executor is stopped by a commit that failed: nothing has changed, so it goes on. What asks for a cold reload
  there is a commit of which nobody knows whether it happened; the driver finds out before it does anything else.
* 36: there is no result that is on disk and not committed: the commit is the first durable form of an outcome. What is
  left of the rule, that no second boundary is made of work that has one, is shown.
* 37: of a lease's rules those about renewals, cancellation and settling are the lease session's, whose machine has its
  own tests; a report after a lease's expiry is offered, as only the service knows. Here are those about fences.
* 20, 21, 25 and 38 are shown here through the driver; the stores' own tests show them row by row.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from posemesh.control.errors import (
    DriverDestroyed,
    DriverInternal,
    DriverNotReady,
    DriverRecoveryCorruption,
    DriverValidationFailed,
    PlaneNotFound,
)
from posemesh.control.operations import Disposition
from posemesh.control.plane import Hosting
from posemesh.control.policy import RejectReason, decide
from posemesh.control.records import (
    AbandonReason,
    Boundary,
    BoundaryReceipt,
    Durability,
    Input,
    InputId,
    InputKind,
    InputPhase,
    InputState,
    InputStateSeed,
    Lane,
    LogicalRuntimeId,
    Origin,
    RunId,
    RuntimeRecord,
    RuntimeState,
    Signal,
    StoredInputState,
    TerminalOutcome,
    encode,
)
from posemesh.control.recovery import RunStatus, Verdict, reconcile, run_status
from posemesh.control.reports import Accepted, Deduplicated, Rejected, Standing
from posemesh.control.rows import outbox_entry_of, row_of
from posemesh.control.store import (
    Commit,
    Conflict,
    InputRow,
    LedgerBusy,
    LedgerClosed,
    LedgerCorrupt,
    LedgerFailed,
    LedgerFull,
    LedgerTooNew,
    LedgerUnfit,
    ReceiptRow,
    RuntimeRow,
    StaleRows,
)
from posemesh.events import Obligation
from posemesh.types import OutcomeKind

from .rig import RUNTIME, Rig, draft, on_both_stores, outcome
from .rig import rig as opened_rig
from .stores import KINDS

QUEUED, STAGED, CONSUMED, ABANDONED = (
    InputPhase.QUEUED,
    InputPhase.STAGED,
    InputPhase.CONSUMED,
    InputPhase.ABANDONED,
)
FULL = LedgerFull("no room")


@on_both_stores(slots=2)
async def test_01_accept_wakes_an_idle_runtime_and_not_a_busy_one(rig: Rig) -> None:
    first = await rig.accepted()
    assert rig.driver.input_phase(first) is QUEUED and rig.driver.take_signal() is Signal.WAKE_LOOP
    await rig.run(first)
    second = await rig.accepted(rig.task("task-2"))
    assert rig.driver.input_phase(second) is QUEUED and rig.driver.take_signal() is Signal.NONE


@on_both_stores()
async def test_02_progress_waits_in_the_steer_lane_and_wakes_nobody(rig: Rig) -> None:
    before = len(rig.store.commits)
    given = await rig.accepted(rig.progress())
    assert rig.driver.take_signal() is Signal.NONE and rig.driver.next_batch() == (given,)
    later = await rig.accepted(rig.progress())
    assert rig.driver.input_phase(given) is InputPhase.COALESCED and rig.driver.active_input_ids() == [later]
    assert await rig.rows() == [] and len(rig.store.commits) == before, "progress never touches the disk"


@on_both_stores()
async def test_03_signals_add_up_to_the_strongest(rig: Rig) -> None:
    run = await rig.run(await rig.accepted())
    rig.driver.take_signal()
    timer = rig.input(kind=InputKind.CONTINUATION, origin=Origin.SYSTEM, durability=Durability.DERIVED)
    await rig.accepted(timer)
    await rig.accepted(rig.input())
    await rig.accepted(rig.progress())
    assert rig.driver.take_signal() is Signal.REQUEST_IMMEDIATE
    assert rig.driver.take_signal() is Signal.NONE
    await rig.driver.roll_back(run)


@on_both_stores()
async def test_04_the_same_lease_twice_is_one_row(rig: Rig) -> None:
    first = await rig.accepted(rig.task(fence=1))
    again = await rig.driver.accept_input(rig.task(fence=1))
    assert isinstance(again, Deduplicated) and again.existing_id == first
    assert again.existing_seed == rig.driver.stored_input_state(first).seed  # type: ignore[union-attr]
    assert await rig.rows() == [(first, "queued")]


@on_both_stores()
async def test_05_what_is_in_flight_can_be_waited_for(rig: Rig) -> None:
    first = await rig.accepted(rig.task(fence=1))
    again = await rig.driver.accept_input(rig.task(fence=1))
    assert isinstance(again, Deduplicated) and again.standing is Standing.IN_FLIGHT
    waiter = asyncio.create_task(rig.driver.wait(again.existing_id))
    await asyncio.sleep(0)
    await rig.done(await rig.run(first), first)
    ended = await waiter
    assert ended is not None and ended.phase is CONSUMED
    again = await rig.driver.accept_input(rig.task(fence=1))
    assert isinstance(again, Deduplicated) and again.standing is Standing.CONSUMED
    assert await rig.driver.wait(again.existing_id) is None


@on_both_stores()
async def test_06_a_retry_onto_cancelled_work_is_told_that_it_will_never_run(rig: Rig) -> None:
    first = await rig.accepted(rig.task(fence=1))
    await rig.driver.cancel_input(first)
    again = await rig.driver.accept_input(rig.task(fence=1))
    assert isinstance(again, Deduplicated) and again.standing is Standing.UNDELIVERED
    newer = await rig.driver.accept_input(rig.task(fence=2))
    assert isinstance(newer, Accepted) and newer.reopens == first


@on_both_stores()
async def test_07_a_retry_after_its_caller_lost_patience_runs_once(rig: Rig) -> None:
    rig.store.close_gate()
    given = rig.task(fence=1)
    call = asyncio.create_task(rig.driver.accept_input(given))
    await rig.store.given.wait()
    call.cancel()
    again = asyncio.create_task(rig.driver.accept_input(rig.task(fence=1)))
    rig.store.open_gate()
    outcome = await again
    assert isinstance(outcome, Deduplicated) and outcome.existing_id == given.id
    assert await rig.rows() == [(given.id, "queued")]


@on_both_stores()
async def test_08_what_can_never_be_taken_is_a_value_and_no_row(rig: Rig) -> None:
    for given, reason in (
        (rig.task(durability=Durability.DERIVED), RejectReason.DURABILITY_VIOLATION),
        (rig.task(durability=None), RejectReason.DURABILITY_VIOLATION),
        (rig.task(idempotency_key=None), RejectReason.KEY_MISSING),
    ):
        assert await rig.driver.accept_input(given) == Rejected(reason=reason)
    assert await rig.rows() == []


@on_both_stores()
async def test_09_the_wrong_state_is_an_error(rig: Rig) -> None:
    for change, state in (
        (rig.driver.retire, RuntimeState.RETIRED),
        (rig.driver.reset, RuntimeState.IDLE),
        (rig.driver.executor_exited, RuntimeState.STOPPED),
    ):
        await change()
        assert rig.driver.runtime_state() is state
        if state is not RuntimeState.IDLE:
            with pytest.raises(DriverNotReady) as refused:
                await rig.driver.accept_input(rig.task())
            assert (refused.value.state, refused.value.operation) == (state, "InputAccepted")
    await rig.driver.destroy()
    with pytest.raises(DriverDestroyed):
        await rig.driver.accept_input(rig.task())
    plane = Hosting(rig.store, clock=rig.clock, rng=rig.rng)  # type: ignore[arg-type]
    with pytest.raises(PlaneNotFound):
        await plane.ingest(LogicalRuntimeId("unheard of"), rig.task(fence=1))


@on_both_stores()
async def test_10_it_is_on_record_before_accept_returns(rig: Rig) -> None:
    rig.store.close_gate()
    call = asyncio.create_task(rig.driver.accept_input(rig.task()))
    await rig.store.given.wait()
    assert not call.done() and rig.driver.active_input_ids() == []
    rig.store.open_gate()
    accepted = await call
    assert isinstance(accepted, Accepted) and await rig.rows() == [(accepted.input_id, "queued")]


@on_both_stores()
async def test_11_a_commit_that_fails_leaves_nothing_and_the_retry_succeeds(rig: Rig) -> None:
    rig.store.faults = [FULL]
    given = rig.task()
    with pytest.raises(DriverInternal, match="no room") as failed:
        await rig.driver.accept_input(given)
    assert failed.value.__cause__ is FULL
    assert rig.driver.active_input_ids() == [] and rig.driver.take_signal() is Signal.NONE and await rig.rows() == []
    assert await rig.accepted(given) == given.id


@on_both_stores()
async def test_12_a_notice_is_consumed_on_accept(rig: Rig) -> None:
    notice = await rig.accepted(rig.input(kind=InputKind.OPERATION, origin=Origin.SERVICE))
    assert rig.driver.input_phase(notice) is CONSUMED and rig.driver.next_batch() == ()
    assert await rig.rows() == [(notice, "consumed")]


@on_both_stores()
async def test_13_staging_takes_an_input_from_its_lane_and_counts(rig: Rig) -> None:
    given = await rig.accepted()
    assert rig.driver.next_batch() == (given,)
    run = await rig.run(given)
    assert rig.driver.next_batch() == () and rig.driver.input_last_run_id(given) == run
    (row,) = await rig.store.inputs(RUNTIME, run=run)
    assert row.phase == "staged" and rig.driver.stored_input_state(given).seed.attempt_count == 1  # type: ignore[union-attr]


async def work_off(rig: Rig, failing: set[InputId]) -> list[InputId]:
    """A run loop that goes on as long as it is signalled; what it ran, in order."""
    ran: list[InputId] = []
    while rig.driver.take_signal() is not Signal.NONE:
        (given,) = rig.driver.next_batch()
        run = await rig.run(given)
        ran.append(given)
        if given in failing:
            await rig.driver.fail(run, "it fails", Disposition.REPLAY, {given: outcome(OutcomeKind.FAILED)})
        else:
            await rig.done(run, given)
    return ran


@on_both_stores()
async def test_14_what_always_fails_is_tried_three_times(rig: Rig) -> None:
    given = await rig.accepted()
    assert await work_off(rig, {given}) == [given] * 3
    ended = rig.driver.stored_input_state(given).seed.terminal_outcome  # type: ignore[union-attr]
    assert ended is not None and (ended.phase, ended.reason, ended.attempts) == (
        ABANDONED,
        AbandonReason.MAX_ATTEMPTS,
        3,
    )
    assert [row.input for row in rig.driver.undelivered()] == [given], "its failure is told once, when it has ended"


@on_both_stores()
async def test_15_a_failing_head_does_not_starve_the_others(rig: Rig) -> None:
    ids = [await rig.accepted(rig.task(f"task-{number}")) for number in range(3)]
    first = ids[0]
    assert await work_off(rig, {first}) == [first, *ids[1:], first, first], "one wake is enough for all of them"


@on_both_stores(slots=2)
async def test_16_giving_back_passes_over_what_has_ended(rig: Rig) -> None:
    given = await rig.accepted(rig.task(fence=1))
    run = await rig.run(given)
    newer = await rig.accepted(rig.task(fence=2))
    await rig.driver.fail(run, "it fails", Disposition.REPLAY)
    assert rig.driver.input_phase(given) is InputPhase.SUPERSEDED and rig.driver.next_batch() == (newer,)
    with pytest.raises(DriverValidationFailed, match="which is none"):
        await rig.driver.refuse_staging(InputId("unheard of"))


@on_both_stores()
async def test_17_a_cancelled_run_is_not_tried_again(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    with pytest.raises(DriverValidationFailed, match="cancelled with the run"):
        await rig.driver.cancel_input(given)
    await rig.driver.cancel(run)
    assert rig.driver.next_batch() == ()
    (row,) = await rig.store.inputs(RUNTIME)
    assert (row.phase, row.reason) == ("abandoned", "cancelled")


@on_both_stores()
async def test_18_a_receipt_says_what_is_known_or_is_refused(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    other, unknown = InputId("another"), RunId("another")
    for wrong in (
        draft(run, given, other),
        draft(run, other),
        draft(run, given, digest="0" * 64),
        draft(run, given, message_count=7),
        draft(run, given, sequence=2),
        draft(run, given, sequence=0),
    ):
        with pytest.raises(DriverValidationFailed, match="expected"):
            await rig.driver.complete(wrong, {given: outcome()})
    with pytest.raises(DriverValidationFailed, match="expected"):
        await rig.driver.complete(draft(run, given), {given: outcome(), other: outcome(artifacts=())})
    with pytest.raises(DriverNotReady) as refused:
        await rig.driver.complete(draft(unknown, given), {given: outcome()})
    assert refused.value.guard == "the run is in progress"
    assert await rig.store.receipts(RUNTIME) == () and rig.driver.runtime_state() is RuntimeState.RUNNING
    receipt = await rig.done(run, given, sequence=1)
    assert (receipt.sequence, receipt.run_name, receipt.contributing_input_ids) == (1, "runner-0-1", (given,))


@on_both_stores()
async def test_18_the_order_of_a_batch_counts(rig: Rig) -> None:
    ids = [await rig.accepted(rig.input()) for _ in range(2)]
    assert rig.driver.next_batch() == tuple(ids)
    run = await rig.driver.begin(ids)
    with pytest.raises(DriverValidationFailed):
        await rig.driver.complete(draft(run, *reversed(ids), digest=None, message_count=0))
    receipt = await rig.driver.complete(draft(run, *ids, digest=None, message_count=0))
    assert receipt is not None and receipt.boundary == "run_checkpoint"


async def in_doubt(rig: Rig, *, happens: bool) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    waiter = asyncio.create_task(rig.driver.wait(given))
    await asyncio.sleep(0)
    rig.store.faults, rig.store.happens = [LedgerFailed("disk"), LedgerFailed("disk")], happens
    with pytest.raises(DriverInternal, match="disk"):
        await rig.done(run, given)
    assert rig.driver.input_phase(given) is STAGED and not waiter.done(), "nothing is told that may not be so"
    with pytest.raises(DriverInternal, match="disk"):
        await rig.accepted(rig.task("task-2"))
    with pytest.raises(DriverNotReady):
        await rig.done(run, given)
    ended = await waiter
    assert ended is not None and ended.phase is CONSUMED
    assert [row.sequence for row in await rig.store.receipts(RUNTIME)] == [1]


@on_both_stores()
async def test_19_a_commit_in_doubt_is_found_out_about_first(rig: Rig) -> None:
    await in_doubt(rig, happens=False)


@on_both_stores()
async def test_19_a_commit_whose_answer_was_lost_has_happened(rig: Rig) -> None:
    await in_doubt(rig, happens=True)


@on_both_stores()
async def test_19_a_commit_that_failed_tells_nobody_anything(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    rig.events.clear()
    for fault in (FULL, LedgerBusy("busy"), StaleRows("stale")):
        rig.store.faults = [fault]
        with pytest.raises(DriverInternal):
            await rig.done(run, given)
        assert rig.driver.runtime_state() is RuntimeState.RUNNING and rig.driver.input_phase(given) is STAGED
    assert rig.events == []
    assert (await rig.done(run, given)).sequence == 1, "no number is lost either"


@on_both_stores()
async def test_20_a_boundary_is_one_commit(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    before = len(rig.store.commits)
    await rig.done(run, given)
    (commit,) = rig.store.commits[before:]
    assert [row.phase for row in commit.inputs] == ["consumed"]
    assert [row.sequence for row in commit.receipts] == [1] and commit.lifecycle is not None
    (entry,) = commit.outbox
    assert (entry.input, entry.fence) == (given, 1)
    assert [row.id for row in await rig.store.outbox(RUNTIME)] == [entry.id]


@on_both_stores()
async def test_20_accepting_and_staging_is_one_commit(rig: Rig) -> None:
    before = len(rig.store.commits)
    accepted, run = await rig.driver.accept_and_begin(rig.task(fence=1), "runner-0-1")
    assert isinstance(accepted, Accepted) and run is not None
    assert len(rig.store.commits) == before + 1 and await rig.rows() == [(accepted.input_id, "staged")]
    again, none = await rig.driver.accept_and_begin(rig.task(fence=1))
    assert isinstance(again, Deduplicated) and none is None


@on_both_stores()
async def test_21_a_second_receipt_of_the_same_number_fails_whole(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    await rig.done(run, given)
    (stored,) = await rig.store.receipts(RUNTIME)
    second = await rig.accepted(rig.task("task-2"))
    run = await rig.run(second)
    before = await rig.rows()
    rig.driver._desk.image.sequence = 0
    with pytest.raises(DriverInternal):
        await rig.done(run, second)
    assert await rig.store.receipts(RUNTIME) == (stored,) and await rig.rows() == before


@on_both_stores()
async def test_22_a_crash_while_queued_or_staged(rig: Rig) -> None:
    first = await rig.accepted()
    second = await rig.accepted(rig.task("task-2"))
    await rig.run(first)
    report = await rig.restart()
    assert (report.inputs_recovered, report.inputs_requeued, report.inputs_abandoned) == (2, 1, 0)
    assert [rig.driver.input_phase(given) for given in (first, second)] == [QUEUED, QUEUED]
    assert rig.driver.next_batch() == (first,), "in the order in which they came"
    assert rig.driver.stored_input_state(first).seed.attempt_count == 1  # type: ignore[union-attr]
    assert await rig.rows() == [(first, "queued"), (second, "queued")]
    assert rig.driver.take_signal() is Signal.WAKE_LOOP


async def applied(rig: Rig, *, receipt: bool) -> InputId:
    """A row as a process leaves it that died between applying and consuming."""
    given = await rig.accepted()
    run = await rig.run(given)
    entry = rig.driver._desk.image.entries[given]
    body = entry.stored
    seed = replace(body.seed, phase=InputPhase.APPLIED_PENDING_CONSUMPTION, last_boundary_sequence=1)
    row = row_of(replace(entry, stored=replace(body, seed=seed)))
    made = BoundaryReceipt(
        runtime_id=RUNTIME,
        run_id=run,
        boundary=Boundary.RUN_START,
        contributing_input_ids=(given,),
        sequence=1,
    )
    rows = (ReceiptRow(runtime=RUNTIME, run=run, sequence=1, body=encode(made).decode()),) if receipt else ()
    await rig.store.commit(Commit(runtime=RUNTIME, inputs=(row,), receipts=rows))
    return given


@on_both_stores()
async def test_22_the_receipt_decides(rig: Rig) -> None:
    given = await applied(rig, receipt=True)
    report = await rig.restart()
    assert rig.driver.input_phase(given) is CONSUMED and await rig.rows() == [(given, "consumed")]
    assert (report.inputs_recovered, report.inputs_requeued) == (1, 0)


@on_both_stores()
async def test_22_without_a_receipt_it_is_done_again(rig: Rig) -> None:
    given = await applied(rig, receipt=False)
    report = await rig.restart()
    assert rig.driver.input_phase(given) is QUEUED and await rig.rows() == [(given, "queued")]
    assert (report.inputs_recovered, report.inputs_requeued) == (1, 1)


@on_both_stores()
async def test_22_attempts_outlive_the_process(rig: Rig) -> None:
    given = await rig.accepted()
    for _ in range(2):
        await rig.run(given)
        await rig.restart()
    await rig.run(given)
    report = await rig.restart()
    assert (report.inputs_abandoned, report.inputs_recovered, report.inputs_requeued) == (1, 0, 0)
    assert rig.driver.input_phase(given) is ABANDONED


@on_both_stores()
async def test_23_what_does_not_last_is_dropped_and_keys_are_known_again(rig: Rig) -> None:
    await rig.accepted(rig.progress())
    given = await rig.accepted(rig.task(fence=1))
    timer = rig.input(kind=InputKind.CONTINUATION, origin=Origin.SYSTEM, durability=Durability.DERIVED)
    await rig.accepted(timer)
    report = await rig.driver.recover()
    assert (report.inputs_discarded, report.inputs_recovered) == (1, 2)
    await rig.restart()
    assert rig.driver.active_input_ids() == [given, timer.id]
    again = await rig.driver.accept_input(rig.task(fence=1))
    assert isinstance(again, Deduplicated) and again.existing_id == given
    assert rig.driver.next_fence() == 2


@pytest.mark.parametrize("damage", ["payload", "policy", "lane", "order", "phase", "json"])
def test_24_a_row_that_makes_no_sense_is_refused(damage: str, tmp_path: Path) -> None:
    async def main(kind: str) -> None:
        async with opened_rig(kind, tmp_path / kind) as rig:
            given = await rig.accepted()
            (row,) = await rig.store.inputs(RUNTIME)
            stored = rig.driver.stored_input_state(given)
            assert stored is not None
            state, seed = stored.state, stored.seed
            body = {
                "payload": replace(stored, state=replace(state, input=replace(state.input, payload={}))),
                "policy": replace(stored, state=replace(state, policy=replace(state.policy, lane=Lane.STEER))),
                "lane": replace(stored, seed=replace(seed, recovery_lane=None)),
                "order": replace(stored, seed=replace(seed, admission_sequence=None)),
                "phase": replace(stored, seed=replace(seed, phase=STAGED)),
            }.get(damage)
            text = "{}" if body is None else encode(body).decode()
            await rig.store.commit(Commit(runtime=RUNTIME, inputs=(row.next(body=text),)))
            before = await rig.store.snapshot(RUNTIME)
            with pytest.raises(DriverRecoveryCorruption, match=given):
                await rig.restart()
            assert await rig.store.snapshot(RUNTIME) == before and rig.driver.active_input_ids() == []

    for kind in KINDS:
        asyncio.run(main(kind))


async def stale(rig: Rig) -> None:
    """A process takes the runtime up and meanwhile another gives it an input: neither is lost nor overwritten."""
    before = await rig.rows()
    foreign = InputRow(runtime=RUNTIME, id="foreign", phase="queued", position=9)
    rig.store.meanwhile = lambda: rig.store.store.commit(Commit(runtime=RUNTIME, inputs=(foreign,)))
    late = rig.made()
    with pytest.raises(DriverInternal) as failed:
        await late.register()
    assert isinstance(failed.value.__cause__, StaleRows)
    assert await rig.rows() == [*before, ("foreign", "queued")]
    assert late.runtime_state() is RuntimeState.INITIALIZING and late.active_input_ids() == []


@on_both_stores()
async def test_25_a_concurrent_writer_is_not_overwritten(rig: Rig) -> None:
    await rig.accepted()
    await stale(rig)


@on_both_stores()
async def test_25_a_first_row_of_a_concurrent_writer_counts_as_well(rig: Rig) -> None:
    await stale(rig)


@on_both_stores()
async def test_26_a_retired_runtime_works_off_what_it_has(rig: Rig) -> None:
    given = await rig.accepted()
    await rig.driver.attach()
    report = await rig.driver.retire()
    assert (report.inputs_abandoned, report.inputs_pending_drain) == (0, 1)
    with pytest.raises(DriverNotReady) as refused:
        await rig.run(given)
    assert refused.value.guard == "a retired runtime's run drains it"
    await rig.done(await rig.run(given, drain=True), given)
    assert rig.driver.runtime_state() is RuntimeState.RETIRED and rig.driver.input_phase(given) is CONSUMED
    await rig.restart()
    assert rig.driver.runtime_state() is RuntimeState.RETIRED


@on_both_stores()
async def test_27_retired_with_nothing_to_run_it(rig: Rig) -> None:
    given = await rig.accepted()
    waiter = asyncio.create_task(rig.driver.wait(given))
    await asyncio.sleep(0)
    report = await rig.driver.retire()
    assert (report.inputs_abandoned, report.inputs_pending_drain) == (1, 0)
    ended = await waiter
    assert ended is not None and ended.reason is AbandonReason.RETIRED
    assert (await rig.driver.retire()).inputs_abandoned == 0, "once more changes nothing"


@on_both_stores()
async def test_28_retired_while_it_runs(rig: Rig) -> None:
    given = await rig.accepted()
    await rig.driver.attach()
    run = await rig.run(given)
    report = await rig.driver.retire()
    assert rig.driver.runtime_state() is RuntimeState.RUNNING and report.inputs_pending_drain == 1
    lifecycle = (await rig.store.snapshot(RUNTIME)).lifecycle
    assert lifecycle is not None and lifecycle.phase == "retired"
    await rig.done(run, given)
    assert rig.driver.runtime_state() is RuntimeState.RETIRED


@on_both_stores()
async def test_29_reset_drops_everything_and_opens_again(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    with pytest.raises(DriverNotReady) as refused:
        await rig.driver.reset()
    assert (refused.value.state, refused.value.operation) == (RuntimeState.RUNNING, "RuntimeReset")
    await rig.driver.roll_back(run)
    assert (await rig.driver.reset()).inputs_abandoned == 1
    assert rig.driver.runtime_state() is RuntimeState.IDLE and rig.driver.take_signal() is Signal.NONE
    await rig.driver.retire()
    await rig.driver.reset()
    await rig.accepted(rig.task("task-2"))


@on_both_stores()
async def test_30_recycling_keeps_names_order_and_waiters(rig: Rig) -> None:
    ids = [await rig.accepted(rig.task(f"task-{number}")) for number in range(3)]
    passing = await rig.accepted(rig.progress())
    waiter = asyncio.create_task(rig.driver.wait(ids[0]))
    await asyncio.sleep(0)
    assert (await rig.driver.recycle()).inputs_transferred == 4
    assert rig.driver.active_input_ids() == [*ids, passing] and not waiter.done()
    await rig.done(await rig.run(ids[0]), ids[0])
    assert await waiter is not None


@on_both_stores()
async def test_31_destroyed_is_for_ever(rig: Rig) -> None:
    given = await rig.accepted()
    waiter = asyncio.create_task(rig.driver.wait(given))
    await asyncio.sleep(0)
    rig.store.faults = [FULL]
    with pytest.raises(DriverInternal):
        await rig.driver.destroy()
    assert rig.driver.runtime_state() is RuntimeState.IDLE and not waiter.done()
    lifecycle = (await rig.store.snapshot(RUNTIME)).lifecycle
    assert lifecycle is not None and lifecycle.phase == "idle"
    assert (await rig.driver.destroy()).inputs_abandoned == 1
    ended = await waiter
    assert ended is not None and ended.reason is AbandonReason.DESTROYED
    await rig.restart()
    assert rig.driver.runtime_state() is RuntimeState.DESTROYED
    with pytest.raises(DriverDestroyed):
        await rig.driver.destroy()


@on_both_stores()
async def test_31_destroyed_after_retirement(rig: Rig) -> None:
    await rig.accepted()
    await rig.driver.retire()
    assert (await rig.driver.destroy()).inputs_abandoned == 0


@on_both_stores()
async def test_32_stop_comes_before_queued_work(rig: Rig) -> None:
    given = await rig.accepted()
    await rig.driver.attach()
    await rig.driver.request_stop()
    assert rig.driver.runtime_state() is RuntimeState.ATTACHED, "asking moves nothing"
    await rig.driver.executor_exited()
    assert rig.driver.runtime_state() is RuntimeState.STOPPED
    (row,) = await rig.store.inputs(RUNTIME)
    assert (row.id, row.reason) == (given, "stopped")
    with pytest.raises(DriverNotReady):
        await rig.driver.request_stop()


@on_both_stores()
async def test_32_an_exit_does_not_undo_a_retirement(rig: Rig) -> None:
    await rig.driver.retire()
    await rig.driver.executor_exited()
    assert rig.driver.runtime_state() is RuntimeState.RETIRED


@on_both_stores()
async def test_33_a_stopped_runtime_is_revived_by_these(rig: Rig) -> None:
    """All ways out of every state are pinned with the machine; here, that they lead somewhere."""
    await rig.driver.executor_exited()
    await rig.driver.attach()
    assert rig.driver.runtime_state() is RuntimeState.ATTACHED
    await rig.driver.executor_exited()
    await rig.driver.register()
    assert rig.driver.runtime_state() is RuntimeState.IDLE
    await rig.driver.executor_exited()
    await rig.restart()
    assert rig.driver.runtime_state() is RuntimeState.IDLE, "that it stopped was seen of a process that is gone"


@on_both_stores()
async def test_34_letting_go_waits_for_what_is_owed(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    with pytest.raises(DriverNotReady):
        await rig.driver.close(Obligation.LOOP)
    await rig.driver.begin_unregister()
    with pytest.raises(DriverNotReady) as refused:
        await rig.accepted(rig.task("task-2"))
    assert refused.value.guard == "its process is not letting go of it"
    with pytest.raises(DriverNotReady):
        await rig.driver.unregister()
    await rig.done(run, given)
    for obligation in Obligation:
        with pytest.raises(DriverNotReady) as refused:
            await rig.driver.unregister()
        assert refused.value.guard == "all its obligations are closed"
        await rig.driver.close(obligation, forced=obligation is Obligation.LOOP)
        with pytest.raises(DriverNotReady):
            await rig.driver.close(obligation)
    await rig.driver.unregister()
    assert rig.driver.forced() == {Obligation.LOOP}


def test_35_every_observation_has_one_verdict() -> None:
    bodies = [encode(RuntimeRecord(state=state)).decode() for state in RuntimeState]
    rows = [
        RuntimeRow(runtime=RUNTIME, phase=phase, body=body)
        for phase, body in product((*RuntimeState, "unheard of"), (*bodies, "{}", "no json"))
    ]
    errors = [
        kind("x")
        for kind in (Conflict, LedgerBusy, LedgerClosed, LedgerCorrupt, LedgerFailed, LedgerFull, LedgerTooNew)
    ]
    found = {observation: reconcile(observation) for observation in (None, *rows, *errors, LedgerUnfit("x"))}
    assert found.pop(None) is Verdict.REPLACE
    blocked = {type(error) for error, verdict in found.items() if verdict is Verdict.REPAIR_BLOCKED}
    assert blocked == {LedgerCorrupt, LedgerTooNew, RuntimeRow}
    later = {type(error) for error, verdict in found.items() if verdict is Verdict.BACK_OFF}
    assert later == {Conflict, LedgerBusy, LedgerClosed, LedgerFailed, LedgerFull, LedgerUnfit}
    taken = {row.phase: verdict for row, verdict in found.items() if isinstance(row, RuntimeRow) and len(verdict) == 9}
    assert taken == {
        "idle": Verdict.CONVERGED,
        "retired": Verdict.NORMALIZE,
        "stopped": Verdict.NORMALIZE,
        "destroyed": Verdict.NORMALIZE,
    }


@on_both_stores()
async def test_36_work_that_has_a_boundary_gets_no_second_one(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    await rig.done(run, given)
    for again in (run, RunId("another")):
        with pytest.raises(DriverNotReady):
            await rig.done(again, given)
    with pytest.raises(DriverValidationFailed):
        await rig.run(given)
    assert len(await rig.store.receipts(RUNTIME)) == 1


@on_both_stores(slots=2)
async def test_37_an_old_lease_is_refused_once_there_is_a_newer_one(rig: Rig) -> None:
    old = await rig.accepted(rig.task(fence=1))
    run = await rig.run(old)
    newer = await rig.accepted(rig.task(fence=rig.driver.next_fence()))
    with pytest.raises(DriverValidationFailed, match="newer leases replaced"):
        await rig.done(run, old)
    await rig.driver.roll_back(run)
    stale = await rig.driver.accept_input(rig.task(fence=1))
    assert isinstance(stale, Deduplicated) and stale.existing_id == newer
    await rig.restart()
    assert rig.driver.next_fence() == 3, "a process that begins anew knows the numbers that were given"
    assert rig.driver.active_input_ids() == [newer]


@on_both_stores()
async def test_38_an_outcome_is_told_with_the_same_name_and_number_until_it_is_answered(rig: Rig) -> None:
    for number in (1, 2):
        given = await rig.accepted(rig.task(f"task-{number}"))
        await rig.done(await rig.run(given), given)
    before = rig.driver.undelivered()
    assert [row.sequence for row in before] == [1, 2]
    await rig.restart()
    assert rig.driver.undelivered() == before
    said = outbox_entry_of(before[0])
    assert (said.outcome, said.receipt) == (outcome(), 1)
    await rig.driver.settle(before[0].id, "", "answered 503")
    await rig.driver.settle(before[0].id, "refused", "answered 409")
    with pytest.raises(DriverValidationFailed, match="which does not"):
        await rig.driver.settle(before[0].id, "delivered")
    with pytest.raises(Conflict):
        row = (await rig.store.outbox(RUNTIME))[1]
        await rig.store.commit(Commit(runtime=RUNTIME, outbox=(row.next(body="{}"),)))
    assert [row.ending for row in await rig.store.outbox(RUNTIME)] == ["refused", ""]
    assert rig.driver.undelivered() == before[1:]


@on_both_stores()
async def test_38_a_task_leased_again_is_answered_with_what_waits(rig: Rig) -> None:
    given = await rig.accepted(rig.task(fence=1))
    await rig.done(await rig.run(given), given)
    await rig.restart()
    (waits,) = rig.driver.undelivered()
    taken = await rig.driver.take_over(rig.task(fence=rig.driver.next_fence()), waits)
    assert isinstance(taken, Accepted) and taken.reopens == given
    assert rig.driver.next_batch() == () and rig.driver.input_phase(taken.input_id) is CONSUMED
    (again,) = rig.driver.undelivered()
    assert (again.id, again.sequence, again.body, again.fence) == (waits.id, waits.sequence, waits.body, 2)
    newest = await rig.driver.accept_input(rig.task(fence=3))
    assert isinstance(newest, Accepted) and newest.reopens == taken.input_id


@on_both_stores()
async def test_39_what_the_record_says_of_a_run(rig: Rig) -> None:
    plane = Hosting(rig.store, clock=rig.clock, rng=rig.rng)  # type: ignore[arg-type]
    done, dropped = [await rig.accepted(rig.task(f"task-{number}")) for number in (1, 2)]
    first = await rig.run(done)
    assert await plane.run_status(RUNTIME, first) is RunStatus.IN_FLIGHT
    await rig.driver.roll_back(first)
    second = await rig.run(done)
    await rig.done(second, done)
    third = await rig.run(dropped)
    await rig.driver.cancel(third, AbandonReason.LEASE_LOST)
    found = [await plane.run_status(RUNTIME, run) for run in (first, second, third)]
    assert found == [RunStatus.NO_DURABLE_WITNESS, RunStatus.CONSUMED, RunStatus.ABANDONED]


def test_39_one_end_outweighs_another() -> None:
    def status(*phases: InputPhase) -> RunStatus:
        return run_status(ended(number, phase) for number, phase in enumerate(phases))[0]

    assert status(ABANDONED, InputPhase.SUPERSEDED, CONSUMED) is RunStatus.CONSUMED
    assert status(InputPhase.COALESCED, ABANDONED) is RunStatus.ABANDONED
    assert status(InputPhase.COALESCED, InputPhase.SUPERSEDED) is RunStatus.DISPLACED
    assert status(CONSUMED, QUEUED) is RunStatus.IN_FLIGHT
    assert status() is RunStatus.NO_DURABLE_WITNESS
    reasons = AbandonReason.RESET, AbandonReason.CANCELLED
    both = [ended(2 - number, ABANDONED, reason) for number, reason in enumerate(reasons)]
    assert run_status(both) == (RunStatus.ABANDONED, AbandonReason.CANCELLED), "the first by admission"


def ended(number: int, phase: InputPhase, reason: AbandonReason | None = None) -> StoredInputState:
    given = Input(
        id=InputId(f"input-{number}"),
        kind=InputKind.STEER,
        at=0.0,
        origin=Origin.OPERATOR,
        durability=Durability.DURABLE,
    )
    terminal = None if phase is QUEUED else TerminalOutcome(phase=phase, reason=reason)
    return StoredInputState(
        runtime_id=RUNTIME,
        state=InputState(input=given, policy=decide(given), created_at=0.0, updated_at=0.0),
        seed=InputStateSeed(phase=phase, admission_sequence=number, terminal_outcome=terminal),
    )
