"""What a node that starts makes of what the one before it left on record.

What was finished is offered until the service answers. What was under way runs again only where the service says that
its lease stands, and never where nobody can tell whether a second run does harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from posemesh.control.node_ledger import Interrupted, NodeLedger
from posemesh.events import Event, LeaseId, LeaseRecovered, OutcomeRecovered
from posemesh.machines.delivery import DeliveryState
from posemesh.outcomes import FailureCode
from posemesh.policy import ATTEMPTS_MAX, lease_ttl
from posemesh.runners.executors.declared import Declared
from posemesh.runners.registry import Route
from posemesh.types import OutcomeKind, TaskSpec

__all__ = ("recovered",)


def recovered(
    ledger: NodeLedger,
    numbers: Iterable[LeaseId],
    *,
    route: Callable[[TaskSpec], Route],
    runners: Mapping[str, Declared],
    slots: int,
    wall: float,
) -> Iterator[Event]:
    """The events that say so, at most one for each number; ``wall`` is the time in seconds since 1970."""
    given = iter(numbers)
    finished = {each.outcome.task.task_id: each for each in ledger.owed if each.outcome.kind is OutcomeKind.COMPLETED}
    newest = {each.outcome.task.task_id: each.fence for each in ledger.owed}
    newest.update((str(each.envelope.task.id), each.fence) for each in ledger.interrupted)
    for owed in ledger.owed:  # before the leases, as a lease of the same task is the newer of the two
        key = next(given)
        ledger.adopt(key, owed.id)
        task = owed.outcome.task.task_id
        if owed.outcome.kind is not OutcomeKind.COMPLETED and (task in finished or owed.fence < newest[task]):
            # Its report was in flight when the task was leased again, and would end the newer lease, or come before
            # the result.
            ledger.settle(key, DeliveryState.SUPERSEDED.value)
            continue
        yield OutcomeRecovered(lease=key, outcome=owed.outcome)
    for place, left in enumerate(ledger.interrupted):
        result = finished.get(str(left.envelope.task.id))
        # An earlier lease of it was still at work, and got there. By the order on record: the clock may have been set.
        if result is not None and (result.position is None or result.position >= left.position):
            ledger.drop(left.id, "the result of an earlier lease is there")
            continue
        key = next(given)
        ledger.resume(key, left.id)
        way = route(left.envelope.task)
        runner = runners.get(way.runner)
        code, problem = _refusal(left, way, runner, place < slots)
        expires = left.envelope.lease_expires_at
        yield LeaseRecovered(
            lease=key,
            envelope=left.envelope,
            ttl=lease_ttl(None if expires is None else expires.timestamp(), wall),
            runner=way.runner,
            timeout=None if runner is None else runner.terms.timeout,
            code=code,
            problem=problem,
        )


def _refusal(left: Interrupted, way: Route, runner: Declared | None, has_slot: bool) -> tuple[str, str]:
    """The code and the reason with which the task is failed, where it is not to run again."""
    if runner is None:
        said = way.problem or "no runner is registered for it any more"
        return FailureCode.NO_RUNNER, f"the node was restarted, and {said}"
    if runner.terms.restart == "never":
        never = f'runner {runner.name} is declared restart="never"'
        return FailureCode.KILLED, f"the node ended while it ran; how far it came is unknown, and {never}"
    if left.attempts >= ATTEMPTS_MAX:
        return FailureCode.KILLED, f"the node ended {left.attempts} times while it ran; it is not run again"
    if not has_slot:
        return FailureCode.NODE_SHUTDOWN, "the node was restarted with fewer slots than tasks it had under way"
    return "", ""
