"""Poller: when the node asks the task service (DMS) for work, and how it stops.

Rules:
1. It never asks for more than can run: asks in flight are bounded by free slots, and none is sent while BACKLOG_MAX
   outcomes wait for delivery or a lease waits for room. Where runners are limited, it asks for no more than can begin,
   and where only some capabilities have room, for one of these, in turn.
2. A task that ran is a sign of work: the node asks at once, and while tasks keep coming it asks for one more at a time
   (``width``). Anything else - no work, a failure, a lease that could not be run - lets the pause grow.
3. A slot is free once its outcome is committed. But a service that counts leases answers 409 until it has heard of the
   outcome, so an ask at once also waits for the first offer's answer, for ASK_AFTER_OFFER_SECS at most.
4. A failure for want of a token is made good as soon as there is one, once: a service that answers 401 to every token
   is asked at the pace of the backoff.

Stopping: draining lets tasks end; closing has them cancelled and reported; stopped is when nothing is left or time is
up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msgspec import Struct

from posemesh.commands import Ask, Command, Leave, Warn
from posemesh.events import (
    AskAbandoned,
    AskFailed,
    CancelRequested,
    CensusTaken,
    DrainOver,
    DrainRequested,
    Emptied,
    Event,
    LeaseOffered,
    LeaseUnreadable,
    LeaveDue,
    NoWork,
    PollDue,
    TokenRenewed,
)
from posemesh.machines._kernel import Edge, Lifecycle, State, Step, Subject
from posemesh.policy import (
    ASK_AFTER_OFFER_SECS,
    ASK_GRACE_SECS,
    BACKLOG_MAX,
    LEAVE_SECS,
    RETRY_AFTER_MAX_SECS,
    WARN_EVERY_SECS,
    poll_delay,
)

__all__ = ("MACHINE", "Poller", "PollerState", "invariants")


class PollerState(State):
    WAITING = "waiting", "The pause before the next ask; before the first token, the wait for it."
    ASKING = "asking", "At least one ask is in flight."
    FULL = "full", "No task could begin, or too many outcomes wait for delivery."
    DRAINING = "draining", "Told to stop: nothing new is taken, running tasks may end."
    CLOSING = "closing", "What still ran is cancelled; its report is on its way."
    STOPPED = "stopped", "Nothing is left to do."


WAITING, ASKING, FULL, DRAINING, CLOSING, STOPPED = PollerState


@dataclass(eq=False, slots=True, kw_only=True)
class Poller(Subject):
    """``tries`` is n of the growing pause; a Retry-After holds until ``held_until``; ``asking`` asks are in flight, at
    most ``width`` of them.

    ``failures`` asks in a row got no answer, of which the operator was told at ``warned_at``.
    ``trusting`` since a task ran, until the service had no work or a lease could not be run. ``blocked`` by a missing
    or rejected token; ``retried`` once it has been made good. ``asked`` is the latest capability whose turn it was.
    The rest is the latest census.
    """

    state: State = WAITING
    tries: int = 0
    held_until: float = 0.0
    asking: int = 0
    width: int = 1
    failures: int = 0
    warned_at: float | None = None
    trusting: bool = False
    blocked: bool = True
    retried: bool = False
    token_generation: int = 0
    asked: str = ""
    busy: int = 0
    backlog: int = 0
    settling: int = 0
    ran: int = 0
    unran: int = 0
    spare: int | None = None
    with_room: tuple[str, ...] | None = None


class _Seen(Struct):
    """What the poller will know once it has taken the event in; guards look at this and change nothing."""

    busy: int
    backlog: int
    settling: int
    trusting: bool
    spare: int | None

    def room(self, step: Step[Event]) -> bool:
        return self.busy < step.config.max_concurrency and self.backlog < BACKLOG_MAX and self.spare != 0

    def room_now(self, step: Step[Event]) -> int:
        """How many asks may be in flight for slots that the service, too, takes for free."""
        if self.backlog >= BACKLOG_MAX:
            return 0
        free = step.config.max_concurrency - self.busy - self.settling
        return free if self.spare is None else min(free, self.spare)


def _seen(poller: Poller, step: Step[Event]) -> _Seen:
    match step.event:
        case CensusTaken() as census:
            trusting = census.ran > poller.ran or (poller.trusting and census.unran == poller.unran)
            return _Seen(census.busy, census.backlog, census.settling, trusting, census.spare)
        case LeaseOffered() | LeaseUnreadable():
            return _Seen(poller.busy + 1, poller.backlog, poller.settling, poller.trusting, poller.spare)
        case _:
            return _known(poller)


def _known(poller: Poller) -> _Seen:
    return _Seen(poller.busy, poller.backlog, poller.settling, poller.trusting, poller.spare)


def full(poller: Poller, step: Step[Event]) -> bool:
    return not _seen(poller, step).room(step)


def limited(poller: Poller, step: Step[LeaseOffered]) -> bool:
    return poller.spare is not None


def eager(poller: Poller, step: Step[Event]) -> bool:
    seen = _seen(poller, step)
    return seen.trusting and poller.token_generation > 0 and step.now >= poller.held_until and seen.room_now(step) > 0


def token_helps(poller: Poller, step: Step[TokenRenewed]) -> bool:
    now = _seen(poller, step).room_now(step) > 0
    return now and poller.blocked and not poller.retried and step.now >= poller.held_until


def ask(poller: Poller, step: Step[Event]) -> list[Command]:
    poller.disarm(PollDue)
    wanted = min(poller.width, _known(poller).room_now(step)) if poller.trusting else 1
    count = max(wanted - poller.asking, 0 if poller.asking else 1)
    poller.asking += count
    return [Ask(capability=_in_turn(poller)) for _ in range(count)]


def _in_turn(poller: Poller) -> str | None:
    """The capability to ask for: the next with room after the latest asked for; None where the service may choose."""
    if not poller.with_room:
        return None
    poller.asked = next(
        (capability for capability in poller.with_room if capability > poller.asked), poller.with_room[0]
    )
    return poller.asked


def hold(poller: Poller, step: Step[NoWork | AskFailed]) -> None:
    event = step.event
    retry_after = event.retry_after if isinstance(event, NoWork) else event.failure.retry_after
    poller.held_until = max(poller.held_until, step.now + min(retry_after or 0.0, RETRY_AFTER_MAX_SECS))
    if PollDue in poller.timers:
        poller.arm(PollDue, max(poller.timers[PollDue], poller.held_until))


def pause(poller: Poller, step: Step[Event]) -> None:
    low, high = step.config.poll_backoff_ms_min, step.config.poll_backoff_ms_max
    poller.arm(PollDue, max(step.now + poll_delay(poller.tries, low, high, step.rng), poller.held_until))
    poller.tries += not poller.trusting  # after a task that ran the service is not idle yet


def answered(poller: Poller, step: Step[Event]) -> None:
    poller.asking = max(0, poller.asking - 1)
    poller.blocked = isinstance(step.event, AskFailed) and step.event.failure.unauthorized
    if not poller.blocked:
        poller.retried = False
    if not isinstance(step.event, AskFailed):
        poller.failures, poller.warned_at = 0, None


def warn(poller: Poller, step: Step[AskFailed]) -> Command | None:
    """Of a token that does not serve the sign-in tells; one failure alone is nothing."""
    poller.failures += 1
    if step.event.failure.unauthorized or poller.failures < 2:
        return None
    if poller.warned_at is not None and step.now - poller.warned_at < WARN_EVERY_SECS:
        return None
    poller.warned_at = step.now
    problem = step.event.failure.message
    return Warn(message=f"asking for tasks: {problem}; {poller.failures} failures in a row, and it goes on trying")


def take(poller: Poller, step: Step[LeaseOffered | LeaseUnreadable]) -> None:
    if poller.spare is None:
        poller.busy += 1  # else the census counts it, in this step, and says what room it leaves
    poller.width = min(poller.width + 1, step.config.max_concurrency)


def doubt(poller: Poller, step: Step[Event]) -> None:
    poller.trusting, poller.width = False, 1


def note_token(poller: Poller, step: Step[TokenRenewed]) -> None:
    poller.token_generation = step.event.generation


def ask_soon(poller: Poller, step: Step[TokenRenewed]) -> None:
    if PollDue not in poller.timers:
        poller.arm(PollDue, step.now + ASK_AFTER_OFFER_SECS)


def note_retry(poller: Poller, step: Step[TokenRenewed]) -> None:
    poller.retried = poller.token_generation > 1


def count(poller: Poller, step: Step[CensusTaken]) -> None:
    census = step.event
    if census.ran > poller.ran:
        poller.trusting, poller.tries = True, 0
    elif census.unran > poller.unran:
        poller.trusting, poller.width = False, 1
    poller.busy, poller.backlog, poller.settling = census.busy, census.backlog, census.settling
    poller.ran, poller.unran = census.ran, census.unran
    poller.spare, poller.with_room = census.spare, census.with_room


def hasten(poller: Poller, step: Step[CensusTaken]) -> None:
    if poller.trusting and PollDue in poller.timers:
        soon = max(step.now + ASK_AFTER_OFFER_SECS, poller.held_until)
        poller.arm(PollDue, min(poller.timers[PollDue], soon))


def put_off(poller: Poller, step: Step[Event]) -> None:
    poller.disarm(PollDue)


def drain(poller: Poller, step: Step[DrainRequested]) -> None:
    poller.disarm(PollDue)
    poller.arm(DrainOver, step.now + step.event.seconds)
    await_asks(poller, step)


def await_asks(poller: Poller, step: Step[Event]) -> None:
    if poller.asking and AskAbandoned not in poller.timers:
        poller.arm(AskAbandoned, step.now + ASK_GRACE_SECS)


def forget_asks(poller: Poller, step: Step[AskAbandoned]) -> None:
    poller.asking = 0


def close(poller: Poller, step: Step[Event]) -> None:
    poller.disarm(PollDue, DrainOver)
    poller.arm(LeaveDue, step.now + LEAVE_SECS)
    await_asks(poller, step)


def leave(poller: Poller, step: Step[Event]) -> Command:
    return Leave()


_LIVE = (WAITING, ASKING, FULL)
_STOPPING = (DRAINING, CLOSING, STOPPED)

TABLE = (
    Edge(TokenRenewed, WAITING, ASKING, "only the token was missing", token_helps, (note_token, note_retry, ask)),
    Edge(TokenRenewed, WAITING, None, "outcomes waited for the token as well, and go first", do=(note_token, ask_soon)),
    Edge(
        TokenRenewed,
        tuple(s for s in PollerState if s is not WAITING),
        None,
        "the next ask has its own time",
        do=(note_token,),
    ),
    Edge(PollDue, WAITING, ASKING, "the pause is over", do=(ask,)),
    Edge(LeaseOffered, ASKING, FULL, "that was the last free slot", full, (answered, take)),
    Edge(LeaseOffered, ASKING, WAITING, "the census says what room it leaves", limited, (answered, take, pause)),
    Edge(LeaseOffered, ASKING, None, "tasks ran before this one: there may be more", eager, (answered, take, ask)),
    Edge(
        LeaseOffered, ASKING, WAITING, "this task has yet to show that it can be run here", do=(answered, take, pause)
    ),
    Edge(LeaseOffered, WAITING, FULL, "a burst has ended with the last free slot", full, (answered, take, put_off)),
    Edge(LeaseOffered, (WAITING, FULL), None, "it answers an ask of a burst that has ended", do=(answered, take)),
    Edge(LeaseOffered, _STOPPING, None, "it came too late; the lease is failed back", do=(answered, take)),
    Edge(
        LeaseUnreadable,
        (ASKING, WAITING),
        FULL,
        "it holds the last free slot until it is failed back",
        full,
        (answered, doubt, take, put_off),
    ),
    Edge(
        LeaseUnreadable,
        ASKING,
        WAITING,
        "a service that sends what cannot be read gets time",
        do=(answered, doubt, take, pause),
    ),
    Edge(LeaseUnreadable, (WAITING, FULL, *_STOPPING), None, "the lease is failed back", do=(answered, take)),
    *(
        Edge(answer, ASKING, FULL, "what room there was has been taken meanwhile", full, (answered, doubt, hold))
        for answer in (NoWork, AskFailed)
    ),
    Edge(NoWork, ASKING, WAITING, "there is nothing to do; ask less and less often", do=(answered, doubt, hold, pause)),
    Edge(
        AskFailed,
        ASKING,
        WAITING,
        "a service in trouble is asked less and less often",
        do=(answered, doubt, hold, pause, warn),
    ),
    *(
        Edge(answer, (WAITING, FULL), None, "it answers an ask of a burst that has ended", do=(answered, hold))
        for answer in (NoWork, AskFailed)
    ),
    *(Edge(answer, _STOPPING, None, "it came too late to matter", do=(answered,)) for answer in (NoWork, AskFailed)),
    Edge(CensusTaken, WAITING, FULL, "nothing can be taken", full, (count, put_off)),
    Edge(CensusTaken, WAITING, ASKING, "a task ran and there is room", eager, (count, ask)),
    Edge(
        CensusTaken,
        WAITING,
        None,
        "the pause goes on, shorter where only an offer's answer is missing",
        do=(count, hasten),
    ),
    Edge(CensusTaken, FULL, None, "still nothing can be taken", full, (count,)),
    Edge(CensusTaken, FULL, ASKING, "a task ran and there is room", eager, (count, ask)),
    Edge(CensusTaken, FULL, WAITING, "there is room, but no sign of work", do=(count, pause, hasten)),
    Edge(CensusTaken, ASKING, None, "tasks keep coming and there is room for one more", eager, (count, ask)),
    Edge(CensusTaken, (ASKING, *_STOPPING), None, "only the numbers change", do=(count,)),
    Edge(DrainRequested, _LIVE, DRAINING, "the node was told to stop", do=(drain,)),
    Edge(DrainRequested, _STOPPING, None, "it is stopping already"),
    Edge(CancelRequested, (*_LIVE, DRAINING), CLOSING, "the node was told to stop at once", do=(close,)),
    Edge(CancelRequested, (CLOSING, STOPPED), None, "it is stopping already"),
    Edge(AskAbandoned, (DRAINING, CLOSING), None, "an unanswered ask must not hold up the stop", do=(forget_asks,)),
    Edge(DrainOver, DRAINING, CLOSING, "the tasks had their time", do=(close,)),
    Edge(Emptied, (DRAINING, CLOSING), STOPPED, "nothing is left", do=(leave,)),
    Edge(LeaveDue, CLOSING, STOPPED, "what is undelivered now is the ledger's, where it took it", do=(leave,)),
)

MACHINE = Lifecycle("poller", PollerState, TABLE, subject=Poller, initial=WAITING, ends=(STOPPED,))


def invariants(poller: Poller) -> Iterator[str]:
    """What does not hold and should."""
    if poller.asking < 0:
        yield f"{poller.asking} asks in flight"
    if poller.state is ASKING and poller.asking == 0:
        yield "asking without an ask in flight"
    if poller.state is WAITING and PollDue not in poller.timers and poller.token_generation:
        yield "waiting for nothing"
    if poller.state is FULL and PollDue in poller.timers:
        yield "full with a poll due"
    if poller.state is WAITING and poller.spare == 0:
        yield "waiting to ask for what could not begin"
    if poller.timers.get(PollDue, poller.held_until) < poller.held_until:
        yield "a poll due before the service's Retry-After"
