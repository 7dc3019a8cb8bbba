"""The domain server: named bytes, found by id, name or type. Writing is in :mod:`posemesh.devnet.uploads`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from posemesh.devnet.context import GRACE_SECS, Context, Refused, Token, stamp
from posemesh.devnet.jobs import JobBook

__all__ = ("Domain", "Item", "check_name")

_CHUNK_BYTES = 256 * 1024
_FORBIDDEN = frozenset(';!?<>[]{}()/\\"$#@*^&|~%=+')


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One stored piece of data. ``blob`` names the file with its bytes."""

    id: str
    name: str
    data_type: str
    size: int
    created_at: float
    updated_at: float
    blob: str


def check_name(what: str, text: str) -> str:
    """``text`` if it may be a name or a data type, else 400."""
    if not 1 <= len(text.encode()) <= 128:
        raise Refused(400, f"{what} is not 1 to 128 bytes long", violation=True)
    if any(char in _FORBIDDEN or ord(char) < 32 or ord(char) == 127 for char in text):
        raise Refused(400, f"{what} has a character that is not allowed", violation=True)
    return text


class Domain:
    """The data of one domain."""

    def __init__(self, context: Context, book: JobBook, domain_id: str) -> None:
        self.context = context
        self.domain_id = domain_id
        self.items = {item.id: item for item in context.store.load("item", Item)}
        #: Every ``posemesh-client-id`` seen.
        self.client_ids: set[str] = set()
        self._book = book
        context.blobs.keep_only({item.blob for item in self.items.values()})

    def routes(self) -> list[web.RouteDef]:
        data = "/api/v1/domains/{domain}/data"
        return [
            web.get("/api/v1/info", self._info),
            web.get(data, self._query, allow_head=False),
            web.get(data + "/{id}", self._get, allow_head=False),
            web.delete(data + "/{id}", self._delete),
        ]

    # What tests and the other handlers use.

    def authorize(self, request: web.Request) -> Token:
        """A token for this domain whose task, if it is a task's, is still leased to the node it was given to."""
        if client_id := request.headers.get("posemesh-client-id"):
            self.client_ids.add(client_id)
        token = self.context.authorize(request, "domain", "app")
        if request.match_info["domain"] != self.domain_id:
            raise Refused(404, "no such domain")
        if token.kind == "domain":
            lease = self._book.leases.get((token.subject, token.node_id))
            if lease is None or lease.ended or self.context.now() >= lease.expires_at:
                late = lease is not None and self.context.arrived() - lease.expires_at > GRACE_SECS
                raise Refused(401, "the lease of this token is over", violation=late)
        return token

    def named(self, name: str) -> Item | None:
        return next((item for item in self.items.values() if item.name == name), None)

    def item(self, key: str) -> Item:
        """The item with that id, or 404."""
        if key not in self.items:
            raise Refused(404, "no such data")
        return self.items[key]

    def create(self, name: str, data_type: str, blob: str) -> Item:
        """Make a finished blob a new item."""
        now = self.context.now()
        return self._put(
            Item(
                id=self.context.new_id(),
                name=name,
                data_type=data_type,
                size=self.context.blobs.path(blob).stat().st_size,
                created_at=now,
                updated_at=now,
                blob=blob,
            )
        )

    def replace(self, old: Item, blob: str) -> Item:
        """Give an item new bytes."""
        new = self._put(
            Item(
                id=old.id,
                name=old.name,
                data_type=old.data_type,
                size=self.context.blobs.path(blob).stat().st_size,
                created_at=old.created_at,
                updated_at=self.context.now(),
                blob=blob,
            )
        )
        self.context.blobs.remove(old.blob)
        return new

    def fields(self, item: Item) -> dict[str, Any]:
        """The item as the API describes it."""
        return {
            "id": item.id,
            "domain_id": self.domain_id,
            "name": item.name,
            "data_type": item.data_type,
            "size": item.size,
            "created_at": stamp(item.created_at),
            "updated_at": stamp(item.updated_at),
        }

    def _put(self, item: Item) -> Item:
        self.items[item.id] = item
        self.context.store.put("item", item.id, item)
        return item

    # Reading.

    async def _info(self, request: web.Request) -> web.Response:
        config = self.context.config
        multipart = {"enabled": config.multipart_enabled, "part_size_bytes": config.part_size_bytes}
        upload = {"request_max_bytes": config.request_max_bytes, "domain_data_max_bytes": 0, "multipart": multipart}
        return web.json_response({"upload": upload})

    async def _query(self, request: web.Request) -> web.StreamResponse:
        self.authorize(request)
        items = list(self._matching(request))
        if "multipart/form-data" in request.headers.get("Accept", ""):
            return await self._send_parts(request, items)
        return web.json_response({"data": [self.fields(item) for item in items]})

    def _matching(self, request: web.Request) -> Iterable[Item]:
        query = request.query
        ids = [key.strip() for value in query.getall("ids", []) for key in value.split(",") if key.strip()]
        for key in ids:
            try:
                uuid.UUID(key)
            except ValueError:
                raise Refused(400, f"ids: {key!r} is not a UUID") from None
        candidates = [self.items[key] for key in ids if key in self.items] if ids else list(self.items.values())
        if ids and not candidates:
            raise Refused(404, "no such data")
        for item in candidates:
            if item.name == query.get("name", item.name) and item.data_type == query.get("data_type", item.data_type):
                yield item

    async def _send_parts(self, request: web.Request, items: list[Item]) -> web.StreamResponse:
        boundary = f"{self.context.rng.getrandbits(240):060x}"
        answer = web.StreamResponse(headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})
        await answer.prepare(request)
        for item in items:
            about = (
                f'form-data; name="{item.name}"; data-type="{item.data_type}"; id="{item.id}"; '
                f'domain-id="{self.domain_id}"; size="{item.size}"; '
                f'created-at="{stamp(item.created_at)}"; updated-at="{stamp(item.updated_at)}"'
            )
            head = f"--{boundary}\r\nContent-Disposition: {about}\r\nContent-Type: application/octet-stream\r\n\r\n"
            await answer.write(head.encode())
            await self._send_bytes(answer, item)
            await answer.write(b"\r\n")
        await answer.write(f"--{boundary}--\r\n".encode())
        await answer.write_eof()
        return answer

    async def _send_bytes(self, answer: web.StreamResponse, item: Item) -> None:
        with self.context.blobs.path(item.blob).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                await answer.write(chunk)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.authorize(request)
        item = self.item(request.match_info["id"])
        if request.query.get("raw") != "true":
            return web.json_response(self.fields(item))
        answer = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        answer.content_length = item.size
        await answer.prepare(request)
        await self._send_bytes(answer, item)
        await answer.write_eof()
        return answer

    async def _delete(self, request: web.Request) -> web.Response:
        self.authorize(request)
        item = self.items.pop(self.item(request.match_info["id"]).id)
        self.context.store.delete("item", item.id)
        self.context.blobs.remove(item.blob)
        return web.Response(status=204)
