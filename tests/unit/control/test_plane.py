"""The control plane: many runtimes on one store, its errors, and who is told of what."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from posemesh.control.driver import HostedRuntime
from posemesh.control.errors import (
    DriverDestroyed,
    DriverNotReady,
    PlaneInternal,
    PlaneInvalidState,
    PlaneNotFound,
    PlaneStoreError,
    RuntimeControlPlaneError,
)
from posemesh.control.plane import Hosting, RuntimeControlPlane
from posemesh.control.records import (
    Durability,
    EventCategory,
    Ids,
    Input,
    InputId,
    InputKind,
    LogicalRuntimeId,
    Origin,
    RunId,
    RuntimeEvent,
    RuntimeEventEnvelope,
    RuntimeState,
)
from posemesh.control.reports import Accepted, Deduplicated, RecoveryReport
from posemesh.control.store import Commit, InputRow, LedgerCorrupt, LedgerFull, ReceiptRow, RuntimeRow
from posemesh.events import Obligation
from posemesh.testing import ManualClock

from .rig import Faulty, draft, outcome
from .stores import KINDS, Reopen, opened

ONE, TWO = LogicalRuntimeId("rt:node:1"), LogicalRuntimeId("rt:node:2")
UNKNOWN = LogicalRuntimeId("missing")


class Planes:
    """A plane on a store that can be told to fail, and a way to begin anew as another process does."""

    def __init__(self, store: Any, reopen: Reopen) -> None:
        self.store, self.reopen, self.clock = Faulty(store), reopen, ManualClock()
        self.ids = Ids(self.clock.wall, Random(2))
        self.plane = self.made()

    def made(self) -> Hosting:
        return Hosting(self.store, clock=self.clock, rng=Random(1))  # type: ignore[arg-type]

    async def restart(self) -> None:
        self.store.store = await self.reopen()
        self.plane = self.made()

    def task(self, key: str = "task-1", fence: int = 1) -> Input:
        return Input(
            id=self.ids.input(),
            kind=InputKind.TASK,
            at=0.0,
            origin=Origin.SERVICE,
            durability=Durability.DURABLE,
            idempotency_key=key,
            fence=fence,
            payload={"task": key},
        )


@asynccontextmanager
async def planes(kind: str, place: Path) -> AsyncIterator[Planes]:
    async with opened(kind, place) as (store, reopen):
        yield Planes(store, reopen)


def on_both_stores(test: Callable[[Planes], Coroutine[Any, Any, None]]) -> Any:
    @pytest.mark.parametrize("kind", KINDS)
    def run(kind: str, tmp_path: Path) -> None:
        async def main() -> None:
            async with planes(kind, tmp_path / "state") as made:
                await test(made)

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


def test_the_interface_is_this() -> None:
    names = {name for name, value in vars(RuntimeControlPlane).items() if inspect.isfunction(value) and name[0] != "_"}
    assert names == {
        "ingest",
        "publish_event",
        "retire",
        "recycle",
        "reset",
        "recover",
        "runtime_state",
        "destroy",
        "load_boundary_receipt",
    }
    assert all(inspect.iscoroutinefunction(getattr(RuntimeControlPlane, name)) for name in names)


@on_both_stores
async def test_it_is_checked_at_run_time(made: Planes) -> None:
    assert isinstance(made.plane, RuntimeControlPlane)
    driver, _ = await made.plane.host(ONE)
    assert isinstance(driver, HostedRuntime) and not isinstance(driver, RuntimeControlPlane)


@on_both_stores
async def test_runtimes_do_not_share_keys_numbers_or_fates(made: Planes) -> None:
    for runtime in (ONE, TWO):
        driver, report = await made.plane.host(runtime)
        assert report == RecoveryReport(inputs_recovered=0, inputs_abandoned=0, inputs_requeued=0)
        accepted = await made.plane.ingest(runtime, made.task())
        assert isinstance(accepted, Accepted)
        run = await driver.begin((accepted.input_id,))
        receipt = await driver.complete(draft(run, accepted.input_id), {accepted.input_id: outcome()})
        assert receipt is not None and receipt.sequence == 1
        assert await made.plane.load_boundary_receipt(runtime, run, 1) == receipt
    assert await made.plane.load_boundary_receipt(ONE, run, 1) is None
    assert await made.plane.load_boundary_receipt(TWO, run, 2) is None
    await made.plane.destroy(ONE)
    assert await made.plane.runtime_state(TWO) is RuntimeState.IDLE


OPERATIONS: dict[str, Callable[[Hosting, LogicalRuntimeId], Coroutine[Any, Any, Any]]] = {
    "retire": lambda plane, runtime: plane.retire(runtime),
    "recycle": lambda plane, runtime: plane.recycle(runtime),
    "reset": lambda plane, runtime: plane.reset(runtime),
    "recover": lambda plane, runtime: plane.recover(runtime),
    "destroy": lambda plane, runtime: plane.destroy(runtime),
    "publish_event": lambda plane, runtime: plane.publish_event(event(runtime)),
}


def event(runtime: LogicalRuntimeId, category: EventCategory = EventCategory.PROJECTION) -> RuntimeEventEnvelope:
    told = RuntimeEvent(category=category, name="load", details={"busy": 1})
    return RuntimeEventEnvelope(
        id="e-1", timestamp=3.0, runtime_id=runtime, event=told, causation="c", correlation="job"
    )


@on_both_stores
async def test_one_that_never_was(made: Planes) -> None:
    calls = [operation(made.plane, UNKNOWN) for operation in OPERATIONS.values()]
    calls += [made.plane.ingest(UNKNOWN, made.task()), made.plane.runtime_state(UNKNOWN)]
    calls += [made.plane.load_boundary_receipt(UNKNOWN, RunId("r"), 1)]
    for call in calls:
        with pytest.raises(PlaneNotFound, match="Runtime not found: missing") as error:
            await call
        assert error.value.runtime_id == UNKNOWN
    with pytest.raises(PlaneNotFound):
        made.plane.driver(UNKNOWN)


@on_both_stores
async def test_destroyed_is_remembered(made: Planes) -> None:
    await made.plane.host(ONE)
    await made.plane.ingest(ONE, made.task())
    assert (await made.plane.destroy(ONE)).inputs_abandoned == 1
    for _ in range(2):
        assert await made.plane.runtime_state(ONE) is RuntimeState.DESTROYED
        for name, operation in OPERATIONS.items():
            with pytest.raises(PlaneInvalidState, match="Invalid state for operation: destroyed") as error:
                await operation(made.plane, ONE)
            assert error.value.state is RuntimeState.DESTROYED and error.value.operation, name
        with pytest.raises(PlaneInvalidState, match="destroyed"):
            await made.plane.ingest(ONE, made.task(fence=2))
        with pytest.raises(PlaneInvalidState, match="destroyed"):
            await made.plane.host(ONE)
        await made.restart()


@on_both_stores
async def test_an_error_keeps_what_the_driver_raised(made: Planes) -> None:
    driver, _ = await made.plane.host(ONE)
    accepted = await made.plane.ingest(ONE, made.task())
    assert isinstance(accepted, Accepted)
    await driver.begin((accepted.input_id,))
    for operation, event_name in (("reset", "RuntimeReset"), ("recover", "RuntimeRecovered")):
        with pytest.raises(PlaneInvalidState) as error:
            await OPERATIONS[operation](made.plane, ONE)
        assert (error.value.state, error.value.operation) == (RuntimeState.RUNNING, event_name)
        assert isinstance(error.value.driver_error, DriverNotReady)
    made.store.faults = [LedgerFull("no room")]
    with pytest.raises(PlaneStoreError, match="Store error: no room") as full:
        await made.plane.retire(ONE)
    assert full.value.driver_error is not None and isinstance(full.value.driver_error.__cause__, LedgerFull)
    assert await made.plane.runtime_state(ONE) is RuntimeState.RUNNING
    with pytest.raises(PlaneInternal, match="Input validation failed") as wrong:
        await made.plane._raised(driver.cancel_input(InputId("unheard of")))
    assert isinstance(wrong.value, RuntimeControlPlaneError) and wrong.value.driver_error is not None
    await made.plane.destroy(ONE)
    with pytest.raises(PlaneInvalidState) as over:
        await made.plane.retire(ONE)
    assert isinstance(over.value.driver_error, DriverDestroyed)


@on_both_stores
async def test_a_row_that_cannot_be_read(made: Planes) -> None:
    await made.store.commit(Commit(runtime=ONE, lifecycle=RuntimeRow(runtime=ONE, phase="idle", body="{}")))
    for call in (made.plane.runtime_state(ONE), made.plane.host(ONE)):
        with pytest.raises(PlaneStoreError, match="Recovery corruption"):
            await call

    await made.plane.host(TWO)
    receipt = ReceiptRow(runtime=TWO, run="r", sequence=1, body='{"x": 1}')
    row = InputRow(runtime=TWO, id="i", phase="queued", run="r")
    await made.store.commit(Commit(runtime=TWO, receipts=(receipt,), inputs=(row,)))
    for call in (made.plane.load_boundary_receipt(TWO, RunId("r"), 1), made.plane.run_status(TWO, RunId("r"))):
        with pytest.raises(PlaneStoreError, match="Recovery corruption"):
            await call

    async def broken(*args: object) -> None:
        raise LedgerCorrupt("page 7")

    made.store.receipt = broken  # type: ignore[attr-defined]
    with pytest.raises(PlaneStoreError, match="page 7"):
        await made.plane.load_boundary_receipt(TWO, RunId("r"), 1)


@on_both_stores
async def test_the_reports(made: Planes) -> None:
    driver, _ = await made.plane.host(ONE)
    for number in range(3):
        await made.plane.ingest(ONE, made.task(f"task-{number}"))
    assert (await made.plane.recycle(ONE)).inputs_transferred == 3
    await driver.attach()
    retired = await made.plane.retire(ONE)
    assert (retired.inputs_abandoned, retired.inputs_pending_drain) == (0, 3)
    recovered = await made.plane.recover(ONE)
    assert (recovered.inputs_recovered, recovered.inputs_requeued) == (3, 0)
    assert (await made.plane.reset(ONE)).inputs_abandoned == 3
    assert (await made.plane.destroy(ONE)).inputs_abandoned == 0


@on_both_stores
async def test_a_restart_finds_what_was_there(made: Planes) -> None:
    await made.plane.host(ONE)
    given = made.task()
    await made.plane.ingest(ONE, given)
    await made.restart()
    assert await made.plane.runtime_state(ONE) is RuntimeState.IDLE
    with pytest.raises(PlaneInvalidState) as error:
        await made.plane.ingest(ONE, made.task())
    assert error.value.guard == "this process hosts it"
    driver, report = await made.plane.host(ONE)
    assert report.inputs_recovered == 1 and driver.active_input_ids() == [given.id]
    again = await made.plane.ingest(ONE, made.task())
    assert isinstance(again, Deduplicated) and again.existing_id == given.id
    assert (await made.plane.host(ONE))[0] is driver


@on_both_stores
async def test_an_event_goes_to_its_runtime_and_to_subscribers(made: Planes) -> None:
    heard: list[RuntimeEventEnvelope] = []
    driver, _ = await made.plane.host(ONE)
    other, _ = await made.plane.host(TWO)
    end = made.plane.subscribe(heard.append)
    await made.plane.publish_event(event(ONE))
    assert heard == [event(ONE)] and driver.projection("load") == event(ONE).event and other.projection("load") is None
    await made.plane.ingest(TWO, made.task())
    assert [told.event.code for told in heard[1:]] == ["input.accepted", "input.queued"]
    end()
    end()
    await made.plane.publish_event(event(TWO))
    assert len(heard) == 3


@on_both_stores
async def test_a_refused_event_is_told_to_nobody(made: Planes) -> None:
    heard: list[RuntimeEventEnvelope] = []
    made.plane.subscribe(heard.append)
    await made.plane.host(ONE)
    await made.plane.destroy(ONE)
    assert [told.event.code for told in heard] == [
        "state.changed",
        "topology.created",
        "state.changed",
        "topology.destroyed",
    ]
    heard.clear()
    with pytest.raises(PlaneInvalidState):
        await made.plane.publish_event(event(ONE))
    assert heard == []


@on_both_stores
async def test_a_subscriber_that_raises_is_left_out(made: Planes) -> None:
    heard: list[RuntimeEventEnvelope] = []

    def broken(told: RuntimeEventEnvelope) -> None:
        heard.append(told)
        raise ValueError("oh")

    await made.plane.host(ONE)
    made.plane.subscribe(broken)
    for _ in range(2):
        await made.plane.publish_event(event(ONE))
    assert len(heard) == 1


@on_both_stores
async def test_what_is_let_go_of_can_be_taken_up_again(made: Planes) -> None:
    driver, _ = await made.plane.host(ONE)
    with pytest.raises(PlaneInvalidState):
        await made.plane.release(ONE)
    await driver.begin_unregister()
    with pytest.raises(PlaneInvalidState) as refused:
        await made.plane.release(ONE)
    assert refused.value.guard == "all its obligations are closed"
    with pytest.raises(PlaneInvalidState) as early:
        await made.plane.host(ONE)
    assert early.value.guard == "obligations of the process before are closed"
    for obligation in Obligation:
        await driver.close(obligation)
    await made.plane.release(ONE)
    second, _ = await made.plane.host(ONE)
    assert second is not driver


@on_both_stores
async def test_a_command_reaches_the_driver_that_is_there_when_its_turn_comes(made: Planes) -> None:
    """One runtime's driver is replaced while a command waits for its gate: the command is the new one's."""
    first, _ = await made.plane.host(ONE)
    await first.begin_unregister()
    for obligation in Obligation:
        await first.close(obligation)
    async with made.plane._gate(ONE):
        command = asyncio.create_task(made.plane.retire(ONE))
        await asyncio.sleep(0)
        second = HostedRuntime(ONE, made.store, clock=made.clock, ids=made.ids)  # type: ignore[arg-type]
        await first.unregister()
        await second.register()
        made.plane._hosted[ONE] = second
    await command
    assert second.runtime_state() is RuntimeState.RETIRED and first.runtime_state() is RuntimeState.IDLE
