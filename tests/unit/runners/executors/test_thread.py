"""Plain functions as runners, each task in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from posemesh.runners.executors.thread import ThreadRunner
from posemesh.runners.kinds import BlockingRunner
from posemesh.shell.offload import HostOffload, ThreadOffload

from .jobs import Jobs

LIMIT_SECS = 20
Test = Callable[[Any], Coroutine[Any, Any, None]]


@pytest.fixture(params=[HostOffload, ThreadOffload])
def placed(request: pytest.FixtureRequest) -> Callable[[Test], None]:
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


def made(target: Any, offload: Any) -> ThreadRunner:
    return ThreadRunner("name", "/a/v1", BlockingRunner(target), offload)


def test_a_task_with_plain_calls(placed: Callable[[Test], None]) -> None:
    threads = set()

    def work(task: Any) -> str:
        threads.add(threading.current_thread())
        data = task.input.get_bytes_by_cid("abc")
        task.ctrl.progress({"pct": 50})
        assert task.output.put_bytes("out.bin", data.upper()) == "id of out.bin"
        return "ignored"

    async def test(offload: Any) -> None:
        job = Jobs(made(work, offload)).start()
        assert (await job.ending).code is None
        assert (job.reported, job.puts) == ([{"pct": 50}], {"out.bin": b"ABC"})

    placed(test)
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("x"), "runner_error"), (SystemExit(3), "runner_error"), (MemoryError(), "out_of_memory")],
)
def test_what_it_raises_ends_its_task_alone(placed: Callable[[Test], None], error: BaseException, code: str) -> None:
    def fail(task: Any) -> None:
        raise error

    async def test(offload: Any) -> None:
        assert (await Jobs(made(fail, offload)).start().ending).code == code

    placed(test)


def test_two_tasks_run_at_once_and_are_set_up_once(placed: Callable[[Test], None]) -> None:
    class Model:
        setups = 0

        def setup(self) -> None:
            Model.setups += 1

        def run(self, task: Any) -> None:
            together.wait(LIMIT_SECS)

    async def test(offload: Any) -> None:
        nonlocal together
        Model.setups, together = 0, threading.Barrier(2)
        jobs = Jobs(made(Model, offload))
        first, second = jobs.start(), jobs.start()
        assert ((await first.ending).code, (await second.ending).code) == (None, None)
        assert Model.setups == 1

    together = threading.Barrier(2)
    placed(test)


def test_each_call_raises_once_it_was_told_to_stop(placed: Callable[[Test], None]) -> None:
    def work(task: Any) -> None:
        task.ctrl.log_event("begun")
        while not task.ctrl.is_cancelled():
            told.wait(0.001)
        try:
            task.ctrl.progress(1)
        except Exception as error:
            raise AssertionError("user code must not be able to swallow it by accident") from error

    async def test(offload: Any) -> None:
        job = Jobs(made(work, offload)).start()
        await job.said("begun")
        job.stop("cancelled")
        job.stop("cancelled")
        assert (await job.ending).code == "cancelled"

    told = threading.Event()
    placed(test)


def test_one_that_does_not_listen_ends_when_it_ends(placed: Callable[[Test], None]) -> None:
    async def test(offload: Any) -> None:
        over = threading.Event()

        def deaf(task: Any) -> None:
            task.ctrl.log_event("begun")
            over.wait(LIMIT_SECS)

        job = Jobs(made(deaf, offload)).start()
        await job.said("begun")
        job.stop("timeout")
        await asyncio.sleep(0)
        assert not job.ending.done()
        over.set()
        assert (await job.ending).code is None

    placed(test)


def test_a_setup_that_fails_is_the_reason(placed: Callable[[Test], None]) -> None:
    class Model:
        def setup(self) -> None:
            raise OSError("no weights")

        def run(self, task: Any) -> None: ...

        def check(self) -> None:
            raise RuntimeError("no camera")

    async def test(offload: Any) -> None:
        runner = made(Model, offload)
        ending = await Jobs(runner).start().ending
        assert (ending.code, ending.message) == ("setup_failed", "OSError: no weights")
        with pytest.raises(RuntimeError, match="no camera"):
            await runner.check()
        await runner.close()

    placed(test)
