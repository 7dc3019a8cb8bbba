"""The driver's interface; what it promises stands with the behaviours."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from posemesh.control.driver import HostedRuntime, RuntimeDriver
from posemesh.control.errors import DriverNotFound, DriverNotReady
from posemesh.control.operations import Disposition
from posemesh.control.records import (
    AbandonReason,
    EventCategory,
    InputId,
    InputKind,
    InputPhase,
    Lane,
    LogicalRuntimeId,
    RuntimeEvent,
    RuntimeEventEnvelope,
    RuntimeState,
    Signal,
)
from posemesh.control.reports import Accepted
from posemesh.types import OutcomeKind

from .rig import RUNTIME, Rig, draft, on_both_stores, outcome


def test_the_interface_is_this() -> None:
    names = {name for name, value in vars(RuntimeDriver).items() if inspect.isfunction(value) and name[0] != "_"}
    assert names == {
        "accept_input",
        "on_runtime_event",
        "recover",
        "runtime_state",
        "input_state",
        "input_phase",
        "input_last_run_id",
        "input_last_boundary_sequence",
        "stored_input_state",
        "active_input_ids",
    }
    awaited = {name for name in names if inspect.iscoroutinefunction(getattr(RuntimeDriver, name))}
    assert awaited == {"accept_input", "on_runtime_event", "recover"}


@on_both_stores()
async def test_it_is_checked_at_run_time(rig: Rig) -> None:
    assert isinstance(rig.driver, RuntimeDriver) and isinstance(rig.driver, HostedRuntime)
    assert not isinstance(object(), RuntimeDriver)


@on_both_stores()
async def test_what_is_known_of_an_input(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    await rig.done(run, given)
    driver = rig.driver
    stored = driver.stored_input_state(given)
    assert stored is not None and driver.input_state(given) == stored.state
    assert driver.input_phase(given) is stored.seed.phase is InputPhase.CONSUMED
    assert (driver.input_last_run_id(given), driver.input_last_boundary_sequence(given)) == (run, 1)
    unknown = InputId("unheard of")
    assert driver.input_state(unknown) is driver.input_phase(unknown) is driver.stored_input_state(unknown) is None
    assert driver.input_last_run_id(unknown) is driver.input_last_boundary_sequence(unknown) is None
    assert driver.active_input_ids() == []


@on_both_stores(slots=3)
async def test_steer_goes_before_queue_and_a_task_runs_alone(rig: Rig) -> None:
    tasks = [await rig.accepted(rig.task(f"task-{number}")) for number in range(2)]
    note = await rig.accepted(rig.input(lane=Lane.QUEUE))
    steers = [await rig.accepted(rig.input()) for _ in range(2)]
    expected = [tuple(steers), (tasks[0],), (tasks[1],), (note,)]
    for batch in expected[:3]:
        assert rig.driver.next_batch() == batch
        await rig.driver.begin(batch)
    assert rig.driver.next_batch() == (note,)
    with pytest.raises(DriverNotReady) as refused:
        await rig.driver.begin((note,))
    assert refused.value.guard == "a slot is free"


@on_both_stores()
async def test_what_is_no_task_waits_behind_a_task_and_runs_together(rig: Rig) -> None:
    notes = [await rig.accepted(rig.input(lane=Lane.QUEUE)) for _ in range(2)]
    task = await rig.accepted()
    assert rig.driver.next_batch() == tuple(notes)
    run = await rig.driver.begin(notes)
    assert rig.driver.next_batch() == (task,)
    await rig.driver.roll_back(run)
    assert rig.driver.next_batch() == (task,), "what was given back goes behind what waits"


@on_both_stores()
async def test_a_refused_staging_counts_and_goes_behind(rig: Rig) -> None:
    first, second = [await rig.accepted(rig.task(f"task-{number}")) for number in range(2)]
    await rig.driver.refuse_staging(first)
    assert rig.driver.next_batch() == (second,)
    for _ in range(3):
        await rig.driver.refuse_staging(first)
    assert rig.driver.input_phase(first) is InputPhase.ABANDONED


@on_both_stores()
async def test_what_becomes_of_a_failed_run(rig: Rig) -> None:
    """Tried again, done with, or ended because nobody can tell what was done: only the last two are reported."""
    failed = outcome(OutcomeKind.FAILED, artifacts=())
    for number, (disposition, phase, reported) in enumerate(
        [
            (Disposition.REPLAY, InputPhase.QUEUED, 0),
            (Disposition.CONSUMED, InputPhase.CONSUMED, 1),
            (Disposition.FATE_UNKNOWN, InputPhase.ABANDONED, 2),
        ]
    ):
        given = await rig.accepted(rig.task(f"task-{number}"))
        run = await rig.run(given)
        with pytest.raises(DriverNotReady) as refused:
            await rig.driver.fail(run, "", disposition)
        assert refused.value.guard == "the cause of the failure is named"
        await rig.driver.fail(run, "runner_error", disposition, {given: failed})
        assert rig.driver.input_phase(given) is phase
        assert len(rig.driver.undelivered()) == reported and rig.driver.runtime_state() is RuntimeState.IDLE
    stored = rig.driver.stored_input_state(given)
    assert stored is not None and stored.seed.terminal_outcome is not None
    assert stored.seed.terminal_outcome.reason is AbandonReason.NEVER_EXECUTED
    assert len(await rig.store.receipts(RUNTIME)) == 1, "only what reached its boundary has a receipt"


@on_both_stores()
async def test_a_lost_lease_is_not_reported(rig: Rig) -> None:
    given = await rig.accepted()
    run = await rig.run(given)
    await rig.driver.cancel(run, AbandonReason.LEASE_LOST, {given: outcome(OutcomeKind.LOST, artifacts=())})
    assert rig.driver.undelivered() == ()


def envelope(category: EventCategory, name: str = "x", **changes: object) -> RuntimeEventEnvelope:
    event = RuntimeEvent(category=category, name=name, details={"n": len(changes)})
    runtime = LogicalRuntimeId(str(changes.get("runtime_id", RUNTIME)))
    return RuntimeEventEnvelope(id="e", timestamp=0.0, runtime_id=runtime, event=event)


@on_both_stores()
async def test_only_a_projection_changes_anything(rig: Rig) -> None:
    given = await rig.accepted()
    before, commits = await rig.rows(), len(rig.store.commits)
    for category in EventCategory:
        await rig.driver.on_runtime_event(envelope(category))
        seen = rig.driver.projection("x")
        assert (seen is not None) == (category is EventCategory.PROJECTION)
    assert await rig.rows() == before and len(rig.store.commits) == commits
    assert rig.driver.active_input_ids() == [given] and rig.driver.runtime_state() is RuntimeState.IDLE


@on_both_stores()
async def test_an_event_for_another_or_for_one_that_is_not_there(rig: Rig) -> None:
    with pytest.raises(DriverNotFound, match="another"):
        await rig.driver.on_runtime_event(envelope(EventCategory.RUN, runtime_id="another"))
    with pytest.raises(DriverNotReady) as refused:
        await rig.made().on_runtime_event(envelope(EventCategory.RUN))
    assert refused.value.state is RuntimeState.INITIALIZING


@on_both_stores(slots=2)
async def test_a_newer_lease_takes_the_place_of_whatever_has_not_ended(rig: Rig) -> None:
    old = await rig.accepted(rig.task(fence=1))
    run = await rig.run(old)
    newer = await rig.driver.accept_input(rig.task(fence=2))
    assert isinstance(newer, Accepted) and newer.reopens == old
    stored = rig.driver.stored_input_state(old)
    assert stored is not None and stored.seed.terminal_outcome is not None
    assert stored.seed.terminal_outcome.by == newer.input_id
    second = await rig.run(newer.input_id)
    await rig.driver.cancel(run)
    await rig.done(second, newer.input_id)
    assert [row.key for row in await rig.store.inputs(RUNTIME)] == [None, "task-1"]


@on_both_stores()
async def test_signals_survive_until_they_are_taken(rig: Rig) -> None:
    await rig.accepted()
    await rig.driver.attach()
    assert rig.driver.take_signal() is Signal.WAKE_LOOP and rig.driver.take_signal() is Signal.NONE


@on_both_stores()
async def test_registering_twice_is_no_second_hold(rig: Rig) -> None:
    given = await rig.accepted()
    assert (await rig.driver.register()).inputs_recovered == 0 and rig.driver.active_input_ids() == [given]


@on_both_stores()
async def test_ended_inputs_are_forgotten_by_memory_and_kept_on_record(rig: Rig) -> None:
    notices = [rig.input(kind=InputKind.OPERATION) for _ in range(300)]
    await asyncio.gather(*(rig.driver.accept_input(given) for given in notices))
    known = [given.id for given in notices if rig.driver.input_phase(given.id) is not None]
    assert known == [given.id for given in notices[-64:]]
    assert len(await rig.rows()) == 300


@on_both_stores()
async def test_a_batch_of_steers_is_one_boundary(rig: Rig) -> None:
    ids = [await rig.accepted(rig.input()) for _ in range(3)]
    run = await rig.driver.begin(ids)
    receipt = await rig.driver.complete(draft(run, *ids, digest=None, message_count=0))
    assert receipt is not None and receipt.contributing_input_ids == tuple(ids)
