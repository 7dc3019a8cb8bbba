"""A task's inputs, artifacts and workspace in memory and a temporary directory, as a domain server would have them."""

from __future__ import annotations

import itertools
import secrets
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from posemesh.errors import BadInput, InvalidCid, StorageError, UploadFailed
from posemesh.runners.api import MaterializedInput
from posemesh.runners.port import (
    AbortUpload,
    FinishUpload,
    GetBytes,
    ListArtifacts,
    Materialize,
    OpenUpload,
    PutArtifact,
    StorageQuestion,
    WriteUpload,
)
from posemesh.storage.archive import Budget, extract, is_archive
from posemesh.types import Artifact, TaskSpec
from posemesh.wire import domain

__all__ = ("DOMAIN", "MemoryStorage")

DOMAIN = UUID("0d000000-0000-4000-8000-000000000000")
UNPACKED_BYTES_MAX = 1024**3


class MemoryStorage:
    """One task's. ``inputs`` are the bytes, or the file, of each id; ``contents`` is what was uploaded, by path.

    All of it may be called from any thread.
    """

    def __init__(self, task: TaskSpec, inputs: Mapping[str, bytes | Path]) -> None:
        self.contents: dict[str, bytes] = {}
        self._task = task
        self._inputs = dict(inputs)
        for id, given in self._inputs.items():
            if not isinstance(given, (bytes, bytearray, memoryview, Path)):
                raise TypeError(f"input {id!r}: expected bytes, or the Path of a file, got {type(given).__name__}")
        self._stored: dict[str, Artifact] = {}
        self._writers: dict[int, tuple[str, bytearray]] = {}
        self._numbers = itertools.count(1)
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.RLock()

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """What was uploaded, in the order in which each path was first put."""
        return tuple(self._stored.values())

    def workspace(self) -> Path:
        """The task's directory, made at the first use."""
        with self._lock:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(prefix="posemesh-test-", ignore_cleanup_errors=True)
            return Path(self._directory.name)

    def stop(self) -> None:
        """Nothing is under way here."""

    async def close(self) -> None:
        """Remove the workspace."""
        self.remove()

    def remove(self) -> None:
        """The same, without a loop."""
        with self._lock:
            if self._directory is not None:
                self._directory.cleanup()

    async def answer(self, message: StorageQuestion) -> Any:
        """As :meth:`respond`."""
        return self.respond(message)

    def respond(self, message: StorageQuestion) -> Any:
        """Raises StorageError, InvalidCid."""
        with self._lock:
            match message:
                case GetBytes(cid=cid):
                    return self._input(cid)
                case Materialize(cid=cid, extract=unpack):
                    return self._materialize(cid, unpack)
                case PutArtifact(rel_path=path, content=content, name=name, data_type=kind, data_id=data_id):
                    return self._put(path, content, name, kind, data_id)
                case OpenUpload(rel_path=path):
                    self._named(path)
                    self._writers[number := next(self._numbers)] = (path, bytearray())
                    return number
                case WriteUpload(upload=upload, data=data):
                    self._writer(upload)[1].extend(data)
                    return None
                case FinishUpload(upload=upload):
                    path, written = self._writer(upload)
                    del self._writers[upload]
                    return self._put(path, bytes(written))
                case AbortUpload(upload=upload):
                    self._writer(upload)
                    del self._writers[upload]
                    return None
                case ListArtifacts():
                    return self.artifacts

    def _writer(self, upload: int) -> tuple[str, bytearray]:
        if upload not in self._writers:
            raise StorageError("that upload is not open")
        return self._writers[upload]

    # -- inputs

    def _input(self, cid: str) -> bytes:
        if not cid.strip():
            raise InvalidCid("expected an input id, got blank text")
        if cid not in self._inputs:
            known = ", ".join(self._inputs) or "none"
            raise BadInput(f"input {cid}: the domain server has no such item; this test gives {known}", 404)
        found = self._inputs[cid]
        return found.read_bytes() if isinstance(found, Path) else bytes(found)

    def _materialize(self, cid: str, unpack: bool) -> MaterializedInput:
        data = self._input(cid)
        given = self._inputs[cid]
        named = domain.infer_artifact(None, given.name if isinstance(given, Path) else cid, str(self._task.id))
        root = self.workspace() / f"domain-input-{secrets.token_hex(16)}"
        path = root / domain.input_path(named.name, named.data_type)
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        return MaterializedInput(
            path=path,
            data_id=cid,
            name=named.name,
            data_type=named.data_type,
            domain_id=str(DOMAIN),
            root_dir=root,
            extracted_paths=_unpacked(cid, path) if unpack else (),
        )

    # -- artifacts

    def _named(self, path: str, name: str | None = None, data_type: str | None = None) -> domain.ArtifactName:
        inferred = domain.infer_artifact(self._task.outputs_prefix, path, str(self._task.id))
        named = domain.ArtifactName(inferred.logical_path, name or inferred.name, data_type or inferred.data_type)
        for what in named[1:]:
            if not domain.valid_name(what):
                raise UploadFailed(f"output {path!r}: the domain server takes no name like {what!r} (1 to 128 bytes)")
        return named

    def _put(
        self,
        path: str,
        content: bytes | Path,
        name: str | None = None,
        data_type: str | None = None,
        data_id: str | None = None,
    ) -> str:
        named = self._named(path, name, data_type)
        data = _read(content, named.logical_path) if isinstance(content, Path) else content
        twin = next((each for each in self._stored.values() if (each.name, each.data_type) == named[1:]), None)
        if name is None and twin is not None and twin.logical_path != named.logical_path:
            raise UploadFailed(
                f"output {named.logical_path!r}: on the domain server its name, {named.name}, is that of "
                f"{twin.logical_path!r} too; choose another path, or a name of its own with put_domain_artifact"
            )
        known = self._stored.get(named.logical_path)
        if data_id is None and known is not None and (known.name, known.data_type) == named[1:]:
            data_id = known.id
        stored = data_id or f"artifact-{next(self._numbers)}"
        self.contents[named.logical_path] = data
        self._stored[named.logical_path] = Artifact(
            logical_path=named.logical_path, name=named.name, data_type=named.data_type, id=stored
        )
        return stored


def _read(path: Path, logical_path: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UploadFailed(f"upload of {logical_path}: {path}: {error.strerror or error}") from error


def _unpacked(cid: str, path: Path) -> tuple[Path, ...]:
    if not is_archive(path):
        raise BadInput(f"input {cid}: expected a zip archive, and there is none to unpack")
    budget = Budget(UNPACKED_BYTES_MAX, take=lambda size: None, check=lambda: None)
    return extract(path, path.with_name(f"{path.name}.d"), budget)
