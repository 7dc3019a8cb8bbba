"""What to do. Every command is a frozen record; it names the events that answer it, of which exactly one comes."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Self

from msgspec import Struct
from msgspec.structs import replace

from posemesh.errors import NodeStartError
from posemesh.events import (
    AskFailed,
    CommitFailed,
    Committed,
    Event,
    Failure,
    HeartbeatAccepted,
    HeartbeatFailed,
    LeaseId,
    LeaseOffered,
    LeaseUnreadable,
    NoWork,
    OutcomeAccepted,
    OutcomeRejected,
    RegistrationAccepted,
    RegistrationRejected,
    RunnerFailed,
    RunnerFinished,
    SecretStored,
    SecretUnstored,
    SignedIn,
    SignInFailed,
)
from posemesh.outcomes import FailureCode
from posemesh.secret import Secret
from posemesh.types import JSON, LeaseEnvelope, Outcome

__all__ = (
    "AnswerCallback",
    "Answered",
    "Ask",
    "Authorized",
    "Command",
    "CommitAccepted",
    "CommitOutcome",
    "GiveUp",
    "Leave",
    "OfferOutcome",
    "Register",
    "SendHeartbeat",
    "SettleOutcome",
    "SignIn",
    "StartRunner",
    "StopReason",
    "StopRunner",
    "StoreSecret",
    "UpdateLease",
    "Warn",
)


class StopReason(StrEnum):
    """Why user code was told to stop, weakest first: a later, stronger one takes the place of a weaker."""

    SHUTDOWN = "shutdown"
    EXPIRED = "expired"
    TIMEOUT = "timeout"
    LOST = "lost"
    CANCELLED = "cancelled"

    def outweighs(self, other: StopReason | None) -> bool:
        """Whether it takes the place of ``other``."""
        return other is None or _STRENGTH.index(self) > _STRENGTH.index(other)


_STRENGTH = tuple(StopReason)


class Command(Struct, frozen=True, kw_only=True):
    """Something the shell is to do."""


class Answered(Command, frozen=True, kw_only=True):
    """A command that one event answers. :meth:`failed` is that event where it could not be carried out."""

    answers: ClassVar[tuple[type[Event], ...]] = ()

    def failed(self, failure: Failure) -> Event:
        raise NotImplementedError


class Authorized(Answered, frozen=True, kw_only=True):
    """A request to the task service. The engine puts the node's token in, or answers it itself where there is none."""

    token: Secret | None = None
    generation: int = 0

    def under(self, token: Secret, generation: int) -> Self:
        return replace(self, token=token, generation=generation)


class Register(Answered, frozen=True, kw_only=True):
    """Register the wallet with DDS, by the flow the configuration chooses."""

    answers: ClassVar = (RegistrationAccepted, RegistrationRejected)

    def failed(self, failure: Failure) -> Event:
        return RegistrationRejected(failure=failure)


class StoreSecret(Answered, frozen=True, kw_only=True):
    """Keep the callback's secret and read it back."""

    answers: ClassVar = (SecretStored, SecretUnstored)
    request: int
    node_id: str
    secret: Secret

    def failed(self, failure: Failure) -> Event:
        return SecretUnstored(request=self.request, problem="persist failed")


class AnswerCallback(Command, frozen=True, kw_only=True):
    """Answer the waiting callback ``request``; ``text`` is the body of an answer that is not 200."""

    request: int
    status: int
    text: str = ""


class SignIn(Answered, frozen=True, kw_only=True):
    """Sign in with Ethereum at DDS: fresh challenge, check, signature, verify."""

    answers: ClassVar = (SignedIn, SignInFailed)

    def failed(self, failure: Failure) -> Event:
        return SignInFailed(failure=failure)


class Ask(Authorized, frozen=True, kw_only=True):
    """``GET /tasks``: any task of this node's, or only one of that ``capability``."""

    answers: ClassVar = (LeaseOffered, LeaseUnreadable, NoWork, AskFailed)
    capability: str | None = None

    def failed(self, failure: Failure) -> Event:
        return AskFailed(failure=failure)


class SendHeartbeat(Authorized, frozen=True, kw_only=True):
    """``POST /tasks/{id}/heartbeat``, given up after ``timeout`` seconds."""

    answers: ClassVar = (HeartbeatAccepted, HeartbeatFailed)
    lease: LeaseId
    task_id: str
    progress: JSON
    events: tuple[JSON, ...]
    timeout: float

    def failed(self, failure: Failure) -> Event:
        return HeartbeatFailed(lease=self.lease, failure=failure)


class OfferOutcome(Authorized, frozen=True, kw_only=True):
    """``POST /tasks/{id}/complete`` or ``/fail``, as the outcome's kind says."""

    answers: ClassVar = (OutcomeAccepted, OutcomeRejected)
    lease: LeaseId
    outcome: Outcome

    def failed(self, failure: Failure) -> Event:
        return OutcomeRejected(lease=self.lease, failure=failure)


class CommitAccepted(Answered, frozen=True, kw_only=True):
    """Write to the ledger that this lease was taken."""

    answers: ClassVar = (Committed, CommitFailed)
    lease: LeaseId
    envelope: LeaseEnvelope

    def failed(self, failure: Failure) -> Event:
        return CommitFailed(lease=self.lease, problem=failure.message)


class CommitOutcome(Answered, frozen=True, kw_only=True):
    """Write to the ledger how this lease ended here."""

    answers: ClassVar = (Committed, CommitFailed)
    lease: LeaseId
    outcome: Outcome

    def failed(self, failure: Failure) -> Event:
        return CommitFailed(lease=self.lease, problem=failure.message)


class SettleOutcome(Command, frozen=True, kw_only=True):
    """Note in the ledger how the outcome's delivery ended, and what stood in its way. Unanswered: a note that is lost
    costs one more offer.
    """

    lease: LeaseId
    ending: str
    problem: str = ""


class StartRunner(Answered, frozen=True, kw_only=True):
    """Set the task up and run user code for it, by the runner of that name; ``""`` is that of the capability."""

    answers: ClassVar = (RunnerFinished, RunnerFailed)
    lease: LeaseId
    envelope: LeaseEnvelope
    runner: str = ""

    def failed(self, failure: Failure) -> Event:
        return RunnerFailed(lease=self.lease, code=FailureCode.SETUP_FAILED, message=failure.message)


class StopRunner(Command, frozen=True, kw_only=True):
    """Tell user code to stop. Its end is the answer to StartRunner."""

    lease: LeaseId
    reason: StopReason


class UpdateLease(Command, frozen=True, kw_only=True):
    """A running task has new terms: the domain token of its next request among them."""

    lease: LeaseId
    envelope: LeaseEnvelope


class GiveUp(Command, frozen=True, kw_only=True):
    """The node cannot start: ``error`` is what ``start()`` raises."""

    error: NodeStartError


class Leave(Command, frozen=True, kw_only=True):
    """The node has nothing left to do and may end."""


class Warn(Command, frozen=True, kw_only=True):
    """Tell the operator."""

    message: str
