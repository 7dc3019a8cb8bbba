"""The desk: what waits is done together, each fails for itself, and a caller that leaves changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from posemesh.control import operations
from posemesh.control.errors import DriverInternal, DriverRecoveryCorruption, DriverValidationFailed
from posemesh.control.image import Image
from posemesh.control.records import InputId, RunId
from posemesh.control.reports import Accepted, Deduplicated, Rejected
from posemesh.control.store import (
    Commit,
    Conflict,
    InputRow,
    LedgerCorrupt,
    LedgerFailed,
    LedgerFull,
    LedgerTooNew,
    StaleRows,
)

from .rig import RUNTIME, Rig, draft, on_both_stores, outcome

FULL = LedgerFull("no room")


@on_both_stores(slots=64)
async def test_all_that_wait_share_one_commit(rig: Rig) -> None:
    rig.store.close_gate()
    first = asyncio.create_task(rig.driver.accept_and_begin(rig.task("first")))
    await rig.store.given.wait()
    before = len(rig.store.commits)
    calls = [rig.driver.accept_and_begin(rig.task(f"task-{number}")) for number in range(40)]
    others = asyncio.gather(*calls)
    await asyncio.sleep(0)
    rig.store.open_gate()
    made = [await first, *await others]
    assert len(rig.store.commits) == before + 1 and len(rig.store.commits[-1].inputs) == 40
    assert all(isinstance(accepted, Accepted) for accepted, _ in made)
    runs = {run: accepted.input_id for accepted, run in made if isinstance(accepted, Accepted) and run}
    before = len(rig.store.commits)
    receipts = await asyncio.gather(
        *(rig.driver.complete(draft(run, given), {given: outcome()}) for run, given in runs.items())
    )
    assert sorted(receipt.sequence for receipt in receipts if receipt) == list(range(1, 42))
    assert len(rig.store.commits) == before + 1
    assert [row.sequence for row in rig.driver.undelivered()] == list(range(1, 42))


@on_both_stores()
async def test_one_that_is_refused_takes_no_other_with_it(rig: Rig) -> None:
    made = await asyncio.gather(
        rig.driver.accept_input(rig.task("a", fence=1)),
        rig.driver.accept_input(rig.task("a", fence=1)),
        rig.driver.accept_input(rig.task("b", durability=None)),
        rig.driver.begin((InputId("unheard of"),)),
        rig.driver.accept_input(rig.task("c")),
        return_exceptions=True,
    )
    assert [type(one) for one in made] == [Accepted, Deduplicated, Rejected, DriverValidationFailed, Accepted]
    assert rig.driver.runtime_state() == "idle", "a run that was refused has not begun"


@on_both_stores()
async def test_a_batch_that_the_store_refuses_is_tried_one_by_one(rig: Rig) -> None:
    rig.store.faults = [Conflict("one of you"), None, FULL, None]
    made = await asyncio.gather(
        *(rig.driver.accept_input(rig.task(key)) for key in "abc"),
        return_exceptions=True,
    )
    assert [type(one) for one in made] == [Accepted, DriverInternal, Accepted]
    assert len(await rig.rows()) == 2 and len(rig.driver.active_input_ids()) == 2


@on_both_stores()
async def test_a_fault_that_is_none_of_the_store_s_own_takes_no_other_with_it(rig: Rig) -> None:
    """A fence that SQLite has no room for, a key that is no text: what it raises then is its module's."""
    rig.store.faults = [OverflowError("int too large"), None, OverflowError("int too large")]  # type: ignore[list-item]
    made = await asyncio.gather(
        *(rig.driver.accept_input(rig.task(key)) for key in "ab"),
        return_exceptions=True,
    )
    assert [type(one) for one in made] == [Accepted, DriverInternal]
    assert len(await rig.rows()) == 1


@on_both_stores()
async def test_what_cannot_be_read_is_not_absent(rig: Rig) -> None:
    for error, told in (
        (LedgerCorrupt("x"), DriverRecoveryCorruption),
        (LedgerTooNew("x"), DriverRecoveryCorruption),
        (FULL, DriverInternal),
    ):

        async def broken(*args: object, error: Exception = error) -> None:
            raise error

        rig.store.holder = broken  # type: ignore[attr-defined]
        with pytest.raises(told):
            await rig.driver.accept_input(rig.task())
    del rig.store.holder  # type: ignore[attr-defined]
    await rig.accepted()


@on_both_stores()
async def test_an_error_of_the_program_fails_its_call_only(rig: Rig) -> None:
    def wrong(image: Image, _: None) -> None:
        image.next_position()
        raise ZeroDivisionError("oh")

    before = rig.driver._desk.image.position
    with pytest.raises(DriverInternal, match="ZeroDivisionError: oh"):
        await rig.driver._desk.do(wrong)
    assert rig.driver._desk.image.position == before
    await rig.accepted()


@on_both_stores()
async def test_a_payload_without_a_json_form_takes_no_other_with_it(rig: Rig) -> None:
    made = await asyncio.gather(
        rig.driver.accept_input(rig.task("a", payload={"x": object()})),
        rig.driver.accept_input(rig.task("b")),
        return_exceptions=True,
    )
    assert [type(one) for one in made] == [DriverValidationFailed, Accepted]
    assert len(await rig.rows()) == 1


@on_both_stores()
async def test_a_waiter_that_leaves_takes_no_other_with_it(rig: Rig) -> None:
    given = await rig.accepted()
    first, second = (asyncio.create_task(rig.driver.wait(given)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await rig.driver.cancel_input(given)
    ended = await second
    assert ended is not None and ended.reason == "cancelled"
    assert await rig.driver.wait(InputId("unheard of")) is None


@on_both_stores()
async def test_who_waits_for_what_recovery_does_not_find_is_told(rig: Rig) -> None:
    passing = await rig.accepted(rig.progress())
    waiter = asyncio.create_task(rig.driver.wait(passing))
    await asyncio.sleep(0)
    await rig.driver.recover()
    with pytest.raises(DriverRecoveryCorruption, match="not there any more"):
        await waiter


@on_both_stores()
async def test_events_are_told_once_it_is_on_record(rig: Rig) -> None:
    rig.events.clear()
    given = rig.task(correlation_id="job-1")
    rig.store.faults = [FULL]
    with pytest.raises(DriverInternal):
        await rig.driver.accept_input(given)
    assert rig.events == []
    await rig.driver.accept_input(given)
    run = await rig.run(given.id)
    await rig.done(run, given.id)
    assert [event.event.code for event in rig.events] == [
        "input.accepted",
        "input.queued",
        "state.changed",
        "input.staged",
        "run.started",
        "state.changed",
        "input.applied",
        "input.applied_pending_consumption",
        "input.consumed",
        "run.completed",
    ]
    told = rig.events[3]
    assert (told.runtime_id, told.event.input_id, told.event.run_id) == (RUNTIME, given.id, run)
    assert told.correlation == "job-1" and len({event.id for event in rig.events}) == len(rig.events)
    assert rig.events[2].event.details == {"from": "idle", "to": "running"}


@on_both_stores()
async def test_what_does_not_last_needs_no_store(rig: Rig) -> None:
    before = len(rig.store.commits)
    given = await rig.accepted(rig.progress())
    run = await rig.run(given)
    assert await rig.driver.complete(draft(run, given, digest=None, message_count=0)) is None
    assert rig.driver.input_phase(given) == "consumed" and len(rig.store.commits) == before
    assert await rig.store.receipts(RUNTIME, run=RunId(run)) == ()


@on_both_stores()
async def test_a_commit_in_doubt_that_another_writer_overtook_did_not_happen(rig: Rig) -> None:
    rig.store.faults = [LedgerFailed("disk")]
    with pytest.raises(DriverInternal):
        await rig.driver.retire()
    other = rig.made()
    await other.register()
    with pytest.raises(DriverInternal) as stale:
        await rig.driver.retire()
    assert isinstance(stale.value.__cause__, StaleRows)
    await rig.driver.recover()
    await rig.driver.retire()
    assert rig.driver.runtime_state() == "retired"


@on_both_stores()
async def test_a_damaged_row_under_the_key_is_told(rig: Rig) -> None:
    row = InputRow(runtime=RUNTIME, id="i", phase="consumed", open=False, key="task-1")
    await rig.store.commit(Commit(runtime=RUNTIME, inputs=(row,)))
    with pytest.raises(DriverRecoveryCorruption, match="input i"):
        await rig.driver.accept_input(rig.task())
    await rig.accepted(rig.task("task-2"))


@on_both_stores()
async def test_calls_end_with_the_loop(rig: Rig) -> None:
    rig.store.close_gate()
    call = asyncio.create_task(rig.driver.accept_input(rig.task()))
    await rig.store.given.wait()
    assert rig.driver._desk._worker is not None
    rig.driver._desk._worker.cancel()
    with pytest.raises(DriverInternal, match="CancelledError"):
        await call
    rig.store.open_gate()
    await rig.accepted(rig.task("task-2"))


@on_both_stores()
async def test_a_run_that_is_begun_again_is_the_same_run_or_refused(rig: Rig) -> None:
    first, second = [await rig.accepted(rig.task(key)) for key in "ab"]
    run = await rig.run(first)

    def begin(*ids: InputId) -> Callable[[Image, None], RunId]:
        return lambda image, _: operations.begin(image, run, ids, name="", drain=False)

    assert await rig.driver._desk.do(begin(first)) == run
    with pytest.raises(DriverValidationFailed, match="expected run"):
        await rig.driver._desk.do(begin(second))
    stored = rig.driver.stored_input_state(first)
    assert stored is not None and stored.seed.attempt_count == 1


@on_both_stores()
async def test_only_what_still_waits_is_taken_over(rig: Rig) -> None:
    given = await rig.accepted(rig.task(fence=1))
    await rig.done(await rig.run(given), given)
    (waits,) = rig.driver.undelivered()
    with pytest.raises(DriverValidationFailed, match="expected a lease after number 1"):
        await rig.driver.take_over(rig.task(fence=1), waits)
    newer = await rig.accepted(rig.task(fence=2))
    with pytest.raises(DriverValidationFailed, match="expected an ended input"):
        await rig.driver.take_over(rig.task(fence=3), waits)
    await rig.driver.settle(waits.id, "delivered")
    outcome = await rig.driver.take_over(rig.task(fence=3), waits)
    assert isinstance(outcome, Accepted) and outcome.reopens == newer
    assert rig.driver.input_phase(outcome.input_id) == "queued", "nothing waits, so it is to be run"


@on_both_stores()
async def test_what_reads_everything_does_not_miss_what_waits_beside_it(rig: Rig) -> None:
    """An input that was accepted in one commit with a recovery was lost from it, as the recovery had read before."""
    rig.store.close_gate()
    first = asyncio.create_task(rig.driver.accept_input(rig.task("a")))
    await rig.store.given.wait()
    calls = asyncio.gather(
        rig.driver.accept_input(rig.task("b")),
        rig.driver.recover(),
        rig.driver.accept_input(rig.task("c")),
        rig.driver.recycle(),
        rig.driver.accept_input(rig.task("d")),
    )
    await asyncio.sleep(0)
    rig.store.open_gate()
    await first
    _, recovered, _, recycled, _ = await calls
    assert (recovered.inputs_recovered, recycled.inputs_transferred) == (2, 3)
    assert len(rig.driver.active_input_ids()) == 4 == len(await rig.rows())
