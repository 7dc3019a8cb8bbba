"""DMS, the task service: lease, heartbeat, complete, fail. Base URLs include ``/v1``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from posemesh.errors import UndecodableLease, WireError
from posemesh.types import JSON, Artifact, HeartbeatAnswer, LeaseEnvelope, TaskIdentity
from posemesh.wire import _json
from posemesh.wire._json import BODY_BYTES_MAX
from posemesh.wire._url import join

__all__ = (
    "complete_body",
    "complete_url",
    "decode_heartbeat",
    "decode_lease",
    "fail_body",
    "fail_url",
    "heartbeat_body",
    "heartbeat_url",
    "parse_http_date",
    "parse_retry_after",
    "task_report",
    "tasks_url",
)

_SECONDS: Final = re.compile(r"[0-9]+")
_CLOCK: Final = re.compile(r"\b\d\d:\d\d:\d\d\b")


def tasks_url(base: str, capability: str | None = None) -> str:
    """``GET /tasks``: ask for a task, of one capability if given."""
    query = "" if capability is None else "?capability=" + quote(capability, safe="")
    return join(base, "tasks") + query


def heartbeat_url(base: str, task_id: str) -> str:
    """``POST /tasks/{id}/heartbeat``."""
    return _task_url(base, task_id, "heartbeat")


def complete_url(base: str, task_id: str) -> str:
    """``POST /tasks/{id}/complete``."""
    return _task_url(base, task_id, "complete")


def fail_url(base: str, task_id: str) -> str:
    """``POST /tasks/{id}/fail``."""
    return _task_url(base, task_id, "fail")


def _task_url(base: str, task_id: str, verb: str) -> str:
    return join(base, f"tasks/{quote(task_id, safe='')}/{verb}")


def decode_lease(body: bytes, *, limit: int = BODY_BYTES_MAX) -> LeaseEnvelope:
    """The answer to ``GET /tasks``. ``limit`` is in bytes.

    Raises :class:`UndecodableLease`, with the task's id where that much can be read: a task that was
    leased but cannot be understood is failed back, else the service holds it for this node until it expires.
    """
    try:
        return _json.decode(LeaseEnvelope, body, "lease", limit=limit)
    except WireError as error:
        reason = str(error).removeprefix("lease: ")
        raise UndecodableLease(reason, None if len(body) > limit else _task_id_of(body)) from None


def _task_id_of(body: bytes) -> str | None:
    """``task.id`` of a lease that is wrong elsewhere; so NaN, broken text and endless digits are let pass here."""
    try:
        lease = json.loads(body.decode("utf-8", "replace"), parse_int=float)
        task_id = _json.parse_uuid(lease["task"]["id"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return None if task_id is None else str(task_id)


def decode_heartbeat(body: bytes, *, limit: int = BODY_BYTES_MAX) -> HeartbeatAnswer:
    """The answer to a heartbeat; ``{}`` is one, an empty body is not (:class:`WireError`)."""
    return _json.decode(HeartbeatAnswer, body, "heartbeat answer", limit=limit)


def heartbeat_body(progress: JSON, events: Sequence[JSON]) -> bytes:
    """The latest progress and the events not yet acknowledged, oldest first."""
    return _json.encode({"progress": progress, "events": list(events)}, "progress or an event")


def complete_body(task: TaskIdentity, artifacts: Sequence[Artifact]) -> bytes:
    """The task's result: the ids of its artifacts, and of what job and under which names."""
    report = {
        "output_cids": [artifact.id for artifact in artifacts if artifact.id is not None],
        "meta": task_report(task, artifacts),
    }
    return _json.encode(report, "complete")


def fail_body(reason: str, details: JSON) -> bytes:
    """Why the task was not done, for a reader and (``details``) for a program."""
    return _json.encode({"reason": reason, "details": details}, "fail")


def task_report(task: TaskIdentity, artifacts: Sequence[Artifact]) -> dict[str, JSON]:
    """What every report says of its task: the ``meta`` of a completion, a part of a failure's ``details``."""
    return {
        "job": {
            "task_id": task.task_id,
            "job_id": task.job_id,
            "domain_id": task.domain_id,
            "capability": task.capability,
        },
        "artifacts": [
            {"logical_path": one.logical_path, "name": one.name, "data_type": one.data_type, "id": one.id}
            for one in artifacts
        ],
    }


def parse_retry_after(text: str | None, *, service_now: float) -> float | None:
    """The seconds a ``Retry-After`` header asks to wait (RFC 9110 section 10.2.3); None where it says nothing.

    ``service_now`` is the service's time in epoch seconds. The caller caps the answer.
    """
    if text is None:
        return None
    if _SECONDS.fullmatch(text.strip()):
        return float(text)
    date = parse_http_date(text)
    return None if date is None else max(0.0, date - service_now)


@lru_cache(maxsize=16)  # all answers of one second bear the same
def parse_http_date(text: str | None) -> float | None:
    """An HTTP date in epoch seconds, in any of the three forms of RFC 9110 section 5.6.7; None for other text."""
    if text is None or not _CLOCK.search(text):
        return None
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
