"""The independent network's domain server: items by id and by name, in one request or in sessions, strictly read.

What it stores is in files, and passes through it in pieces: a test may move more than fits in memory.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .checks import UUID, Bad, json_body, typed
from .dds import stamp

if TYPE_CHECKING:
    from .dms import Task
    from .network import Answer, Network, Request

__all__ = ("DomainServer", "Item")

DATA = rf"/api/v1/domains/({UUID.pattern})/data"
PATH = re.compile(rf"{DATA}(?:/(multipart|{UUID.pattern}))?")
PART = re.compile(rb'form-data((?:; [a-z-]+="[^"\r\n]*")+)')
KINDS = {"GET": "fetch", "POST": "create", "PUT": "update"}
NOT_IN_NAMES = set(';!?<>[]{}()/\\"$#@*^&|~%=+')
LATE_SECS = 0.3
PIECE_BYTES = 256 * 1024
HEAD_BYTES_MAX = 4096


@dataclass(slots=True)
class Item:
    name: str
    data_type: str
    files: list[Path]
    domain_id: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: float = 0.0

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def data(self) -> bytes:
        """All of it, where that is little."""
        return b"".join(self.pieces())

    @property
    def digest(self) -> str:
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece)
        return found.hexdigest()

    def pieces(self) -> Iterator[bytes]:
        for path in self.files:
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece

    def metadata(self) -> dict[str, Any]:
        times = {"created_at": stamp(self.created), "updated_at": stamp(self.created)}
        return {
            "id": self.id,
            "domain_id": self.domain_id,
            "name": self.name,
            "data_type": self.data_type,
            "size": self.size,
            **times,
        }


@dataclass(slots=True)
class Session:
    """An upload in parts."""

    name: str
    data_type: str
    size: int | None
    existing: str | None
    parts: dict[int, Path] = field(default_factory=dict)
    etags: dict[int, str] = field(default_factory=dict)


class DomainServer:
    """The public attributes below ``items`` are the plan."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.items: dict[str, Item] = {}
        self.request_max_bytes: int | None = None
        """What it tells of one request's size, 0 for any; None where it tells nothing of uploads."""
        self.part_size = 0
        """The bytes of a session's parts; 0 where it has no sessions."""
        self.only_newest = False
        """Whether a domain token is refused from the moment at which DMS issues another one."""
        self.pace = 0
        """After each so many bytes, either way, nothing moves until a heartbeat has brought another token."""
        self.refused: list[Request] = []
        """Those with a token that was replaced."""
        self.sessions: dict[str, Session] = {}
        self._moved = self._awaited = 0
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    # -- for tests

    def add(self, name: str, data_type: str, data: bytes | Iterable[bytes]) -> str:
        """An item of the tasks' domain; its id."""
        path = self._file()
        with path.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
        return self._create(name, data_type, [path]).id

    # -- for the server

    def close(self) -> None:
        if self._directory is not None:
            self._directory.cleanup()

    def name(self, request: Request) -> None:
        request.kind = KINDS.get(request.method, "unknown")
        if request.path == "/api/v1/info":
            request.kind = "info"
        elif request.path.endswith("/multipart"):
            kinds = {"POST": "initiate" if "uploads" in request.query else "finish", "PUT": "part", "DELETE": "abort"}
            request.kind = kinds.get(request.method, "unknown")

    async def answer(self, request: Request) -> Answer:
        from .network import Answer

        try:
            match = PATH.fullmatch(request.path)
            if request.kind == "info":
                return self._info(request)
            if match is None or request.kind == "unknown":
                raise Bad(404, "no such path")
            task = self._authorized(request, match[1])
            if request.kind == "fetch":
                return self._fetch(request, match[2], task)
            if match[2] == "multipart":
                return await self._session(request, task)
            if match[2] is not None or request.query:
                raise Bad(400, "uploads go to /data")
            return Answer(body={"data": [(await self._store(request, task)).metadata()]})
        except Bad as bad:
            if not bad.fair:
                self.net.wrong(request, bad.text)
            return Answer(bad.status, bad.text)

    def _info(self, request: Request) -> Answer:
        from .network import Answer

        if request.method != "GET" or request.query or "Authorization" in request.headers:
            raise Bad(400, "more than GET, which is all that info takes")
        if self.request_max_bytes is None:
            raise Bad(404, "no info here", fair=True)
        told = {"request_max_bytes": self.request_max_bytes, "multipart": {"enabled": bool(self.part_size)}}
        return Answer(body={"upload": told, "a_field_of_tomorrow": 1})

    def _authorized(self, request: Request, domain_id: str) -> Task:
        tasks: list[Task] = [task for task in self.net.dms.tasks if request.token in task.tokens]
        if not tasks:
            raise Bad(401, "no token of this domain")
        task = tasks[0]
        request.task = task.id
        now = self.net.now()
        if task.tokens[request.token] < now:
            raise Bad(401, "a token that expired")
        if domain_id != self.net.dms.domain_id:
            raise Bad(404, "another domain")
        if task.honest and task.known_until is not None and now > task.known_until + LATE_SECS:
            raise Bad(401, "a storage request under a lease that has run out")
        if task.closed_at is not None and request.at > task.closed_at + LATE_SECS:
            self.net.wrong(request, "a storage request after the task was reported")
        if task.cancelled_at is not None and request.at > task.cancelled_at + LATE_SECS:
            self.net.wrong(request, "a storage request after the task was cancelled")
        self._not_replaced(request, task)
        return task

    def _not_replaced(self, request: Request, task: Task) -> None:
        issued = list(task.tokens)
        known = [token for at, token in task.known if at < request.at - LATE_SECS]
        if known and issued.index(request.token) < issued.index(known[-1]):
            self.net.wrong(request, "a token older than one that an earlier heartbeat brought")
        if self.only_newest and request.token != issued[-1]:
            self.refused.append(request)
            raise Bad(401, "a token that was replaced", fair=True)

    # -- downloads

    def _fetch(self, request: Request, item_id: str | None, task: Task) -> Answer:
        from .network import Answer

        accept = request.headers.get("Accept")
        if not request.headers.get("posemesh-client-id"):
            self.net.wrong(request, "no posemesh-client-id")
        if item_id is not None:
            item = self.items.get(item_id)
            if request.query != {"raw": "true"} or item is None:
                raise Bad(404, "no such item", fair=item is None)
            return Answer(pieces=self._paced([(b"", item)], b"", task), size=item.size)
        found = self._matching(request.query)
        if accept == "application/json":
            return Answer(body={"data": [item.metadata() for item in found]})
        if accept != "multipart/form-data":
            raise Bad(406, f"Accept {accept!r}")
        if not found:
            raise Bad(404, "nothing there", fair=True)
        return self._parts(found, task)

    def _matching(self, query: dict[str, str]) -> list[Item]:
        if set(query) - {"ids", "name", "data_type"} or not query:
            raise Bad(400, f"query {query}")
        ids = query["ids"].split(",") if "ids" in query else None
        return [
            item
            for item in self.items.values()
            if (ids is None or item.id in ids)
            and query.get("name", item.name) == item.name
            and query.get("data_type", item.data_type) == item.data_type
        ]

    def _parts(self, items: list[Item], task: Task) -> Answer:
        from .network import Answer

        boundary = uuid.uuid4().hex * 2
        parts = []
        for number, item in enumerate(items):
            told = item.metadata()
            told["data-type"], told["domain-id"] = told.pop("data_type"), told.pop("domain_id")
            told["created-at"], told["updated-at"] = told.pop("created_at"), told.pop("updated_at")
            fields = "; ".join(f'{name}="{value}"' for name, value in told.items())
            line = "\r\n" if number else ""
            head = f"{line}--{boundary}\r\nContent-Disposition: form-data; {fields}\r\n"
            parts.append((head.encode() + b"Content-Type: application/octet-stream\r\n\r\n", item))
        end = f"\r\n--{boundary}--\r\n".encode()
        size = sum(len(head) + item.size for head, item in parts) + len(end)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return Answer(pieces=self._paced(parts, end, task), size=size, headers=headers)

    async def _paced(self, parts: list[tuple[bytes, Item]], end: bytes, task: Task) -> AsyncIterator[bytes]:
        for head, item in parts:
            yield head
            for piece in item.pieces():
                await self._move(len(piece), task)
                yield piece
        yield end

    async def _move(self, count: int, task: Task) -> None:
        before, self._moved = self._moved, self._moved + count
        if self.pace and before // self.pace != self._moved // self.pace:
            self._awaited = len(task.handed) + 1
        if len(task.handed) < self._awaited:
            await self.net.until(lambda: len(task.handed) >= self._awaited or not task.active)

    # -- uploads

    async def _store(self, request: Request, task: Task) -> Item:
        path = self._file()
        fields = await self._upload(request, path, task)
        if request.kind == "update":
            if set(fields) != {"id"} or fields["id"] not in self.items:
                raise Bad(404, f"update of {fields}")
            item = self.items[fields["id"]]
            item.files, request.about = [path], item.name
            return item
        if set(fields) != {"name", "data-type"}:
            raise Bad(400, f"create with {fields}")
        request.about = fields["name"]
        self._check_names(*fields.values())
        if any(item.name == fields["name"] for item in self.items.values()):
            raise Bad(409, "the name exists", fair=True)
        return self._create(fields["name"], fields["data-type"], [path])

    async def _upload(self, request: Request, path: Path, task: Task) -> dict[str, str]:
        """The fields of the one part of an upload, whose data goes to ``path``."""
        kind = re.fullmatch(
            r'multipart/form-data; boundary="?([0-9A-Za-z_.-]{1,70})"?', request.headers["Content-Type"]
        )
        if kind is None:
            raise Bad(415, f"content type {request.headers['Content-Type']!r}")
        start, end = f"--{kind[1]}\r\n".encode(), f"\r\n--{kind[1]}--\r\n".encode()
        held = b""
        while b"\r\n\r\n" not in held and len(held) < HEAD_BYTES_MAX and (piece := await request.stream.readany()):
            held += piece
        if not held.startswith(start):
            raise Bad(400, "multipart frame")
        head, split, held = held[len(start) :].partition(b"\r\n\r\n")
        with path.open("wb") as file:
            held = await self._keep(request, file, held, len(end) - 1 + len(start), start, task)
            if not split or not held.endswith(end) or start in held:
                raise Bad(400, "not one part in its frame")
            file.write(held[: -len(end)])
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n"))
        disposition = PART.fullmatch(headers.get(b"Content-Disposition", b""))
        if disposition is None or headers.get(b"Content-Type") != b"application/octet-stream":
            raise Bad(400, f"part headers {head!r}")
        return dict(re.findall(r'; ([a-z-]+)="([^"]*)"', disposition[1].decode()))

    async def _keep(self, request: Request, file: BinaryIO, held: bytes, tail: int, start: bytes, task: Task) -> bytes:
        """Write all but the last ``tail`` bytes, and return those."""
        while piece := await request.stream.readany():
            await self._move(len(piece), task)
            held += piece
            if start in held:
                raise Bad(400, "the boundary in the data")
            if len(held) > tail:
                file.write(held[:-tail])
                held = held[-tail:]
        return held

    async def _session(self, request: Request, task: Task) -> Answer:
        from .network import Answer

        if not self.part_size:
            raise Bad(404, "no sessions here", fair=True)
        if not request.headers.get("posemesh-client-id"):
            self.net.wrong(request, "no posemesh-client-id")
        if request.kind == "initiate":
            return Answer(body=await self._initiate(request))
        number = {"partNumber"} if request.kind == "part" else set()
        session = self.sessions.get(request.query.get("uploadId", ""))
        if set(request.query) - number != {"uploadId"} or session is None:
            raise Bad(404, f"session {request.query}", fair=session is None)
        request.about = session.name
        if request.kind == "part":
            return Answer(body={"etag": await self._part(request, session, task)})
        del self.sessions[request.query["uploadId"]]
        if request.kind == "abort":
            return Answer(204)
        return Answer(body=(await self._finish(request, session)).metadata())

    async def _initiate(self, request: Request) -> dict[str, Any]:
        if request.query != {"uploads": ""}:
            raise Bad(400, f"query {request.query}")
        request.body = await request.stream.read()
        body = json_body(self.net, request)
        typed(body, {"name": str, "data_type": str, "size": int | None, "content_type": str, "existing_id": str | None})
        self._check_names(body["name"], body["data_type"])
        if body["content_type"] != "application/octet-stream":
            raise Bad(400, f"content type {body['content_type']!r}")
        if body["existing_id"] is not None and body["existing_id"] not in self.items:
            raise Bad(404, "a session for an item that is none")
        request.about = body["name"]
        upload = uuid.uuid4().hex
        self.sessions[upload] = Session(body["name"], body["data_type"], body["size"], body["existing_id"])
        return {"upload_id": upload, "part_size": self.part_size}

    async def _part(self, request: Request, session: Session, task: Task) -> str:
        number = request.query.get("partNumber", "")
        if not re.fullmatch(r"[1-9]\d{0,4}", number) or int(number) > 10_000:
            raise Bad(400, f"part {number!r}")
        if request.headers.get("Content-Type") != "application/octet-stream":
            raise Bad(415, f"content type {request.headers.get('Content-Type')!r}")
        path, digest = self._file(), hashlib.sha256()
        with path.open("wb") as file:
            while piece := await request.stream.readany():
                await self._move(len(piece), task)
                digest.update(piece)
                file.write(piece)
        if not 0 < path.stat().st_size <= self.part_size:
            raise Bad(400, f"a part of {path.stat().st_size} bytes")
        session.parts[int(number)], session.etags[int(number)] = path, digest.hexdigest()
        return session.etags[int(number)]

    async def _finish(self, request: Request, session: Session) -> Item:
        request.body = await request.stream.read()
        body = json_body(self.net, request)
        typed(body, {"parts": list})
        for part in body["parts"]:
            typed(part, {"part_number": int, "etag": str})
        named = [(part["part_number"], part["etag"]) for part in body["parts"]]
        if named != sorted(session.etags.items()) or [number for number, _ in named] != list(range(1, len(named) + 1)):
            raise Bad(400, f"parts {named} of {session.etags}")
        files = [session.parts[number] for number, _ in named]
        if session.size not in (None, sum(file.stat().st_size for file in files)):
            raise Bad(400, f"not {session.size} bytes")
        item = self.items.get(session.existing or "") or next(
            (item for item in self.items.values() if item.name == session.name), None
        )
        if item is None:
            return self._create(session.name, session.data_type, files)
        item.files = files
        return item

    def _check_names(self, *values: str) -> None:
        for value in values:
            if not 1 <= len(value.encode()) <= 128 or set(value) & NOT_IN_NAMES or not value.isprintable():
                raise Bad(400, f"name or type {value!r}")

    def _create(self, name: str, data_type: str, files: list[Path]) -> Item:
        item = Item(name, data_type, files, self.net.dms.domain_id, created=self.net.now())
        self.items[item.id] = item
        return item

    def _file(self) -> Path:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="posemesh-domain-")
        return Path(self._directory.name) / uuid.uuid4().hex
