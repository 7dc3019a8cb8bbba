"""Events of one lease: the lease itself, its session, its outcome's delivery; and those that the poller hears too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from posemesh.events._base import Failure, LeaseScoped
from posemesh.types import JSON, Artifact, HeartbeatAnswer, LeaseEnvelope, Outcome

__all__ = (
    "CommitDue",
    "CommitFailed",
    "Committed",
    "EventLogged",
    "FirstAnswerOverdue",
    "FlushOverdue",
    "FlushSettled",
    "FlushWanted",
    "HeartbeatAccepted",
    "HeartbeatDue",
    "HeartbeatFailed",
    "KeepAliveSettled",
    "KeepAliveWanted",
    "LeaseCancelled",
    "LeaseEnded",
    "LeaseExpired",
    "LeaseLost",
    "LeaseOffered",
    "LeaseRecovered",
    "LeaseUnreadable",
    "NodeStopping",
    "OfferDue",
    "OutcomeAccepted",
    "OutcomeReady",
    "OutcomeRecovered",
    "OutcomeRejected",
    "OutcomeSuperseded",
    "OutcomeWithdrawn",
    "ProgressMade",
    "RoomDenied",
    "RoomFound",
    "RunnerAbandoned",
    "RunnerFailed",
    "RunnerFinished",
    "RunnerOverdue",
    "StopOverdue",
    "TokenRenewed",
    "TransferMoved",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRenewed(LeaseScoped):
    """Coupling: there is a token of a generation that this machine has not seen."""

    machines: ClassVar[tuple[str, ...]] = ("poller", "session", "delivery")
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOffered(LeaseScoped):
    """Shell, answers Ask: a lease. ``ttl`` is in seconds from now; None where its expiry is absent or already past.

    ``runner`` is the name of the one chosen for it, ``""`` that of its capability; user code may take ``timeout``
    seconds. ``problem`` says why no runner takes the task although one has its capability. ``standing`` is the result
    of an earlier lease of the task, undelivered so far, whose artifacts are still there.
    """

    machines: ClassVar[tuple[str, ...]] = ("poller", "lease")
    envelope: LeaseEnvelope
    ttl: float | None
    runner: str = ""
    timeout: float | None = None
    problem: str = ""
    standing: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseUnreadable(LeaseScoped):
    """Shell, answers Ask: a lease that cannot be decoded but names its task."""

    machines: ClassVar[tuple[str, ...]] = ("poller", "lease")
    task_id: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAccepted(LeaseScoped):
    """Shell, answers SendHeartbeat. ``ttl`` as in LeaseOffered. The lease hears of it first, to take its terms."""

    machines: ClassVar[tuple[str, ...]] = ("lease", "session")
    answer: HeartbeatAnswer
    ttl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEvent(LeaseScoped):
    machines: ClassVar[tuple[str, ...]] = ("lease",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(LeaseEvent):
    """Shell, answers CommitAccepted and CommitOutcome: it is in the ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitFailed(LeaseEvent):
    """Shell, answers CommitAccepted and CommitOutcome: it is not in the ledger."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecovered(LeaseEvent):
    """Shell, at the start: a lease on record that was under way when the node before this one ended. The fields are
    those of LeaseOffered; where ``code`` is given, the task is not run again but failed with it, for ``problem``.
    """

    envelope: LeaseEnvelope
    ttl: float | None
    runner: str = ""
    timeout: float | None = None
    code: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRecovered(LeaseEvent):
    """Shell, at the start: an outcome on record that the service has not answered to."""

    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitDue(LeaseEvent):
    """Timer: the outcome's commit is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAliveSettled(LeaseEvent):
    """Coupling: the first heartbeat was answered, failed, or took its second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomFound(LeaseEvent):
    """Coupling: what its runner needs is free, and nobody is before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomDenied(LeaseEvent):
    """Coupling: what its runner needs is held by user code that does not stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCancelled(LeaseEvent):
    """Coupling: the service asked, in an answer, that this task end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost(LeaseEvent):
    """Coupling: the lease is no longer ours; ``expired`` where it ran out here, else the service said so."""

    expired: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStopping(LeaseEvent):
    """Coupling: the node takes up nothing new, or is to end what runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerFinished(LeaseEvent):
    """Shell, answers StartRunner: user code returned; its artifacts are uploaded."""

    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerFailed(LeaseEvent):
    """Shell, answers StartRunner: set-up or user code failed, or ended because it was told to stop."""

    code: str
    message: str
    details: dict[str, JSON] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOverdue(LeaseEvent):
    """Timer: user code has had the seconds it may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOverdue(LeaseEvent):
    """Timer: user code was told to stop and has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerAbandoned(LeaseEvent):
    """Coupling: the node is leaving and will not wait for user code that does not stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvent(LeaseScoped):
    machines: ClassVar[tuple[str, ...]] = ("session",)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAliveWanted(SessionEvent):
    """Coupling: the lease was accepted and must be kept. ``ttl`` as in LeaseOffered."""

    ttl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatFailed(SessionEvent):
    """Shell, answers SendHeartbeat."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatDue(SessionEvent):
    """Timer: the next heartbeat is to be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstAnswerOverdue(SessionEvent):
    """Timer: the first heartbeat has been unanswered for a second; the task does not wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseExpired(SessionEvent):
    """Timer: the lease's time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressMade(SessionEvent):
    """Shell: user code reported progress; the latest value counts."""

    progress: JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLogged(SessionEvent):
    """Shell: user code logged an event; all are sent, in order."""

    record: JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferMoved(SessionEvent):
    """Shell: the transfer ``in`` or ``out`` of that name got so far; ``total`` is None where it is not known."""

    transfer: str
    way: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushWanted(SessionEvent):
    """Coupling: a finished task's last progress and events should arrive before its report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushOverdue(SessionEvent):
    """Timer: the flush has had its second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded(SessionEvent):
    """Coupling: complete or fail was answered for good; no more heartbeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryEvent(LeaseScoped):
    machines: ClassVar[tuple[str, ...]] = ("delivery",)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeReady(DeliveryEvent):
    """Coupling: a committed outcome that the service has to hear of; ``reply_lost`` where it may have heard already."""

    outcome: Outcome
    reply_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushSettled(DeliveryEvent):
    """Coupling: nothing is to be waited for before the outcome is offered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeSuperseded(DeliveryEvent):
    """Coupling: a newer lease of the same task decides what the service is to hear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeWithdrawn(DeliveryEvent):
    """Coupling: the service cancelled the task before it could hear of its outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeAccepted(DeliveryEvent):
    """Shell, answers OfferOutcome: any 2xx."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRejected(DeliveryEvent):
    """Shell, answers OfferOutcome: any other answer, or none."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferDue(DeliveryEvent):
    """Timer: the outcome is offered again."""
