"""The one way from user code to its node: messages over a port, whatever lies between (a loop, a thread, a pipe)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from posemesh.runners.api import MaterializedInput
from posemesh.types import JSON

__all__ = (
    "AbortUpload",
    "FinishUpload",
    "GetBytes",
    "GetToken",
    "ListArtifacts",
    "LogEvent",
    "Materialize",
    "MaterializedInput",
    "Message",
    "OpenUpload",
    "Port",
    "Progress",
    "PutArtifact",
    "Question",
    "StorageQuestion",
    "WriteUpload",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The task's progress is now ``value``. Not answered."""

    value: JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEvent:
    """``value`` happened in the task. Not answered."""

    value: JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class GetToken:
    """Answered with the domain token of the moment, a ``Secret``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GetBytes:
    """Answered with the bytes of the input ``cid``."""

    cid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Materialize:
    """Answered with a :class:`MaterializedInput` of the input ``cid``; ``extract`` unpacks archives."""

    cid: str
    extract: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PutArtifact:
    """Upload bytes or the file at a path as the output ``rel_path``. Answered with the artifact's id.

    ``data_id`` names the item to update; ``name`` and ``data_type`` stand in for those made from the path.
    """

    rel_path: str
    content: bytes | Path
    name: str | None = None
    data_type: str | None = None
    data_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenUpload:
    """Begin an output of unknown size. Answered with the number that the next messages name it by."""

    rel_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteUpload:
    """Append to it. Answered with None when there is room for more."""

    upload: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishUpload:
    """All is written. Answered with the artifact's id."""

    upload: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortUpload:
    """Nothing of it is to remain. Answered with None."""

    upload: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListArtifacts:
    """Answered with what was uploaded so far, a tuple of ``Artifact``."""


StorageQuestion: TypeAlias = (
    GetBytes | Materialize | PutArtifact | OpenUpload | WriteUpload | FinishUpload | AbortUpload | ListArtifacts
)
Question: TypeAlias = GetToken | StorageQuestion
Message: TypeAlias = Progress | LogEvent | Question


class Port(Protocol):
    """User code's end."""

    @property
    def cancelled(self) -> bool:
        """Whether the node has told this task to stop."""
        ...

    def post(self, message: Progress | LogEvent) -> None:
        """Send at once, in order, without waiting."""
        ...

    async def call(self, message: Question) -> Any:
        """Send and wait for the answer; what went wrong at the node's end is raised here."""
        ...
