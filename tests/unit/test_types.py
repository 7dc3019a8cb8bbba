"""The public records: their JSON, and that importing them costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from posemesh.errors import WireError
from posemesh.secret import Secret
from posemesh.types import Artifact, HeartbeatAnswer, LeaseEnvelope, Outcome, OutcomeKind, TaskIdentity, TaskSpec

TASK = TaskSpec(id=UUID(int=1), capability="/a/v1", meta={"a": [1, None]}, priority=-1, inputs_cids=["x"])


@pytest.mark.parametrize(
    "record",
    [
        TASK,
        LeaseEnvelope(task=TASK, access_token=Secret("hush"), domain_id=UUID(int=2), cancel=True),
        HeartbeatAnswer(),
        HeartbeatAnswer(task=TASK, lease_expires_at=datetime(2026, 1, 1, tzinfo=UTC)),
        Artifact(logical_path="a/b", name="b", data_type="binary"),
        TaskIdentity(task_id="x"),
        Outcome(
            kind=OutcomeKind.FAILED,
            task=TaskIdentity(task_id="x"),
            artifacts=(Artifact(logical_path="a", name="b", data_type="c", id="d"),),
            code="runner",
            message="it broke",
            details={"a": [None, {"b": 1.5}]},
        ),
    ],
)
def test_a_record_survives_its_json(record: Any) -> None:
    assert type(record).from_json(record.to_json()) == record
    assert type(record).from_json(record.to_json().encode()) == record


def test_the_json_is_the_protocols() -> None:
    lease = LeaseEnvelope(
        task=TASK,
        access_token=Secret("hush"),
        lease_expires_at=datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
    )
    written = json.loads(lease.to_json())
    assert written["access_token"] == "hush"
    assert written["lease_expires_at"] == "2026-01-01T00:00:00+00:00"
    assert written["task"]["id"] == str(UUID(int=1))
    assert written["domain_id"] is None


@pytest.mark.parametrize(
    ("answer", "cancels"),
    [
        ({"cancel": True}, True),
        ({"status": "canceled"}, True),
        ({"status": "cancelled", "cancel": False}, True),
        ({"cancel": False}, False),
        ({"status": "running"}, False),
        ({}, False),
    ],
)
def test_an_answer_that_asks_that_the_task_end(answer: dict[str, Any], cancels: bool) -> None:
    assert HeartbeatAnswer(**answer).cancels is cancels


def test_unknown_fields_are_ignored() -> None:
    assert TaskIdentity.from_json('{"task_id":"x","new":1}') == TaskIdentity(task_id="x")


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "5", "{}", '{"task":{}}', '{"task":{"id":"x","capability":"a"}}', "[" * 100_000]
)
def test_text_that_is_no_lease(text: str) -> None:
    with pytest.raises(WireError, match="LeaseEnvelope"):
        LeaseEnvelope.from_json(text)


@pytest.mark.parametrize(
    "record",
    [
        LeaseEnvelope(task=TASK, lease_expires_at=datetime(2026, 1, 1)),
        LeaseEnvelope(task=TASK, lease_expires_at=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))),
        TaskSpec(id=UUID(int=1), capability="a", meta=float("nan")),
        TaskSpec(id=UUID(int=1), capability="a", meta=object()),  # type: ignore[arg-type]
    ],
)
def test_a_record_that_json_cannot_say(record: Any) -> None:
    with pytest.raises(WireError, match="has no JSON form"):
        record.to_json()


def test_a_secret_is_not_in_a_repr() -> None:
    assert "hush" not in repr(LeaseEnvelope(task=TASK, access_token=Secret("hush")))


def test_importing_the_records_is_light() -> None:
    program = "import sys, posemesh.types; print({'msgspec', 'marshmallow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
