"""The runner contract: what user code is, and the task it is given. It only grows (CONTRIBUTING.md, "The contract").

A runner is code for one capability. It is given a task, which has all it needs; what it returns is ignored; what it
raises fails the task. Everything here is a protocol or frozen data: a user's class inherits nothing, and a test may
pass objects of its own. docs/runners.md is the whole of it on one page.

Code that is ``async`` is given a :class:`TaskContext`, all other code a :class:`SyncTaskContext`, which is the same
with plain methods. A task that was told to stop raises ``asyncio.CancelledError``: in the first where it awaits, in the
second at each call but ``is_cancelled()``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias, runtime_checkable

from posemesh.types import JSON, Artifact, LeaseEnvelope, Record, TaskSpec

__all__ = (
    "CRATE_NAME",
    "JSON",
    "AccessTokenProvider",
    "Artifact",
    "ArtifactSink",
    "ControlPlane",
    "InputSource",
    "LeaseEnvelope",
    "MaterializedInput",
    "MultipartUpload",
    "Runner",
    "RunnerFunction",
    "RunnerTarget",
    "SyncAccessTokenProvider",
    "SyncArtifactSink",
    "SyncControlPlane",
    "SyncInputSource",
    "SyncMultipartUpload",
    "SyncRunner",
    "SyncTaskContext",
    "TaskContext",
    "TaskCtx",
    "TaskSpec",
)

CRATE_NAME: Final = "posemesh-compute-node-runner-api"
"""The stable identifier of this contract, the same in every implementation of it."""

_PATH: Final[dict[str, Any]] = {"dataclasses_json": {"encoder": str, "decoder": Path}}
_PATHS: Final[dict[str, Any]] = {
    "dataclasses_json": {
        "encoder": lambda paths: [str(path) for path in paths],
        "decoder": lambda texts: tuple(Path(text) for text in texts),
    }
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializedInput(Record):
    """An input as files below the task's workspace, gone with it.

    ``path`` is the item asked for, ``data_id``, ``name``, ``data_type`` and ``domain_id`` are its; ``related_files``
    are the others of the same download, in their order. ``extracted_paths`` are the files unpacked from it, where that
    was asked for. All lie below ``root_dir``, which belongs to this call alone.
    """

    path: Path = field(metadata=_PATH)
    data_id: str
    name: str
    data_type: str
    domain_id: str
    root_dir: Path = field(metadata=_PATH)
    related_files: tuple[Path, ...] = field(default=(), metadata=_PATHS)
    extracted_paths: tuple[Path, ...] = field(default=(), metadata=_PATHS)


@runtime_checkable
class InputSource(Protocol):
    """``task.input``: the task's inputs, from the lease's domain server
    (``GET {domain_server_url}/api/v1/domains/{domain_id}/data``).

    ``cid`` is an entry of ``task.lease.task.inputs_cids``: an id, a path or a URL of the domain, or a name in it.
    """

    async def get_bytes_by_cid(self, cid: str) -> bytes:
        """One input, whole and in memory.

        Raises InvalidCid for what names no single item of the lease's domain server, BadInput for what does not come
        whole or exceeds INPUT_BYTES_MAX, StorageError where the server does not give it.
        """
        ...

    async def materialize_cid_to_temp(self, cid: str) -> Path:
        """One input as a file below ``task.workspace``, whatever its size. Raises as :meth:`get_bytes_by_cid` does, and
        DiskFull.
        """
        ...

    async def materialize_cid_with_meta(self, cid: str, *, extract: bool = False) -> MaterializedInput:
        """The same, with what the server says of it and the other files of its download. ``extract`` also unpacks the
        zip archives among them, each into a directory beside it; archives that are not safe raise BadInput.
        """
        ...


@runtime_checkable
class MultipartUpload(Protocol):
    """An artifact that is written piece by piece: ``async with task.output.open_multipart(path) as part``.

    It is whole when the block ends, and gone where the block raises. Leaving the block raises UploadFailed where the
    server does not take it.
    """

    @property
    def id(self) -> str | None:
        """The artifact's, once the block has ended; None until then."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...

    async def write(self, data: bytes) -> None:
        """Append ``data``, of any length; waits while the uploads do not keep up. Raises UploadFailed, DiskFull, and
        RuntimeError outside the block.
        """
        ...


@runtime_checkable
class ArtifactSink(Protocol):
    """``task.output``: the task's artifacts, to the lease's domain server
    (``POST`` and ``PUT {domain_server_url}/api/v1/domains/{domain_id}/data``, or its sessions of parts).

    ``rel_path`` lies below the task's ``outputs_prefix``. A path put before, also by an earlier attempt at the same
    task, is updated. Each put returns the artifact's id, and raises UploadFailed where the server does not take it.
    """

    async def put_bytes(self, rel_path: str, data: bytes) -> str:
        """Upload ``data`` as ``rel_path``."""
        ...

    async def put_file(self, rel_path: str, path: str | PathLike[str]) -> str:
        """The same with the file at ``path``, which must not change meanwhile. It is read as it is sent. Raises
        UploadFailed where it cannot be read, too.
        """
        ...

    async def put_domain_artifact(
        self,
        rel_path: str,
        content: bytes | PathLike[str],
        *,
        name: str | None = None,
        data_type: str | None = None,
        data_id: str | None = None,
    ) -> str:
        """Upload bytes, or the file at a path, under a ``name`` and ``data_type`` of your own, each of 1 to 128 bytes.

        The item ``data_id`` is updated where that is given; otherwise the one of that name and type, which is made
        where there is none.
        """
        ...

    def open_multipart(self, rel_path: str) -> MultipartUpload:
        """A writer for an artifact whose size is not known beforehand."""
        ...

    async def uploaded_artifacts(self) -> tuple[Artifact, ...]:
        """What was uploaded so far, in the order in which each path was first put."""
        ...


@runtime_checkable
class ControlPlane(Protocol):
    """``task.ctrl``: what the service should know of the task while it runs, and what it wants
    (``POST {DMS}/tasks/{id}/heartbeat``: ``progress``, ``events`` and the answer's ``cancel``).
    """

    def is_cancelled(self) -> bool:
        """Whether the task is to stop: the service cancelled it, its time is over, its lease is gone, or the node is
        leaving.
        """
        ...

    def progress(self, value: JSON) -> Awaitable[None]:
        """Report how far the task is; the latest value counts. Queued at once, sent with a heartbeat soon. May be
        awaited.

        Raises TypeError for what is not JSON, ValueError for more than 64 KiB of it.
        """
        ...

    def log_event(self, value: JSON) -> Awaitable[None]:
        """Report something that happened; all events are sent, in order. Queued at once. May be awaited.

        Raises TypeError for what is not JSON, ValueError for more than 64 KiB of it.
        """
        ...


@runtime_checkable
class AccessTokenProvider(Protocol):
    """``task.access_token``: the token of the task's domain (``access_token`` of the lease and heartbeat answers)."""

    async def get(self) -> str:
        """The token of the moment. Heartbeats renew it: ask again for each use, and keep it out of logs.

        Raises StorageError where the lease carries none.
        """
        ...


@runtime_checkable
class TaskContext(Protocol):
    """One task, as its runner sees it; TaskCtx by its short name."""

    @property
    def lease(self) -> LeaseEnvelope:
        """The lease and, as ``lease.task``, the task (``GET {DMS}/tasks``), as they were when it began."""
        ...

    @property
    def input(self) -> InputSource: ...

    @property
    def output(self) -> ArtifactSink: ...

    @property
    def ctrl(self) -> ControlPlane: ...

    @property
    def workspace(self) -> Path:
        """A directory of the task's own, made at the first use and gone with everything in it when the task ends.

        Raises StorageError where none can be made, DiskFull where there is no room.
        """
        ...

    @property
    def access_token(self) -> AccessTokenProvider: ...


TaskCtx: TypeAlias = TaskContext


@runtime_checkable
class SyncInputSource(Protocol):
    """:class:`InputSource` with plain methods."""

    def get_bytes_by_cid(self, cid: str) -> bytes: ...

    def materialize_cid_to_temp(self, cid: str) -> Path: ...

    def materialize_cid_with_meta(self, cid: str, *, extract: bool = False) -> MaterializedInput: ...


@runtime_checkable
class SyncMultipartUpload(Protocol):
    """:class:`MultipartUpload` with plain methods: ``with task.output.open_multipart(path) as part``."""

    @property
    def id(self) -> str | None:
        """The artifact's, once the block has ended; None until then."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...

    def write(self, data: bytes) -> None: ...


@runtime_checkable
class SyncArtifactSink(Protocol):
    """:class:`ArtifactSink` with plain methods."""

    def put_bytes(self, rel_path: str, data: bytes) -> str: ...

    def put_file(self, rel_path: str, path: str | PathLike[str]) -> str: ...

    def put_domain_artifact(
        self,
        rel_path: str,
        content: bytes | PathLike[str],
        *,
        name: str | None = None,
        data_type: str | None = None,
        data_id: str | None = None,
    ) -> str: ...

    def open_multipart(self, rel_path: str) -> SyncMultipartUpload: ...

    def uploaded_artifacts(self) -> tuple[Artifact, ...]: ...


@runtime_checkable
class SyncControlPlane(Protocol):
    """:class:`ControlPlane` with plain methods."""

    def is_cancelled(self) -> bool: ...

    def progress(self, value: JSON) -> None: ...

    def log_event(self, value: JSON) -> None: ...


@runtime_checkable
class SyncAccessTokenProvider(Protocol):
    """:class:`AccessTokenProvider` with a plain method."""

    def get(self) -> str: ...


@runtime_checkable
class SyncTaskContext(Protocol):
    """:class:`TaskContext` with plain methods, for runners that are not ``async``."""

    @property
    def lease(self) -> LeaseEnvelope: ...

    @property
    def input(self) -> SyncInputSource: ...

    @property
    def output(self) -> SyncArtifactSink: ...

    @property
    def ctrl(self) -> SyncControlPlane: ...

    @property
    def workspace(self) -> Path: ...

    @property
    def access_token(self) -> SyncAccessTokenProvider: ...


class _Runs(Protocol):
    def run(self, task: TaskContext, /) -> Awaitable[object] | AsyncIterator[object]: ...


class _SyncRuns(Protocol):
    def run(self, task: SyncTaskContext, /) -> object: ...


@runtime_checkable
class Runner(_Runs, Protocol):
    """A runner as an object. It may have ``setup()``, ``teardown()`` and ``check()`` besides."""

    def capability(self) -> str:
        """The capability it is for, such as ``/examples/hello/v1`` (``capability`` of a task)."""
        ...

    def run(self, task: TaskContext, /) -> Awaitable[object] | AsyncIterator[object]:
        """Do one task: an ``async def``, or one that yields, each value being the task's progress."""
        ...


@runtime_checkable
class SyncRunner(_SyncRuns, Protocol):
    """The same without ``async``."""

    def capability(self) -> str: ...

    def run(self, task: SyncTaskContext, /) -> object:
        """Do one task: a function, or a generator, each value of which is the task's progress."""
        ...


RunnerFunction: TypeAlias = Callable[[TaskContext], Awaitable[object]]
"""A runner as an ``async def``."""

RunnerTarget: TypeAlias = (
    RunnerFunction
    | Callable[[TaskContext], AsyncIterator[object]]
    | Callable[[SyncTaskContext], object]
    | Callable[[], _Runs | _SyncRuns]
    | _Runs
    | _SyncRuns
)
"""All that can be a runner: a function or generator, ``async`` or not; an object with such a ``run``; its class."""
