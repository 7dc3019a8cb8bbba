"""Coroutines as runners: set up once, told to stop by a cancellation that ``except Exception`` does not swallow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from posemesh.runners.executors.inline import InlineRunner
from posemesh.runners.kinds import AsyncRunner
from posemesh.shell.offload import HostOffload, InlineOffload, ThreadOffload

from .jobs import Jobs

LIMIT_SECS = 20
Test = Callable[[Any], Coroutine[Any, Any, None]]


@pytest.fixture(params=[InlineOffload, HostOffload, ThreadOffload])
def placed(request: pytest.FixtureRequest) -> Callable[[Test], None]:
    """Run a test with each of the places where user code may run."""

    def run(test: Test) -> None:
        async def main() -> None:
            offload = request.param()
            try:
                async with asyncio.timeout(LIMIT_SECS):
                    await test(offload)
            finally:
                offload.close()

        asyncio.run(main())

    return run


def made(target: Any, offload: Any) -> InlineRunner:
    return InlineRunner("name", "/a/v1", AsyncRunner(target), offload)


def test_it_is_set_up_once_and_torn_down_at_the_end(placed: Callable[[Test], None]) -> None:
    calls: list[str] = []
    threads = set()

    class Model:
        async def setup(self) -> None:
            calls.append("setup")
            await asyncio.sleep(0)

        async def run(self, task: Any) -> None:
            threads.add(threading.current_thread())
            calls.append(str(task.lease.task.id))

        async def teardown(self) -> None:
            calls.append("teardown")

    async def test(offload: Any) -> None:
        calls.clear()
        runner = made(Model, offload)
        jobs = Jobs(runner)
        first, second = jobs.start(), jobs.start()
        assert (await first.ending).code is None and (await second.ending).code is None
        await runner.close()
        assert calls[0] == "setup" and calls[-1] == "teardown" and len(calls) == 4

    placed(test)
    assert len(threads) == 1


def test_a_setup_that_fails_is_the_reason_and_is_tried_again(placed: Callable[[Test], None]) -> None:
    class Model:
        tries = 0

        async def setup(self) -> None:
            Model.tries += 1
            if Model.tries == 1:
                raise FileNotFoundError("weights.bin")

        async def run(self, task: Any) -> None: ...

    async def test(offload: Any) -> None:
        Model.tries = 0
        jobs = Jobs(made(Model, offload))
        ending = await jobs.start().ending
        assert (ending.code, ending.message) == ("setup_failed", "FileNotFoundError: weights.bin")
        assert (await jobs.start().ending).code is None

    placed(test)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("x"), "runner_error"), (SystemExit(3), "runner_error"), (MemoryError(), "out_of_memory")],
)
def test_what_it_raises_ends_its_task_alone(placed: Callable[[Test], None], error: BaseException, code: str) -> None:
    async def fail(task: Any) -> None:
        raise error

    async def test(offload: Any) -> None:
        jobs = Jobs(made(fail, offload))
        assert (await jobs.start().ending).code == code
        assert (await jobs.start().ending).code == code

    placed(test)


def test_a_cancellation_reaches_the_right_task_and_no_other(placed: Callable[[Test], None]) -> None:
    async def wait(task: Any) -> None:
        while True:
            try:
                task.ctrl.log_event("waiting")
                await asyncio.Event().wait()
            except Exception:
                continue

    async def test(offload: Any) -> None:
        jobs = Jobs(made(wait, offload))
        tasks = [jobs.start() for _ in range(5)]
        for task in tasks:
            await task.said("waiting")
        tasks[2].stop("cancelled")
        tasks[2].stop("cancelled")  # again, which changes nothing
        assert (await tasks[2].ending).code == "cancelled"
        assert [task.ending.done() for task in tasks] == [False, False, True, False, False]
        for task in tasks:
            task.stop("shutdown")
        assert {(await task.ending).code for task in tasks} == {"cancelled"}
        tasks[2].run.cancel()  # long after its end

    placed(test)


def test_a_check_is_made_where_the_tasks_will_run(placed: Callable[[Test], None]) -> None:
    seen = []

    class Checked:
        async def check(self) -> None:
            seen.append(threading.current_thread())

        async def run(self, task: Any) -> None:
            seen.append(threading.current_thread())

    class Lacking:
        def check(self) -> None:
            raise RuntimeError("no camera")

        async def run(self, task: Any) -> None: ...

    async def test(offload: Any) -> None:
        seen.clear()
        runner = made(Checked, offload)
        await runner.check()
        await Jobs(runner).start().ending
        assert len(seen) == 2 and seen[0] is seen[1]
        with pytest.raises(RuntimeError, match="no camera"):
            await made(Lacking, offload).check()
        await made(lambda task: None, offload).check()

    placed(test)


def test_a_teardown_that_fails_hurts_nothing(placed: Callable[[Test], None]) -> None:
    class Model:
        async def run(self, task: Any) -> None: ...

        async def teardown(self) -> None:
            raise SystemExit(1)

    async def test(offload: Any) -> None:
        runner = made(Model, offload)
        await Jobs(runner).start().ending
        await runner.close()

    placed(test)


def test_a_teardown_that_takes_too_long_is_left_alone_and_one_that_is_none_is_not_waited_for() -> None:
    """A coroutine that spins held up the node's exit for a teardown that its runner did not have."""
    began = threading.Event()
    over = threading.Event()

    async def spin(task: Any) -> None:
        began.set()
        over.wait(LIMIT_SECS)

    class Slow:
        async def run(self, task: Any) -> None: ...

        async def teardown(self) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        offload = ThreadOffload()
        slow = made(Slow, offload)
        await Jobs(slow).start().ending
        async with asyncio.timeout(LIMIT_SECS):
            await slow.close()
        spinning = made(spin, offload)
        Jobs(spinning).start()
        await asyncio.to_thread(began.wait)
        async with asyncio.timeout(0):  # not a turn of the loop
            await spinning.close()
        over.set()
        offload.close()

    asyncio.run(main())
