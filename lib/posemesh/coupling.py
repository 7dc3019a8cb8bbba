"""What one lifecycle's move means to another: a table over joint states.

Machines do not know of each other. After every event the rules are looked at from the top: those of the node, those of
each lease that moved, the last ones. The first whose joint state holds sends its events, and the search begins anew,
until none holds (a fixed point). So a rule's events must make its condition false, and where two rules hold, the upper
one wins. The order is part of the meaning:

* a cancellation in a heartbeat's answer comes before the news that the first heartbeat is settled, so that nothing
  starts;
* all that ends a lease comes before its turn for a runner;
* a stopping node's word comes before the first heartbeat, so that none is sent for a task that is given back;
* a withdrawn outcome comes before a settled flush, so that a cancelled task is not reported complete;
* an outcome is offered once before it gives way to a newer lease of its task, which may have waited for its end;
* the poller hears last what the node holds, when an outcome that was just committed has become a delivery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeAlias

from posemesh.capacity import Claims
from posemesh.commands import StopReason
from posemesh.events import (
    CensusTaken,
    Emptied,
    Event,
    FlushSettled,
    FlushWanted,
    KeepAliveSettled,
    KeepAliveWanted,
    LeaseCancelled,
    LeaseEnded,
    LeaseId,
    LeaseLost,
    NodeStopping,
    OutcomeReady,
    OutcomeSuperseded,
    OutcomeWithdrawn,
    RearmNoted,
    RoomDenied,
    RoomFound,
    RunnerAbandoned,
    SignInWanted,
    TokenRejected,
    TokenRenewed,
    WalletDisowned,
)
from posemesh.machines._kernel import State
from posemesh.machines.auth import Auth, AuthState
from posemesh.machines.delivery import UNDELIVERED, Delivery, DeliveryState
from posemesh.machines.lease import Lease, LeaseState
from posemesh.machines.poller import Poller, PollerState
from posemesh.machines.registration import Registration, RegistrationState
from posemesh.machines.session import Flush, Session, SessionState

__all__ = ("LAST_RULES", "LEASE_RULES", "NODE_RULES", "Census", "Joint", "Rule", "Rules", "concerns_auth")

Census: TypeAlias = tuple[int, int, int, int, int, int | None, tuple[str, ...] | None]
"""busy, backlog, settling, ran, unran, spare, with_room: the fields of CensusTaken."""


@dataclass(slots=True)
class Joint:
    """The machines of a node, and those of one lease where a lease is looked at; the ``claims`` of all of them, and
    whether a lease is ``superseded``: a newer one of its task is past its offer.
    """

    registration: Registration
    auth: Auth
    poller: Poller
    census: Census = (0, 0, 0, 0, 0, None, None)
    claims: Claims = field(default_factory=Claims)
    now: float = 0.0
    lease: Lease | None = None
    session: Session | None = None
    delivery: Delivery | None = None
    superseded: Callable[[LeaseId], bool] = lambda key: False

    def states(self) -> tuple[State | None, ...]:
        """The state of each machine, in the order of the fields; None for one that does not exist."""
        return (
            self.registration.state,
            self.auth.state,
            self.poller.state,
            None if self.lease is None else self.lease.state,
            None if self.session is None else self.session.state,
            None if self.delivery is None else self.delivery.state,
        )


_OF_NODE = ("registration", "auth", "poller")
_MACHINES = (*_OF_NODE, "lease", "session", "delivery")
_states_of_node = attrgetter(*(f"{name}.state" for name in _OF_NODE))


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """Where each named machine is in one of its states and ``when`` holds, send ``tell`` (machine, event), because
    ``why``.

    None among the states stands for a machine that does not exist (yet).
    """

    where: dict[str, tuple[State | None, ...]]
    tell: tuple[tuple[str, Callable[[Joint], Event]], ...]
    why: str
    when: Callable[[Joint], bool] | None = None


class _Rows(dict[tuple[State | None, ...], tuple[Rule, ...]]):
    """For each joint state its rules, found when it is first met."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules

    def __missing__(self, states: tuple[State | None, ...]) -> tuple[Rule, ...]:
        now = dict(zip(_MACHINES, states, strict=False))
        row = tuple(rule for rule in self._rules if all(now[name] in wanted for name, wanted in rule.where.items()))
        self[states] = row
        return row


class Rules:
    """A table: its rules, the uppermost first."""

    def __init__(self, *rules: Rule) -> None:
        self._rules = rules
        self._rows = _Rows(rules)
        of_node = all(name in _OF_NODE for rule in rules for name in rule.where)
        self._states: Callable[[Joint], tuple[State | None, ...]] = _states_of_node if of_node else Joint.states

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def first_that_holds(self, joint: Joint) -> Rule | None:
        """The uppermost rule whose joint state and condition hold."""
        for rule in self._rows[self._states(joint)]:
            if rule.when is None or rule.when(joint):
                return rule
        return None


def concerns_auth(event: Event) -> Event | None:
    """A 401 concerns the token, whoever met it."""
    failure = getattr(event, "failure", None)
    if failure is not None and failure.unauthorized and failure.generation:
        return TokenRejected(generation=failure.generation)
    return None


def _key(joint: Joint) -> int:
    subject = joint.lease or joint.session or joint.delivery
    return subject.key if subject is not None else 0


def _renewed(joint: Joint) -> Event:
    return TokenRenewed(lease=_key(joint), generation=joint.auth.generation)


_known_census: Callable[[Poller], Census] = attrgetter(*CensusTaken.__struct_fields__)


def _census(joint: Joint) -> Event:
    busy, backlog, settling, ran, unran, spare, with_room = joint.census
    return CensusTaken(
        busy=busy, backlog=backlog, settling=settling, ran=ran, unran=unran, spare=spare, with_room=with_room
    )


def _holds_nothing(joint: Joint) -> bool:
    return joint.census[:2] == (0, 0) and joint.poller.asking == 0


def _reports_a_run(joint: Joint) -> bool:
    return joint.lease is not None and joint.lease.ran


def _flush_open(joint: Joint) -> bool:
    return _reports_a_run(joint) and joint.session is not None and joint.session.flush is Flush.NONE


def _flush_over(joint: Joint) -> bool:
    return not _reports_a_run(joint) or joint.session is None or joint.session.flush is Flush.DONE


def _first_settled(joint: Joint) -> bool:
    return joint.session is not None and joint.session.settled and joint.lease is not None and not joint.lease.settled


def _outcome(joint: Joint) -> Event:
    assert joint.lease is not None and joint.lease.outcome is not None
    return OutcomeReady(lease=joint.lease.key, outcome=joint.lease.outcome, reply_lost=joint.lease.recovered)


def _news(reason: StopReason) -> Callable[[Joint], bool]:
    return lambda joint: joint.lease is not None and reason.outweighs(joint.lease.stop)


def _lost(joint: Joint) -> Event:
    return LeaseLost(lease=_key(joint), expired=joint.session is not None and joint.session.expired)


def _loss_is_news(joint: Joint) -> bool:
    expired = joint.session is not None and joint.session.expired
    return _news(StopReason.EXPIRED if expired else StopReason.LOST)(joint)


def _lasts(joint: Joint) -> bool:
    """Its lease has not run out, also where nobody has looked."""
    return joint.session is not None and joint.session.left(joint.now) > 0


def _has_turn(joint: Joint) -> bool:
    return _lasts(joint) and joint.claims.has_room(_key(joint))


def _is_hopeless(joint: Joint) -> bool:
    return _lasts(joint) and joint.claims.is_hopeless(_key(joint))


def _is_stuck(joint: Joint) -> bool:
    return joint.lease is not None and joint.lease.stuck


_TOKEN = (AuthState.SIGNED_IN, AuthState.REFRESHING)
_READY = (LeaseState.FOUND, LeaseState.ACCEPTED, LeaseState.PREPARING, LeaseState.QUEUED)
_BEGUN = (*_READY, LeaseState.RUNNING)
_MAYBE_STUCK = (LeaseState.UNSTOPPABLE, LeaseState.FINISHING, LeaseState.SETTLED)
_UNENDED = (*_BEGUN, LeaseState.STOPPING, LeaseState.UNSTOPPABLE)
_KEPT = (SessionState.PENDING, SessionState.ALIVE, SessionState.TROUBLED)
_DELIVERY_OVER = tuple(state for state in DeliveryState if state not in UNDELIVERED)

NODE_RULES = Rules(
    Rule(
        {},
        (("registration", lambda j: WalletDisowned()), ("auth", lambda j: RearmNoted())),
        "DDS does not know the wallet: registering again is what mends the sign-in",
        lambda j: j.auth.disowned,
    ),
    Rule(
        {"registration": (RegistrationState.REGISTERED,), "auth": (AuthState.SIGNED_OUT,)},
        (("auth", lambda j: SignInWanted()),),
        "a registered wallet can sign in",
    ),
    Rule(
        {"auth": _TOKEN},
        (("poller", _renewed),),
        "with a token the service can be asked",
        lambda j: j.poller.token_generation != j.auth.generation,
    ),
)

LEASE_RULES = Rules(
    Rule(
        {"poller": (PollerState.DRAINING,), "lease": _READY},
        (("lease", lambda j: NodeStopping(lease=_key(j))),),
        "a stopping node begins nothing",
        _news(StopReason.SHUTDOWN),
    ),
    Rule(
        {"poller": (PollerState.CLOSING, PollerState.STOPPED), "lease": _BEGUN},
        (("lease", lambda j: NodeStopping(lease=_key(j))),),
        "the time for running tasks is over",
        _news(StopReason.SHUTDOWN),
    ),
    Rule(
        {"lease": (LeaseState.ACCEPTED,), "session": (None,)},
        (("session", lambda j: KeepAliveWanted(lease=_key(j), ttl=j.lease.ttl if j.lease else None)),),
        "an accepted lease must be kept alive from the start",
        lambda j: j.lease is not None and j.lease.stop is None,
    ),
    Rule(
        {"auth": _TOKEN, "lease": (LeaseState.FOUND,), "session": (None,)},
        (("session", lambda j: KeepAliveWanted(lease=_key(j), ttl=j.lease.ttl if j.lease else None)),),
        "only the service knows whether a lease that was found still stands",
    ),
    Rule(
        {"auth": _TOKEN, "session": _KEPT},
        (("session", _renewed),),
        "a heartbeat may wait for the token",
        lambda j: j.session is not None and j.session.token_generation != j.auth.generation,
    ),
    Rule(
        {"auth": _TOKEN, "delivery": tuple(UNDELIVERED)},
        (("delivery", _renewed),),
        "an outcome may wait for the token",
        lambda j: j.delivery is not None and j.delivery.token_generation != j.auth.generation,
    ),
    Rule(
        {"session": (SessionState.CANCELLED,), "lease": _UNENDED},
        (("lease", lambda j: LeaseCancelled(lease=_key(j))),),
        "the service wants the task ended",
        _news(StopReason.CANCELLED),
    ),
    Rule(
        {"session": (SessionState.LOST,), "lease": _UNENDED},
        (("lease", _lost),),
        "without its lease a task must not go on",
        _loss_is_news,
    ),
    Rule(
        {"poller": (PollerState.DRAINING, PollerState.CLOSING), "lease": _MAYBE_STUCK},
        (("lease", lambda j: RunnerAbandoned(lease=_key(j))),),
        "user code that does not stop must not keep the node",
        _is_stuck,
    ),
    Rule(
        {"lease": (LeaseState.ACCEPTED, LeaseState.PREPARING)},
        (("lease", lambda j: KeepAliveSettled(lease=_key(j))),),
        "user code waits for the first heartbeat",
        _first_settled,
    ),
    Rule(
        {"lease": (LeaseState.QUEUED,)},
        (("lease", lambda j: RoomFound(lease=_key(j))),),
        "tasks begin in the order they came, where they do not get in one another's way",
        _has_turn,
    ),
    Rule(
        {"lease": (LeaseState.QUEUED,)},
        (("lease", lambda j: RoomDenied(lease=_key(j))),),
        "a lease must not wait, nor the node's asking with it, for user code that does not stop",
        _is_hopeless,
    ),
    Rule(
        {"lease": (LeaseState.SETTLED,), "delivery": (None,)},
        (("delivery", _outcome),),
        "a committed outcome has to be reported",
    ),
    Rule(
        {"session": (SessionState.CANCELLED,), "delivery": (DeliveryState.PENDING, DeliveryState.BACKING_OFF)},
        (("delivery", lambda j: OutcomeWithdrawn(lease=_key(j))),),
        "a cancelled task is not reported complete, unless that may have been heard already",
        lambda j: j.delivery is not None and not j.delivery.reply_lost,
    ),
    Rule(
        {"delivery": (DeliveryState.PENDING,)},
        (("session", lambda j: FlushWanted(lease=_key(j))),),
        "what user code reported last should arrive before the report of its end",
        _flush_open,
    ),
    Rule(
        {"delivery": (DeliveryState.PENDING,)},
        (("delivery", lambda j: FlushSettled(lease=_key(j))),),
        "nothing is to be waited for any more",
        _flush_over,
    ),
    Rule(
        {"delivery": (DeliveryState.BACKING_OFF,)},
        (("delivery", lambda j: OutcomeSuperseded(lease=_key(j))),),
        "what was found under an earlier lease must not end a newer one",
        lambda j: j.superseded(_key(j)),
    ),
    Rule(
        {"session": _KEPT, "delivery": _DELIVERY_OVER},
        (("session", lambda j: LeaseEnded(lease=_key(j))),),
        "the service has answered the report",
    ),
)

LAST_RULES = Rules(
    Rule(
        {},
        (("poller", _census),),
        "what the node holds decides whether it asks",
        lambda j: j.census != _known_census(j.poller),
    ),
    Rule(
        {"poller": (PollerState.DRAINING, PollerState.CLOSING)},
        (("poller", lambda j: Emptied()),),
        "a stopping node that holds nothing may leave",
        _holds_nothing,
    ),
)
