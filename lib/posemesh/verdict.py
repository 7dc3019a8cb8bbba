"""What a lease ends with here: the outcome of each way to end."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from posemesh.commands import StopReason
from posemesh.outcomes import FailureCode
from posemesh.types import JSON, Artifact, LeaseEnvelope, Outcome, OutcomeKind, TaskIdentity

__all__ = ("failed", "identity", "no_runner", "stopped")


def identity(envelope: LeaseEnvelope) -> TaskIdentity:
    """What a report says of the lease's task."""
    task, domain = envelope.task, envelope.domain_id
    return TaskIdentity(
        task_id=str(task.id),
        job_id=None if task.job_id is None else str(task.job_id),
        domain_id=None if domain is None else str(domain),
        capability=task.capability,
    )


def failed(
    task: TaskIdentity,
    code: str,
    message: str,
    artifacts: tuple[Artifact, ...] = (),
    details: Mapping[str, JSON] | None = None,
) -> Outcome:
    """The task failed with ``code``, which ``details`` name too."""
    told: dict[str, JSON] = {**(details or {}), "code": code}
    return Outcome(kind=OutcomeKind.FAILED, task=task, artifacts=artifacts, code=code, message=message, details=told)


def no_runner(task: TaskIdentity, capabilities: Collection[str], problem: str) -> Outcome:
    """Nobody among ``capabilities`` can run it; ``problem`` is why, where its own is one of them."""
    if task.capability in capabilities:
        return failed(task, FailureCode.NO_RUNNER, f"no runner for capability {task.capability}: {problem}")
    offered = ", ".join(sorted(capabilities)) or "none"
    message = f"no runner registered for capability {task.capability}; this node offers {offered}"
    return failed(task, FailureCode.NO_RUNNER, message)


def stopped(
    task: TaskIdentity,
    reason: StopReason | None,
    timeout: float | None,
    artifacts: tuple[Artifact, ...] = (),
    details: Mapping[str, JSON] | None = None,
) -> Outcome:
    """The task was told to stop for ``reason`` and has no result to keep; ``timeout`` is in seconds."""
    match reason:
        case StopReason.CANCELLED:
            return Outcome(kind=OutcomeKind.CANCELLED, task=task, artifacts=artifacts)
        case StopReason.LOST | StopReason.EXPIRED:
            return Outcome(kind=OutcomeKind.LOST, task=task, artifacts=artifacts)
        case StopReason.TIMEOUT:
            message = f"the runner took longer than its {timeout:g} s"
            return failed(task, FailureCode.TIMEOUT, message, artifacts, details)
        case _:
            return failed(task, FailureCode.NODE_SHUTDOWN, "the node was told to stop", artifacts, details)
