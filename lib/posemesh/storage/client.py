"""Authorized requests to one task's domain server: a hot token, bounded retries, and no token for anyone else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from posemesh.config import NodeConfig
from posemesh.errors import BadInput, StorageError, TaskStopped, WireError
from posemesh.secret import Secret
from posemesh.shell.clock import Clock
from posemesh.shell.http import AddressRefused, Http, Incoming, Reply, TransportError, is_loopback
from posemesh.storage.transfer import Outgoing
from posemesh.types import LeaseEnvelope
from posemesh.wire import domain, uploads
from posemesh.wire.uploads import UploadInfo

__all__ = ("Call", "DomainClient", "Holder", "InfoCache")

T = TypeVar("T")

RETRIES_MAX = 3
ROTATIONS_MAX = 3
"""A request refused for its token goes out again with the next one at most so often: two may come during one upload."""
BUSY = frozenset({429, 502, 503, 504})
BACKOFF_SECS = 0.5
RETRY_AFTER_MAX_SECS = 10.0
ROTATION_SECS = 2.0
"""A request without a usable token, or refused for its token, waits this long for a heartbeat to bring a new one."""
ROTATION_LOOK_SECS = 0.05
INFO_SECS = 60.0
INFO_WAIT_SECS = 10.0
"""What a server says of uploads is good to know, but no upload waits longer for it."""
TIME_SECS = 600.0
"""A server's word on the time counts this long."""
CLOCKS_APART_MAX_SECS = 86_400.0
"""Of two clocks further apart than this, one is nonsense, and nobody here can say which."""


class Holder(Protocol):
    """The task for which requests are made."""

    @property
    def envelope(self) -> LeaseEnvelope:
        """Its lease of the moment: a heartbeat may bring a new token."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether nothing more may go out for it, but for word of uploads that come to nothing."""
        ...

    @property
    def stop_reason(self) -> str | None:
        """Why it was told to stop: under a lease that is ``lost`` or has ``expired`` not even that may."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. ``what`` begins its errors, which are of class ``error``.

    An answer that ``streams`` is a download. Once it has begun to arrive it is not asked for again: where it breaks off
    it is a BadInput. What is ``parting`` goes out also for a task that was told to stop, with the token at hand: no new
    one is waited for then.
    """

    what: str
    method: str
    url: str
    accept: str = "application/json"
    content_type: str | None = None
    body: Outgoing | None = None
    streams: bool = False
    parting: bool = False
    retries: int = RETRIES_MAX
    error: type[StorageError] = StorageError


class InfoCache:
    """What domain servers said, by base URL: of uploads, for a minute; of the time, for ten."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, UploadInfo | None]] = {}
        self._ahead: dict[str, tuple[float, float]] = {}

    def get(self, base: str, now: float) -> tuple[UploadInfo | None] | None:
        """What was said, in a tuple of its own; None where nothing fresh is known."""
        until, info = self._said.get(base, (now, None))
        return (info,) if now < until else None

    def put(self, base: str, info: UploadInfo | None, now: float) -> None:
        self._said[base] = (now + INFO_SECS, info)

    def ahead(self, base: str, now: float) -> float:
        """By how many seconds the server's clock is ahead of this one; 0 where nothing fresh is known."""
        until, ahead = self._ahead.get(base, (now, 0.0))
        return ahead if now < until else 0.0

    def put_ahead(self, base: str, ahead: float, now: float) -> None:
        self._ahead[base] = (now + TIME_SECS, ahead)


class _Answered(Exception):
    """An answer that is not 2xx."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        super().__init__(reply.status)


class DomainClient:
    """One task's. ``holder`` is asked anew for each request, so that a token a heartbeat brought is used at once."""

    def __init__(
        self,
        http: Http,
        config: NodeConfig,
        clock: Clock,
        client_id: str,
        infos: InfoCache,
        holder: Holder,
        rng: Random,
    ) -> None:
        self._http = http
        self._config = config
        self._clock = clock
        self._client_id = client_id
        self._infos = infos
        self._holder = holder
        self._rng = rng

    def server(self) -> tuple[str, str]:
        """The domain server's URL and the domain's id. The token must not travel in the clear."""
        envelope = self._holder.envelope
        assert envelope.domain_server_url is not None and envelope.domain_id is not None
        url = urlsplit(envelope.domain_server_url)
        if url.scheme != "https" and not is_loopback(url.hostname or "") and not self._config.allow_insecure_http:
            raise StorageError("the domain server's URL is plain http; ALLOW_INSECURE_HTTP=true permits it")
        return envelope.domain_server_url, str(envelope.domain_id)

    def check(self) -> None:
        """Raises TaskStopped where nothing more may go out for the task."""
        if self._holder.cancelled:
            task = self._holder.envelope.task.id
            raise TaskStopped(f"task {task} was told to stop; nothing more goes out for it")

    @property
    def lease_stands(self) -> bool:
        """Whether anything at all may go out for the task."""
        return self._holder.stop_reason not in ("expired", "lost")

    def service_now(self) -> float:
        """The domain server's time in epoch seconds, as far as it is known."""
        return self._clock.wall() + self._ahead()

    async def send(self, call: Call, read: Callable[[Incoming], Awaitable[T]]) -> T:
        """Send ``call`` until it is answered, a bounded number of times, and return what ``read`` makes of a 2xx.

        503 and its like and failed connections are tried again with backoff, a 401 with each new token. Raises
        ``call.error``, BadInput, TaskStopped, and what ``read`` raises; TransportError of ``read`` is tried again too.
        """
        retries, rotations, begun = 0, 0, False

        async def begin(incoming: Incoming) -> T:
            nonlocal begun
            begun = call.streams
            return await read(incoming)

        while True:
            token = await self._token(call)
            wait = 0.0
            try:
                return await self._once(call, token, begin)
            except _Answered as answered:
                reply = answered.reply
                if reply.status == 401 and rotations < ROTATIONS_MAX and await self._rotated(token):
                    rotations += 1
                    continue
                if reply.status not in BUSY or retries >= call.retries:
                    said = f": {reply.excerpt}" if reply.excerpt else ""
                    text = f"{call.what}: the domain server answered {reply.status}{said}"
                    raise call.error(text, reply.status) from None
                wait = min(reply.retry_after or 0.0, RETRY_AFTER_MAX_SECS)
            except TransportError as error:
                self.check()
                if call.body is not None and call.body.failure is not None:
                    raise call.body.failure from error
                if begun:
                    raise BadInput(f"{call.what}: {error}") from error
                if retries >= call.retries or isinstance(error, AddressRefused):
                    raise call.error(f"{call.what}: {error}") from error
            await asyncio.sleep(max(wait, BACKOFF_SECS * 2**retries * self._rng.uniform(0.8, 1.2)))
            retries += 1

    async def answer(self, call: Call, decode: Callable[[bytes], T]) -> T:
        """Send ``call`` and decode its whole answer. A 2xx that cannot be decoded is a ``call.error`` of status 200."""
        reply = await self.send(call, lambda incoming: incoming.reply())
        try:
            return decode(reply.body)
        except WireError as error:
            raise call.error(f"{call.what}: {error}", reply.status) from error

    async def info(self, *, fresh: bool = False) -> UploadInfo | None:
        """What the server says of uploads; None where it says nothing. It is asked at most once a minute, unless the
        answer has to be ``fresh``.
        """
        base, _ = self.server()
        now = asyncio.get_running_loop().time()
        known = self._infos.get(base, now)
        if known is not None and not fresh:
            return known[0]
        self.check()
        headers = {"Accept": "application/json", "posemesh-client-id": self._client_id}
        try:
            reply = await self._http.exchange(
                "GET",
                uploads.info_url(base),
                self._noting(base),
                headers=headers,
                idle=min(INFO_WAIT_SECS, self._config.stall_timeout_secs),
            )
        except TransportError:
            return None
        info = uploads.decode_info(reply.body) if reply.ok else None
        if reply.ok or reply.status == 404:
            self._infos.put(base, info, now)
        return info

    def without_sessions(self) -> None:
        """Remember for a minute that the server takes no upload in parts."""
        base, _ = self.server()
        self._infos.put(base, UploadInfo(request_max_bytes=0, multipart=False), asyncio.get_running_loop().time())

    def _noting(self, base: str) -> Callable[[Incoming], Awaitable[Reply]]:
        async def read(incoming: Incoming) -> Reply:
            self._note_time(base, incoming)
            return await incoming.reply()

        return read

    def _note_time(self, base: str, incoming: Incoming) -> None:
        ahead = incoming.service_now - self._clock.wall()
        self._infos.put_ahead(base, ahead, asyncio.get_running_loop().time())

    def _ahead(self) -> float:
        base, _ = self.server()
        return self._infos.ahead(base, asyncio.get_running_loop().time())

    async def _once(self, call: Call, token: Secret | None, read: Callable[[Incoming], Awaitable[T]]) -> T:
        base, _ = self.server()
        if not domain.same_origin(base, call.url):
            raise call.error(f"{call.what}: the lease has moved to another domain server")
        headers = {"Accept": call.accept, "posemesh-client-id": self._client_id}
        if token is not None:
            headers["Authorization"] = f"Bearer {token.reveal()}"
        if call.content_type is not None:
            headers["Content-Type"] = call.content_type

        async def answer(incoming: Incoming) -> T:
            self._note_time(base, incoming)
            if 200 <= incoming.status < 300:
                return await read(incoming)
            raise _Answered(await incoming.reply())

        return await self._http.exchange(
            call.method,
            call.url,
            answer,
            body=None if call.body is None else call.body.pieces(self.check),
            size=0 if call.body is None else call.body.size,
            headers=headers,
            idle=self._config.stall_timeout_secs,
        )

    async def _token(self, call: Call) -> Secret | None:
        """The token of the moment. One that has expired is not sent."""
        if not call.parting:
            self.check()
        token = self._holder.envelope.access_token
        if not self._expired():
            return token
        # It needs no token and tells the server's time: the last that was heard of it may have been wrong.
        await self.info(fresh=True)
        if self._expired() and not await self._rotated(token):
            raise call.error(f"{call.what}: the domain token has expired, and no heartbeat brought a new one", 401)
        return self._holder.envelope.access_token

    def _expired(self) -> bool:
        """Whether the token has, by the server's clock; by both, where the clocks are too far apart to believe."""
        expires = self._holder.envelope.access_token_expires_at
        ahead = self._ahead()
        if abs(ahead) > CLOCKS_APART_MAX_SECS:
            ahead = min(ahead, 0.0)
        return expires is not None and self._clock.wall() + ahead >= expires.timestamp()

    async def _rotated(self, token: Secret | None) -> bool:
        """Whether there is, or soon comes, another token than this one."""
        loop = asyncio.get_running_loop()
        until = loop.time() + ROTATION_SECS
        while self._holder.envelope.access_token == token or self._expired():
            self.check()
            if loop.time() >= until:
                return False
            await asyncio.sleep(ROTATION_LOOK_SECS)
        return True
