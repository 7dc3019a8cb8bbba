"""The independent network's domain server: items by id and by name, in single multipart requests, strictly read."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .checks import UUID, Bad
from .dds import stamp

if TYPE_CHECKING:
    from .dms import Task
    from .network import Answer, Network, Request

__all__ = ("DomainServer", "Item")

PATH = re.compile(rf"/api/v1/domains/({UUID.pattern})/data(?:/({UUID.pattern}))?")
PART = re.compile(rb'form-data((?:; [a-z-]+="[^"\r\n]*")+)')
NOT_IN_NAMES = set(';!?<>[]{}()/\\"$#@*^&|~%=+')
LATE_SECS = 0.3


@dataclass(slots=True)
class Item:
    name: str
    data_type: str
    data: bytes
    domain_id: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: float = 0.0

    def metadata(self) -> dict[str, Any]:
        times = {"created_at": stamp(self.created), "updated_at": stamp(self.created)}
        return {
            "id": self.id,
            "domain_id": self.domain_id,
            "name": self.name,
            "data_type": self.data_type,
            "size": len(self.data),
            **times,
        }


class DomainServer:
    def __init__(self, net: Network) -> None:
        self.net = net
        self.items: dict[str, Item] = {}

    def add(self, name: str, data_type: str, data: bytes) -> str:
        """An item of the tasks' domain; its id."""
        item = Item(name, data_type, data, self.net.dms.domain_id, created=self.net.now())
        self.items[item.id] = item
        return item.id

    def name(self, request: Request) -> None:
        request.kind = {"GET": "fetch", "POST": "create", "PUT": "update"}.get(request.method, "unknown")
        if request.path == "/api/v1/info":
            request.kind = "info"

    async def answer(self, request: Request) -> Answer:
        from .network import Answer

        try:
            match = PATH.fullmatch(request.path)
            if request.kind == "info":
                raise Bad(404, "no info here", fair=True)
            if match is None or request.kind == "unknown":
                raise Bad(404, "no such path")
            self._authorized(request, match[1])
            if request.kind == "fetch":
                return self._fetch(request, match[2])
            if match[2] is not None or request.query:
                raise Bad(400, "uploads go to /data")
            return Answer(body={"data": [self._store(request).metadata()]})
        except Bad as bad:
            if not bad.fair:
                self.net.wrong(request, bad.text)
            return Answer(bad.status, bad.text)

    def _authorized(self, request: Request, domain_id: str) -> None:
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

    def _fetch(self, request: Request, item_id: str | None) -> Answer:
        from .network import Answer

        accept = request.headers.get("Accept")
        if not request.headers.get("posemesh-client-id"):
            self.net.wrong(request, "no posemesh-client-id")
        if item_id is not None:
            item = self.items.get(item_id)
            if request.query != {"raw": "true"} or item is None:
                raise Bad(404, "no such item", fair=item is None)
            return Answer(body=item.data)
        found = self._matching(request.query)
        if accept == "application/json":
            return Answer(body={"data": [item.metadata() for item in found]})
        if accept != "multipart/form-data":
            raise Bad(406, f"Accept {accept!r}")
        if not found:
            raise Bad(404, "nothing there", fair=True)
        return self._parts(found)

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

    def _parts(self, items: list[Item]) -> Answer:
        from .network import Answer

        boundary = uuid.uuid4().hex * 2
        body = b""
        for item in items:
            told = item.metadata()
            told["data-type"], told["domain-id"] = told.pop("data_type"), told.pop("domain_id")
            told["created-at"], told["updated-at"] = told.pop("created_at"), told.pop("updated_at")
            fields = "; ".join(f'{name}="{value}"' for name, value in told.items())
            head = f"--{boundary}\r\nContent-Disposition: form-data; {fields}\r\n"
            body += head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + item.data + b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        return Answer(body=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def _store(self, request: Request) -> Item:
        fields, data = self._upload(request)
        if request.kind == "update":
            if set(fields) != {"id"} or fields["id"] not in self.items:
                raise Bad(404, f"update of {fields}")
            item = self.items[fields["id"]]
            item.data = data
            return item
        if set(fields) != {"name", "data-type"}:
            raise Bad(400, f"create with {fields}")
        for value in fields.values():
            if not 1 <= len(value.encode()) <= 128 or set(value) & NOT_IN_NAMES or not value.isprintable():
                raise Bad(400, f"name or type {value!r}")
        if any(item.name == fields["name"] for item in self.items.values()):
            raise Bad(409, "the name exists", fair=True)
        item = Item(fields["name"], fields["data-type"], data, self.net.dms.domain_id, created=self.net.now())
        self.items[item.id] = item
        return item

    def _upload(self, request: Request) -> tuple[dict[str, str], bytes]:
        """The one part of an upload."""
        kind = re.fullmatch(
            r'multipart/form-data; boundary="?([0-9A-Za-z_.-]{1,70})"?', request.headers["Content-Type"]
        )
        if kind is None:
            raise Bad(415, f"content type {request.headers['Content-Type']!r}")
        start, end = f"--{kind[1]}\r\n".encode(), f"\r\n--{kind[1]}--\r\n".encode()
        if not request.body.startswith(start) or not request.body.endswith(end):
            raise Bad(400, "multipart frame")
        head, split, data = request.body[len(start) : -len(end)].partition(b"\r\n\r\n")
        if not split or start in data:
            raise Bad(400, "not one part")
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n"))
        disposition = PART.fullmatch(headers.get(b"Content-Disposition", b""))
        if disposition is None or headers.get(b"Content-Type") != b"application/octet-stream":
            raise Bad(400, f"part headers {head!r}")
        return dict(re.findall(r'; ([a-z-]+)="([^"]*)"', disposition[1].decode())), data
