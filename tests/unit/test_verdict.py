"""The outcome of each way to end."""

from __future__ import annotations

import pytest

from posemesh.commands import StopReason
from posemesh.outcomes import FailureCode
from posemesh.types import Outcome, OutcomeKind, TaskIdentity, TaskSpec
from posemesh.verdict import failed, identity, no_runner, stopped

from ..stage import ARTIFACT, CAPABILITY, IDENTITY, TASK, envelope

CHAIN = {"chain": ["a"], "code": "what user code calls it"}


def test_what_a_report_says_of_its_task() -> None:
    assert identity(envelope()) == IDENTITY
    terms = envelope(domain_id=None, task=TaskSpec(id=TASK, capability="/b/v1"))
    assert identity(terms) == TaskIdentity(task_id=str(TASK), capability="/b/v1"), "what is not known is not made up"


def test_a_failure_names_its_code_twice() -> None:
    found = failed(IDENTITY, FailureCode.KILLED, "it was", (ARTIFACT,), CHAIN)
    assert found.reason == "killed: it was" and found.artifacts == (ARTIFACT,)
    assert found.details == {"chain": ["a"], "code": "killed"}, "whatever the details held"
    assert failed(IDENTITY, "x", "y").details == {"code": "x"}


@pytest.mark.parametrize(
    ("capabilities", "message"),
    [
        ((), f"no runner registered for capability {CAPABILITY}; this node offers none"),
        (("/b/v1", "/a/v1"), f"no runner registered for capability {CAPABILITY}; this node offers /a/v1, /b/v1"),
        ((CAPABILITY,), f"no runner for capability {CAPABILITY}: why"),
    ],
)
def test_nobody_can_run_it(capabilities: tuple[str, ...], message: str) -> None:
    found = no_runner(IDENTITY, capabilities, "why")
    assert (found.code, found.message) == ("no_runner", message)


@pytest.mark.parametrize(
    ("reason", "kind", "told"),
    [
        (StopReason.CANCELLED, OutcomeKind.CANCELLED, ""),
        (StopReason.LOST, OutcomeKind.LOST, ""),
        (StopReason.EXPIRED, OutcomeKind.LOST, ""),
        (StopReason.TIMEOUT, OutcomeKind.FAILED, "timeout: the runner took longer than its 2.5 s"),
        (StopReason.SHUTDOWN, OutcomeKind.FAILED, "node_shutdown: the node was told to stop"),
    ],
)
def test_every_reason_to_stop(reason: StopReason, kind: OutcomeKind, told: str) -> None:
    found = stopped(IDENTITY, reason, 2.5, (ARTIFACT,), CHAIN)
    assert (found.kind, found.reason, found.artifacts) == (kind, told, (ARTIFACT,))
    assert found.details == ({"chain": ["a"], "code": found.code} if told else {}), "what is not reported needs none"
    assert isinstance(found, Outcome) and found.task == IDENTITY
