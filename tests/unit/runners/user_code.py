"""What users write, in every form. Nothing in it inherits anything of posemesh, and ``mypy --strict`` finds no fault;
each ``type: ignore`` is a mistake that it has to find.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import posemesh
from posemesh.runners.api import (
    InputSource,
    MaterializedInput,
    Runner,
    RunnerTarget,
    SyncRunner,
    SyncTaskContext,
    TaskContext,
    TaskCtx,
)
from posemesh.runners.kinds import user_runner

F = TypeVar("F", bound=RunnerTarget)


def runner(target: F) -> F:
    """A decorator as ``@node.runner`` is one."""
    user_runner(target)
    return target


@runner
async def function(task: TaskContext) -> None:
    data = await task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])
    found = await task.input.materialize_cid_with_meta("cid", extract=True)
    async with task.output.open_multipart("a") as part:
        await part.write(data)
    task.ctrl.progress({"pct": 50, "of": [1, None]})
    await task.ctrl.log_event(f"{part.id} {found.extracted_paths[0].name}")
    token: str = await task.access_token.get()
    await task.output.put_file(token, task.workspace / "x")
    first, *_ = await task.output.uploaded_artifacts()
    await task.output.put_domain_artifact(first.logical_path, found.path, name=first.name, data_id=first.id)


@runner
def plain(task: SyncTaskContext) -> int:
    with task.output.open_multipart("a") as part:
        part.write(task.input.get_bytes_by_cid("cid"))
    if not task.ctrl.is_cancelled():
        task.ctrl.progress(1)
    return len(task.access_token.get())


@runner
async def generator(task: TaskCtx) -> AsyncIterator[dict[str, int]]:
    yield {"pct": 1}


@runner
def plain_generator(task: SyncTaskContext) -> Iterator[int]:
    yield 1


@runner
class Class:
    def __init__(self) -> None:
        self.model = b""

    def setup(self) -> None:
        self.model = b"model"

    async def run(self, task: TaskContext) -> None:
        await task.output.put_bytes("a", self.model)


@runner
class Yielding:
    async def run(self, context: TaskContext) -> AsyncIterator[str]:
        yield "begun"


@runner
class Plain:
    async def setup(self) -> None: ...

    def run(self, task: SyncTaskContext) -> None:
        task.output.put_bytes("a", b"")


def told(wrapped: Callable[[TaskContext], Awaitable[None]]) -> Callable[[TaskContext], Awaitable[None]]:
    @functools.wraps(wrapped)
    async def wrapper(task: TaskContext) -> None:
        task.ctrl.log_event("begun")
        await wrapped(task)

    return wrapper


@runner
@told
async def decorated(task: TaskContext) -> None: ...


class HelloRunner:
    def capability(self) -> str:
        return "/examples/hello/v1"

    async def run(self, ctx: TaskCtx) -> None: ...


class YieldingRunner:
    def capability(self) -> str:
        return "/examples/hello/v2"

    async def run(self, ctx: TaskCtx) -> AsyncIterator[int]:
        yield 1


class SyncHelloRunner:
    def capability(self) -> str:
        return "/examples/hello/v3"

    def run(self, ctx: SyncTaskContext) -> None: ...


class FakeInput:
    """As a test of a user's has it."""

    async def get_bytes_by_cid(self, cid: str) -> bytes:
        return cid.encode()

    async def materialize_cid_to_temp(self, cid: str) -> Path:
        return Path(cid)

    async def materialize_cid_with_meta(self, cid: str, *, extract: bool = False) -> MaterializedInput:
        raise posemesh.BadInput(cid)


RUNNERS: list[Runner] = [HelloRunner(), YieldingRunner()]
SYNC_RUNNER: SyncRunner = SyncHelloRunner()
INPUT: InputSource = FakeInput()
TARGETS: list[RunnerTarget] = [HelloRunner, SyncHelloRunner, RUNNERS[1], SYNC_RUNNER, Class, Plain, function, plain]


def mistakes() -> None:
    def not_awaiting(task: TaskContext) -> None:
        task.ctrl.progress(1)

    async def forgotten(task: TaskContext) -> None:
        task.output.put_bytes("a", b"")  # type: ignore[unused-coroutine]
        task.ctrl.progress(object())  # type: ignore[arg-type]

    class Still:
        def run(self, task: TaskContext) -> None: ...

    class Empty: ...

    runner(not_awaiting)  # type: ignore[type-var]
    runner(Still)  # type: ignore[type-var]
    runner(Empty)  # type: ignore[type-var]
    RUNNERS.append(Class())  # type: ignore[arg-type]


def a_node() -> posemesh.Node:
    """Objects of either kind are given as they are."""
    return posemesh.Node(runners=[HelloRunner(), SYNC_RUNNER])
