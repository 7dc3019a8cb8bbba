"""Session: keeping one lease alive with heartbeats, and what the service says in their answers.

Rules:
1. One heartbeat is in flight at a time. After an accepted one the next is due within [HEARTBEAT_MIN_RATIO,
   HEARTBEAT_MAX_RATIO] of the TTL, sooner if there is something to tell; after a failed one sooner still, for as long
   as the lease lasts.
2. Nothing is sent under a lease that has run out, also where nobody looked when it did. An expiry that is absent or
   already past in an answer that accepts says nothing: the last good TTL holds, else UNKNOWN_TTL_SECS, renewed by every
   accepted heartbeat. A TTL shorter than GOOD_TTL_SECS is taken at its word, but is no measure for a later unknown one:
   it is the rest of an expiry that does not move, and heartbeats in proportion to it would never end.
3. A heartbeat carries the latest progress and every event not yet acknowledged, the oldest EVENTS_MAX dropped beyond
   that bound.
   Where user code reported no progress, that of its transfers stands in; it waits for heartbeats that go out anyway.
4. ``cancel`` is honoured in every answer. Only 404, 409 and 410 say that the lease is lost; any other failure is
   trouble.

Unusual edges: in ``pending`` the task stops waiting for the first answer after a second, but the answer is still to
come. A flush is an ordinary heartbeat that the delivery waits for; its failure changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from posemesh.commands import Command, SendHeartbeat, Warn
from posemesh.events import (
    Event,
    EventLogged,
    FirstAnswerOverdue,
    FlushOverdue,
    FlushWanted,
    HeartbeatAccepted,
    HeartbeatDue,
    HeartbeatFailed,
    KeepAliveWanted,
    LeaseEnded,
    LeaseExpired,
    ProgressMade,
    TokenRenewed,
    TransferMoved,
)
from posemesh.machines._kernel import Edge, Lifecycle, State, Step, Subject
from posemesh.policy import (
    EVENTS_MAX,
    FIRST_ANSWER_SECS,
    FLUSH_SECS,
    GOOD_TTL_SECS,
    TRANSFERS_MAX,
    UNKNOWN_TTL_SECS,
    heartbeat_delay,
    heartbeat_retry_delay,
    heartbeat_timeout,
)
from posemesh.types import JSON

__all__ = ("MACHINE", "Flush", "Session", "SessionState", "invariants")


class SessionState(State):
    PENDING = "pending", "The first heartbeat is in flight."
    ALIVE = "alive", "The service accepted the latest answered heartbeat."
    TROUBLED = "troubled", "The latest heartbeat failed; the lease still has time."
    CANCELLED = "cancelled", "The service asked that the task end."
    LOST = "lost", "The lease ran out, or the service says that it is gone."
    CLOSED = "closed", "The service has answered the report of the task's end."


PENDING, ALIVE, TROUBLED, CANCELLED, LOST, CLOSED = SessionState


class Flush(StrEnum):
    """How far the last heartbeat before a report is."""

    NONE = "none"
    WANTED = "wanted"
    SENT = "sent"
    DONE = "done"


@dataclass(eq=False, slots=True, kw_only=True)
class Session(Subject):
    """``good_ttl`` stands in for an unknown one. ``dirty`` since there is progress the service has not acknowledged;
    ``carried`` events and ``carried_dirty`` progress are in the heartbeat in flight. ``transfers`` are the latest
    TRANSFERS_MAX by their names.
    """

    state: State = PENDING
    task_id: str = ""
    ttl: float = UNKNOWN_TTL_SECS
    good_ttl: float = UNKNOWN_TTL_SECS
    in_flight: bool = False
    settled: bool = False
    failures: int = 0
    progress: JSON = field(default_factory=dict)
    dirty: bool = False
    carried_dirty: bool = False
    events: list[JSON] = field(default_factory=list)
    carried: int = 0
    dropped: int = 0
    transfers: dict[str, JSON] = field(default_factory=dict)
    flush: Flush = Flush.NONE
    expired: bool = False
    blocked: bool = False
    retried: bool = False
    token_generation: int = 0

    @property
    def told(self) -> JSON:
        """The progress of a heartbeat."""
        return self.progress if self.progress != {} or not self.transfers else {"transfers": dict(self.transfers)}

    @property
    def unacknowledged(self) -> bool:
        """Something was reported that no accepted heartbeat carried."""
        return self.dirty or self.carried_dirty or bool(self.events)

    def left(self, now: float) -> float:
        """Seconds until the lease runs out."""
        return self.timers.get(LeaseExpired, now) - now


def says_cancel(session: Session, step: Step[HeartbeatAccepted]) -> bool:
    return step.event.answer.cancels


def gone(session: Session, step: Step[HeartbeatFailed]) -> bool:
    return step.event.failure.gone


def run_out(session: Session, step: Step[Event]) -> bool:
    return session.left(step.now) <= 0


def unpalatable(session: Session, step: Step[HeartbeatFailed]) -> bool:
    carries = session.carried > 0 or session.carried_dirty or session.progress != {}
    return step.event.failure.status in (400, 413, 422) and carries


def nothing_to_flush(session: Session, step: Step[FlushWanted]) -> bool:
    return not session.unacknowledged


def token_helps(session: Session, step: Step[TokenRenewed]) -> bool:
    return session.blocked and not session.retried and not session.in_flight and not run_out(session, step)


def in_flight(session: Session, step: Step[Event]) -> bool:
    return session.in_flight


def begin(session: Session, step: Step[KeepAliveWanted]) -> Command:
    take_ttl(session, step)
    session.arm(FirstAnswerOverdue, step.now + FIRST_ANSWER_SECS)
    return send(session, step)


def take_ttl(session: Session, step: Step[KeepAliveWanted | HeartbeatAccepted]) -> None:
    ttl = step.event.ttl or session.good_ttl
    session.good_ttl = ttl if ttl >= GOOD_TTL_SECS else session.good_ttl
    session.ttl = ttl
    session.arm(LeaseExpired, step.now + ttl)


def send(session: Session, step: Step[Event]) -> Command:
    session.disarm(HeartbeatDue)
    session.in_flight, session.carried = True, len(session.events)
    session.carried_dirty, session.dirty = session.dirty, False
    return SendHeartbeat(
        lease=session.key,
        task_id=session.task_id,
        progress=session.told,
        events=tuple(session.events),
        timeout=heartbeat_timeout(step.config.request_timeout_secs, session.left(step.now)),
    )


def settle(session: Session, step: Step[Event]) -> None:
    session.settled = True
    session.disarm(FirstAnswerOverdue)


def acknowledge(session: Session, step: Step[HeartbeatAccepted]) -> None:
    del session.events[: session.carried]
    session.in_flight, session.carried, session.carried_dirty, session.failures = False, 0, False, 0
    session.blocked = session.retried = False


def renew(session: Session, step: Step[HeartbeatAccepted]) -> Command | None:
    take_ttl(session, step)
    if session.flush is Flush.WANTED and session.unacknowledged:
        session.flush = Flush.SENT
        return send(session, step)
    _end_flush(session)
    delay = heartbeat_delay(session.ttl, step.config.heartbeat_min_ratio, step.config.heartbeat_max_ratio, step.rng)
    session.arm(HeartbeatDue, step.now + delay)
    if session.unacknowledged:
        hasten(session, step)
    return None


def retry_later(session: Session, step: Step[HeartbeatFailed]) -> None:
    session.dirty |= session.carried_dirty
    session.in_flight, session.carried, session.carried_dirty = False, 0, False
    session.failures += 1
    session.blocked = step.event.failure.unauthorized
    session.retried = session.retried and session.blocked
    _end_flush(session)
    delay = heartbeat_retry_delay(session.failures, session.left(step.now), step.event.failure.retry_after, step.rng)
    session.arm(HeartbeatDue, step.now + delay)


def shed(session: Session, step: Step[HeartbeatFailed]) -> Command:
    del session.events[: session.carried]
    session.dropped += session.carried
    session.progress = session.progress if session.dirty else {}
    session.carried, session.carried_dirty = 0, False
    problem = step.event.failure.message
    return Warn(
        message=f"task {session.task_id}: the service does not take what its code reported ({problem}); dropped"
    )


def hasten(session: Session, step: Step[Event]) -> None:
    """Bring the next heartbeat forward, so that what was reported arrives within HEARTBEAT_JITTER_MS."""
    soon = step.now + step.config.heartbeat_jitter_ms / 1000
    session.arm(HeartbeatDue, min(session.timers.get(HeartbeatDue, soon), soon))


def note_progress(session: Session, step: Step[ProgressMade]) -> None:
    session.progress, session.dirty = step.event.progress, True


def note_event(session: Session, step: Step[EventLogged]) -> None:
    session.events.append(step.event.record)
    if len(session.events) > EVENTS_MAX:
        del session.events[0]
        session.carried = max(0, session.carried - 1)
        session.dropped += 1


def note_transfer(session: Session, step: Step[TransferMoved]) -> None:
    event = step.event
    session.transfers.pop(event.transfer, None)
    session.transfers[event.transfer] = {"way": event.way, "done": event.done, "total": event.total}
    if len(session.transfers) > TRANSFERS_MAX:
        del session.transfers[next(iter(session.transfers))]


def want_flush(session: Session, step: Step[FlushWanted]) -> Command | None:
    session.arm(FlushOverdue, step.now + FLUSH_SECS)
    session.flush = Flush.WANTED if session.in_flight else Flush.SENT
    return None if session.in_flight else send(session, step)


def skip_flush(session: Session, step: Step[Event]) -> None:
    session.flush = Flush.DONE
    session.disarm(FlushOverdue)


def _end_flush(session: Session) -> None:
    if session.flush is not Flush.NONE:
        session.flush = Flush.DONE
        session.disarm(FlushOverdue)


def note_expiry(session: Session, step: Step[Event]) -> None:
    session.expired = True


def note_token(session: Session, step: Step[TokenRenewed]) -> None:
    session.token_generation = step.event.generation


def note_retry(session: Session, step: Step[TokenRenewed]) -> None:
    session.retried = True


_LIVE = (PENDING, ALIVE, TROUBLED)
_OVER = (CANCELLED, LOST, CLOSED)

TABLE = (
    Edge(KeepAliveWanted, PENDING, None, "the service must see at once that the task is taken", do=(begin,)),
    Edge(
        HeartbeatAccepted,
        _LIVE,
        CANCELLED,
        "the service asks that the task end",
        says_cancel,
        (settle, acknowledge, skip_flush),
    ),
    Edge(HeartbeatAccepted, _LIVE, ALIVE, "the lease is renewed", do=(settle, acknowledge, renew)),
    Edge(HeartbeatAccepted, _OVER, None, "an answer may outlive the session"),
    Edge(HeartbeatFailed, _LIVE, LOST, "the service says that the lease is gone", gone, (settle, skip_flush)),
    Edge(
        HeartbeatFailed,
        (ALIVE, TROUBLED),
        TROUBLED,
        "what user code reported is not worth its lease: the same body would be refused for ever",
        unpalatable,
        (settle, shed, retry_later),
    ),
    Edge(HeartbeatFailed, _LIVE, TROUBLED, "one failure loses nothing while the lease lasts", do=(settle, retry_later)),
    Edge(HeartbeatFailed, _OVER, None, "an answer may outlive the session"),
    Edge(
        HeartbeatDue,
        (ALIVE, TROUBLED),
        LOST,
        "the process slept until it was too late",
        run_out,
        (note_expiry, settle, skip_flush),
    ),
    Edge(HeartbeatDue, (ALIVE, TROUBLED), None, "the lease must be renewed before it runs out", do=(send,)),
    Edge(
        FirstAnswerOverdue,
        PENDING,
        LOST,
        "the process slept until it was too late",
        run_out,
        (note_expiry, settle, skip_flush),
    ),
    Edge(FirstAnswerOverdue, PENDING, None, "the task does not wait for a slow service", do=(settle,)),
    Edge(
        LeaseExpired, _LIVE, LOST, "nothing may go out under a lease that ran out", do=(note_expiry, settle, skip_flush)
    ),
    Edge(ProgressMade, ALIVE, None, "it goes with the heartbeat in flight's successor", in_flight, (note_progress,)),
    Edge(ProgressMade, ALIVE, None, "it is told soon, together with what follows shortly", do=(note_progress, hasten)),
    Edge(ProgressMade, (PENDING, TROUBLED), None, "it goes with the next heartbeat", do=(note_progress,)),
    Edge(ProgressMade, _OVER, None, "nobody listens any more"),
    Edge(EventLogged, ALIVE, None, "it goes with the heartbeat in flight's successor", in_flight, (note_event,)),
    Edge(EventLogged, ALIVE, None, "it is told soon, together with what follows shortly", do=(note_event, hasten)),
    Edge(EventLogged, (PENDING, TROUBLED), None, "it goes with the next heartbeat", do=(note_event,)),
    Edge(EventLogged, _OVER, None, "nobody listens any more"),
    Edge(TransferMoved, _LIVE, None, "it goes with the next heartbeat, and is no reason for one", do=(note_transfer,)),
    Edge(TransferMoved, _OVER, None, "nobody listens any more"),
    Edge(
        FlushWanted,
        (PENDING, ALIVE),
        None,
        "the service knows all already",
        nothing_to_flush,
        (skip_flush,),
    ),
    Edge(
        FlushWanted,
        (PENDING, ALIVE),
        None,
        "what user code said last should arrive before the report of its end",
        do=(want_flush,),
    ),
    Edge(FlushWanted, (TROUBLED, *_OVER), None, "a report does not wait for a service in trouble", do=(skip_flush,)),
    Edge(FlushOverdue, _LIVE, None, "the report does not wait for a slow service", do=(skip_flush,)),
    Edge(TokenRenewed, TROUBLED, None, "only the token was missing", token_helps, (note_token, note_retry, send)),
    Edge(TokenRenewed, tuple(SessionState), None, "the next heartbeat has its own time", do=(note_token,)),
    Edge(LeaseEnded, _LIVE, CLOSED, "there is nothing left to keep"),
)

MACHINE = Lifecycle("session", SessionState, TABLE, subject=Session, initial=PENDING, ends=(CANCELLED, LOST, CLOSED))


def invariants(session: Session) -> Iterator[str]:
    """What does not hold and should."""
    if session.state in (ALIVE, TROUBLED):
        if session.in_flight == (HeartbeatDue in session.timers):
            yield f"{session.state}: in flight {session.in_flight}, due {HeartbeatDue in session.timers}"
        if LeaseExpired not in session.timers:
            yield f"{session.state} without an expiry"
    if len(session.events) > EVENTS_MAX:
        yield f"{len(session.events)} events kept"
    if len(session.transfers) > TRANSFERS_MAX:
        yield f"{len(session.transfers)} transfers kept"
    if session.state in _OVER and session.timers:
        yield f"{session.state} with timers"
