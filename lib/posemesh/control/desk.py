"""Where operations on one runtime wait, are worked off together and take effect: the image's only writer.

Those that wait are done in order on a fork of the image; one commit writes what differs; then the fork is the image,
whoever waits is told, and the calls return. Where the commit is refused each is tried by itself, so that none fails for
another's fault. Where nobody knows whether it happened, the same commit is given again before anything else is done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from posemesh.control.errors import (
    DriverInternal,
    DriverRecoveryCorruption,
    DriverValidationFailed,
    RuntimeDriverError,
)
from posemesh.control.image import Image
from posemesh.control.records import Ids, InputId, RuntimeEventEnvelope, TerminalOutcome
from posemesh.control.store import Commit, Conflict, LedgerCorrupt, LedgerFailed, LedgerTooNew, StaleRows, Store
from posemesh.control.store import StoreError as StoreFailure
from posemesh.errors import WireError
from posemesh.shell.clock import Clock

__all__ = ("Desk",)

T = TypeVar("T")
L = TypeVar("L")


@dataclass(eq=False, slots=True)
class _Call:
    """An operation that waits: ``look`` reads what ``apply`` has to know. ``alone`` where that is all there is, so that
    it must not miss what others beside it do.
    """

    look: Callable[[], Awaitable[Any]] | None
    apply: Callable[[Image, Any], Any]
    future: asyncio.Future[Any]
    alone: bool
    looked: Any = None
    result: Any = None

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def end(self) -> None:
        if not self.future.done():
            self.future.set_result(self.result)


def _told(error: Exception) -> RuntimeDriverError:
    """What a caller is told of the failure of a commit."""
    made: RuntimeDriverError
    match error:
        case LedgerCorrupt() | LedgerTooNew():
            made = DriverRecoveryCorruption(str(error))
        case StoreFailure():
            made = DriverInternal(str(error))
        case WireError():
            made = DriverValidationFailed(str(error))
        case _:
            made = DriverInternal(f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made


class Desk:
    """``image`` is what is known and on record, but for inputs that do not last. For one loop."""

    def __init__(
        self,
        image: Image,
        store: Store,
        clock: Clock,
        ids: Ids,
        announce: Callable[[RuntimeEventEnvelope], None] | None,
    ) -> None:
        self.image = image
        self._store = store
        self._clock = clock
        self._ids = ids
        self._announce = announce
        self._calls: deque[_Call] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._doubt: tuple[Commit, Image, Image] | None = None
        self._waiters: dict[InputId, asyncio.Future[TerminalOutcome]] = {}

    async def do(
        self, apply: Callable[[Image, L], T], look: Callable[[], Awaitable[L]] | None = None, *, alone: bool = False
    ) -> T:
        """Have an operation done; what it returns once that is on record. It is done also where its caller leaves."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.append(_Call(look, apply, future, alone))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        result: T = await future
        return result

    async def wait(self, input_id: InputId) -> TerminalOutcome | None:
        """How an input that has not ended does; None for any other."""
        entry = self.image.entries.get(input_id)
        if entry is None or entry.stored.terminal:
            return None
        waiter = self._waiters.setdefault(input_id, asyncio.get_running_loop().create_future())
        return await asyncio.shield(waiter)

    async def _work(self) -> None:
        while self._calls:
            batch = [self._calls.popleft()]
            while self._calls and not (batch[0].alone or self._calls[0].alone):
                batch.append(self._calls.popleft())
            try:
                await self._settle_doubt()
                await asyncio.gather(*(self._look(call) for call in batch))
                await self._apply([call for call in batch if not call.future.done() or call.future.cancelled()])
            except StoreFailure as error:
                for call in batch:
                    call.fail(_told(error))
            except BaseException as error:
                for call in batch:
                    failure = DriverInternal(f"{type(error).__name__}: {error}")
                    failure.__cause__ = error
                    call.fail(failure)
                if not isinstance(error, Exception):
                    raise

    async def _settle_doubt(self) -> None:
        """Find out about a commit of which nobody knows whether it happened. Raises where that is still so."""
        if self._doubt is None:
            return
        commit, before, after = self._doubt
        try:
            await self._store.commit(commit)
        except (StaleRows, Conflict):
            self._doubt = None
            return
        self._doubt = None
        self._publish(before, after)

    async def _look(self, call: _Call) -> None:
        if call.look is None:
            return
        try:
            call.looked = await call.look()
        except RuntimeDriverError as error:
            call.fail(error)
        except StoreFailure as error:
            call.fail(_told(error))

    async def _apply(self, batch: list[_Call]) -> None:
        draft, done = self._fork(), []
        for call in batch:
            trial = draft.fork()
            try:
                call.result = call.apply(trial, call.looked)
            except RuntimeDriverError as error:
                call.fail(error)
            except Exception as error:
                failure = DriverInternal(f"{type(error).__name__}: {error}")
                failure.__cause__ = error
                call.fail(failure)
            else:
                draft = trial
                done.append(call)
        if not done:
            return
        try:
            commit, after = draft.difference(self.image)
            await self._commit(commit, draft, after)
        except LedgerFailed as error:
            for call in done:
                call.fail(_told(error))
        except Exception as error:
            if len(done) == 1:
                done[0].fail(_told(error))
                return
            for call in done:
                await self._settle_doubt()
                await self._apply([call])
        else:
            for call in done:
                call.end()

    async def _commit(self, commit: Commit | None, draft: Image, after: Image) -> None:
        """Have ``draft`` on record and be the image. Where nobody knows whether it is, it stays in doubt."""
        if commit is not None:
            try:
                await self._store.commit(commit)
            except LedgerFailed:
                self._doubt = commit, draft, after
                raise
        self._publish(draft, after)

    def _fork(self) -> Image:
        draft = self.image.fork()
        draft.now = self._clock.wall()
        return draft

    def _publish(self, draft: Image, after: Image) -> None:
        """``draft`` is on record: it is the image from now on, as ``after``, and whoever waits is told."""
        ended = draft.ended_since(self.image)
        self.image = after
        for input_id, waiter in list(self._waiters.items()):
            entry = draft.entries.get(input_id)
            if input_id in ended and entry is not None and entry.stored.seed.terminal_outcome is not None:
                del self._waiters[input_id]
                if not waiter.done():
                    waiter.set_result(entry.stored.seed.terminal_outcome)
            elif entry is None:
                del self._waiters[input_id]
                if not waiter.done():
                    waiter.set_exception(DriverRecoveryCorruption(f"input {input_id} is not there any more"))
                    waiter.exception()
        if self._announce is None:
            return
        for event in draft.events:
            self._announce(
                RuntimeEventEnvelope(
                    id=self._ids(),
                    timestamp=draft.now,
                    runtime_id=draft.runtime_id,
                    event=event,
                    correlation=self._correlation(draft, event.input_id),
                )
            )

    @staticmethod
    def _correlation(draft: Image, input_id: InputId | None) -> str | None:
        entry = draft.entries.get(input_id) if input_id else None
        return entry.stored.state.input.correlation_id if entry else None
