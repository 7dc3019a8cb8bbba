"""Registration: the wallet's standing with the discovery service (DDS).

Rules:
1. There are two flows. Without NODE_URL (wallet flow) an accepted request is a registration. With NODE_URL (callback
   flow) it counts only once DDS has called back and the callback's secret is stored, whichever of the two comes first.
2. Anybody can call back, so a callback counts only while one is expected; it never moves a registered node.
3. Before the first success three refusals (400, 401, 403) in a row end the node's start: the wallet or its secret is
   wrong. After it nothing that DDS answers ends anything.

Unusual edges: a registered node registers again when DDS disowns the wallet at a sign-in, and in the callback flow when
no health probe of DDS came within REGISTER_INTERVAL_SECS, which is how DDS shows that it still knows the node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from posemesh.commands import AnswerCallback, Command, GiveUp, Register, StoreSecret, Warn
from posemesh.errors import RegistrationRefused
from posemesh.events import (
    CallbackArrived,
    CallbackOverdue,
    Event,
    HealthProbed,
    NodeLeft,
    NodeStarted,
    ProbeOverdue,
    RegistrationAccepted,
    RegistrationDue,
    RegistrationRejected,
    SecretStored,
    SecretUnstored,
    WalletDisowned,
)
from posemesh.machines._kernel import Edge, Lifecycle, State, Step, Subject
from posemesh.policy import REFUSALS_MAX, WARN_EVERY_SECS, registration_backoff

__all__ = ("MACHINE", "Registration", "RegistrationState", "invariants")


class RegistrationState(State):
    IDLE = "idle", "The node has not been started."
    REGISTERING = "registering", "A registration request is in flight."
    AWAITING_CALLBACK = "awaiting_callback", "DDS took the request; its callback has not come (callback flow only)."
    REGISTERED = "registered", "DDS knows this wallet. No traffic."
    BACKING_OFF = "backing_off", "The last try failed in passing; the next follows after 2, 4, 8 … 60 s."
    COOLING_DOWN = "cooling_down", "DDS refused, or the tries are spent; the next follows after REGISTER_INTERVAL_SECS."
    STOPPED = "stopped", "The node is over, or its start was refused."


IDLE, REGISTERING, AWAITING, REGISTERED, BACKING_OFF, COOLING_DOWN, STOPPED = RegistrationState


@dataclass(eq=False, slots=True, kw_only=True)
class Registration(Subject):
    """``failures`` and ``refusals`` count tries in a row; ``caller`` is the node id of a callback whose secret is
    stored.
    """

    state: State = IDLE
    failures: int = 0
    refusals: int = 0
    ever: bool = False
    caller: str | None = None
    blocked_since: float | None = None
    warned_at: float | None = None


def _callback_flow(step: Step[Event]) -> bool:
    return step.config.node_url is not None


def confirmed(reg: Registration, step: Step[RegistrationAccepted]) -> bool:
    return not _callback_flow(step) or reg.caller is not None


def third_refusal(reg: Registration, step: Step[RegistrationRejected]) -> bool:
    return not reg.ever and _refusal(step) and reg.refusals + 1 >= REFUSALS_MAX


def conflict(reg: Registration, step: Step[RegistrationRejected]) -> bool:
    return step.event.failure.status == 409


def permanent(reg: Registration, step: Step[RegistrationRejected]) -> bool:
    if step.event.lasting is not None:
        return step.event.lasting
    status = step.event.failure.status
    return status is not None and status not in (408, 429) and status < 500


def retries_spent(reg: Registration, step: Step[Event]) -> bool:
    return 0 <= step.config.register_max_retry <= reg.failures + 1


def callback_flow(reg: Registration, step: Step[Event]) -> bool:
    return _callback_flow(step)


def wallet_flow(reg: Registration, step: Step[Event]) -> bool:
    return not _callback_flow(step)


def same_node(reg: Registration, step: Step[CallbackArrived | SecretStored]) -> bool:
    return step.event.node_id == reg.caller


def _refusal(step: Step[RegistrationRejected]) -> bool:
    return step.event.lasting is None and step.event.failure.status in (400, 401, 403)


def begin(reg: Registration, step: Step[Event]) -> Command:
    reg.caller = None
    reg.disarm(RegistrationDue, CallbackOverdue, ProbeOverdue)
    return Register()


def settle(reg: Registration, step: Step[Event]) -> None:
    reg.failures = reg.refusals = 0
    reg.ever = True
    reg.blocked_since = reg.warned_at = None
    reg.disarm(CallbackOverdue)
    watch_probes(reg, step)


def watch_probes(reg: Registration, step: Step[Event]) -> None:
    if _callback_flow(step):
        reg.arm(ProbeOverdue, step.now + step.config.register_interval_secs)


def await_callback(reg: Registration, step: Step[Event]) -> None:
    reg.arm(CallbackOverdue, step.now + step.config.register_interval_secs)


def back_off(reg: Registration, step: Step[Event]) -> None:
    reg.failures += 1
    reg.refusals = 0
    reg.arm(RegistrationDue, step.now + registration_backoff(reg.failures, step.rng))


def cool_down(reg: Registration, step: Step[Event]) -> None:
    reg.failures = 0
    reg.arm(RegistrationDue, step.now + step.config.register_interval_secs)


def count_refusal(reg: Registration, step: Step[RegistrationRejected]) -> None:
    reg.refusals = reg.refusals + 1 if _refusal(step) else 0


def clear_refusals(reg: Registration, step: Step[Event]) -> None:
    reg.refusals = 0


def warn(reg: Registration, step: Step[RegistrationRejected | CallbackOverdue]) -> Command | None:
    if reg.blocked_since is None:
        reg.blocked_since = step.now
    if reg.warned_at is not None and step.now - reg.warned_at < WARN_EVERY_SECS:
        return None
    reg.warned_at = step.now
    blocked, pause = step.now - reg.blocked_since, reg.timers[RegistrationDue] - step.now
    problem = f"DDS took it and did not call {step.config.node_url} back"
    if isinstance(step.event, RegistrationRejected):
        problem = step.event.failure.message
    return Warn(message=f"registration: {problem}; blocked for {blocked:.0f} s, next try in {pause:.3g} s")


def give_up(reg: Registration, step: Step[RegistrationRejected]) -> Command:
    return GiveUp(
        error=RegistrationRefused(
            f"DDS refused the registration {REFUSALS_MAX} times: {step.event.failure.message}. "
            "Check REG_SECRET, SECP256K1_PRIVHEX and DDS_BASE_URL against what the node's operator was given."
        )
    )


def store(reg: Registration, step: Step[CallbackArrived]) -> Command:
    return StoreSecret(request=step.event.request, node_id=step.event.node_id, secret=step.event.secret)


def note_caller(reg: Registration, step: Step[SecretStored]) -> None:
    reg.caller = step.event.node_id


def answer_ok(reg: Registration, step: Step[CallbackArrived | SecretStored]) -> Command:
    return AnswerCallback(request=step.event.request, status=200)


def answer_taken(reg: Registration, step: Step[CallbackArrived | SecretStored]) -> Command:
    return AnswerCallback(request=step.event.request, status=409, text="already registered")


def answer_unexpected(reg: Registration, step: Step[CallbackArrived | SecretStored]) -> Command:
    return AnswerCallback(request=step.event.request, status=409, text="no callback is expected")


def answer_unstored(reg: Registration, step: Step[SecretUnstored]) -> Command:
    return AnswerCallback(request=step.event.request, status=409, text=step.event.problem)


_ANY = tuple(RegistrationState)
_LIVE = tuple(state for state in RegistrationState if state is not STOPPED)

TABLE = (
    Edge(NodeStarted, IDLE, REGISTERING, "a node is of use to the network only once DDS knows its wallet", do=(begin,)),
    Edge(RegistrationAccepted, REGISTERING, REGISTERED, "all that the flow asks for is there", confirmed, (settle,)),
    Edge(
        RegistrationAccepted, REGISTERING, AWAITING, "DDS proves the node's address by calling it", do=(await_callback,)
    ),
    Edge(RegistrationAccepted, STOPPED, None, "an answer may outlive the node"),
    Edge(
        RegistrationRejected,
        REGISTERING,
        STOPPED,
        "a wrong secret does not become right by waiting",
        third_refusal,
        (give_up,),
    ),
    Edge(
        RegistrationRejected,
        REGISTERING,
        COOLING_DOWN,
        "another node is online under this wallet: it may go, and asking often does not hasten it",
        conflict,
        (clear_refusals, cool_down, warn),
    ),
    Edge(
        RegistrationRejected,
        REGISTERING,
        COOLING_DOWN,
        "DDS means it: only the operator, or time, changes this answer",
        permanent,
        (count_refusal, cool_down, warn),
    ),
    Edge(
        RegistrationRejected,
        REGISTERING,
        COOLING_DOWN,
        "REGISTER_MAX_RETRY quick tries are spent",
        retries_spent,
        (clear_refusals, cool_down, warn),
    ),
    Edge(RegistrationRejected, REGISTERING, BACKING_OFF, "a passing failure is tried again soon", do=(back_off, warn)),
    Edge(RegistrationRejected, STOPPED, None, "an answer may outlive the node"),
    Edge(RegistrationDue, (BACKING_OFF, COOLING_DOWN), REGISTERING, "the pause is over", do=(begin,)),
    Edge(
        CallbackOverdue,
        AWAITING,
        BACKING_OFF,
        "the callback is lost: only a new request brings another",
        do=(back_off, warn),
    ),
    Edge(
        CallbackArrived,
        REGISTERING,
        None,
        "without NODE_URL nobody is asked to call, so a stranger does",
        wallet_flow,
        (answer_unexpected,),
    ),
    Edge(CallbackArrived, (REGISTERING, AWAITING), None, "it counts once its secret is stored", do=(store,)),
    Edge(CallbackArrived, REGISTERED, None, "DDS repeats itself; the registration stands", same_node, (answer_ok,)),
    Edge(CallbackArrived, REGISTERED, None, "a stranger must not replace a standing registration", do=(answer_taken,)),
    Edge(
        CallbackArrived,
        (IDLE, BACKING_OFF, COOLING_DOWN, STOPPED),
        None,
        "nobody was asked to call",
        do=(answer_unexpected,),
    ),
    Edge(
        SecretStored,
        REGISTERING,
        None,
        "DDS called before it answered; the answer completes it",
        do=(note_caller, answer_ok),
    ),
    Edge(
        SecretStored, AWAITING, REGISTERED, "request and callback have both come", do=(note_caller, answer_ok, settle)
    ),
    Edge(SecretStored, REGISTERED, None, "DDS called twice in the same try", same_node, (answer_ok,)),
    Edge(SecretStored, REGISTERED, None, "a stranger called in the same try, and came second", do=(answer_taken,)),
    Edge(
        SecretStored,
        (IDLE, BACKING_OFF, COOLING_DOWN, STOPPED),
        None,
        "the try it belonged to has ended meanwhile",
        do=(answer_unexpected,),
    ),
    Edge(SecretUnstored, _ANY, None, "DDS must know that its callback did not count", do=(answer_unstored,)),
    Edge(HealthProbed, REGISTERED, None, "DDS shows that it knows the node", callback_flow, (watch_probes,)),
    Edge(HealthProbed, _ANY, None, "a probe proves nothing here"),
    Edge(ProbeOverdue, REGISTERED, REGISTERING, "DDS has stopped looking: it may have forgotten the node", do=(begin,)),
    Edge(WalletDisowned, REGISTERED, REGISTERING, "DDS says that it does not know the wallet", do=(begin,)),
    Edge(
        WalletDisowned,
        tuple(s for s in RegistrationState if s is not REGISTERED),
        None,
        "a registration is under way or over",
    ),
    Edge(NodeLeft, _LIVE, STOPPED, "the node is over"),
    Edge(NodeLeft, STOPPED, None, "it has stopped already"),
)

MACHINE = Lifecycle("registration", RegistrationState, TABLE, subject=Registration, initial=IDLE, ends=(STOPPED,))


def invariants(reg: Registration) -> Iterator[str]:
    """What does not hold and should."""
    waiting: dict[State, type[Event]] = {
        BACKING_OFF: RegistrationDue,
        COOLING_DOWN: RegistrationDue,
        AWAITING: CallbackOverdue,
    }
    expected = waiting.get(reg.state)
    if expected is not None and expected not in reg.timers:
        yield f"{reg.state} without {expected.__name__}"
    if reg.state in (REGISTERING, IDLE, STOPPED) and reg.timers:
        yield f"{reg.state} with timers {reg.timers}"
    if reg.state is REGISTERED and not reg.ever:
        yield "registered without ever having been"
