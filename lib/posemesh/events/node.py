"""Events of the node's own machines: registration, auth, poller."""

from __future__ import annotations

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


class RegistrationEvent(Event, frozen=True, kw_only=True):
    machines: ClassVar[tuple[str, ...]] = ("registration",)


class NodeStarted(RegistrationEvent, frozen=True, kw_only=True):
    """Shell: the node was told to start, and its server (if it has one) accepts connections."""


class RegistrationAccepted(RegistrationEvent, frozen=True, kw_only=True):
    """Shell, answers Register: DDS took the registration (any 2xx)."""


class RegistrationRejected(RegistrationEvent, frozen=True, kw_only=True):
    """Shell, answers Register: either of its two calls failed.

    Its class follows from the status, unless ``lasting`` says it: False for an answer that could not be used
    (undecodable, a field missing), which is tried again like a 5xx; True for a challenge that is not ours to sign.
    """

    failure: Failure
    lasting: bool | None = None


class RegistrationDue(RegistrationEvent, frozen=True, kw_only=True):
    """Timer: the backoff or the cooldown is over."""


class CallbackOverdue(RegistrationEvent, frozen=True, kw_only=True):
    """Timer: DDS took the registration but has not called back within REGISTER_INTERVAL_SECS."""


class CallbackArrived(RegistrationEvent, frozen=True, kw_only=True):
    """Shell: a well-formed registration callback waits for its answer under the number ``request``."""

    request: int
    node_id: str
    secret: Secret


class SecretStored(RegistrationEvent, frozen=True, kw_only=True):
    """Shell, answers StoreSecret: written, and read back equal."""

    request: int
    node_id: str


class SecretUnstored(RegistrationEvent, frozen=True, kw_only=True):
    """Shell, answers StoreSecret: ``problem`` is ``persist failed`` or ``persist verify failed``."""

    request: int
    problem: str


class HealthProbed(RegistrationEvent, frozen=True, kw_only=True):
    """Shell: ``GET /health`` came with a user agent that starts with ``DDS v``."""


class ProbeOverdue(RegistrationEvent, frozen=True, kw_only=True):
    """Timer: no probe of DDS came within REGISTER_INTERVAL_SECS (callback flow only)."""


class WalletDisowned(RegistrationEvent, frozen=True, kw_only=True):
    """Coupling: DDS answered 403 or 404 to SIWE verify, so it does not know this wallet (any more)."""


class AuthEvent(Event, frozen=True, kw_only=True):
    machines: ClassVar[tuple[str, ...]] = ("auth",)


class SignInWanted(AuthEvent, frozen=True, kw_only=True):
    """Coupling: the wallet is registered, so a token can be had."""


class SignedIn(AuthEvent, frozen=True, kw_only=True):
    """Shell, answers SignIn: a token and its lifetime in seconds from now, None where DDS named no expiry."""

    token: Secret
    ttl: float | None


class SignInFailed(AuthEvent, frozen=True, kw_only=True):
    """Shell, answers SignIn. ``at_verify`` tells the second call (verify) from the first (nonce)."""

    failure: Failure
    at_verify: bool = False


class AttemptDue(AuthEvent, frozen=True, kw_only=True):
    """Timer: the pause between two attempts, or between two rounds without a token, is over."""


class RefreshDue(AuthEvent, frozen=True, kw_only=True):
    """Timer: the token has used up its safe share of its lifetime, or the pause after a failed round is over."""


class TokenExpired(AuthEvent, frozen=True, kw_only=True):
    """Timer: the token is over (a margin before its true expiry)."""


class TokenRejected(AuthEvent, frozen=True, kw_only=True):
    """Coupling: a service answered 401 to the token of ``generation``."""

    generation: int


class RearmNoted(AuthEvent, frozen=True, kw_only=True):
    """Coupling: registration has been told that the wallet is unknown."""


class NodeLeft(Event, frozen=True, kw_only=True):
    """Shell: the node is over; nothing more is to be sent."""

    machines: ClassVar[tuple[str, ...]] = ("registration", "auth")


class PollerEvent(Event, frozen=True, kw_only=True):
    machines: ClassVar[tuple[str, ...]] = ("poller",)


class NoWork(PollerEvent, frozen=True, kw_only=True):
    """Shell, answers Ask: 204, or 409 where the service thinks this node busy. ``retry_after`` in seconds."""

    retry_after: float | None = None


class AskFailed(PollerEvent, frozen=True, kw_only=True):
    """Shell, answers Ask."""

    failure: Failure


class PollDue(PollerEvent, frozen=True, kw_only=True):
    """Timer: the pause between two asks is over."""


class CensusTaken(PollerEvent, frozen=True, kw_only=True):
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


class DrainRequested(PollerEvent, frozen=True, kw_only=True):
    """Shell: a first signal, or ``Node.stop``. Running tasks may go on for ``seconds``."""

    seconds: float


class CancelRequested(PollerEvent, frozen=True, kw_only=True):
    """Shell: a second signal: what runs is to be cancelled now."""


class AskAbandoned(PollerEvent, frozen=True, kw_only=True):
    """Timer: an ask that was in flight when the node was told to stop is not waited for any longer."""


class DrainOver(PollerEvent, frozen=True, kw_only=True):
    """Timer: DRAIN_TIMEOUT_SECS is over."""


class Emptied(PollerEvent, frozen=True, kw_only=True):
    """Coupling: a stopping node holds nothing any more: no lease, no undelivered outcome, no ask in flight."""


class LeaveDue(PollerEvent, frozen=True, kw_only=True):
    """Timer: what is still undelivered this long after the drain stays undelivered."""
