"""Faults of a network by a seed: the same seed and the same requests meet the same faults again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from random import Random
from typing import Final, NamedTuple

from aiohttp import web

__all__ = ("ALL_FAULTS", "Fault", "FaultPlan")

ALL_FAULTS: Final = ("busy", "cut", "unauthorized", "garbage", "slow", "lost", "garbled")
"""The first five befall a request before it is handled, the last two the answer to one that was."""
_AFTER: Final = frozenset({"lost", "garbled"})
SLOW_SECS_MAX: Final = 8.0
# None may pass for an answer: a service that seems to accept what it never saw is no fault a node could notice.
_GARBAGE: Final = (
    b"{",
    b"[]",
    b"null",
    b"<html>502</html>",
    b'{"task": {"id": 7}}',
    b'{"access_token": 1}',
    b"\xff\xfe\x00",
    b'{"nonce": "", "task": 7}',
)


class Fault(NamedTuple):
    """One that befell: when (loop seconds), of what kind, and which request."""

    at: float
    kind: str
    method: str
    path: str


class FaultPlan:
    """Faults for a :class:`posemesh.devnet.Devnet`: ``net.faults, net.replies = plan.before, plan.after``.

    A request meets one with the probability ``rate``; ``spares(request)`` exempts some. ``done`` tells which befell.
    Faults end at the loop time ``until``.
    """

    def __init__(
        self,
        seed: int,
        *,
        rate: float = 0.1,
        kinds: Collection[str] = ALL_FAULTS,
        until: float = float("inf"),
        spares: Callable[[web.Request], bool] = lambda request: False,
    ) -> None:
        unknown = sorted(set(kinds) - set(ALL_FAULTS))
        if unknown or not kinds or not 0 <= rate <= 1:
            raise ValueError(
                f"expected a rate of 0 to 1 and kinds among {', '.join(ALL_FAULTS)}; got {rate}, {unknown}"
            )
        self.seed = seed
        self.done: list[Fault] = []
        self._rng = Random(seed)
        self._rate = rate
        self._kinds = tuple(kind for kind in ALL_FAULTS if kind in kinds)
        self._until = until
        self._spares = spares
        self._later: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<FaultPlan {self.seed}: {len(self.done)} so far>"

    async def before(self, request: web.Request) -> web.StreamResponse | None:
        """The ``faults`` hook: an answer in place of the service's, or None."""
        now = asyncio.get_running_loop().time()
        if self._spares(request) or now >= self._until or self._rng.random() >= self._rate:
            return None
        kind = self._rng.choice(self._kinds)
        self.done.append(Fault(now, kind, request.method, request.path))
        if kind in _AFTER:
            self._later[id(request)] = kind
            return None
        return await self._befall(kind, request)

    async def after(self, request: web.Request, answer: web.StreamResponse) -> web.StreamResponse | None:
        """The ``replies`` hook: the answer to send, None to hang up without one."""
        match self._later.pop(id(request), None):
            case "lost":
                return None
            case "garbled":
                return self._garbage()
            case _:
                return answer

    async def _befall(self, kind: str, request: web.Request) -> web.StreamResponse | None:
        match kind:
            case "busy":
                retry_after = self._rng.choice(("", "1", "3"))
                return web.Response(status=503, headers={"Retry-After": retry_after} if retry_after else None)
            case "cut":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response(status=499)
            case "unauthorized":
                return web.Response(status=401, text="a fault")
            case "garbage":
                return self._garbage()
            case _:
                await asyncio.sleep(self._rng.uniform(0, SLOW_SECS_MAX))
                return None

    def _garbage(self) -> web.Response:
        return web.Response(body=self._rng.choice(_GARBAGE), content_type="application/json")
