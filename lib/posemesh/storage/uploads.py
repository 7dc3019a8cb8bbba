"""Upload sessions: an artifact in parts, several at a time, each tried again alone."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from posemesh.errors import PosemeshError, UploadFailed
from posemesh.storage.client import Call, DomainClient
from posemesh.storage.transfer import BytesContent, Content, FileContent, Meter, Outgoing
from posemesh.storage.workspace import Workspace, disk_errors
from posemesh.wire import domain, uploads
from posemesh.wire.domain import ArtifactName, DataMetadata

__all__ = ("NO_SESSIONS", "PARTS_AT_ONCE", "Spool", "UploadSession", "find", "found_since")

PARTS_AT_ONCE = 4
NO_SESSIONS = frozenset({404, 405, 501})
"""A server that answers so to the beginning of a session takes no upload in parts."""
ABORT_SECS = 5.0
CLOCK_SECS = 10.0
"""How far the times in a server's answers may be apart."""


async def find(client: DomainClient, named: ArtifactName) -> DataMetadata | None:
    """The item of that name and type. Raises UploadFailed."""
    base, domain_id = client.server()
    url = domain.data_url(base, domain_id, name=named.name, data_type=named.data_type)
    call = Call(what=f"look-up of {named.logical_path}", method="GET", url=url, error=UploadFailed)
    try:
        items = await client.answer(call, domain.decode_metadata)
    except UploadFailed as error:
        if error.status == 404:
            return None
        raise
    return next((item for item in items if (item.name, item.data_type) == (named.name, named.data_type)), None)


async def found_since(client: DomainClient, named: ArtifactName, size: int, began: float) -> str | None:
    """The id of the item where an upload whose answer was lost has arrived all the same."""
    item = await find(client, named)
    if item is None or item.size != size or item.updated_at.timestamp() < began - CLOCK_SECS:
        return None
    return item.id


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
        self._etags: dict[int, str] = {}
        self._turns = asyncio.Semaphore(PARTS_AT_ONCE)
        self._parts: list[asyncio.Task[None]] = []

    async def begin(self, size: int | None, existing_id: str | None) -> None:
        """Raises UploadFailed: NO_SESSIONS and 409 (the name is taken) in its ``status`` have their meaning."""
        base, domain_id = self._client.server()
        body = uploads.initiate_body(self._named.name, self._named.data_type, size, existing_id)
        url = uploads.initiate_url(base, domain_id)
        self._upload_id, self.part_size = await self._client.answer(
            self._call("POST", url, body), uploads.decode_initiated
        )
        self._began = self._client.service_now()

    async def add(self, count: int) -> None:
        """The next ``count`` bytes of the content are the next part. Waits while too many are under way."""
        number = len(self._parts) + 1
        if number > uploads.PARTS_MAX:
            raise UploadFailed(f"{self._what}: it takes more than {uploads.PARTS_MAX} parts of {self.part_size} bytes")
        if count > self._part_bytes_max:
            raise UploadFailed(f"{self._what}: parts of {count} bytes exceed PART_BYTES_MAX, {self._part_bytes_max}")
        await self._turns.acquire()
        self._raise_failed()
        self._parts.append(asyncio.ensure_future(self._put(number, self._sent, count)))
        self._sent += count

    async def finish(self) -> str:
        """Wait for all parts, complete the session and return the artifact's id."""
        for part in self._parts:
            await part
        base, domain_id = self._client.server()
        call = self._call(
            "POST", uploads.session_url(base, domain_id, self._upload_id), uploads.finish_body(self._etags)
        )
        try:
            return await self._client.answer(call, uploads.decode_finished)
        except UploadFailed as error:
            # The session is gone or the answer cannot be read: an earlier answer may have been lost.
            if error.status not in (200, 400, 404, 410):
                raise
            found = await found_since(self._client, self._named, self._sent, self._began)
            if found is None:
                raise
            return found

    async def abort(self) -> None:
        """Tell the server once that nothing comes of it. Raises nothing but cancellation."""
        for part in self._parts:
            part.cancel()
        await asyncio.gather(*self._parts, return_exceptions=True)
        if not self._upload_id:
            return
        base, domain_id = self._client.server()
        call = Call(
            what=self._what, method="DELETE", url=uploads.session_url(base, domain_id, self._upload_id), retries=0
        )
        with suppress(PosemeshError, TimeoutError):
            async with asyncio.timeout(ABORT_SECS):
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
        try:
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
        finally:
            self._turns.release()

    def _raise_failed(self) -> None:
        for part in self._parts:
            if part.done() and not part.cancelled() and (error := part.exception()) is not None:
                raise error


class Spool:
    """What was written of an artifact of unknown size, as a file of the workspace: parts are sent from it."""

    def __init__(self, workspace: Workspace, what: str) -> None:
        self._workspace = workspace
        self._what = what
        self.path: Path = workspace.new_directory("upload-") / "content"
        self.size = 0
        with disk_errors(what):
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append. Raises DiskFull, StorageError."""
        self._workspace.take(len(data))
        at = 0
        try:
            with disk_errors(self._what):
                while at < len(data):
                    at += os.write(self._file, memoryview(data)[at:])
        finally:
            self.size += at
            self._workspace.take(at - len(data))

    def content(self) -> FileContent:
        """All that is written so far, for a reader of its own."""
        return FileContent(self.path, self._what)

    def read(self, at: int, count: int) -> bytes:
        return os.pread(self._file, count, at)

    def discard(self) -> None:
        """Remove it. Doing so again does nothing."""
        if self._file < 0:
            return
        os.close(self._file)
        self._file = -1
        self._workspace.discard(self.path.parent)
        self._workspace.take(-self.size)
