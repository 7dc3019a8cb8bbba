"""A task's inputs: found by any form of their id, and brought to disk as they arrive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from io import BufferedWriter, BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

from posemesh.config import NodeConfig
from posemesh.errors import BadInput, InvalidCid, StorageError, TaskStopped
from posemesh.runners.port import MaterializedInput
from posemesh.shell.http import Incoming
from posemesh.shell.offload import Offload
from posemesh.storage.archive import Budget, extract, is_archive
from posemesh.storage.client import Call, DomainClient
from posemesh.storage.transfer import Meter, Report
from posemesh.storage.workspace import Workspace, disk_errors
from posemesh.wire import domain
from posemesh.wire.domain import ItemRef
from posemesh.wire.multipart import MultipartReader, Part

__all__ = ("Inputs",)

T = TypeVar("T")

MEMORY_BYTES_MAX = 2 * 1024**3
"""An input that is asked for as bytes has at most so many."""
SCAN_ARCHIVE = "refined_scan_zip"
"""Of several items of the name that a task was given, the one of this type is meant (global refinement)."""


class _Receiver(Protocol):
    """Takes a download apart."""

    def begin(self, part: Part) -> None: ...

    def write(self, piece: bytes) -> None: ...


class Inputs:
    """One task's."""

    def __init__(
        self, client: DomainClient, workspace: Workspace, config: NodeConfig, offload: Offload, report: Report
    ) -> None:
        self._client = client
        self._workspace = workspace
        self._config = config
        self._offload = offload
        self._report = report
        self._running: dict[asyncio.Future[Any], threading.Event] = {}

    async def close(self) -> None:
        """Stop what still runs in other threads and wait for its end: nothing writes into the workspace then."""
        for stop in self._running.values():
            stop.set()
        while self._running:
            await asyncio.wait(tuple(self._running))

    async def get_bytes(self, cid: str) -> bytes:
        """The item that ``cid`` names, whole. Raises InvalidCid, BadInput, StorageError."""
        ref = await self._resolve(cid)
        memory = _Memory(ref)
        parts = await self._download(cid, ref, memory, min(self._config.input_bytes_max, MEMORY_BYTES_MAX))
        _primary(cid, ref, parts)
        return memory.data.getvalue()

    async def materialize(self, cid: str, *, unpack: bool) -> MaterializedInput:
        """The same as files below the workspace. Nothing is left of a download that fails."""
        ref = await self._resolve(cid)
        folder = _Folder(self._workspace.new_directory("domain-input-"), self._workspace)
        try:
            parts = await self._download(cid, ref, folder, self._config.input_bytes_max)
            folder.close()
            first = _primary(cid, ref, parts)
            extracted = await self._unpack(cid, folder) if unpack else ()
        except BaseException:
            await self._apart(lambda stop: folder.discard())
            raise
        part, path = parts[first], folder.files[first]
        return MaterializedInput(
            path=path,
            data_id=part.id,
            name=part.name,
            data_type=part.data_type,
            domain_id=part.domain_id or ref.domain_id,
            root_dir=folder.root,
            related_files=tuple(file for file in folder.files if file is not path),
            extracted_paths=extracted,
        )

    async def _resolve(self, cid: str) -> ItemRef:
        """What ``cid`` refers to; a bare text that may be a name is looked up."""
        base, domain_id = self._client.server()
        ref = domain.parse_cid(cid, domain_server_url=base, domain_id=domain_id)
        name = domain.bare_name(cid)
        if name is None:
            return ref
        call = Call(what=f"look-up of input {cid}", method="GET", url=domain.data_url(base, domain_id, name=name))
        try:
            items = await self._client.answer(call, domain.decode_metadata)
        except StorageError as error:
            if error.status != 404:
                raise
            return ref
        named = [item for item in items if item.name == name]
        found = [item for item in named if item.data_type == SCAN_ARCHIVE] if len(named) > 1 else named
        if len(named) > 1 and len(found) != 1:
            raise InvalidCid(f"input {cid}: {len(named)} items of the domain have that name; give an id")
        return ItemRef(domain_id, (found[0].id,)) if found else ref

    async def _download(self, cid: str, ref: ItemRef, receiver: _Receiver, limit: int) -> list[Part]:
        base, _ = self._client.server()
        url = domain.data_url(base, ref.domain_id, ids=ref.ids, name=ref.name, data_type=ref.data_type)
        call = Call(what=f"download of {cid}", method="GET", url=url, accept="multipart/form-data", streams=True)
        meter = Meter(self._report, cid, "in")
        try:
            parts = await self._client.send(call, self._reading(call.what, receiver, meter, limit))
        except StorageError as error:
            if error.status != 404:
                raise
            raise BadInput(str(error), 404) from error
        meter.end()
        return parts

    def _reading(
        self, what: str, receiver: _Receiver, meter: Meter, limit: int
    ) -> Callable[[Incoming], Awaitable[list[Part]]]:
        async def read(incoming: Incoming) -> list[Part]:
            try:
                return await take_apart(incoming)
            except BadInput as error:
                raise BadInput(f"{what}: {error}") from error

        async def take_apart(incoming: Incoming) -> list[Part]:
            kind = incoming.headers.get("Content-Type")
            reader = MultipartReader(kind, header_bytes_max=self._config.header_bytes_max)
            parts: list[Part] = []
            left = limit
            async for chunk in incoming.pieces():
                self._client.check()
                for event in reader.feed(chunk):
                    if isinstance(event, Part):
                        left -= event.size
                        if left < 0:
                            raise BadInput(f"it exceeds {limit} bytes; INPUT_BYTES_MAX sets the limit")
                        meter.total = (meter.total or 0) + event.size
                        parts.append(event)
                        receiver.begin(event)
                    else:
                        receiver.write(event)
                        meter.moved(len(event))
            reader.close()
            return parts

        return read

    async def _unpack(self, cid: str, folder: _Folder) -> tuple[Path, ...]:
        """What the archives among the files hold, each in a directory beside it."""

        def work(stop: threading.Event) -> tuple[Path, ...]:
            def check() -> None:
                self._client.check()
                if stop.is_set():
                    raise TaskStopped("unpacking was cancelled")

            with disk_errors(f"input {cid}"):
                archives = [file for file in folder.files if is_archive(file)]
                left = self._config.input_bytes_max - sum(file.stat().st_size for file in folder.files)
            if not archives:
                raise BadInput(f"input {cid}: expected a zip archive, and there is none to unpack")
            budget = Budget(left, take=folder.take, check=check)
            return tuple(path for file in archives for path in extract(file, file.with_name(f"{file.name}.d"), budget))

        return await self._apart(work)

    async def _apart(self, work: Callable[[threading.Event], T]) -> T:
        """What ``work`` returns, in a thread. A cancellation sets the event and is raised after the thread's end.

        Else the thread would make files again in a workspace that is removed.
        """
        stop = threading.Event()
        job = asyncio.ensure_future(self._offload.call(work, stop))
        self._running[job] = stop
        job.add_done_callback(lambda ended: self._running.pop(ended))
        cancelled: asyncio.CancelledError | None = None
        while not job.done():
            try:
                await asyncio.wait((job,))
            except asyncio.CancelledError as error:
                cancelled = error
                stop.set()
        failure = job.exception()
        if cancelled is not None:
            raise cancelled
        if failure is not None:
            raise failure
        return job.result()


def _primary(cid: str, ref: ItemRef, parts: list[Part]) -> int:
    """Which part is the one that was asked for."""
    if not parts:
        raise BadInput(f"input {cid}: the domain server has no such item", 404)
    if not ref.ids:
        return 0
    found = [part.id.lower() for part in parts]
    wanted = [one.lower() for one in ref.ids]
    first = next((index for index, one in enumerate(found) if one in wanted), None)
    if first is None:
        raise BadInput(f"input {cid}: the domain server answered with other items")
    missing = [one for one in wanted if one not in found]
    if missing and ref.name is None and ref.data_type is None:
        raise BadInput(f"input {cid}: the domain server has no item {missing[0]}", 404)
    return first


class _Memory:
    """Keeps the part that was asked for."""

    def __init__(self, ref: ItemRef) -> None:
        self.data = BytesIO()  # it gives its bytes away without a copy
        self._wanted = [one.lower() for one in ref.ids]
        self._kept = self._found = False

    def begin(self, part: Part) -> None:
        self._kept = not self._found and (not self._wanted or part.id.lower() in self._wanted)
        self._found |= self._kept

    def write(self, piece: bytes) -> None:
        if self._kept:
            self.data.write(piece)


class _Folder:
    """Keeps every part as a file below ``root``; no two of them are one file."""

    def __init__(self, root: Path, workspace: Workspace) -> None:
        self.root = root
        self.files: list[Path] = []
        self._workspace = workspace
        self._taken = 0
        self._file: BufferedWriter | None = None
        self._same: dict[Path, int] = {}

    def begin(self, part: Part) -> None:
        self.close()
        self.take(part.size)
        wanted = self.root / domain.input_path(part.name, part.data_type)
        with disk_errors(f"input {wanted.name}"):
            wanted.parent.mkdir(parents=True, exist_ok=True)
            path = wanted
            while path.exists():
                self._same[wanted] = number = self._same.get(wanted, 1) + 1
                path = wanted.with_stem(f"{wanted.stem}-{number}")
            self._file = path.open("xb")
        self.files.append(path)

    def write(self, piece: bytes) -> None:
        assert self._file is not None
        with disk_errors(f"input {self.files[-1].name}"):
            self._file.write(piece)

    def take(self, size: int) -> None:
        self._workspace.take(size)
        self._taken += size

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with disk_errors(f"input {self.files[-1].name}"):
                file.close()

    def discard(self) -> None:
        """Remove all of it."""
        with suppress(StorageError):  # what failed is told already
            self.close()
        self._workspace.discard(self.root)
        self._workspace.take(-self._taken)
