"""Events of the node's own machines: registration, auth, poller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posemesh.events._base import Event, Failure
from posemesh.secret import Secret

__all__ = (
    "AskAbandoned",
    "AskFailed",
    "AttemptDue",
    "CallbackArrived",
    "CallbackOverdue",
    "CancelRequested",
    "CensusTaken",
    "DrainOver",
    "DrainRequested",
    "Emptied",
    "HealthProbed",
    "LeaveDue",
    "NoWork",
    "NodeLeft",
    "NodeStarted",
    "PollDue",
    "ProbeOverdue",
    "RearmNoted",
    "RefreshDue",
    "RegistrationAccepted",
    "RegistrationDue",
    "RegistrationRejected",
    "SecretStored",
    "SecretUnstored",
    "SignInFailed",
    "SignInWanted",
    "SignedIn",
    "TokenExpired",
    "TokenRejected",
    "WalletDisowned",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationEvent(Event):
    machines: ClassVar[tuple[str, ...]] = ("registration",)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStarted(RegistrationEvent):
    """Shell: the node was told to start, and its server (if it has one) accepts connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationAccepted(RegistrationEvent):
    """Shell, answers Register: DDS took the registration (any 2xx)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRejected(RegistrationEvent):
    """Shell, answers Register: either of its two calls failed.

    Its class follows from the status, unless ``lasting`` says it: False for an answer that could not be used
    (undecodable, a field missing), which is tried again like a 5xx; True for a challenge that is not ours to sign.
    """

    failure: Failure
    lasting: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationDue(RegistrationEvent):
    """Timer: the backoff or the cooldown is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackOverdue(RegistrationEvent):
    """Timer: DDS took the registration but has not called back within REGISTER_INTERVAL_SECS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackArrived(RegistrationEvent):
    """Shell: a well-formed registration callback waits for its answer under the number ``request``."""

    request: int
    node_id: str
    secret: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretStored(RegistrationEvent):
    """Shell, answers StoreSecret: written, and read back equal."""

    request: int
    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretUnstored(RegistrationEvent):
    """Shell, answers StoreSecret: ``problem`` is ``persist failed`` or ``persist verify failed``."""

    request: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthProbed(RegistrationEvent):
    """Shell: ``GET /health`` came with a user agent that starts with ``DDS v``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOverdue(RegistrationEvent):
    """Timer: no probe of DDS came within REGISTER_INTERVAL_SECS (callback flow only)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletDisowned(RegistrationEvent):
    """Coupling: DDS answered 403 or 404 to SIWE verify, so it does not know this wallet (any more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthEvent(Event):
    machines: ClassVar[tuple[str, ...]] = ("auth",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInWanted(AuthEvent):
    """Coupling: the wallet is registered, so a token can be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn(AuthEvent):
    """Shell, answers SignIn: a token and its lifetime in seconds from now, None where DDS named no expiry."""

    token: Secret
    ttl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInFailed(AuthEvent):
    """Shell, answers SignIn. ``at_verify`` tells the second call (verify) from the first (nonce)."""

    failure: Failure
    at_verify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptDue(AuthEvent):
    """Timer: the pause between two attempts, or between two rounds without a token, is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshDue(AuthEvent):
    """Timer: the token has used up its safe share of its lifetime, or the pause after a failed round is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenExpired(AuthEvent):
    """Timer: the token is over (a margin before its true expiry)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRejected(AuthEvent):
    """Coupling: a service answered 401 to the token of ``generation``."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RearmNoted(AuthEvent):
    """Coupling: registration has been told that the wallet is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLeft(Event):
    """Shell: the node is over; nothing more is to be sent."""

    machines: ClassVar[tuple[str, ...]] = ("registration", "auth")


@dataclass(frozen=True, slots=True, kw_only=True)
class PollerEvent(Event):
    machines: ClassVar[tuple[str, ...]] = ("poller",)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoWork(PollerEvent):
    """Shell, answers Ask: 204, or 409 where the service thinks this node busy. ``retry_after`` in seconds."""

    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFailed(PollerEvent):
    """Shell, answers Ask."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class PollDue(PollerEvent):
    """Timer: the pause between two asks is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CensusTaken(PollerEvent):
    """Coupling: how much the node holds has changed.

    ``busy`` leases hold a slot; ``backlog`` outcomes are undelivered, ``settling`` of them unanswered at their first
    offer; ``ran`` counts runner starts, ends and delivered outcomes so far, ``unran`` leases that ended without a run
    or whose outcome was not taken. ``spare`` tasks could begin besides, 0 while one waits for room, None where no
    runner is limited; only of the capabilities ``with_room``, None for all.
    """

    busy: int
    backlog: int
    settling: int
    ran: int
    unran: int
    spare: int | None = None
    with_room: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested(PollerEvent):
    """Shell: a first signal, or ``Node.stop``. Running tasks may go on for ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested(PollerEvent):
    """Shell: a second signal: what runs is to be cancelled now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskAbandoned(PollerEvent):
    """Timer: an ask that was in flight when the node was told to stop is not waited for any longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOver(PollerEvent):
    """Timer: DRAIN_TIMEOUT_SECS is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emptied(PollerEvent):
    """Coupling: a stopping node holds nothing any more: no lease, no undelivered outcome, no ask in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveDue(PollerEvent):
    """Timer: what is still undelivered this long after the drain stays undelivered."""
