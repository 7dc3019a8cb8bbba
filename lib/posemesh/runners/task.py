"""The task over a port: the contract's :class:`TaskContext`, wherever user code runs."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

from posemesh.errors import PosemeshError
from posemesh.runners.api import MaterializedInput
from posemesh.runners.port import (
    AbortUpload,
    FinishUpload,
    GetBytes,
    GetToken,
    ListArtifacts,
    LogEvent,
    Materialize,
    OpenUpload,
    Port,
    Progress,
    PutArtifact,
    WriteUpload,
)
from posemesh.types import JSON, Artifact, LeaseEnvelope

__all__ = ("PortTask",)

WRITE_BYTES_MAX = 1024 * 1024

REPORT_BYTES_MAX = 64 * 1024
"""The size of one progress or event: heartbeats carry it, and a service refuses large ones."""


class PortTask:
    """``make_workspace`` makes the task's directory when called first, and names the same one from then on."""

    def __init__(self, lease: LeaseEnvelope, port: Port, make_workspace: Callable[[], Path]) -> None:
        self.lease = lease
        self.input = _Inputs(port)
        self.output = _Artifacts(port)
        self.ctrl = _Control(port)
        self.access_token = _Token(port)
        self._make_workspace = make_workspace

    def __repr__(self) -> str:
        return f"<task {self.lease.task.id} {self.lease.task.capability}>"

    @property
    def workspace(self) -> Path:
        return self._make_workspace()


class _Inputs:
    def __init__(self, port: Port) -> None:
        self._port = port

    async def get_bytes_by_cid(self, cid: str) -> bytes:
        data: bytes = await self._port.call(GetBytes(cid=_text("an input's id", cid)))
        return data

    async def materialize_cid_to_temp(self, cid: str) -> Path:
        return (await self.materialize_cid_with_meta(cid)).path

    async def materialize_cid_with_meta(self, cid: str, *, extract: bool = False) -> MaterializedInput:
        found: MaterializedInput = await self._port.call(Materialize(cid=_text("an input's id", cid), extract=extract))
        return found


class _Upload:
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
        whole = _bytes(data)
        for at in range(0, len(whole), WRITE_BYTES_MAX):
            piece = whole[at : at + WRITE_BYTES_MAX]
            await self._port.call(WriteUpload(upload=self._opened(), data=piece))

    def _opened(self) -> int:
        if self._upload is None:
            raise RuntimeError("the upload is not open; write in the block of `with task.output.open_multipart(path)`")
        return self._upload


class _Artifacts:
    def __init__(self, port: Port) -> None:
        self._port = port

    async def put_bytes(self, rel_path: str, data: bytes) -> str:
        return await self.put_domain_artifact(rel_path, data)

    async def put_file(self, rel_path: str, path: str | PathLike[str]) -> str:
        return await self.put_domain_artifact(rel_path, Path(path))

    async def put_domain_artifact(
        self,
        rel_path: str,
        content: bytes | PathLike[str],
        *,
        name: str | None = None,
        data_type: str | None = None,
        data_id: str | None = None,
    ) -> str:
        message = PutArtifact(
            rel_path=_text("an artifact's path", rel_path),
            content=_content(content),
            name=name,
            data_type=data_type,
            data_id=data_id,
        )
        found: str = await self._port.call(message)
        return found

    def open_multipart(self, rel_path: str) -> _Upload:
        return _Upload(self._port, _text("an artifact's path", rel_path))

    async def uploaded_artifacts(self) -> tuple[Artifact, ...]:
        found: tuple[Artifact, ...] = await self._port.call(ListArtifacts())
        return found


class _Control:
    def __init__(self, port: Port) -> None:
        self._port = port

    def is_cancelled(self) -> bool:
        return self._port.cancelled

    def progress(self, value: JSON) -> Awaitable[None]:
        self._port.post(Progress(value=_json(value)))
        return _Queued()

    def log_event(self, value: JSON) -> Awaitable[None]:
        self._port.post(LogEvent(value=_json(value)))
        return _Queued()


class _Queued:
    """Done already: awaiting it gives other coroutines a turn, not awaiting it loses nothing."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class _Token:
    def __init__(self, port: Port) -> None:
        self._port = port

    async def get(self) -> str:
        token = await self._port.call(GetToken())
        return str(token.reveal())


def _text(what: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected {what} as text, got {type(value).__name__}")
    return value


def _content(content: bytes | PathLike[str]) -> bytes | Path:
    # Absolute, as user code in a process of its own may have another working directory than its node.
    if not isinstance(content, PathLike):
        return _bytes(content)
    with suppress(FileNotFoundError):  # the directory itself is gone: nothing is there to be read
        return Path(content).absolute()
    return Path(content)


def _bytes(data: object) -> bytes:
    """``bytes()`` would make zeros of a number."""
    if isinstance(data, bytes):
        return data
    try:
        return bytes(memoryview(data))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"expected bytes, got {type(data).__name__}; encode text, and give a file as a Path") from None


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
