"""Where user code runs: whatever it does, the node's own loop goes on and hears how it ended."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from posemesh.shell.offload import HostOffload, InlineOffload, Offload, ThreadOffload

ALL = [InlineOffload, HostOffload, ThreadOffload]


def with_offload(make: Callable[[], Offload], test: Callable[[Offload], Awaitable[None]]) -> None:
    async def main() -> None:
        offload = make()
        try:
            async with asyncio.timeout(20):
                await test(offload)
        finally:
            offload.close()

    asyncio.run(main())


async def end_of(offload: Offload, work: Callable[[], Any], cancel: bool = False) -> BaseException | None:
    """How user code ended, as it is told on the node's loop."""
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    run = offload.start(work, ended.set_result)
    if cancel:
        run.cancel()
    return await ended


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()]
)
def test_what_user_code_raises_ends_it_and_nothing_else(make: Callable[[], Offload], error: BaseException) -> None:
    async def test(offload: Offload) -> None:
        async def work() -> None:
            raise error

        assert await end_of(offload, work) is error
        # And the loop goes on to run the next.
        assert await end_of(offload, lambda: asyncio.sleep(0)) is None

    with_offload(make, test)


@pytest.mark.parametrize("make", ALL)
def test_a_cancel_reaches_what_awaits(make: Callable[[], Offload]) -> None:
    async def test(offload: Offload) -> None:
        begun = threading.Event()

        async def work() -> None:
            begun.set()
            await asyncio.Event().wait()

        ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        run = offload.start(work, ended.set_result)
        while not begun.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        run.cancel()
        assert isinstance(await ended, asyncio.CancelledError)

    with_offload(make, test)


@pytest.mark.parametrize("make", ALL)
def test_a_cancel_that_comes_first_keeps_it_from_beginning(make: Callable[[], Offload]) -> None:
    async def test(offload: Offload) -> None:
        begun = []
        cancelled = threading.Event()

        async def hold() -> None:
            cancelled.wait(10)

        async def work() -> None:
            begun.append(1)

        if isinstance(offload, ThreadOffload):  # else its thread may be through before this one has got to the cancel
            offload.start(hold, lambda error: None)
        ended = asyncio.ensure_future(end_of(offload, work, cancel=True))
        await asyncio.sleep(0)
        cancelled.set()
        assert isinstance(await ended, asyncio.CancelledError)
        assert begun == []

    with_offload(make, test)


@pytest.mark.parametrize("make", ALL)
def test_a_cancel_may_be_ignored(make: Callable[[], Offload]) -> None:
    async def test(offload: Offload) -> None:
        begun = threading.Event()

        async def work() -> None:
            begun.set()
            for _ in range(3):
                try:
                    await asyncio.sleep(0.02)
                except asyncio.CancelledError:
                    continue

        ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        run = offload.start(work, ended.set_result)
        while not begun.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        run.cancel()
        assert await ended is None
        run.cancel()  # after the end: nothing

    with_offload(make, test)


@pytest.mark.parametrize("make", ALL)
def test_user_code_asks_the_node(make: Callable[[], Offload]) -> None:
    async def test(offload: Offload) -> None:
        here = asyncio.get_running_loop()

        async def answer() -> str:
            assert asyncio.get_running_loop() is here
            return "answered"

        async def refuse() -> None:
            raise LookupError("not here")

        async def work() -> None:
            assert await offload.ask(answer) == "answered"
            with pytest.raises(LookupError, match="not here"):
                await offload.ask(refuse)

        assert await end_of(offload, work) is None

    with_offload(make, test)


@pytest.mark.parametrize("make", ALL)
def test_a_blocking_call_gives_its_result_or_its_error(make: Callable[[], Offload]) -> None:
    async def test(offload: Offload) -> None:
        assert await offload.call(max, 1, 2) == 2
        assert await offload.call(int, "ff", base=16) == 255
        with pytest.raises(ZeroDivisionError):
            await offload.call(lambda: 1 // 0)

    with_offload(make, test)


@pytest.mark.parametrize("make", [HostOffload, ThreadOffload])
def test_the_loop_does_not_wait_for_a_blocking_call(make: Callable[[], Offload]) -> None:
    async def test(offload: Offload) -> None:
        go = threading.Event()
        call = asyncio.ensure_future(offload.call(go.wait, 10))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not call.done()
        go.set()
        assert await call
        stuck = asyncio.ensure_future(offload.call(threading.Event().wait))
        await asyncio.sleep(0)
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck

    with_offload(make, test)


def test_user_code_that_spins_does_not_hold_up_the_node() -> None:
    async def test(offload: Offload) -> None:
        stop = threading.Event()
        beats = 0

        async def work() -> None:
            while not stop.is_set():
                sum(range(1000))

        ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        run = offload.start(work, ended.set_result)
        while beats < 20:
            await asyncio.sleep(0.001)
            beats += 1
        run.cancel()
        assert not ended.done()
        stop.set()
        # It returned without awaiting, so the cancellation found no place to be raised at.
        assert await ended is None

    with_offload(ThreadOffload, test)


def test_what_begins_at_once_begins_in_order_and_each_end_is_told() -> None:
    """One wake-up serves several, so one that raises must not take the others with it."""

    async def test(offload: Offload) -> None:
        begun: list[int] = []
        told: list[int] = []
        all_told = asyncio.Event()

        def end(number: int) -> None:
            told.append(number)
            if len(told) == 100:
                all_told.set()
            if number % 10 == 0:
                raise ValueError("the node's own fault")

        async def work(number: int) -> None:
            begun.append(number)

        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context["exception"]))
        for number in range(100):
            offload.start(lambda number=number: work(number), lambda error, number=number: end(number))  # type: ignore[misc]
        await all_told.wait()
        assert begun == told == list(range(100))
        await asyncio.sleep(0)
        assert [str(problem) for problem in problems] == ["the node's own fault"] * 10

    with_offload(ThreadOffload, test)


def test_runners_share_one_thread_of_their_own() -> None:
    async def test(offload: Offload) -> None:
        threads = set()

        async def work() -> None:
            threads.add(threading.current_thread())

        for _ in range(3):
            await end_of(offload, work)
        (thread,) = threads
        assert thread is not threading.main_thread()
        assert thread.daemon

    with_offload(ThreadOffload, test)


def test_closing_cancels_and_does_not_wait() -> None:
    async def main() -> None:
        offload = ThreadOffload()
        told, begun = threading.Event(), threading.Event()
        stop = threading.Event()

        async def polite() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                told.set()

        offload.start(polite, lambda error: None)
        assert await asyncio.to_thread(begun.wait, 5)
        offload.close()
        assert told.wait(5)

        spinning = ThreadOffload()

        async def spin() -> None:
            while not stop.is_set():
                sum(range(1000))

        spinning.start(spin, lambda error: None)
        began = time.monotonic()
        spinning.close()
        assert time.monotonic() - began < 2
        stop.set()
        spinning._thread.join(5)
        assert not spinning._thread.is_alive()
        spinning.close()

    asyncio.run(main())


def test_what_user_code_left_in_a_thread_does_not_keep_the_process() -> None:
    """A pool's threads are joined at exit: a runner in asyncio.to_thread would hold up the node's end for ever."""
    program = """
import asyncio, threading
from posemesh.shell.offload import ThreadOffload

async def main():
    offload, begun = ThreadOffload(), threading.Event()

    async def work():
        assert await asyncio.to_thread(max, 1, 2) == 2
        begun.set()
        await asyncio.to_thread(threading.Event().wait)

    offload.start(work, lambda error: None)
    await offload.call(begun.wait)
    offload.close()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=20)


def test_a_coroutine_that_swallows_everything_does_not_keep_the_process() -> None:
    """Its loop was closed under it; what awaits there raises, is swallowed, and awaits again, for ever."""
    program = """
import asyncio, threading
from posemesh.shell.offload import ThreadOffload

async def main():
    offload, begun = ThreadOffload(), threading.Event()

    async def work():
        while True:
            try:
                begun.set()
                await asyncio.sleep(1000)
            except BaseException:
                pass

    offload.start(work, lambda error: None)
    await offload.call(begun.wait)
    offload.close()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=20)


def test_threads_of_user_code_take_turns() -> None:
    async def test(offload: Offload) -> None:
        running, most, lock = 0, 0, threading.Lock()

        def count() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.001)
            with lock:
                running -= 1

        async def work() -> None:
            await asyncio.gather(*(asyncio.to_thread(count) for _ in range(200)))

        assert await end_of(offload, work) is None
        assert 1 <= most <= 32

    with_offload(ThreadOffload, test)


def test_user_code_starts_programs_on_the_runners_loop() -> None:
    """A loop beside the main thread's has to hear of a child's end too."""
    found: list[object] = []

    async def work() -> None:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(5)", stdout=subprocess.PIPE)
        found.append((await child.communicate())[0].strip())
        found.append(child.returncode)

    async def main() -> None:
        offload = ThreadOffload()
        ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        offload.start(work, ended.set_result)
        found.append(await ended)
        offload.close()

    asyncio.run(main())
    assert found == [b"5", 0, None]
