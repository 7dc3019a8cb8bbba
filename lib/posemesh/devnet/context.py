"""What the three services share: time, chance, the store, bearer tokens, and how a request is refused."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from aiohttp import web

from posemesh.devnet.config import DevnetConfig
from posemesh.devnet.store import Blobs, Store
from posemesh.shell.clock import Clock

__all__ = ("ARRIVED", "GRACE_SECS", "Context", "Refused", "Token", "read_json", "stamp")

T = TypeVar("T")

#: Wall seconds at which the request being handled came in; set for each one by the server.
ARRIVED: ContextVar[float] = ContextVar("arrived")

#: What was in flight when its token or lease ended is refused, but not held against the node.
GRACE_SECS = 0.25
#: An expired token is remembered this long, to tell it from one that never was.
_FORGET_TOKEN_SECS = 3600.0
_VIOLATIONS_MAX = 1000


class Refused(Exception):
    """A request answered with an error. ``violation`` marks what a correct client never sends."""

    def __init__(self, status: int, text: str, *, violation: bool = False) -> None:
        self.status = status
        self.text = text
        self.violation = violation
        super().__init__(f"{status} {text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A bearer token. ``subject`` is the node id (node), the task id (domain) or the domain id (app)."""

    value: str
    kind: str
    subject: str
    expires_at: float
    node_id: str = ""
    revoked: bool = False


def stamp(wall: float) -> str:
    """RFC 3339 in UTC with six fractional digits."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


async def read_json(request: web.Request, kind: type[T]) -> T:
    """The body as ``kind``. Refuses other media types (415), broken JSON (400) and wrong fields (422)."""
    if request.content_type != "application/json":
        raise Refused(415, "expected Content-Type: application/json", violation=True)
    raw = await request.read()
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as exc:
        raise Refused(422, str(exc), violation=True) from None
    except (msgspec.DecodeError, RecursionError, UnicodeError) as exc:
        raise Refused(400, f"body is not JSON: {exc}", violation=True) from None


class Context:
    """One network's shared state. Its ids and tokens come from ``rng``, so a seeded one gives the same again."""

    def __init__(
        self, config: DevnetConfig, clock: Clock, rng: random.Random, on_violation: Callable[[str], None]
    ) -> None:
        self.config = config
        self.clock = clock
        self.rng = rng
        self.violations: list[str] = []
        #: Tasks of which at least one answer did not reach the node: it may rightly ask again.
        self.unheard: set[str] = set()
        self.url = ""
        self._on_violation = on_violation
        directory = config.data_dir
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.store = Store(None if directory is None else directory / "devnet.sqlite")
        self.blobs = Blobs(None if directory is None else directory / "blobs")
        self._tokens = {token.value: token for token in self.store.load("token", Token)}
        self._prune_at = 0

    def close(self) -> None:
        self.store.close()
        self.blobs.close()

    def violation(self, text: str) -> None:
        if len(self.violations) < _VIOLATIONS_MAX:
            self.violations.append(text)
        self._on_violation(text)

    def new_id(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def new_secret(self) -> str:
        return f"{self.rng.getrandbits(256):064x}"

    def now(self) -> float:
        return self.clock.wall()

    def arrived(self) -> float:
        """When the request being handled came in, before any fault delayed it."""
        return ARRIVED.get()

    def issue(self, kind: str, subject: str, ttl: float, node_id: str = "") -> Token:
        now = self.now()
        if len(self._tokens) >= self._prune_at:
            self._prune(now)
        value = f"{kind}-{self.new_secret()}"
        token = Token(value=value, kind=kind, subject=subject, expires_at=now + ttl, node_id=node_id)
        self._tokens[token.value] = token
        self.store.put("token", token.value, token)
        return token

    def revoke(self, kind: str) -> None:
        """Make every token of that kind worthless, through no fault of its holder."""
        for token in [t for t in self._tokens.values() if t.kind == kind]:
            self._tokens[token.value] = replace(token, revoked=True)
            self.store.put("token", token.value, self._tokens[token.value])

    def authorize(self, request: web.Request, *kinds: str) -> Token:
        """The valid bearer token of a request, or 401."""
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        token = self._tokens.get(value)
        if scheme != "Bearer" or token is None or token.kind not in kinds:
            raise Refused(401, "missing or unknown bearer token", violation=True)
        if token.revoked:
            raise Refused(401, "token revoked")
        if self.now() >= token.expires_at:
            late = self.arrived() - token.expires_at
            raise Refused(401, "token expired", violation=late > GRACE_SECS)
        return token

    def _prune(self, now: float) -> None:
        for token in [t for t in self._tokens.values() if t.expires_at < now - _FORGET_TOKEN_SECS]:
            del self._tokens[token.value]
            self.store.delete("token", token.value)
        self._prune_at = 2 * len(self._tokens) + 256
