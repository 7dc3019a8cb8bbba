"""The kinds of user code, made alike: functions, generators and classes, each ``async`` or not.

:func:`user_runner` takes any of them. What it gives is for one *place* (a loop, a thread or more, a process): there
executors call ``setup()`` before each task, which does something only the first time, ``run(task)`` for each, and
``teardown()`` at the place's end. A place that is to check the runner calls ``check()`` before that.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import closing
from functools import partial
from types import FunctionType
from typing import Any, Final, Literal, TypeAlias

from posemesh.runners.api import RunnerTarget, SyncTaskContext, TaskContext

__all__ = ("AsyncRunner", "BlockingRunner", "UserRunner", "user_runner")


class _UserCode:
    """User code, and the object it is once it is used: an instance is made of a class, all else is itself."""

    def __init__(self, target: RunnerTarget) -> None:
        self._target: Any = target
        self._made: Any = None
        self._ready = False
        self.name: Final = _name(target)
        self._is_object = _is_object(target)
        self.has_check: Final = self._is_object and callable(getattr(target, "check", None))
        self.has_teardown: Final = self._is_object and callable(getattr(target, "teardown", None))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def _call(self, method: str, *arguments: object) -> Any:
        """What the user's method gives; None where it has none of that name."""
        if not self._is_object:
            return self._target(*arguments) if method == "run" else None
        if self._made is None:
            self._made = self._target() if isinstance(self._target, type) else self._target
        found = getattr(self._made, method, None)
        return None if found is None else found(*arguments)

    def _forget(self) -> None:
        self._made, self._ready = None, False


class AsyncRunner(_UserCode):
    """User code whose ``run`` is ``async``. For one loop, which its other methods hold up where they are plain."""

    is_async: Final[Literal[True]] = True

    def __init__(self, target: RunnerTarget) -> None:
        super().__init__(target)
        self._one_at_a_time = asyncio.Lock()

    async def check(self) -> None:
        """The user's ``check()``, where there is one; else no object is made of a class. Raises what it raises."""
        if self.has_check:
            await _finished(self._call("check"))

    async def setup(self) -> None:
        """Make the runner ready: once, also where many tasks ask for it. Raises what the user's ``__init__`` or
        ``setup()`` raises, and the next call tries anew.
        """
        if self._ready:
            return
        async with self._one_at_a_time:
            if self._ready:
                return
            try:
                await _finished(self._call("setup"))
            except BaseException:
                self._forget()
                raise
            self._ready = True

    async def run(self, task: TaskContext) -> None:
        """One task. Each value of a generator is the task's progress; the generator is closed whatever happens."""
        result = self._call("run", task)
        if not isinstance(result, AsyncIterator):
            await _finished(result)
            return
        try:
            async for value in result:
                await task.ctrl.progress(value)
        finally:
            if isinstance(result, AsyncGenerator):
                await result.aclose()

    async def teardown(self) -> None:
        """The user's ``teardown()``, where the setup had succeeded. Afterwards all begins anew, on any loop."""
        ready = self._ready
        self._ready, self._one_at_a_time = False, asyncio.Lock()
        try:
            if ready:
                await _finished(self._call("teardown"))
        finally:
            self._forget()


class BlockingRunner(_UserCode):
    """User code whose ``run`` is not ``async``. For one thread or more, none of which has a running loop: its other
    methods may be ``async``, and have a loop of their own for each call.
    """

    is_async: Final[Literal[False]] = False

    def __init__(self, target: RunnerTarget) -> None:
        super().__init__(target)
        self._one_at_a_time = threading.Lock()

    def check(self) -> None:
        """As :meth:`AsyncRunner.check`."""
        if self.has_check:
            self._finish("check")

    def setup(self) -> None:
        """As :meth:`AsyncRunner.setup`."""
        with self._one_at_a_time:
            if self._ready:
                return
            try:
                self._finish("setup")
            except BaseException:
                self._forget()
                raise
            self._ready = True

    def run(self, task: SyncTaskContext) -> None:
        """As :meth:`AsyncRunner.run`. Raises TypeError where the user's function returns a coroutine."""
        result = self._call("run", task)
        if result is None:
            return
        if isinstance(result, Generator):
            with closing(result):
                for value in result:
                    task.ctrl.progress(value)
        elif inspect.isawaitable(result) or isinstance(result, AsyncIterator):
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError(f"runner {self.name} is no `async def` and returned what is to be awaited; make it one")

    def teardown(self) -> None:
        """As :meth:`AsyncRunner.teardown`."""
        with self._one_at_a_time:
            try:
                if self._ready:
                    self._finish("teardown")
            finally:
                self._forget()

    def _finish(self, method: str) -> None:
        result = self._call(method)
        if inspect.isawaitable(result):
            asyncio.run(_finished(result))


UserRunner: TypeAlias = AsyncRunner | BlockingRunner
"""``is_async`` tells which; ``has_check`` and ``has_teardown`` what there is; ``name`` is the user's name for it."""


def user_runner(target: RunnerTarget) -> UserRunner:
    """The runner that ``target`` is. Nothing of it is called yet. Raises TypeError for what cannot be one."""
    name = _name(target)
    if not _is_object(target):
        if not callable(target):
            raise TypeError(
                f"expected a runner: a function `run(task)`, or a class or an object with such a method, got {name}"
            )
        _accepts(target, name, "the task", object())
        return AsyncRunner(target) if _is_async(target) else BlockingRunner(target)
    run = getattr(target, "run", None)
    if not callable(run):
        raise TypeError(f"expected a method `run(task)` of the runner {name}, and it has none")
    if isinstance(target, type):
        _accepts(target, name, "no argument; give an object where it needs some")
        itself = (object(),) if isinstance(inspect.getattr_static(target, "run"), FunctionType) else ()
        _accepts(run, f"{name}.run", "the task", *itself, object())
    else:
        _accepts(run, f"{name}.run", "the task", object())
    return AsyncRunner(target) if _is_async(run) else BlockingRunner(target)


def _is_object(target: object) -> bool:
    """Whether its methods are the runner, and not it itself: a class, or an object with a ``run``."""
    function = inspect.isroutine(target) or isinstance(target, partial)
    return isinstance(target, type) or (not function and hasattr(target, "run"))


def _name(target: object) -> str:
    name = getattr(target, "__qualname__", None)
    return name if isinstance(name, str) else f"{type(target).__qualname__} object"


def _accepts(function: Callable[..., object], name: str, what: str, *arguments: object) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # made in C, and keeps it to itself
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"runner {name}: expected it to be called with {what}: {error}") from None


def _is_async(function: Any) -> bool:
    """Whether it, or what it is a wrapper of, is an ``async def``."""
    for each in (function, getattr(type(function), "__call__", None)):  # noqa: B004
        innermost = inspect.unwrap(each) if callable(each) else None
        if any(inspect.iscoroutinefunction(end) or inspect.isasyncgenfunction(end) for end in (each, innermost)):
            return True
    return False


async def _finished(result: object) -> None:
    if inspect.isawaitable(result):
        await result
