"""Where what may block runs: user code, DNS, bulk file work. The node's own loop never waits for it.

Three ways behind one interface. Under ``Node.run()`` coroutines of user code share one loop in a daemon thread, so that
one which spins without awaiting does not cost the node its leases. Under ``Node.start()`` they use the host's loop. In
simulations all is inline, on the one loop whose time is virtual. Threads are daemons: one that never ends does not keep
the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, Protocol, TypeVar

__all__ = ("HostOffload", "InlineOffload", "Offload", "Run", "ThreadOffload")

P = ParamSpec("P")
T = TypeVar("T")
Factory = Callable[[], Coroutine[Any, Any, None]]


class Run(Protocol):
    """User code that was started."""

    def cancel(self) -> object:
        """Raise CancelledError where it awaits. It may take its time, or ignore it."""
        ...


class Offload(Protocol):
    """The interface. ``start`` and ``call`` are for the node's loop; ``ask`` is for user code, wherever it runs."""

    def start(self, factory: Factory, ended: Callable[[BaseException | None], None]) -> Run:
        """Run user code; ``ended`` is called on the node's loop with what it raised, None where it returned."""
        ...

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function and wait for its result."""
        ...

    async def ask(self, factory: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the node's loop and wait for its result, from user code's loop."""
        ...

    def close(self) -> None:
        """Let go of threads. What still runs in them is left alone."""
        ...


async def _guarded(factory: Factory) -> BaseException | None:
    """What user code raised. SystemExit and its like end a task here, never the loop or the process."""
    try:
        await factory()
    except BaseException as error:
        return error
    return None


class InlineOffload:
    """Everything on the one running loop, blocking calls included: for simulations."""

    def start(self, factory: Factory, ended: Callable[[BaseException | None], None]) -> Run:
        task = asyncio.ensure_future(_guarded(factory))
        task.add_done_callback(lambda done: ended(asyncio.CancelledError() if done.cancelled() else done.result()))
        return task

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    async def ask(self, factory: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await factory()

    def close(self) -> None:
        pass


class HostOffload(InlineOffload):
    """User coroutines on the host's loop; blocking calls each in a daemon thread."""

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(_in_thread(lambda: function(*args, **kwargs)))


class ThreadOffload(HostOffload):
    """User coroutines on one loop of their own, in a daemon thread."""

    def __init__(self) -> None:
        self._node_loop = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._begun, self._ended = _Calls(self._loop), _Calls(self._node_loop)
        self._loop.set_default_executor(_DaemonPool())
        self._thread = threading.Thread(target=self._serve, name="posemesh-runners", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        # One more turn, so that what was cancelled is not left pending; user code that goes on is left alone. Its loop
        # is not closed before its end: thrown away where it waits it may swallow that as well, and spin for ever.
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()
        while left := asyncio.all_tasks(self._loop):
            with suppress(RuntimeError):  # closed once more
                self._loop.run_until_complete(asyncio.wait(left))
        self._loop.close()

    def start(self, factory: Factory, ended: Callable[[BaseException | None], None]) -> Run:
        def tell(error: BaseException | None) -> None:
            with suppress(RuntimeError):  # the node's loop is closed: nobody is left to hear it
                self._ended.add(lambda: ended(error))

        return _ThreadRun(self._loop, self._begun, factory, tell)

    async def ask(self, factory: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(factory(), self._node_loop))

    def close(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=0.2)


class _Calls:
    """What other threads want called on a loop, in order. One wake-up serves all that come before the loop's turn: each
    costs two system calls, and the other thread the interpreter.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False

    def add(self, call: Callable[[], None]) -> None:
        """From any thread. Raises RuntimeError where the loop is closed."""
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._make)

    def _make(self) -> None:
        self._woken = False  # first: what is added from here on is either seen below or wakes again
        try:
            for _ in range(len(self._calls)):
                self._calls.popleft()()
        finally:  # what raises takes nobody else's call with it
            if self._calls and not self._woken:
                self._woken = True
                self._loop.call_soon(self._make)


class _ThreadRun:
    """User code on another thread's loop. A cancel that comes before it began keeps it from beginning."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        begun: _Calls,
        factory: Factory,
        ended: Callable[[BaseException | None], None],
    ) -> None:
        self._loop = loop
        self._task: asyncio.Task[BaseException | None] | None = None
        self._cancelled = False
        begun.add(lambda: self._begin(factory, ended))

    def _begin(self, factory: Factory, ended: Callable[[BaseException | None], None]) -> None:
        if self._cancelled:
            ended(asyncio.CancelledError())
            return
        self._task = self._loop.create_task(_guarded(factory))
        self._task.add_done_callback(
            lambda done: ended(asyncio.CancelledError() if done.cancelled() else done.result())
        )

    def cancel(self) -> None:
        self._cancelled = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())


class _DaemonPool(ThreadPoolExecutor):
    """Where ``asyncio.to_thread`` of user code goes. The process's end waits for the threads of an ordinary pool."""

    def __init__(self) -> None:
        super().__init__()
        self._turns = threading.Semaphore(self._max_workers)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        def in_turn() -> T:
            with self._turns:
                return fn(*args, **kwargs)

        return _in_thread(in_turn)


def _in_thread(function: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=work, name="posemesh-call", daemon=True).start()
    return future
