"""A lease's terms as a heartbeat's answer amends them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from posemesh.secret import Secret
from posemesh.terms import merge, missing
from posemesh.types import HeartbeatAnswer, LeaseEnvelope, TaskSpec

TASK = UUID("a84a36e5-312b-4f80-974a-06f5d19c1e16")
OTHER = UUID("b84a36e5-312b-4f80-974a-06f5d19c1e16")
OWN = LeaseEnvelope(
    task=TaskSpec(id=TASK, capability="/a/v1", job_id=OTHER, inputs_cids=["x", "y"], label="l", stage="s", attempts=1),
    access_token=Secret("hush"),
    lease_expires_at=datetime(2026, 1, 1, tzinfo=UTC),
    status="leased",
    domain_id=OTHER,
    domain_server_url="https://domain.example",
)


def test_what_a_task_cannot_do_without() -> None:
    assert missing(OWN) is None
    assert missing(replace(OWN, domain_id=None)) == "lease missing domain_id"
    for url in (None, ""):
        assert missing(replace(OWN, domain_server_url=url)) == "lease missing domain_server_url"
    assert missing(None) == "lease missing domain_server_url"


def test_an_empty_answer_changes_nothing() -> None:
    assert merge(OWN, HeartbeatAnswer()) == OWN


def test_what_is_present_overwrites() -> None:
    later = datetime(2027, 1, 1, tzinfo=timezone(timedelta(hours=3)))
    answer = HeartbeatAnswer(
        access_token=Secret("new"),
        access_token_expires_at=later,
        lease_expires_at=later,
        cancel=True,
        status="running",
        domain_id=TASK,
        domain_server_url="https://other.example",
        task_id=TASK,
        attempts=2,
        max_attempts=4,
        deps_remaining=1,
    )
    merged = merge(OWN, answer)
    for name in ("access_token", "access_token_expires_at", "lease_expires_at", "cancel", "status", "domain_id"):
        assert getattr(merged, name) == getattr(answer, name)
    assert merged.domain_server_url == "https://other.example"
    assert (merged.task.attempts, merged.task.max_attempts, merged.task.deps_remaining) == (2, 4, 1)
    assert merged.task.label == OWN.task.label


def test_cancel_can_be_taken_back() -> None:
    cancelled = merge(OWN, HeartbeatAnswer(cancel=True))
    assert merge(cancelled, HeartbeatAnswer(cancel=False)).cancel is False


def test_a_task_in_the_answer_amends_the_task_and_null_clears_nothing() -> None:
    answer = HeartbeatAnswer(task=TaskSpec(id=TASK, capability="/a/v1", label="new", meta=[1]), attempts=9)
    merged = merge(OWN, answer).task
    assert (merged.label, merged.meta) == ("new", [1])
    assert (merged.inputs_cids, merged.stage, merged.job_id) == (["x", "y"], "s", OTHER)
    assert merged.attempts == OWN.task.attempts
    answer = HeartbeatAnswer(task=TaskSpec(id=TASK, capability="/a/v1", inputs_cids=["z"]))
    assert merge(OWN, answer).task.inputs_cids == ["z"]


def test_what_the_lease_did_not_say_is_filled_in() -> None:
    bare = LeaseEnvelope(task=TaskSpec(id=TASK, capability="/a/v1"))
    merged = merge(bare, HeartbeatAnswer(job_id=OTHER, domain_id=OTHER))
    assert (merged.task.job_id, merged.domain_id) == (OTHER, OTHER)


@pytest.mark.parametrize(
    "about",
    [
        {"task_id": OTHER},
        {"job_id": TASK},
        {"task": TaskSpec(id=OTHER, capability="/a/v1", label="new")},
        {"task": TaskSpec(id=TASK, capability="/b/v1", label="new")},
        {"task": TaskSpec(id=TASK, capability="/a/v1", job_id=TASK, label="new")},
        {"task": TaskSpec(id=TASK, capability="/a/v1", label="new"), "task_id": OTHER},
    ],
)
def test_a_lease_stays_a_lease_of_its_task(about: dict[str, Any]) -> None:
    """Weakness 17 of the reference: an answer silently changes the task's identity under the runner."""
    merged = merge(OWN, HeartbeatAnswer(**about, status="running", attempts=7))
    assert merged.task == OWN.task
    assert merged.status == "running"
