"""DMS: leases and heartbeat answers decoded field by field, reports written, and dates."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from posemesh.conformance import Vector, load_vectors
from posemesh.errors import UndecodableLease, WireError
from posemesh.secret import Secret
from posemesh.types import Artifact, HeartbeatAnswer, LeaseEnvelope, TaskIdentity, TaskSpec
from posemesh.wire import dms

TASK = "a84a36e5-312b-4f80-974a-06f5d19c1e16"
OTHER = "b84a36e5-312b-4f80-974a-06f5d19c1e16"
NOW = 1767225600.0  # 2026-01-01T00:00:00Z


def lease(_task: dict[str, Any] | None = None, **fields: Any) -> bytes:
    return json.dumps({"task": {"id": TASK, "capability": "/a/v1", **(_task or {})}, **fields}).encode()


def undecodable(body: bytes, **options: Any) -> UndecodableLease:
    with pytest.raises(UndecodableLease) as caught:
        dms.decode_lease(body, **options)
    return caught.value


# -- URLs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["https://dms.example/v1", "https://dms.example/v1/", "https://dms.example/v1//"])
def test_urls(base: str) -> None:
    """Weakness 21 of the reference: a base with a trailing slash doubles it."""
    assert dms.tasks_url(base) == "https://dms.example/v1/tasks"
    assert dms.heartbeat_url(base, TASK) == f"https://dms.example/v1/tasks/{TASK}/heartbeat"
    assert dms.complete_url(base, TASK) == f"https://dms.example/v1/tasks/{TASK}/complete"
    assert dms.fail_url(base, TASK) == f"https://dms.example/v1/tasks/{TASK}/fail"


def test_urls_are_escaped() -> None:
    assert dms.tasks_url("https://d", "/a b/v1&x=1") == "https://d/tasks?capability=%2Fa%20b%2Fv1%26x%3D1"
    assert dms.fail_url("https://d", "a/../b?c#d") == "https://d/tasks/a%2F..%2Fb%3Fc%23d/fail"


# -- Leases -------------------------------------------------------------------------------------

FULL: dict[str, Any] = {
    "access_token": "hush",
    "access_token_expires_at": "2026-01-01T00:00:00Z",
    "lease_expires_at": "2026-01-01T02:00:00.5+02:00",
    "cancel": True,
    "status": "leased",
    "domain_id": OTHER,
    "domain_server_url": "https://domain.example/prefix/",
    "task": {
        "id": TASK,
        "capability": "/a/v1",
        "job_id": OTHER,
        "capability_filters": {"a": [1, None, 2.5]},
        "meta": "anything",
        "inputs_cids": ["x", "y"],
        "outputs_prefix": "out/",
        "label": "l",
        "stage": "s",
        "status": "queued",
        "mode": "public",
        "organization_filter": "o",
        "billing_units": "1",
        "estimated_credit_cost": "0.5",
        "debited_amount": "0.25",
        "priority": -5,
        "attempts": 1,
        "max_attempts": 3,
        "deps_remaining": 0,
        "debited_at": "2026-01-01T00:00:00Z",
        "lease_expires_at": "2026-01-01T00:00:00Z",
    },
}


def test_every_field_of_a_lease() -> None:
    decoded = dms.decode_lease(json.dumps(FULL).encode())
    assert decoded.access_token == Secret("hush")
    assert decoded.access_token_expires_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert decoded.lease_expires_at == datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
    assert (decoded.cancel, decoded.status, decoded.domain_id) == (True, "leased", UUID(OTHER))
    assert decoded.domain_server_url == "https://domain.example/prefix/"
    task = decoded.task
    assert (task.id, task.job_id, task.capability) == (UUID(TASK), UUID(OTHER), "/a/v1")
    assert (task.capability_filters, task.meta, task.inputs_cids) == ({"a": [1, None, 2.5]}, "anything", ["x", "y"])
    for name in ("outputs_prefix", "label", "stage", "status", "mode", "organization_filter", "billing_units"):
        assert getattr(task, name) == FULL["task"][name]
    assert (task.estimated_credit_cost, task.debited_amount) == ("0.5", "0.25")
    assert (task.priority, task.attempts, task.max_attempts, task.deps_remaining) == (-5, 1, 3, 0)
    assert task.debited_at == task.lease_expires_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert "hush" not in repr(decoded)


def test_the_least_a_lease_can_be() -> None:
    assert dms.decode_lease(lease()) == LeaseEnvelope(task=TaskSpec(id=UUID(TASK), capability="/a/v1"))


@pytest.mark.parametrize("vector", load_vectors("capabilities"))
def test_capabilities_pass_unchanged(vector: Vector) -> None:
    decoded = dms.decode_lease(lease({"capability": vector.given["capability"]}))
    report = dms.complete_body(TaskIdentity(task_id=TASK, capability=decoded.task.capability), [])
    assert json.loads(report)["meta"]["job"]["capability"] == vector.expect["capability"]


NULLABLE = sorted(set(FULL) - {"task", "cancel"})
NULLABLE_TASK = sorted(set(FULL["task"]) - {"id", "capability", "inputs_cids"})


@pytest.mark.parametrize("field", NULLABLE)
def test_null_is_absent(field: str) -> None:
    assert dms.decode_lease(lease(**{field: None})) == dms.decode_lease(lease())


@pytest.mark.parametrize("field", NULLABLE_TASK)
def test_null_is_absent_in_a_task(field: str) -> None:
    assert dms.decode_lease(lease({field: None})) == dms.decode_lease(lease())


@pytest.mark.parametrize("field", ["cancel", "task"])
def test_null_is_an_error(field: str) -> None:
    assert f"$.{field}" in undecodable(lease(**{field: None})).reason


@pytest.mark.parametrize("field", ["id", "capability", "inputs_cids"])
def test_null_is_an_error_in_a_task(field: str) -> None:
    error = undecodable(lease({field: None}))
    assert f"$.task.{field}" in error.reason
    assert error.task_id == (None if field == "id" else TASK)


WRONG: dict[str, list[Any]] = {
    "access_token": [5, ["hush"], "hush\nhush", "hush hush", "hüsh"],
    "access_token_expires_at": ["", "2026-01-01", "2026-01-01T00:00:00", "2026-02-30T00:00:00Z", 1767225600, "hush"],
    "lease_expires_at": ["", "soon", "2026-01-01T00:00:00", 1.5, True],
    "cancel": [0, "true", []],
    "status": [5],
    "domain_id": ["", "x", 5, "{" + OTHER + "}"],
    "domain_server_url": [
        "",
        "domain.example",
        "/x",
        "//domain.example",
        "ftp://domain.example",
        "https://",
        "https://u:p@domain.example",
        "https://domain.example/\n",
        "https://domain .example",
        "https://domain.example\\x",
        "https://domain.example:99999",
        "https://[::1",
        5,
    ],
    "task": ["x", [], 5],
}
WRONG_TASK: dict[str, list[Any]] = {
    "id": ["", "x", 5],
    "capability": [5],
    "job_id": ["", 5],
    "inputs_cids": ["x", [5], [None], {}],
    "outputs_prefix": [5],
    "label": [5],
    "billing_units": [1.5],
    "priority": ["1", 1.0, True, 2**63, -(2**63) - 1],
    "attempts": [-1, 1.0, "1", True, 2**64],
    "max_attempts": [-1, 2**64],
    "deps_remaining": [-1, 2**64],
    "debited_at": ["2026-01-01T00:00:00", ""],
    "lease_expires_at": ["2026-01-01T00:00:00", ""],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_wrong_field_is_named_and_the_task_is_known(field: str, value: Any) -> None:
    error = undecodable(lease(**{field: value}))
    assert f"$.{field}" in error.reason
    assert error.task_id == (None if field == "task" else TASK)
    assert "hush" not in str(error) and "u:p" not in str(error)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG_TASK.items() for value in values]
)
def test_a_wrong_field_of_a_task_is_named(field: str, value: Any) -> None:
    error = undecodable(lease({field: value}))
    assert f"$.task.{field}" in error.reason
    assert error.task_id == (None if field == "id" else TASK)


@pytest.mark.parametrize(
    ("field", "value"), [("priority", 2**63 - 1), ("priority", -(2**63)), ("attempts", 2**64 - 1), ("attempts", 0)]
)
def test_the_width_of_integers(field: str, value: int) -> None:
    assert getattr(dms.decode_lease(lease({field: value})).task, field) == value


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 6000])
def test_numbers_json_does_not_have(text: str) -> None:
    error = undecodable(lease({"meta": "@"}).replace(b'"@"', text.encode()))
    assert error.task_id == TASK


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b"5", b"{}", b"\xff\xfe", b"[" * 100_000, lease() + b"x", lease() + lease()]
)
def test_without_a_readable_id(body: bytes) -> None:
    assert undecodable(body).task_id is None


def test_the_id_is_read_out_of_broken_text() -> None:
    """Weakness 18 of the reference: such a task is neither run nor failed, and blocks the node until it expires."""
    assert undecodable(lease({"label": "@"}).replace(b"@", b"\xff")).task_id == TASK
    assert undecodable(lease({"id": TASK.upper(), "label": 5})).task_id == TASK
    assert undecodable(b'{"task":{"id":"%s"}}' % TASK.encode()).task_id == TASK


def test_a_deep_lease_does_not_crash() -> None:
    deep = lease({"meta": "@"}).replace(b'"@"', b"[" * 100_000 + b"]" * 100_000)
    assert "nested too deeply" in undecodable(deep).reason


def test_a_lease_has_a_limit() -> None:
    assert dms.decode_lease(lease(), limit=len(lease())).task.id == UUID(TASK)
    error = undecodable(lease(), limit=len(lease()) - 1)
    assert "at most" in error.reason and error.task_id is None


def test_unknown_fields_are_ignored() -> None:
    assert dms.decode_lease(lease({"new": [1]}, p2p_access_token="x")) == dms.decode_lease(lease())


# -- Heartbeats ---------------------------------------------------------------------------------


def test_an_empty_answer_is_an_answer() -> None:
    assert dms.decode_heartbeat(b"{}") == HeartbeatAnswer()


def test_every_field_of_an_answer() -> None:
    fields = {**FULL, "task_id": TASK, "job_id": OTHER, "attempts": 1, "max_attempts": 2, "deps_remaining": 0}
    answer = dms.decode_heartbeat(json.dumps(fields).encode())
    assert answer.task == dms.decode_lease(json.dumps(FULL).encode()).task
    assert (answer.task_id, answer.job_id) == (UUID(TASK), UUID(OTHER))
    assert (answer.attempts, answer.max_attempts, answer.deps_remaining, answer.cancel) == (1, 2, 0, True)
    assert dms.decode_heartbeat(json.dumps(dict.fromkeys(fields)).encode()) == HeartbeatAnswer()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"x",
        b'{"cancel":0}',
        b'{"attempts":-1}',
        b'{"task":{}}',
        b'{"task":{"id":"%s","capability":"a","lease_expires_at":"2026-01-01T00:00:00"}}' % TASK.encode(),
        b'{"lease_expires_at":"2026-01-01T00:00:00"}',
        b'{"domain_server_url":""}',
        b'{"access_token":"hush\\u0000"}',
    ],
)
def test_a_malformed_answer(body: bytes) -> None:
    with pytest.raises(WireError) as caught:
        dms.decode_heartbeat(body)
    assert "hush" not in str(caught.value)


def test_heartbeat_body() -> None:
    assert json.loads(dms.heartbeat_body({}, [])) == {"progress": {}, "events": []}
    assert json.loads(dms.heartbeat_body({"pct": 5.5}, ["a", {"b": None}])) == {
        "progress": {"pct": 5.5},
        "events": ["a", {"b": None}],
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: object()}, "\ud800", {"a": b"x"}])
def test_progress_that_is_not_json(value: Any) -> None:
    with pytest.raises(WireError, match="no JSON form"):
        dms.heartbeat_body(value, [])
    with pytest.raises(WireError, match="no JSON form"):
        dms.heartbeat_body({}, [value])


def test_progress_without_end() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(WireError, match="no JSON form"):
        dms.heartbeat_body(circle, [])


# -- Reports ------------------------------------------------------------------------------------


def test_complete_body() -> None:
    task = TaskIdentity(task_id=TASK, job_id=None, domain_id=OTHER, capability="/a/v1")
    artifacts = [
        Artifact(logical_path="out/a", name="a", data_type="json", id="1"),
        Artifact(logical_path="out/b", name="b", data_type="binary"),
        Artifact(logical_path="out/c", name="c", data_type="binary", id="3"),
    ]
    assert json.loads(dms.complete_body(task, artifacts)) == {
        "output_cids": ["1", "3"],
        "meta": {
            "job": {"task_id": TASK, "job_id": None, "domain_id": OTHER, "capability": "/a/v1"},
            "artifacts": [
                {"logical_path": "out/a", "name": "a", "data_type": "json", "id": "1"},
                {"logical_path": "out/b", "name": "b", "data_type": "binary", "id": None},
                {"logical_path": "out/c", "name": "c", "data_type": "binary", "id": "3"},
            ],
        },
    }


def test_fail_body() -> None:
    assert json.loads(dms.fail_body("why", {"a": 1})) == {"reason": "why", "details": {"a": 1}}


# -- Headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 0.0),
        (None, None),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("5s", None),
        ("٥", None),
        ("1e3", None),
        ("soon", None),
        ("nan", None),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert dms.parse_retry_after(text, service_now=NOW) == seconds


def test_endless_retry_after() -> None:
    assert dms.parse_retry_after("9" * 5000, service_now=NOW) == float("inf")


@pytest.mark.parametrize(
    "text",
    [
        "Thu, 01 Jan 2026 00:00:00 GMT",
        "Thursday, 01-Jan-26 00:00:00 GMT",
        "Thu Jan  1 00:00:00 2026",
        "1 Jan 2026 02:00:00 +0200",
    ],
)
def test_http_dates(text: str) -> None:
    assert dms.parse_http_date(text) == NOW


@pytest.mark.parametrize(
    "text", [None, "", "x", "2026", "Thu, 01 Jan 2026", "Thu, 99 Jan 2026 00:00:00 GMT", "00:00:00"]
)
def test_what_is_no_date(text: str | None) -> None:
    assert dms.parse_http_date(text) is None
