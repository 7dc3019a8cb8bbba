"""The protocol's records as Python sees them (DMS lease, task, heartbeat answer, artifact).

They are plain frozen dataclasses; :mod:`posemesh.wire` decodes network answers into them strictly.
``to_json`` and ``from_json`` are for programs that keep or pass on such a record. They go through
dataclasses-json, which is imported when first used and does not look closely: it is no check of foreign input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, cast
from uuid import UUID

from posemesh.errors import WireError
from posemesh.secret import Secret

__all__ = (
    "JSON",
    "Artifact",
    "HeartbeatAnswer",
    "LeaseEnvelope",
    "Outcome",
    "OutcomeKind",
    "Record",
    "TaskIdentity",
    "TaskSpec",
)

if TYPE_CHECKING:
    JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None
else:
    # Neither msgspec nor dataclasses-json follows a recursive alias; to both of them JSON is anything.
    JSON = Any


def _time_text(value: datetime | None) -> str | None:
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError("a time needs its UTC offset")
    return value.astimezone(UTC).isoformat()


def _secret_text(value: Secret | None) -> str | None:
    return None if value is None else value.reveal()


def _unchanged(value: Any) -> Any:
    return value


def _through(encoder: Any, decoder: Any) -> Mapping[str, Any]:
    """Field metadata as dataclasses-json reads it, written out so that this module need not import it."""
    return {"dataclasses_json": {"encoder": encoder, "decoder": decoder}}


_TIME: Final = _through(_time_text, datetime.fromisoformat)
_SECRET: Final = _through(_secret_text, Secret)
_JSON: Final = _through(_unchanged, _unchanged)


class Record:
    """What every public record can do."""

    __slots__ = ()

    def to_json(self) -> str:
        """This record as one JSON object: times in RFC 3339 (UTC), ids as text, absent values as null.

        **A secret is written out in clear**, as the protocol sends it; keep the text as you would the token.
        A float that is no number, or user data that JSON has no form for, raises :class:`WireError`.
        """
        from dataclasses_json import DataClassJsonMixin

        try:
            return json.dumps(DataClassJsonMixin.to_dict(cast(Any, self), encode_json=True), allow_nan=False)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise WireError(f"{type(self).__name__} has no JSON form: {error}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The record that :meth:`to_json` wrote; unknown fields are ignored, other text raises :class:`WireError`."""
        from dataclasses_json import DataClassJsonMixin

        from_dict = cast(Any, DataClassJsonMixin.from_dict).__func__

        try:
            return cast(Self, from_dict(cls, json.loads(text)))
        except KeyError as error:
            raise WireError(f"{cls.__name__}: expected the field {error}") from None
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise WireError(f"{cls.__name__} cannot be read: {type(error).__name__}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec(Record):
    """One task as DMS describes it (``lease.task``). Amounts of credit are decimal strings."""

    id: UUID
    capability: str
    job_id: UUID | None = None
    capability_filters: JSON = field(default=None, metadata=_JSON)
    meta: JSON = field(default=None, metadata=_JSON)
    inputs_cids: list[str] = field(default_factory=list)
    outputs_prefix: str | None = None
    label: str | None = None
    stage: str | None = None
    status: str | None = None
    mode: str | None = None
    organization_filter: str | None = None
    billing_units: str | None = None
    estimated_credit_cost: str | None = None
    debited_amount: str | None = None
    priority: int | None = None
    attempts: int | None = None
    max_attempts: int | None = None
    deps_remaining: int | None = None
    debited_at: datetime | None = field(default=None, metadata=_TIME)
    lease_expires_at: datetime | None = field(default=None, metadata=_TIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnvelope(Record):
    """The answer to ``GET /tasks``: a task and the terms under which this node holds it."""

    task: TaskSpec
    access_token: Secret | None = field(default=None, metadata=_SECRET)
    access_token_expires_at: datetime | None = field(default=None, metadata=_TIME)
    lease_expires_at: datetime | None = field(default=None, metadata=_TIME)
    cancel: bool = False
    status: str | None = None
    domain_id: UUID | None = None
    domain_server_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAnswer(Record):
    """The answer to a heartbeat. Every field may be absent; absent and null mean "no change"."""

    access_token: Secret | None = field(default=None, metadata=_SECRET)
    access_token_expires_at: datetime | None = field(default=None, metadata=_TIME)
    lease_expires_at: datetime | None = field(default=None, metadata=_TIME)
    cancel: bool | None = None
    status: str | None = None
    domain_id: UUID | None = None
    domain_server_url: str | None = None
    task: TaskSpec | None = None
    task_id: UUID | None = None
    job_id: UUID | None = None
    attempts: int | None = None
    max_attempts: int | None = None
    deps_remaining: int | None = None

    @property
    def cancels(self) -> bool:
        """It asks that the task end."""
        return bool(self.cancel) or self.status in ("canceled", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact(Record):
    """One uploaded result. ``id`` is the domain server's data id."""

    logical_path: str
    name: str
    data_type: str
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskIdentity(Record):
    """What a report to DMS says of the task; of an undecodable lease only ``task_id`` is known."""

    task_id: str
    job_id: str | None = None
    domain_id: str | None = None
    capability: str = ""


class OutcomeKind(StrEnum):
    """How a task ended here, before the service has heard of it."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Record):
    """A task's end as it is committed and reported. ``reason`` is ``code: message`` for a failure."""

    kind: OutcomeKind
    task: TaskIdentity
    artifacts: tuple[Artifact, ...] = ()
    code: str = ""
    message: str = ""
    details: dict[str, JSON] = field(default_factory=dict, metadata=_JSON)

    @property
    def reason(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code
