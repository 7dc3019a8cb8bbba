"""Upload sessions: an artifact in parts, several at a time, each tried again alone."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from pathlib import Path

from posemesh.errors import PosemeshError, UploadFailed
from posemesh.shell.offload import Offload
from posemesh.storage.client import Call, DomainClient
from posemesh.storage.transfer import BytesContent, Content, FileContent, Meter, Outgoing
from posemesh.storage.workspace import Workspace, disk_errors
from posemesh.wire import domain, uploads
from posemesh.wire.domain import ArtifactName, DataMetadata

__all__ = ("NO_SESSIONS", "PARTS_AT_ONCE", "Spool", "UploadSession", "exists", "find", "found_since")

PARTS_AT_ONCE = 4
NO_SESSIONS = frozenset({404, 405, 501})
"""A server that answers so to the beginning of a session takes no upload in parts."""
ABORT_SECS = 1.5
"""The end of a task waits so long for its sessions to be aborted: less than user code has for stopping."""
CLOCK_SECS = 10.0
"""How far the times in a server's answers may be apart."""


async def find(client: DomainClient, named: ArtifactName) -> DataMetadata | None:
    """The item of that name and type. Raises UploadFailed."""
    base, domain_id = client.server()
    url = domain.data_url(base, domain_id, name=named.name, data_type=named.data_type)
    items = await _look_up(client, named, url)
    return next((item for item in items if (item.name, item.data_type) == (named.name, named.data_type)), None)


async def exists(client: DomainClient, named: ArtifactName, data_id: str) -> bool:
    """Whether there is an item of that id, which ``named`` is to update. Raises UploadFailed."""
    base, domain_id = client.server()
    items = await _look_up(client, named, domain.data_url(base, domain_id, ids=[data_id]))
    return any(item.id == data_id for item in items)


async def _look_up(client: DomainClient, named: ArtifactName, url: str) -> list[DataMetadata]:
    call = Call(what=f"look-up of {named.logical_path}", method="GET", url=url, error=UploadFailed)
    try:
        return await client.answer(call, domain.decode_metadata)
    except UploadFailed as error:
        if error.status == 404:
            return []
        raise


async def found_since(client: DomainClient, named: ArtifactName, size: int, began: float) -> str | None:
    """The id of the item where an upload whose answer was lost has arrived all the same.

    ``began`` is when the upload did, by the loop's clock.
    """
    item = await find(client, named)
    if item is None or item.size != size:
        return None
    # Both by the server's clock, which the look-up has just told.
    age = client.service_now() - item.updated_at.timestamp()
    return item.id if age <= asyncio.get_running_loop().time() - began + CLOCK_SECS else None


class UploadSession:
    """One session. :meth:`add` its parts in order, then :meth:`finish` it; :meth:`abort` it where either fails."""

    def __init__(
        self, client: DomainClient, named: ArtifactName, content: Content, meter: Meter, part_bytes_max: int
    ) -> None:
        self.part_size = 0
        self._client = client
        self._named = named
        self._content = content
        self._meter = meter
        self._part_bytes_max = part_bytes_max
        self._upload_id = ""
        self._began = 0.0
        self._sent = 0
        self._count = 0
        self._etags: dict[int, str] = {}
        self._turns = asyncio.Semaphore(PARTS_AT_ONCE)
        self._parts: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def begin(self, size: int | None, existing_id: str | None) -> None:
        """Raises UploadFailed: NO_SESSIONS and 409 (the name is taken) in its ``status`` have their meaning."""
        base, domain_id = self._client.server()
        body = uploads.initiate_body(self._named.name, self._named.data_type, size, existing_id)
        url = uploads.initiate_url(base, domain_id)
        self._began = asyncio.get_running_loop().time()
        self._upload_id, self.part_size = await self._client.answer(
            self._call("POST", url, body), uploads.decode_initiated
        )

    def expect(self, size: int) -> None:
        """Raises UploadFailed where ``size`` bytes are more than its parts may hold."""
        largest = min(self.part_size, size)
        if largest > self._part_bytes_max:
            raise UploadFailed(f"{self._what}: parts of {largest} bytes exceed PART_BYTES_MAX, {self._part_bytes_max}")
        if size > self.part_size * uploads.PARTS_MAX:
            raise UploadFailed(
                f"{self._what}: {size} bytes take more than {uploads.PARTS_MAX} parts of {self.part_size} bytes, which "
                "is the domain server's choice; divide the output"
            )

    async def add(self, count: int) -> None:
        """The next ``count`` bytes of the content are the next part. Waits while too many are under way."""
        await self._turns.acquire()
        try:
            self._raise_failed()
            self._count += 1
            part = asyncio.ensure_future(self._put(self._count, self._sent, count))
        except BaseException:
            self._turns.release()
            raise
        self._sent += count
        self._parts.add(part)
        part.add_done_callback(self._ended)

    async def finish(self) -> str:
        """Wait for all parts, complete the session and return the artifact's id."""
        while self._parts and self._failure is None:
            await asyncio.wait(tuple(self._parts), return_when=asyncio.FIRST_COMPLETED)
        self._raise_failed()
        base, domain_id = self._client.server()
        url = uploads.session_url(base, domain_id, self._upload_id)
        try:
            stored = await self._client.answer(
                self._call("POST", url, uploads.finish_body(self._etags)), uploads.decode_finished
            )
        except UploadFailed as error:
            # The session is gone or the answer cannot be read: an earlier answer may have been lost.
            if error.status not in (200, 400, 404, 410):
                raise
            found = await found_since(self._client, self._named, self._sent, self._began)
            if found is None:
                raise
            stored = found
        self._upload_id = ""
        return stored

    async def abort(self, *, tell: bool = True) -> None:
        """Stop what is under way and, unless not to ``tell`` or it is finished, tell the server once that nothing comes
        of it, also for a task that was told to stop. Within ABORT_SECS; raises nothing but cancellation.
        """
        upload_id, self._upload_id = self._upload_id, ""
        self._failure = self._failure or UploadFailed(f"{self._what}: it was aborted")
        for part in self._parts:
            part.cancel()
        with suppress(PosemeshError, TimeoutError):
            async with asyncio.timeout(ABORT_SECS):
                if self._parts:
                    await asyncio.wait(tuple(self._parts))
                if tell and upload_id:
                    base, domain_id = self._client.server()
                    url = uploads.session_url(base, domain_id, upload_id)
                    call = Call(what=self._what, method="DELETE", url=url, retries=0, parting=True)
                    await self._client.send(call, lambda incoming: incoming.reply())

    @property
    def _what(self) -> str:
        return f"upload of {self._named.logical_path}"

    def _call(self, method: str, url: str, json: bytes) -> Call:
        content = Outgoing(BytesContent(json))
        return Call(
            what=self._what, method=method, url=url, content_type="application/json", body=content, error=UploadFailed
        )

    async def _put(self, number: int, at: int, count: int) -> None:
        base, domain_id = self._client.server()
        call = Call(
            what=f"{self._what}, part {number}",
            method="PUT",
            url=uploads.part_url(base, domain_id, self._upload_id, number),
            content_type="application/octet-stream",
            body=Outgoing(self._content, self._meter, at=at, count=count),
            error=UploadFailed,
        )
        self._etags[number] = await self._client.answer(call, uploads.decode_etag)

    def _ended(self, part: asyncio.Task[None]) -> None:
        # Not by the part itself: one that is cancelled before its first step never gets there.
        self._parts.discard(part)
        self._turns.release()
        if not part.cancelled():
            error = part.exception()
            self._failure = self._failure or error

    def _raise_failed(self) -> None:
        if self._failure is not None:
            raise self._failure


class Spool:
    """What was written of an artifact of unknown size, as a file of the workspace: parts are sent from it.

    The file is made at the first write. It is written and removed through the offload, and read on the loop.
    """

    def __init__(self, workspace: Workspace, offload: Offload, what: str) -> None:
        self._workspace = workspace
        self._offload = offload
        self._what = what
        self._taken = 0
        self._reading: FileContent | None = None
        self._lock = threading.Lock()  # of what follows, and of the file while it is written
        self._path: Path | None = None
        self._file = -1
        self._gone = False
        self.size = 0

    async def write(self, data: bytes | memoryview) -> None:
        """Append. Raises DiskFull, StorageError. Where it fails or is cancelled, how much was written is not known."""
        self._workspace.take(len(data))
        self._taken += len(data)
        await self._offload.call(self._append, data)

    def read(self, at: int, count: int) -> bytes:
        """As FileContent does."""
        if self._reading is None:
            assert self._path is not None
            self._reading = FileContent(self._path, self._what)
        return self._reading.read(at, count)

    async def discard(self) -> None:
        """Remove it. Doing so again does nothing."""
        if self._reading is not None:
            self._reading.close()
        await self._offload.call(self._remove)
        taken, self._taken = self._taken, 0
        self._workspace.take(-taken)

    def _append(self, data: bytes | memoryview) -> None:
        with self._lock, disk_errors(self._what):
            if self._gone:
                raise UploadFailed(f"{self._what}: it was aborted")
            if self._path is None:
                self._path = self._workspace.new_directory("upload-") / "content"
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            at = 0
            while at < len(data):
                at += os.write(self._file, data[at:])
            self.size += at

    def _remove(self) -> None:
        with self._lock:
            self._gone = True
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            if self._path is not None:
                self._workspace.discard(self._path.parent)
