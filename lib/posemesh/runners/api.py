"""The runner contract: what user code is, and the task it is given.

A runner is an ``async def run(task)`` for one capability. Everything it needs is on ``task``; its return value is
ignored; what it raises fails the task. Cancellation raises ``asyncio.CancelledError`` where the runner awaits.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeAlias, runtime_checkable

from posemesh.errors import PosemeshError
from posemesh.runners.port import (
    AbortUpload,
    FinishUpload,
    GetBytes,
    GetToken,
    ListArtifacts,
    LogEvent,
    Materialize,
    MaterializedInput,
    OpenUpload,
    Port,
    Progress,
    PutArtifact,
    WriteUpload,
)
from posemesh.types import JSON, Artifact, LeaseEnvelope

__all__ = (
    "ArtifactSink",
    "ControlPlane",
    "InputSource",
    "MultipartUpload",
    "Runner",
    "RunnerFunction",
    "TaskContext",
)

WRITE_BYTES_MAX = 1024 * 1024

REPORT_BYTES_MAX = 64 * 1024
"""The size of one progress or event: heartbeats carry it, and a service refuses large ones."""


class _Queued:
    """Done already: awaiting it gives other coroutines a turn, not awaiting it loses nothing."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class InputSource:
    """``task.input``: the task's inputs, from the lease's domain server."""

    def __init__(self, port: Port) -> None:
        self._port = port

    async def get_bytes_by_cid(self, cid: str) -> bytes:
        """One input, whole and in memory. ``cid`` is an entry of ``task.lease.task.inputs_cids``: an id, a path or a
        URL of the domain, or a name in it.

        Raises InvalidCid for what names no single item of the lease's domain server, BadInput for what does not come
        whole or exceeds INPUT_BYTES_MAX, StorageError where the server does not give it.
        """
        data: bytes = await self._port.call(GetBytes(cid=cid))
        return data

    async def materialize_cid_to_temp(self, cid: str) -> Path:
        """One input as a file below ``task.workspace``, whatever its size. Raises as :meth:`get_bytes_by_cid` does, and
        DiskFull.
        """
        return (await self.materialize_cid_with_meta(cid)).path

    async def materialize_cid_with_meta(self, cid: str, *, extract: bool = False) -> MaterializedInput:
        """The same, with what the server says of it and the other files of its download. ``extract`` also unpacks the
        zip archives among them, each into a directory beside it; archives that are not safe raise BadInput.
        """
        found: MaterializedInput = await self._port.call(Materialize(cid=cid, extract=extract))
        return found


class MultipartUpload:
    """An artifact that is written piece by piece: ``async with task.output.open_multipart(path) as part``.

    It is whole when the block ends, and gone where the block raises. ``id`` is the artifact's, from then on.
    """

    def __init__(self, port: Port, rel_path: str) -> None:
        self._port = port
        self._rel_path = rel_path
        self._upload: int | None = None
        self.id: str | None = None

    async def __aenter__(self) -> Self:
        self._upload = await self._port.call(OpenUpload(rel_path=self._rel_path))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        upload, self._upload = self._opened(), None
        if kind is None:
            self.id = await self._port.call(FinishUpload(upload=upload))
            return
        with suppress(PosemeshError):  # the error of the block is the one to tell
            await self._port.call(AbortUpload(upload=upload))

    async def write(self, data: bytes) -> None:
        """Append ``data``; waits while the uploads do not keep up. Raises UploadFailed, DiskFull."""
        for at in range(0, len(data), WRITE_BYTES_MAX):
            piece = bytes(data[at : at + WRITE_BYTES_MAX])
            await self._port.call(WriteUpload(upload=self._opened(), data=piece))

    def _opened(self) -> int:
        if self._upload is None:
            raise RuntimeError("the upload is not open; use `async with task.output.open_multipart(path) as part:`")
        return self._upload


class ArtifactSink:
    """``task.output``: the task's artifacts, to the lease's domain server.

    A path put before, also by an earlier attempt at the same task, is updated. Each put raises UploadFailed where the
    server does not take it.
    """

    def __init__(self, port: Port) -> None:
        self._port = port

    async def put_bytes(self, rel_path: str, data: bytes) -> str:
        """Upload ``data`` as ``rel_path`` below the task's outputs prefix and return the artifact's id."""
        return await self.put_domain_artifact(rel_path, data)

    async def put_file(self, rel_path: str, path: str | PathLike[str]) -> str:
        """The same with the file at ``path``, which must not change meanwhile. It is read as it is sent."""
        return await self.put_domain_artifact(rel_path, Path(fspath(path)))

    async def put_domain_artifact(
        self,
        rel_path: str,
        content: bytes | PathLike[str],
        *,
        name: str | None = None,
        data_type: str | None = None,
        data_id: str | None = None,
    ) -> str:
        """Upload bytes, or the file at a path, under a ``name`` and ``data_type`` of your own; return its id.

        The item ``data_id`` is updated where that is given; otherwise the one of that name and type, which is made
        where there is none.
        """
        taken = Path(fspath(content)) if isinstance(content, PathLike) else bytes(content)
        message = PutArtifact(rel_path=rel_path, content=taken, name=name, data_type=data_type, data_id=data_id)
        found: str = await self._port.call(message)
        return found

    def open_multipart(self, rel_path: str) -> MultipartUpload:
        """A writer for an artifact whose size is not known beforehand."""
        return MultipartUpload(self._port, rel_path)

    async def uploaded_artifacts(self) -> tuple[Artifact, ...]:
        """What was uploaded so far, in the order of the puts."""
        found: tuple[Artifact, ...] = await self._port.call(ListArtifacts())
        return found


class ControlPlane:
    """``task.ctrl``: what the service should know of the task while it runs, and what it wants."""

    def __init__(self, port: Port) -> None:
        self._port = port

    def is_cancelled(self) -> bool:
        """Whether the task is to stop: the service cancelled it, its lease is gone, or the node is leaving."""
        return self._port.cancelled

    def progress(self, value: JSON) -> Awaitable[None]:
        """Report how far the task is; the latest value counts. Queued at once, sent with a heartbeat soon. May be
        awaited.

        Raises TypeError for what is not JSON, ValueError for more than 64 KiB of it.
        """
        self._port.post(Progress(value=_json(value)))
        return _Queued()

    def log_event(self, value: JSON) -> Awaitable[None]:
        """Report something that happened; all events are sent, in order. Queued at once. May be awaited.

        Raises TypeError for what is not JSON, ValueError for more than 64 KiB of it.
        """
        self._port.post(LogEvent(value=_json(value)))
        return _Queued()


class TaskContext:
    """One task, as its runner sees it."""

    def __init__(self, lease: LeaseEnvelope, port: Port, make_workspace: Callable[[], Path]) -> None:
        self.lease = lease
        self.input = InputSource(port)
        self.output = ArtifactSink(port)
        self.ctrl = ControlPlane(port)
        self._port = port
        self._make_workspace = make_workspace

    def __repr__(self) -> str:
        return f"<task {self.lease.task.id} {self.lease.task.capability}>"

    @property
    def workspace(self) -> Path:
        """A directory of the task's own, made at the first use and gone with everything in it when the task ends."""
        return self._make_workspace()

    async def access_token(self) -> str:
        """The domain token of the moment. Heartbeats renew it: ask again for each use, and keep it out of logs."""
        token = await self._port.call(GetToken())
        return str(token.reveal())


RunnerFunction: TypeAlias = Callable[[TaskContext], Awaitable[object]]


@runtime_checkable
class Runner(Protocol):
    """A runner as an object: ``capability()`` names what it offers, ``run(task)`` does it."""

    def capability(self) -> str: ...

    async def run(self, task: TaskContext) -> object: ...


def _json(value: JSON) -> JSON:
    """A copy as JSON would carry it, so that later changes of the caller's object do not reach the wire.

    What could not be sent (lone surrogates of a file's name, say) must not get there: every heartbeat would fail.
    """
    try:
        body = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        copy: JSON = json.loads(body)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"expected JSON (None, bool, finite numbers, text, list, dict), got {reprlib.repr(value):.80}: {error}"
        ) from None
    if len(body) > REPORT_BYTES_MAX:
        raise ValueError(
            f"expected at most {REPORT_BYTES_MAX} bytes of JSON, got {len(body)}; put more into an artifact"
        )
    return copy
