"""The task with plain methods, for user code that is not ``async``: in a thread, or in a process of its own.

It is the task of :mod:`posemesh.runners.task` over a port that never suspends, so that what a call means is written
once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from posemesh.runners.api import ArtifactSink, InputSource, MaterializedInput, MultipartUpload
from posemesh.runners.port import LogEvent, Progress, Question
from posemesh.runners.task import PortTask
from posemesh.types import JSON, Artifact, LeaseEnvelope

__all__ = ("BlockingPort", "BlockingTask")

T = TypeVar("T")


class BlockingPort(Protocol):
    """User code's end of the port, where it may wait. Used from whatever threads user code has."""

    @property
    def cancelled(self) -> bool:
        """Whether the node has told this task to stop."""
        ...

    def post(self, message: Progress | LogEvent) -> None:
        """Send at once, in order, without waiting."""
        ...

    def call(self, message: Question) -> Any:
        """Send and wait for the answer; what went wrong at the node's end is raised here. A stop that comes meanwhile
        ends the wait with ``asyncio.CancelledError``.
        """
        ...


class BlockingTask:
    """The contract's :class:`SyncTaskContext`. Once the task was told to stop, each of its methods but
    ``is_cancelled()`` raises ``asyncio.CancelledError``.
    """

    def __init__(self, lease: LeaseEnvelope, port: BlockingPort, make_workspace: Callable[[], Path]) -> None:
        task = PortTask(lease, _Immediate(port), make_workspace)
        self.lease = lease
        self.input = _Inputs(task.input)
        self.output = _Artifacts(task.output)
        self.ctrl = _Control(task)
        self.access_token = _Token(task)
        self._task = task

    def __repr__(self) -> str:
        return repr(self._task)

    @property
    def workspace(self) -> Path:
        return self._task.workspace


class _Immediate:
    """A port whose answers are there when a call returns."""

    def __init__(self, port: BlockingPort) -> None:
        self._port = port

    @property
    def cancelled(self) -> bool:
        return self._port.cancelled

    def post(self, message: Progress | LogEvent) -> None:
        self._check()
        self._port.post(message)

    async def call(self, message: Question) -> Any:
        self._check()
        return self._port.call(message)

    def _check(self) -> None:
        if self._port.cancelled:
            raise asyncio.CancelledError("the task was told to stop")


def _done(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a call that was to be answered at once waits for an event loop")


class _Inputs:
    def __init__(self, source: InputSource) -> None:
        self._source = source

    def get_bytes_by_cid(self, cid: str) -> bytes:
        return _done(self._source.get_bytes_by_cid(cid))

    def materialize_cid_to_temp(self, cid: str) -> Path:
        return _done(self._source.materialize_cid_to_temp(cid))

    def materialize_cid_with_meta(self, cid: str, *, extract: bool = False) -> MaterializedInput:
        return _done(self._source.materialize_cid_with_meta(cid, extract=extract))


class _Upload:
    def __init__(self, upload: MultipartUpload) -> None:
        self._upload = upload

    @property
    def id(self) -> str | None:
        return self._upload.id

    def __enter__(self) -> Self:
        _done(self._upload.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The error of the block is the one to tell, also where the task is to stop and nothing can be said any more.
        with suppress(*(() if kind is None else (asyncio.CancelledError,))):
            _done(self._upload.__aexit__(kind, error, trace))

    def write(self, data: bytes) -> None:
        _done(self._upload.write(data))


class _Artifacts:
    def __init__(self, sink: ArtifactSink) -> None:
        self._sink = sink

    def put_bytes(self, rel_path: str, data: bytes) -> str:
        return _done(self._sink.put_bytes(rel_path, data))

    def put_file(self, rel_path: str, path: str | PathLike[str]) -> str:
        return _done(self._sink.put_file(rel_path, path))

    def put_domain_artifact(
        self,
        rel_path: str,
        content: bytes | PathLike[str],
        *,
        name: str | None = None,
        data_type: str | None = None,
        data_id: str | None = None,
    ) -> str:
        return _done(self._sink.put_domain_artifact(rel_path, content, name=name, data_type=data_type, data_id=data_id))

    def open_multipart(self, rel_path: str) -> _Upload:
        return _Upload(self._sink.open_multipart(rel_path))

    def uploaded_artifacts(self) -> tuple[Artifact, ...]:
        return _done(self._sink.uploaded_artifacts())


class _Control:
    def __init__(self, task: PortTask) -> None:
        self._ctrl = task.ctrl

    def is_cancelled(self) -> bool:
        return self._ctrl.is_cancelled()

    def progress(self, value: JSON) -> None:
        self._ctrl.progress(value)

    def log_event(self, value: JSON) -> None:
        self._ctrl.log_event(value)


class _Token:
    def __init__(self, task: PortTask) -> None:
        self._token = task.access_token

    def get(self) -> str:
        return _done(self._token.get())
