"""The control plane: any number of hosted runtimes in one process, on one store.

A runtime is named, found, its gate taken and then found again: what was let go of and taken up anew meanwhile is
another driver, and must not get what was meant for the one before. Inputs and events need no gate, as the driver puts
them in order itself; so all tasks that wait for the disk share one commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Protocol, TypeVar, runtime_checkable

from posemesh.control.driver import HostedRuntime
from posemesh.control.errors import (
    DriverDestroyed,
    DriverNotFound,
    DriverNotReady,
    DriverRecoveryCorruption,
    PlaneInternal,
    PlaneInvalidState,
    PlaneNotFound,
    PlaneStoreError,
    RuntimeControlPlaneError,
    RuntimeDriverError,
)
from posemesh.control.records import (
    BoundaryReceipt,
    Ids,
    Input,
    LogicalRuntimeId,
    RunId,
    RuntimeEventEnvelope,
    RuntimeState,
)
from posemesh.control.recovery import RunStatus, run_status
from posemesh.control.reports import (
    AcceptOutcome,
    DestroyReport,
    RecoveryReport,
    RecycleReport,
    ResetReport,
    RetireReport,
)
from posemesh.control.rows import entry_of, receipt_of, record_of
from posemesh.control.store import Store, StoreError
from posemesh.shell.clock import Clock

__all__ = ("Hosting", "RuntimeControlPlane")

T = TypeVar("T")


@runtime_checkable
class RuntimeControlPlane(Protocol):
    """What manages any number of runtimes. Errors are RuntimeControlPlaneError's members."""

    async def ingest(self, runtime_id: LogicalRuntimeId, input: Input) -> AcceptOutcome:
        """Give a runtime an input."""
        ...

    async def publish_event(self, event: RuntimeEventEnvelope) -> None:
        """Tell the runtime that ``event`` names of it, and then every subscriber."""
        ...

    async def retire(self, runtime_id: LogicalRuntimeId) -> RetireReport:
        """It takes nothing new; what it has is worked off."""
        ...

    async def recycle(self, runtime_id: LogicalRuntimeId) -> RecycleReport:
        """It begins anew with the inputs it has."""
        ...

    async def reset(self, runtime_id: LogicalRuntimeId) -> ResetReport:
        """It begins anew without them."""
        ...

    async def recover(self, runtime_id: LogicalRuntimeId) -> RecoveryReport:
        """Read again what is on record, and put it in order."""
        ...

    async def runtime_state(self, runtime_id: LogicalRuntimeId) -> RuntimeState: ...

    async def destroy(self, runtime_id: LogicalRuntimeId) -> DestroyReport:
        """It is over for good, also for the processes to come."""
        ...

    async def load_boundary_receipt(
        self, runtime_id: LogicalRuntimeId, run_id: RunId, sequence: int
    ) -> BoundaryReceipt | None:
        """The receipt of that run with that number, None where there is none."""
        ...


class Hosting(RuntimeControlPlane):
    """The control plane on ``store``, for one loop. ``rng`` makes names, ``clock`` the times that are recorded."""

    def __init__(self, store: Store, *, clock: Clock, rng: Random) -> None:
        self._store = store
        self._clock = clock
        self._ids = Ids(clock.wall, rng)
        self._hosted: dict[LogicalRuntimeId, HostedRuntime] = {}
        self._gates: dict[LogicalRuntimeId, asyncio.Lock] = {}
        self._subscribers: list[Callable[[RuntimeEventEnvelope], None]] = []

    # -- Hosting -------------------------------------------------------------------------------------------------

    async def host(self, runtime_id: LogicalRuntimeId, *, slots: int = 1) -> tuple[HostedRuntime, RecoveryReport]:
        """Take a runtime up, a new one or one that is on record: its driver, and what recovery found.

        Raises PlaneInvalidState for one that was destroyed. One that is hosted already stays as it is.
        """
        async with self._gate(runtime_id):
            driver = self._hosted.get(runtime_id) or HostedRuntime(
                runtime_id, self._store, clock=self._clock, ids=self._ids, slots=slots, announce=self._tell
            )
            report = await self._raised(driver.register())
            if driver.runtime_state() is RuntimeState.DESTROYED:
                raise PlaneInvalidState(RuntimeState.DESTROYED, "host", "it was not destroyed")
            self._hosted[runtime_id] = driver
            return driver, report

    async def release(self, runtime_id: LogicalRuntimeId) -> None:
        """Let go of a runtime whose driver has begun to unregister; refused while it still owes something."""
        async with self._held(runtime_id) as driver:
            await self._raised(driver.unregister())
            del self._hosted[runtime_id]

    def driver(self, runtime_id: LogicalRuntimeId) -> HostedRuntime:
        """The driver of a runtime that is hosted here. Raises PlaneNotFound for any other."""
        driver = self._hosted.get(runtime_id)
        if driver is None:
            raise PlaneNotFound(runtime_id)
        return driver

    def subscribe(self, subscriber: Callable[[RuntimeEventEnvelope], None]) -> Callable[[], None]:
        """Have it told of every event, those published and those of the runtimes; call the result to end it.

        It is called on the loop and must not block. One that raises is left out from then on.
        """
        self._subscribers.append(subscriber)

        def end() -> None:
            with suppress(ValueError):
                self._subscribers.remove(subscriber)

        return end

    # -- The interface -------------------------------------------------------------------------------------------

    async def ingest(self, runtime_id: LogicalRuntimeId, input: Input) -> AcceptOutcome:
        driver = await self._find(runtime_id, "ingest")
        return await self._raised(driver.accept_input(input))

    async def publish_event(self, event: RuntimeEventEnvelope) -> None:
        driver = await self._find(event.runtime_id, "publish_event")
        await self._raised(driver.on_runtime_event(event))
        self._tell(event)

    async def retire(self, runtime_id: LogicalRuntimeId) -> RetireReport:
        async with self._held(runtime_id, "retire") as driver:
            return await self._raised(driver.retire())

    async def recycle(self, runtime_id: LogicalRuntimeId) -> RecycleReport:
        async with self._held(runtime_id, "recycle") as driver:
            return await self._raised(driver.recycle())

    async def reset(self, runtime_id: LogicalRuntimeId) -> ResetReport:
        async with self._held(runtime_id, "reset") as driver:
            return await self._raised(driver.reset())

    async def recover(self, runtime_id: LogicalRuntimeId) -> RecoveryReport:
        async with self._held(runtime_id, "recover") as driver:
            return await self._raised(driver.recover())

    async def runtime_state(self, runtime_id: LogicalRuntimeId) -> RuntimeState:
        driver = self._hosted.get(runtime_id)
        return driver.runtime_state() if driver else await self._stored_state(runtime_id)

    async def destroy(self, runtime_id: LogicalRuntimeId) -> DestroyReport:
        async with self._held(runtime_id, "destroy") as driver:
            return await self._raised(driver.destroy())

    async def load_boundary_receipt(
        self, runtime_id: LogicalRuntimeId, run_id: RunId, sequence: int
    ) -> BoundaryReceipt | None:
        await self.runtime_state(runtime_id)
        return await self._raised(self._receipt(runtime_id, run_id, sequence))

    async def _receipt(self, runtime_id: LogicalRuntimeId, run_id: RunId, sequence: int) -> BoundaryReceipt | None:
        row = await self._store.receipt(runtime_id, run_id, sequence)
        return receipt_of(row) if row else None

    async def run_status(self, runtime_id: LogicalRuntimeId, run_id: RunId) -> RunStatus:
        """What the record says of a run."""
        await self.runtime_state(runtime_id)
        return await self._raised(self._status(runtime_id, run_id))

    async def _status(self, runtime_id: LogicalRuntimeId, run_id: RunId) -> RunStatus:
        rows = await self._store.inputs(runtime_id, run=run_id)
        status, _ = run_status(entry_of(row).stored for row in rows)
        return status

    # -- Inside --------------------------------------------------------------------------------------------------

    def _gate(self, runtime_id: LogicalRuntimeId) -> asyncio.Lock:
        return self._gates.setdefault(runtime_id, asyncio.Lock())

    @asynccontextmanager
    async def _held(self, runtime_id: LogicalRuntimeId, operation: str = "release") -> AsyncIterator[HostedRuntime]:
        """The runtime's driver, its gate taken."""
        await self._find(runtime_id, operation)
        async with self._gate(runtime_id):
            yield await self._find(runtime_id, operation)

    async def _find(self, runtime_id: LogicalRuntimeId, operation: str) -> HostedRuntime:
        driver = self._hosted.get(runtime_id)
        if driver is None:
            state = await self._stored_state(runtime_id)
            raise PlaneInvalidState(state, operation, "this process hosts it")
        return driver

    async def _stored_state(self, runtime_id: LogicalRuntimeId) -> RuntimeState:
        """What is on record of a runtime that is not hosted here."""
        snapshot = await self._raised(self._store.snapshot(runtime_id))
        if snapshot.lifecycle is None:
            raise PlaneNotFound(runtime_id)
        try:
            return record_of(snapshot.lifecycle).state
        except RuntimeDriverError as error:
            raise self._raise(error) from error

    async def _raised(self, asked: Awaitable[T]) -> T:
        """What is awaited, its errors as those of this family."""
        try:
            return await asked
        except (RuntimeDriverError, StoreError) as error:
            raise self._raise(error) from error

    @staticmethod
    def _raise(error: RuntimeDriverError | StoreError) -> RuntimeControlPlaneError:
        made: RuntimeControlPlaneError
        match error:
            case StoreError():
                return PlaneStoreError(str(error))
            case DriverNotFound():
                made = PlaneNotFound(error.runtime_id)
            case DriverNotReady():
                made = PlaneInvalidState(error.state, error.operation, error.guard)
            case DriverDestroyed():
                made = PlaneInvalidState(RuntimeState.DESTROYED, error.operation)
            case DriverRecoveryCorruption():
                made = PlaneStoreError(str(error))
            case _ if isinstance(error.__cause__, StoreError):
                made = PlaneStoreError(str(error.__cause__))
            case _:
                made = PlaneInternal(str(error))
        made.driver_error = error
        return made

    def _tell(self, event: RuntimeEventEnvelope) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber(event)
            except Exception:
                with suppress(ValueError):
                    self._subscribers.remove(subscriber)
