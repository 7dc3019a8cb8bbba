"""Each kind of user code, made alike."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posemesh.runners.blocking import BlockingTask
from posemesh.runners.kinds import AsyncRunner, BlockingRunner, user_runner
from posemesh.runners.task import PortTask
from posemesh.testing import run_virtual

from . import test_blocking, test_task
from .test_task import LEASE


class Ran:
    """What was called, by a runner of every kind."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.made = 0


def plainly(ran: Ran) -> dict[str, Any]:
    def function(task: Any) -> str:
        ran.calls.append(task.lease.task.capability)
        return "ignored"

    def generator(task: Any) -> Iterator[object]:
        ran.calls.append(task.lease.task.capability)
        yield {"pct": 1}
        yield 2

    class Class:
        def __init__(self) -> None:
            ran.made += 1

        def run(self, task: Any) -> None:
            function(task)

    class Yielding:
        def run(self, task: Any) -> Iterator[object]:
            yield from generator(task)

    class Callable:
        def __call__(self, task: Any) -> None:
            function(task)

    return {
        "function": function,
        "generator": generator,
        "lambda": lambda task: function(task),
        "partial": functools.partial(lambda number, task: function(task), 1),
        "class": Class,
        "object": Class(),
        "class that yields": Yielding,
        "object to be called": Callable(),
        "method": Class().run,
    }


def asynchronously(ran: Ran) -> dict[str, Any]:
    async def function(task: Any) -> str:
        ran.calls.append(task.lease.task.capability)
        return "ignored"

    async def generator(task: Any) -> AsyncIterator[object]:
        ran.calls.append(task.lease.task.capability)
        yield {"pct": 1}
        yield 2

    def wrapped(inner: Any) -> Any:
        @functools.wraps(inner)
        def outer(task: Any) -> Any:
            return inner(task)

        return outer

    def offloaded(inner: Any) -> Any:
        @functools.wraps(inner)
        async def outer(task: Any) -> None:
            await asyncio.to_thread(inner, task)

        return outer

    def plain(task: Any) -> None:
        ran.calls.append(task.lease.task.capability)

    class Class:
        def __init__(self) -> None:
            ran.made += 1

        async def run(self, task: Any) -> None:
            await function(task)

    class Yielding:
        async def run(self, task: Any) -> AsyncIterator[object]:
            async for value in generator(task):
                yield value

    class Callable:
        async def __call__(self, task: Any) -> None:
            await function(task)

    return {
        "function": function,
        "generator": generator,
        "wrapped function": wrapped(function),
        "wrapped generator": wrapped(generator),
        "wrapper of a plain one": offloaded(plain),
        "partial": functools.partial(function),
        "class": Class,
        "object": Class(),
        "class that yields": Yielding,
        "object to be called": Callable(),
        "method": Class().run,
    }


def task_of(port: test_task.Port) -> PortTask:
    return PortTask(LEASE, port, lambda: Path("never made"))


def blocking_task_of(port: test_blocking.Port) -> BlockingTask:
    return BlockingTask(LEASE, port, lambda: Path("never made"))


@pytest.mark.parametrize("kind", plainly(Ran()))
def test_each_plain_kind_runs(kind: str) -> None:
    ran, port = Ran(), test_blocking.Port()
    runner = user_runner(plainly(ran)[kind])
    assert isinstance(runner, BlockingRunner) and not runner.is_async and not runner.has_check
    for _ in range(2):
        runner.setup()
        runner.run(blocking_task_of(port))
    runner.teardown()
    assert ran.calls == ["/a/v1"] * 2
    reported = [message.value for message in port.posted]
    assert reported == ([{"pct": 1}, 2] * 2 if "generator" in kind or "yields" in kind else [])


@pytest.mark.parametrize("kind", asynchronously(Ran()))
def test_each_asynchronous_kind_runs(kind: str) -> None:
    ran, port = Ran(), test_task.Port()
    runner = user_runner(asynchronously(ran)[kind])
    assert isinstance(runner, AsyncRunner) and runner.is_async and not runner.has_check

    async def main() -> None:
        for _ in range(2):
            await runner.setup()
            await runner.run(task_of(port))
        await runner.teardown()

    asyncio.run(main())
    assert ran.calls == ["/a/v1"] * 2
    reported = [message.value for message in port.posted]
    assert reported == ([{"pct": 1}, 2] * 2 if "generator" in kind or "yields" in kind else [])


def test_a_class_is_made_when_it_is_first_used() -> None:
    ran = Ran()
    runner = user_runner(asynchronously(ran)["class"])
    assert isinstance(runner, AsyncRunner)
    before = ran.made  # the fixtures made objects of their own

    async def main() -> None:
        await runner.setup()
        await runner.setup()

    asyncio.run(main())
    assert (before, ran.made) == (2, 3)


def loaded(calls: list[str], *, asynchronous: bool, failures: int = 0) -> type:
    """A class of every method, half of which are of the other colour than its ``run``."""
    left = [failures]

    class Plain:
        def setup(self) -> None:
            calls.append("setup")
            if left[0]:
                left[0] -= 1
                raise OSError("no model")

        async def check(self) -> None:
            await asyncio.sleep(0)
            calls.append("check")

        async def teardown(self) -> None:
            await asyncio.sleep(0)
            calls.append("teardown")

        def run(self, task: Any) -> None:
            calls.append("run")

    class Asynchronous(Plain):
        async def run(self, task: Any) -> None:  # type: ignore[override]
            calls.append("run")

    return Asynchronous if asynchronous else Plain


def driven(runner: Any, *methods: str) -> None:
    """Call them in their order, as an executor of either colour does."""

    async def main() -> None:
        for method in methods:
            await getattr(runner, method)(*((task_of(test_task.Port()),) if method == "run" else ()))

    if runner.is_async:
        asyncio.run(main())
        return
    for method in methods:
        getattr(runner, method)(*((blocking_task_of(test_blocking.Port()),) if method == "run" else ()))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_setup_comes_once_and_teardown_at_the_end(asynchronous: bool) -> None:
    calls: list[str] = []
    runner = user_runner(loaded(calls, asynchronous=asynchronous))
    assert runner.has_check
    driven(runner, "check", "setup", "run", "setup", "run", "teardown", "teardown")
    assert calls == ["check", "setup", "run", "run", "teardown"]
    driven(runner, "setup", "run", "teardown")
    assert calls[5:] == ["setup", "run", "teardown"], "and all begins anew, on another loop too"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_setup_that_failed_is_tried_anew_with_a_new_object(asynchronous: bool) -> None:
    calls: list[str] = []
    runner = user_runner(loaded(calls, asynchronous=asynchronous, failures=1))
    with pytest.raises(OSError, match="no model"):
        driven(runner, "setup")
    driven(runner, "teardown")
    assert calls == ["setup"], "nothing was set up, so nothing is torn down"
    driven(runner, "setup", "run", "teardown")
    assert calls == ["setup", "setup", "run", "teardown"]


def test_tasks_that_come_at_once_share_one_setup() -> None:
    began: list[float] = []

    class Slow:
        async def setup(self) -> None:
            began.append(asyncio.get_running_loop().time())
            await asyncio.sleep(10)

        async def run(self, task: Any) -> None: ...

    async def main() -> None:
        runner = user_runner(Slow)
        assert isinstance(runner, AsyncRunner)
        first, second, third = (asyncio.create_task(runner.setup()) for _ in range(3))
        await asyncio.sleep(1)
        first.cancel()  # its own task was told to stop: the next one begins anew
        ends = await asyncio.gather(first, second, third, return_exceptions=True)
        assert isinstance(ends[0], asyncio.CancelledError) and ends[1:] == [None, None]
        assert began == [0.0, 1.0]

    run_virtual(main())


def test_threads_that_come_at_once_share_one_setup() -> None:
    began: list[int] = []
    entered, go = threading.Event(), threading.Event()

    class Slow:
        def setup(self) -> None:
            began.append(1)
            entered.set()
            assert go.wait(60)

        def run(self, task: Any) -> None: ...

    runner = user_runner(Slow)
    assert isinstance(runner, BlockingRunner)
    threads = [threading.Thread(target=runner.setup, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert entered.wait(60)
    go.set()
    for thread in threads:
        thread.join(60)
    assert began == [1]


def test_a_generator_is_closed_when_its_task_is_cancelled() -> None:
    ended: list[str] = []

    async def run(task: Any) -> AsyncIterator[object]:
        try:
            yield 1
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            ended.append("closed")

    async def main() -> None:
        port = test_task.Port()
        runner = user_runner(run)
        assert isinstance(runner, AsyncRunner)
        running = asyncio.create_task(runner.run(task_of(port)))
        await asyncio.sleep(1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ended == ["closed"], "there and then, not when garbage is collected"

    run_virtual(main())


def test_a_generator_is_closed_where_what_it_yields_is_no_json() -> None:
    ended: list[str] = []

    async def run(task: Any) -> AsyncIterator[object]:
        try:
            yield object()
        finally:
            ended.append("closed")

    async def main() -> None:
        runner = user_runner(run)
        assert isinstance(runner, AsyncRunner)
        with pytest.raises(TypeError, match="expected JSON"):
            await runner.run(task_of(test_task.Port()))
        assert ended == ["closed"]

    asyncio.run(main())


def test_a_generator_that_yields_without_end_can_be_cancelled() -> None:
    """It never awaits anything itself; each report gives others a turn."""

    async def run(task: Any) -> AsyncIterator[object]:
        while True:
            yield 1

    async def main() -> None:
        runner = user_runner(run)
        assert isinstance(runner, AsyncRunner)
        running = asyncio.create_task(runner.run(task_of(test_task.Port())))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())


def test_a_plain_generator_ends_at_the_next_value_once_told_to_stop() -> None:
    ended: list[str] = []
    port = test_blocking.Port()

    def run(task: Any) -> Iterator[object]:
        try:
            yield 1
            port.cancelled = True
            yield 2
            ended.append("never")
        finally:
            ended.append("closed")

    runner = user_runner(run)
    assert isinstance(runner, BlockingRunner)
    with pytest.raises(asyncio.CancelledError):
        runner.run(blocking_task_of(port))
    assert ended == ["closed"]
    assert [message.value for message in port.posted] == [1]


async def coroutine(task: Any) -> None: ...


async def generator(task: Any) -> AsyncIterator[object]:
    yield 1


@pytest.mark.parametrize("hidden", [coroutine, generator], ids=lambda each: str(each.__name__))
def test_a_plain_function_that_returns_what_is_to_be_awaited_is_told_so(hidden: Callable[[Any], object]) -> None:
    """Nobody would ever have run it."""
    runner = user_runner(lambda task: hidden(task))
    assert isinstance(runner, BlockingRunner)
    with pytest.raises(TypeError, match="make it one"):
        runner.run(blocking_task_of(test_blocking.Port()))
    gc.collect()  # a coroutine that was never awaited would warn here


class Needy:
    def __init__(self, model: str) -> None:
        self.model = model

    def run(self, task: Any) -> None: ...


class Idle:
    pass


class Greedy:
    async def run(self, task: Any, more: Any) -> None: ...


class Still:
    @staticmethod
    def run(task: Any) -> None: ...


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (None, "expected a runner"),
        ("text", "expected a runner.*str object"),
        (Idle, "method `run"),
        (Idle(), "expected a runner"),
        (Needy, "Needy.*no argument; give an object.*'model'"),
        (Greedy, r"Greedy\.run.*the task.*'more'"),
        (Greedy(), r"Greedy object\.run.*the task.*'more'"),
        (lambda: None, "the task"),
        (lambda task, more: None, "the task.*'more'"),
    ],
)
def test_what_cannot_be_a_runner_is_refused_at_once(target: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        user_runner(target)


@pytest.mark.parametrize("target", [Needy("model"), Still, Still(), print])
def test_what_can_be_one(target: Any) -> None:
    assert isinstance(user_runner(target), BlockingRunner)


def test_a_runner_shows_its_user_s_name() -> None:
    assert repr(user_runner(coroutine)) == "<AsyncRunner coroutine>"
    assert repr(user_runner(Needy("model"))) == "<BlockingRunner Needy object>"
