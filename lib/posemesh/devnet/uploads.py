"""Writing to the domain server: single multipart/form-data requests, and sessions that upload in parts.

Bytes stream into files; data becomes visible, or changes, only when its request or session is whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from posemesh.devnet.context import Context, Refused, read_json
from posemesh.devnet.domain import Domain, Item, check_name
from posemesh.devnet.records import Body

__all__ = ("Uploads",)

_CHUNK_BYTES = 256 * 1024
_PARTS_MAX = 10_000
_DISPOSITION = re.compile(r'form-data((?:\s*;\s*[A-Za-z-]+=(?:"[^"\r\n]*"|[^\s";]+))*)\s*')
_PARAMETER = re.compile(r';\s*([A-Za-z-]+)=(?:"([^"]*)"|([^\s";]+))')


class InitiateBody(Body, kw_only=True, frozen=True):
    name: str
    data_type: str
    size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    content_type: Literal["application/octet-stream"] = "application/octet-stream"
    existing_id: UUID | None = None


class PartBody(Body, kw_only=True, frozen=True):
    part_number: int
    etag: str


class FinishBody(Body, kw_only=True, frozen=True):
    parts: Annotated[list[PartBody], msgspec.Meta(min_length=1, max_length=_PARTS_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    etag: str
    size: int
    blob: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    id: str
    wish: InitiateBody
    parts: dict[int, _Part] = field(default_factory=dict)


class Uploads:
    """The writing half of a domain server."""

    def __init__(self, context: Context, domain: Domain) -> None:
        self.context = context
        self.domain = domain
        self._sessions: dict[str, _Session] = {}

    def routes(self) -> list[web.RouteDef]:
        data = "/api/v1/domains/{domain}/data"
        return [
            web.post(data, self._create),
            web.put(data, self._update),
            web.post(data + "/multipart", self._initiate_or_finish),
            web.put(data + "/multipart", self._put_part),
            web.delete(data + "/multipart", self._abort),
        ]

    # A single request.

    async def _create(self, request: web.Request) -> web.Response:
        self.domain.authorize(request)
        return await self._take(request, self._check_new, lambda about, blob: self._commit_new(about, blob))

    async def _update(self, request: web.Request) -> web.Response:
        self.domain.authorize(request)
        return await self._take(request, self._known, lambda about, blob: self.domain.replace(self._known(about), blob))

    def _check_new(self, about: dict[str, str]) -> None:
        check_name("data-type", about.get("data-type", ""))
        if self.domain.named(check_name("name", about.get("name", ""))) is not None:
            raise Refused(409, "data with that name exists")

    def _commit_new(self, about: dict[str, str], blob: str) -> Item:
        # Another request may have taken the name while this one was arriving.
        self._check_new(about)
        return self.domain.create(about["name"], about["data-type"], blob)

    def _known(self, about: dict[str, str]) -> Item:
        return self.domain.item(about.get("id", ""))

    async def _take(
        self,
        request: web.Request,
        check: Callable[[dict[str, str]], object],
        commit: Callable[[dict[str, str], str], Item],
    ) -> web.Response:
        limit = self.context.config.request_max_bytes
        if limit and (request.content_length or 0) > limit:
            raise Refused(413, f"request is larger than {limit} bytes")
        blobs: list[str] = []
        received = []
        try:
            async for part in _parts(request):
                about = _disposition(part)
                check(about)
                blobs.append(self.context.new_secret())
                await self._write(part, blobs[-1], limit)
                received.append(about)
            if not received:
                raise Refused(400, "body has no part", violation=True)
            items = []
            for about in received:
                items.append(commit(about, blobs[0]))
                del blobs[0]
        finally:
            for blob in blobs:
                self.context.blobs.remove(blob)
        return web.json_response({"data": [self.domain.fields(item) for item in items]})

    async def _write(self, part: BodyPartReader, blob: str, limit: int) -> None:
        size = 0
        with self.context.blobs.path(blob).open("wb") as file:
            while chunk := await part.read_chunk(_CHUNK_BYTES):
                size += len(chunk)
                if limit and size > limit:
                    raise Refused(413, f"request is larger than {limit} bytes")
                file.write(chunk)

    # A session of parts.

    async def _initiate_or_finish(self, request: web.Request) -> web.Response:
        self.domain.authorize(request)
        if not self.context.config.multipart_enabled:
            raise Refused(404, "multipart uploads are not enabled")
        return await (self._initiate(request) if "uploads" in request.query else self._finish(request))

    async def _initiate(self, request: web.Request) -> web.Response:
        wish = await read_json(request, InitiateBody)
        if wish.existing_id is not None:
            self.domain.item(str(wish.existing_id))
        # A client that updates by id may leave the names empty.
        if wish.existing_id is None or wish.name or wish.data_type:
            check_name("name", wish.name)
            check_name("data_type", wish.data_type)
        session = _Session(id=self.context.new_id(), wish=wish)
        self._sessions[session.id] = session
        return web.json_response({"upload_id": session.id, "part_size": self.context.config.part_size_bytes})

    async def _put_part(self, request: web.Request) -> web.Response:
        self.domain.authorize(request)
        session = self._session(request)
        number = request.query.get("partNumber", "")
        if not (number.isdecimal() and 1 <= int(number) <= _PARTS_MAX):
            raise Refused(400, f"partNumber is not 1 to {_PARTS_MAX}", violation=True)
        part = await self._write_part(request)
        old = session.parts.get(int(number))
        if self._sessions.get(session.id) is not session:
            self.context.blobs.remove(part.blob)
            raise Refused(404, "no such upload")
        session.parts[int(number)] = part
        if old is not None:
            self.context.blobs.remove(old.blob)
        return web.json_response({"etag": part.etag})

    async def _write_part(self, request: web.Request) -> _Part:
        blob, digest, size = self.context.new_secret(), hashlib.md5(usedforsecurity=False), 0
        limit = self.context.config.part_size_bytes
        try:
            with self.context.blobs.path(blob).open("wb") as file:
                async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
                    size += len(chunk)
                    if size > limit:
                        raise Refused(413, f"part is larger than {limit} bytes", violation=True)
                    digest.update(chunk)
                    file.write(chunk)
        except BaseException:
            self.context.blobs.remove(blob)
            raise
        return _Part(etag=digest.hexdigest(), size=size, blob=blob)

    async def _finish(self, request: web.Request) -> web.Response:
        session = self._session(request)
        body = await read_json(request, FinishBody)
        named = {part.part_number: part.etag for part in body.parts}
        if list(named) != list(range(1, len(body.parts) + 1)):
            raise Refused(400, "parts are not numbered from 1 without a gap", violation=True)
        if named != {number: part.etag for number, part in sorted(session.parts.items())}:
            raise Refused(400, "parts are not the ones uploaded", violation=True)
        if session.wish.size not in (None, sum(part.size for part in session.parts.values())):
            raise Refused(400, "parts do not add up to the size announced", violation=True)
        wish = session.wish
        old = self.domain.item(str(wish.existing_id)) if wish.existing_id else self.domain.named(wish.name)
        blob = self._join(session)
        self._forget(session)
        item = self.domain.replace(old, blob) if old else self.domain.create(wish.name, wish.data_type, blob)
        return web.json_response(self.domain.fields(item))

    async def _abort(self, request: web.Request) -> web.Response:
        self.domain.authorize(request)
        self._forget(self._session(request))
        return web.Response(status=204)

    def _session(self, request: web.Request) -> _Session:
        session = self._sessions.get(request.query.get("uploadId", ""))
        if session is None:
            raise Refused(404, "no such upload")
        return session

    def _join(self, session: _Session) -> str:
        blob = self.context.new_secret()
        with self.context.blobs.path(blob).open("wb") as whole:
            for _, part in sorted(session.parts.items()):
                with self.context.blobs.path(part.blob).open("rb") as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        whole.write(chunk)
        return blob

    def _forget(self, session: _Session) -> None:
        del self._sessions[session.id]
        for part in session.parts.values():
            self.context.blobs.remove(part.blob)


async def _parts(request: web.Request) -> AsyncIterator[BodyPartReader]:
    """The parts of a form; 400 for what is none, and for one that ends too early."""
    if request.content_type != "multipart/form-data":
        raise Refused(415, "expected Content-Type: multipart/form-data", violation=True)
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                raise Refused(400, "parts within parts are not allowed", violation=True)
            yield part
    except (ValueError, AssertionError, HttpProcessingError) as exc:
        raise Refused(400, f"body is not multipart/form-data: {exc}", violation=True) from None


def _disposition(part: BodyPartReader) -> dict[str, str]:
    header = part.headers.get("Content-Disposition", "")
    if not _DISPOSITION.fullmatch(header):
        raise Refused(400, "part has no Content-Disposition: form-data", violation=True)
    return {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(header)}
