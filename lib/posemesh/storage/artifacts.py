"""A task's artifacts: created or updated, in one request or in a session of parts."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posemesh.config import NodeConfig
from posemesh.errors import UploadFailed
from posemesh.runners.port import PutArtifact
from posemesh.shell.offload import Offload
from posemesh.storage.client import Call, DomainClient
from posemesh.storage.transfer import BytesContent, Content, FileContent, Meter, Outgoing, Report
from posemesh.storage.uploads import NO_SESSIONS, Spool, UploadSession, exists, find, found_since
from posemesh.storage.workspace import Workspace
from posemesh.types import Artifact
from posemesh.wire import domain, uploads
from posemesh.wire.domain import ArtifactName
from posemesh.wire.multipart import upload_frame

if TYPE_CHECKING:
    from posemesh.wire.uploads import UploadInfo

__all__ = ("Artifacts", "Writer")

SMALL_BYTES = 1024 * 1024
"""Up to this size an artifact goes in one request without asking what the server takes."""
SINGLE_BYTES_MAX = 5 * 1024**3
"""Beyond this size a session is used wherever there is one: nobody likes to send so much twice."""
FRAME_BYTES = 1024
"""What an upload in one request has around its data, at most."""
WRITE_BYTES_MAX = 1024 * 1024
"""What is written to the disk at a time."""


class Artifacts:
    """One task's."""

    def __init__(
        self, client: DomainClient, workspace: Workspace, offload: Offload, config: NodeConfig, report: Report
    ) -> None:
        self._client = client
        self._workspace = workspace
        self._offload = offload
        self._config = config
        self._report = report
        self._stored: dict[str, Artifact | None] = {}
        self._paths: dict[tuple[str, ...], str] = {}
        self._sessions: set[UploadSession] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def stored(self) -> tuple[Artifact, ...]:
        """What was uploaded, in the order in which each path was first put."""
        return tuple(artifact for artifact in self._stored.values() if artifact is not None)

    async def put(self, message: PutArtifact, task: tuple[str | None, str]) -> str:
        """Carry ``message`` out for the task of that outputs prefix and id. Raises UploadFailed."""
        named = self.named(message.rel_path, task, message.name, message.data_type)
        if message.data_id is None:
            self._claim(named, inferred=message.name is None)
        elif not domain.valid_id(message.data_id):
            raise UploadFailed(f"output {message.rel_path!r}: {message.data_id!r:.100} is no item's id")
        if isinstance(message.content, Path):
            with FileContent(message.content, f"upload of {named.logical_path}") as content:
                return await self.store(named, content, message.data_id)
        return await self.store(named, BytesContent(message.content), message.data_id)

    def named(
        self, rel_path: str, task: tuple[str | None, str], name: str | None = None, data_type: str | None = None
    ) -> ArtifactName:
        """What an output is called, checked by the server's rules."""
        inferred = domain.infer_artifact(task[0], rel_path, task[1])
        named = ArtifactName(inferred.logical_path, name or inferred.name, data_type or inferred.data_type)
        try:
            named.logical_path.encode()
        except UnicodeEncodeError:
            raise UploadFailed(f"output {rel_path!r}: expected text; a lone surrogate is none") from None
        for what in named[1:]:
            if not domain.valid_name(what):
                raise UploadFailed(
                    f"output {rel_path!r}: the domain server takes no name like {what!r} (1 to 128 bytes)"
                )
        return named

    def _claim(self, named: ArtifactName, *, inferred: bool) -> None:
        """One item for each path. Made from a path, a name may be another path's too: ``a/b`` and ``a_b`` give one."""
        path = self._paths.setdefault(named[1:], named.logical_path)
        if inferred and path != named.logical_path:
            raise UploadFailed(
                f"output {named.logical_path!r}: on the domain server its name, {named.name}, is that of {path!r} too; "
                "choose another path, or a name of its own with put_domain_artifact"
            )

    async def store(self, named: ArtifactName, content: Content, data_id: str | None = None) -> str:
        """Create or update, and remember it. Two puts of one path follow one another."""
        self._stored.setdefault(named.logical_path, None)
        async with self._one_at_a_time[named.logical_path]:
            known = self._known(named) if data_id is None else None
            if known is not None:
                try:
                    stored = await self._send(named, content, known)
                except UploadFailed as error:
                    if error.status != 404:
                        raise
                    stored = await self._send(named, content, None)  # somebody removed it meanwhile
            else:
                stored = await self._send(named, content, data_id)
            self.remember(named, stored)
            return stored

    def _known(self, named: ArtifactName) -> str | None:
        """The id of what this task has put there already, under that name."""
        put = self._stored[named.logical_path]
        return put.id if put is not None and (put.name, put.data_type) == named[1:] else None

    def remember(self, named: ArtifactName, data_id: str) -> None:
        """It is on the server."""
        self._stored[named.logical_path] = Artifact(
            logical_path=named.logical_path, name=named.name, data_type=named.data_type, id=data_id
        )

    async def _send(self, named: ArtifactName, content: Content, existing: str | None) -> str:
        meter = Meter(self._report, named.logical_path, "out", content.size)
        stored: str | None = None
        if content.size > SMALL_BYTES and _in_parts(await self._client.info(), content.size):
            stored = await self._in_session(named, content, existing, meter)
        if stored is None:
            try:
                stored = await self._in_one(named, content, existing, meter)
            except UploadFailed as error:
                if error.status != 413:
                    raise
                stored = await self._in_session(named, content, existing, meter)
                if stored is None:
                    raise
        meter.end()
        return stored

    # -- one request

    async def _in_one(self, named: ArtifactName, content: Content, existing: str | None, meter: Meter) -> str:
        if existing is None:
            try:
                return await self._request(named, content, None, meter)
            except UploadFailed as error:
                if error.status != 409:
                    raise
            # It exists: an earlier attempt, or a reply that was lost.
            existing = await self._taken(named)
        return await self._request(named, content, existing, meter)

    async def _request(self, named: ArtifactName, content: Content, existing: str | None, meter: Meter) -> str:
        meter.restart()
        base, domain_id = self._client.server()
        content_type, head, tail = upload_frame(
            boundary=secrets.token_hex(16), name=named.name, data_type=named.data_type, data_id=existing
        )
        call = Call(
            what=f"upload of {named.logical_path}",
            method="POST" if existing is None else "PUT",
            url=domain.data_url(base, domain_id),
            content_type=content_type,
            body=Outgoing(content, meter, head=head, tail=tail),
            error=UploadFailed,
        )
        began = asyncio.get_running_loop().time()
        try:
            return await self._client.answer(call, uploads.decode_stored)
        except UploadFailed as error:
            if error.status is None or not 200 <= error.status < 300:
                raise
            # It was taken, by an answer that cannot be read.
            found = await found_since(self._client, named, content.size, began)
            if found is None:
                raise
            return found

    async def _taken(self, named: ArtifactName) -> str:
        """The id of the item whose name is taken."""
        item = await find(self._client, named)
        if item is None:
            raise UploadFailed(f"upload of {named.logical_path}: its name is taken, but by no item of its type", 409)
        return item.id

    # -- parts

    async def _in_session(
        self, named: ArtifactName, content: Content, existing: str | None, meter: Meter
    ) -> str | None:
        """None where the server has no sessions."""
        try:
            return await self._session(named, content, existing, meter)
        except UploadFailed as error:
            if error.status != 409 or existing is not None:
                raise
        return await self._session(named, content, await self._taken(named), meter)

    async def _session(self, named: ArtifactName, content: Content, existing: str | None, meter: Meter) -> str | None:
        session = await self.begin(named, content, content.size, existing, meter)
        if session is None:
            return None
        try:
            session.expect(content.size)
            for at in range(0, max(content.size, 1), session.part_size):
                await session.add(min(session.part_size, content.size - at))
            return await session.finish()
        finally:
            await self.end(session)

    async def begin(
        self, named: ArtifactName, content: Content, size: int | None, existing: str | None, meter: Meter
    ) -> UploadSession | None:
        """A session that has begun, and has to be ended by :meth:`end`; None where the server has none."""
        meter.restart()
        session = UploadSession(self._client, named, content, meter, self._config.part_bytes_max)
        try:
            await session.begin(size, existing)
        except UploadFailed as error:
            if error.status not in NO_SESSIONS:
                raise
            if error.status == 404 and existing is not None and not await exists(self._client, named, existing):
                raise UploadFailed(
                    f"upload of {named.logical_path}: item {existing}, which it was to update, is gone", 404
                ) from error
            self._client.without_sessions()
            return None
        self._sessions.add(session)
        return session

    async def end(self, session: UploadSession) -> None:
        """Abort ``session`` unless it is finished."""
        self._sessions.discard(session)
        await self.see_through(session.abort(tell=self._client.lease_stands))

    async def see_through(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` to its end, whatever cancels the caller. :meth:`close` waits for it."""
        await asyncio.shield(self._begun(work))

    def stop(self) -> None:
        """The task was told to stop: no upload of it is finished any more, so its sessions are aborted at once."""
        for session in self._sessions:
            self._begun(self.end(session))

    async def close(self) -> None:
        """Abort what is unfinished, and wait for it."""
        self.stop()
        while self._jobs:
            await asyncio.wait(tuple(self._jobs))

    def _begun(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        job = asyncio.ensure_future(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    # -- a size that is not known

    def open(self, rel_path: str, task: tuple[str | None, str]) -> Writer:
        """A writer for one more artifact."""
        named = self.named(rel_path, task)
        self._claim(named, inferred=True)
        self._stored.setdefault(named.logical_path, None)
        return Writer(self, named, Spool(self._workspace, self._offload, f"upload of {named.logical_path}"))

    async def begin_stream(self, named: ArtifactName, spool: Spool, meter: Meter) -> UploadSession | None:
        """A session for what is still being written; None where the server has none, or says so."""
        info = await self._client.info()
        if info is not None and not info.multipart:
            return None
        existing = self._known(named)
        try:
            return await self.begin(named, spool, None, existing, meter)
        except UploadFailed as error:
            if error.status == 404 and existing is not None:
                existing = None  # somebody removed it meanwhile
            elif error.status == 409:
                existing = await self._taken(named)
            else:
                raise
        return await self.begin(named, spool, None, existing, meter)

    def meter(self, named: ArtifactName) -> Meter:
        """How far the upload of a size that is not known is."""
        return Meter(self._report, named.logical_path, "out")


class Writer:
    """One ``open_multipart``. What is small when it ends goes in one request; the rest in parts, while it is written.

    All of it is kept in the workspace until the end, so that parts can be sent again.
    """

    def __init__(self, artifacts: Artifacts, named: ArtifactName, spool: Spool) -> None:
        self._artifacts = artifacts
        self._named = named
        self._spool = spool
        self._session: UploadSession | None = None
        self._looked = False
        self._sent = 0
        self._meter = artifacts.meter(named)
        self._turn = asyncio.Lock()
        self._over = ""

    async def write(self, data: bytes) -> None:
        """Append, and send the parts that are full. Raises UploadFailed, DiskFull. After an error nothing more is
        taken: how much of ``data`` was written is not known.
        """
        async with self._turn:
            self._check()
            try:
                for at in range(0, len(data), WRITE_BYTES_MAX):
                    await self._append(memoryview(data)[at : at + WRITE_BYTES_MAX])
            except BaseException as error:
                self._over = self._over or f"an earlier write failed: {str(error) or 'it was cut short'}"
                raise

    async def _append(self, piece: memoryview) -> None:
        await self._spool.write(piece)
        self._check()
        if not self._looked and self._spool.size > SMALL_BYTES:
            self._looked = True
            session = await self._artifacts.begin_stream(self._named, self._spool, self._meter)
            if session is not None and self._over:
                await self._artifacts.end(session)
            self._check()
            self._session = session
        session = self._session
        if session is None:
            return
        session.expect(self._spool.size)
        while self._spool.size - self._sent >= session.part_size:
            await session.add(session.part_size)
            self._sent += session.part_size

    async def finish(self) -> str:
        """All is written: send the rest and return the artifact's id."""
        try:
            async with self._turn:
                self._check()
                stored = await self._finished()
                if stored is None:
                    return await self._artifacts.store(self._named, self._spool)
                self._meter.end()
                self._artifacts.remember(self._named, stored)
                return stored
        finally:
            await self.abort()

    async def _finished(self) -> str | None:
        """The id; None where all has to be sent anew: without a session, or where the name was taken meanwhile."""
        session = self._session
        if session is None:
            return None
        if self._spool.size > self._sent:
            await session.add(self._spool.size - self._sent)
        try:
            return await session.finish()
        except UploadFailed as error:
            if error.status != 409:
                raise
        self._session = None
        await self._artifacts.end(session)
        return None

    async def abort(self) -> None:
        """Nothing of it is to remain here, nor of an unfinished session there. What is under way fails."""
        self._over = self._over or "it was aborted"
        await self._artifacts.see_through(self._discard())

    async def _discard(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await self._artifacts.end(session)
        await self._spool.discard()

    def _check(self) -> None:
        if self._over:
            raise UploadFailed(f"upload of {self._named.logical_path}: {self._over}")


def _in_parts(info: UploadInfo | None, size: int) -> bool:
    """Whether an artifact of ``size`` bytes is better sent in a session."""
    if size > SINGLE_BYTES_MAX:
        return info is None or info.multipart
    return info is not None and info.multipart and 0 < info.request_max_bytes < size + FRAME_BYTES
