"""Events of one lease: the lease itself, its session, its outcome's delivery; and those that the poller hears too."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

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


class TokenRenewed(LeaseScoped, frozen=True, kw_only=True):
    """Coupling: there is a token of a generation that this machine has not seen."""

    machines: ClassVar[tuple[str, ...]] = ("poller", "session", "delivery")
    generation: int


class LeaseOffered(LeaseScoped, frozen=True, kw_only=True):
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


class LeaseUnreadable(LeaseScoped, frozen=True, kw_only=True):
    """Shell, answers Ask: a lease that cannot be decoded but names its task."""

    machines: ClassVar[tuple[str, ...]] = ("poller", "lease")
    task_id: str
    problem: str


class HeartbeatAccepted(LeaseScoped, frozen=True, kw_only=True):
    """Shell, answers SendHeartbeat. ``ttl`` as in LeaseOffered. The lease hears of it first, to take its terms."""

    machines: ClassVar[tuple[str, ...]] = ("lease", "session")
    answer: HeartbeatAnswer
    ttl: float | None


class LeaseEvent(LeaseScoped, frozen=True, kw_only=True):
    machines: ClassVar[tuple[str, ...]] = ("lease",)


class Committed(LeaseEvent, frozen=True, kw_only=True):
    """Shell, answers CommitAccepted and CommitOutcome: it is in the ledger."""


class CommitFailed(LeaseEvent, frozen=True, kw_only=True):
    """Shell, answers CommitAccepted and CommitOutcome: it is not in the ledger."""

    problem: str


class LeaseRecovered(LeaseEvent, frozen=True, kw_only=True):
    """Shell, at the start: a lease on record that was under way when the node before this one ended. The fields are
    those of LeaseOffered; where ``code`` is given, the task is not run again but failed with it, for ``problem``.
    """

    envelope: LeaseEnvelope
    ttl: float | None
    runner: str = ""
    timeout: float | None = None
    code: str = ""
    problem: str = ""


class OutcomeRecovered(LeaseEvent, frozen=True, kw_only=True):
    """Shell, at the start: an outcome on record that the service has not answered to."""

    outcome: Outcome


class CommitDue(LeaseEvent, frozen=True, kw_only=True):
    """Timer: the outcome's commit is tried again."""


class KeepAliveSettled(LeaseEvent, frozen=True, kw_only=True):
    """Coupling: the first heartbeat was answered, failed, or took its second."""


class RoomFound(LeaseEvent, frozen=True, kw_only=True):
    """Coupling: what its runner needs is free, and nobody is before it."""


class RoomDenied(LeaseEvent, frozen=True, kw_only=True):
    """Coupling: what its runner needs is held by user code that does not stop."""


class LeaseCancelled(LeaseEvent, frozen=True, kw_only=True):
    """Coupling: the service asked, in an answer, that this task end."""


class LeaseLost(LeaseEvent, frozen=True, kw_only=True):
    """Coupling: the lease is no longer ours; ``expired`` where it ran out here, else the service said so."""

    expired: bool


class NodeStopping(LeaseEvent, frozen=True, kw_only=True):
    """Coupling: the node takes up nothing new, or is to end what runs."""


class RunnerFinished(LeaseEvent, frozen=True, kw_only=True):
    """Shell, answers StartRunner: user code returned; its artifacts are uploaded."""

    artifacts: tuple[Artifact, ...] = ()


class RunnerFailed(LeaseEvent, frozen=True, kw_only=True):
    """Shell, answers StartRunner: set-up or user code failed, or ended because it was told to stop."""

    code: str
    message: str
    details: dict[str, JSON] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()


class RunnerOverdue(LeaseEvent, frozen=True, kw_only=True):
    """Timer: user code has had the seconds it may take."""


class StopOverdue(LeaseEvent, frozen=True, kw_only=True):
    """Timer: user code was told to stop and has not."""


class RunnerAbandoned(LeaseEvent, frozen=True, kw_only=True):
    """Coupling: the node is leaving and will not wait for user code that does not stop."""


class SessionEvent(LeaseScoped, frozen=True, kw_only=True):
    machines: ClassVar[tuple[str, ...]] = ("session",)


class KeepAliveWanted(SessionEvent, frozen=True, kw_only=True):
    """Coupling: the lease was accepted and must be kept. ``ttl`` as in LeaseOffered."""

    ttl: float | None


class HeartbeatFailed(SessionEvent, frozen=True, kw_only=True):
    """Shell, answers SendHeartbeat."""

    failure: Failure


class HeartbeatDue(SessionEvent, frozen=True, kw_only=True):
    """Timer: the next heartbeat is to be sent."""


class FirstAnswerOverdue(SessionEvent, frozen=True, kw_only=True):
    """Timer: the first heartbeat has been unanswered for a second; the task does not wait for it."""


class LeaseExpired(SessionEvent, frozen=True, kw_only=True):
    """Timer: the lease's time is over."""


class ProgressMade(SessionEvent, frozen=True, kw_only=True):
    """Shell: user code reported progress; the latest value counts."""

    progress: JSON


class EventLogged(SessionEvent, frozen=True, kw_only=True):
    """Shell: user code logged an event; all are sent, in order."""

    record: JSON


class TransferMoved(SessionEvent, frozen=True, kw_only=True):
    """Shell: the transfer ``in`` or ``out`` of that name got so far; ``total`` is None where it is not known."""

    transfer: str
    way: str
    done: int
    total: int | None


class FlushWanted(SessionEvent, frozen=True, kw_only=True):
    """Coupling: a finished task's last progress and events should arrive before its report."""


class FlushOverdue(SessionEvent, frozen=True, kw_only=True):
    """Timer: the flush has had its second."""


class LeaseEnded(SessionEvent, frozen=True, kw_only=True):
    """Coupling: complete or fail was answered for good; no more heartbeats."""


class DeliveryEvent(LeaseScoped, frozen=True, kw_only=True):
    machines: ClassVar[tuple[str, ...]] = ("delivery",)


class OutcomeReady(DeliveryEvent, frozen=True, kw_only=True):
    """Coupling: a committed outcome that the service has to hear of; ``reply_lost`` where it may have heard already."""

    outcome: Outcome
    reply_lost: bool = False


class FlushSettled(DeliveryEvent, frozen=True, kw_only=True):
    """Coupling: nothing is to be waited for before the outcome is offered."""


class OutcomeSuperseded(DeliveryEvent, frozen=True, kw_only=True):
    """Coupling: a newer lease of the same task decides what the service is to hear."""


class OutcomeWithdrawn(DeliveryEvent, frozen=True, kw_only=True):
    """Coupling: the service cancelled the task before it could hear of its outcome."""


class OutcomeAccepted(DeliveryEvent, frozen=True, kw_only=True):
    """Shell, answers OfferOutcome: any 2xx."""


class OutcomeRejected(DeliveryEvent, frozen=True, kw_only=True):
    """Shell, answers OfferOutcome: any other answer, or none."""

    failure: Failure


class OfferDue(DeliveryEvent, frozen=True, kw_only=True):
    """Timer: the outcome is offered again."""
