"""What every event has, and how a request fails."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from msgspec import Struct

__all__ = (
    "Event",
    "Failure",
    "LeaseId",
    "LeaseScoped",
)

LeaseId: TypeAlias = int
"""A lease's local number. Each 200 to ``GET /tasks`` gets a new one, also when it names a task seen before."""


class Failure(Struct, frozen=True, kw_only=True):
    """Why a request did not do what was asked.

    ``status`` is the HTTP status, None without an answer. ``sent`` is False only where the request surely never reached
    the service. ``retry_after`` is in seconds. ``generation`` is the token generation the request carried, 0 for none.
    """

    message: str
    status: int | None = None
    sent: bool = True
    retry_after: float | None = None
    generation: int = 0

    @property
    def unauthorized(self) -> bool:
        return self.status == 401

    @property
    def gone(self) -> bool:
        """The service says that the lease is no longer ours."""
        return self.status in (404, 409, 410)

    @property
    def reply_lost(self) -> bool:
        """The service may have done what was asked, and nobody heard."""
        return self.status is None and self.sent


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened. ``machines`` are the ones it moves, in that order."""

    machines: ClassVar[tuple[str, ...]] = ()


class LeaseScoped(Event, frozen=True, kw_only=True):
    """An event of one lease. ``lease`` is 0 only where the engine is still to give the number."""

    lease: LeaseId = 0
