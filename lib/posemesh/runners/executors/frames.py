"""What a child and its node say to each other: messages of the port and what is around them, as bytes.

A frame is four bytes of length, big end first, and one MessagePack message. Each message has a type of its own, decoded
strictly: nothing in one is ever executed, so a broken child cannot hurt its node.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

import msgspec

from posemesh import errors
from posemesh.outcomes import FailureCode
from posemesh.runners.ending import Ending, said
from posemesh.runners.port import (
    AbortUpload,
    FinishUpload,
    GetToken,
    ListArtifacts,
    LogEvent,
    Materialize,
    MaterializedInput,
    OpenUpload,
    Progress,
    PutArtifact,
    Question,
    WriteUpload,
)
from posemesh.secret import Secret
from posemesh.telemetry import scrub
from posemesh.types import JSON, Artifact, LeaseEnvelope

__all__ = (
    "FRAME_BYTES_MAX",
    "PIECE_BYTES",
    "Answer",
    "Ask",
    "Asking",
    "Check",
    "Done",
    "Frames",
    "FromChild",
    "FromNode",
    "Load",
    "Piece",
    "Put",
    "Refuse",
    "Run",
    "Say",
    "SetUp",
    "Wanted",
    "WhereWorkspace",
    "asked",
    "encode",
    "from_child",
    "from_node",
    "lease_of",
    "question_of",
    "raised",
    "refused",
    "report_of",
    "run_of",
    "said_by",
    "value_of",
)

FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one frame of a child: it asks with less, and what is larger goes through a file."""
PIECE_BYTES: Final = 256 * 1024
"""Large answers come in pieces of this size, so that no loop is held up."""


class _Frame(msgspec.Struct, array_like=True, tag=True):
    pass


# --- From the node --------------------------------------------------------------------------------------------------


class Load(_Frame):
    """The first: where user code is. The module ``module``, or the one in ``file``, and there ``name``."""

    module: str
    file: str | None
    name: str


class Check(_Frame):
    """Call the runner's ``check()``. Answered with :class:`Done`."""

    run: int


class Run(_Frame):
    """Task number ``run``: its lease, as JSON, which unlike MessagePack has numbers of any size. Answered with
    :class:`Done`.
    """

    run: int
    lease: bytes


class Piece(_Frame):
    """The next bytes of the answer to that question."""

    number: int
    data: bytes


class Answer(_Frame):
    """The answer; where it is bytes, those of the pieces before it."""

    number: int
    value: Any = None


class Refuse(_Frame):
    """It is an error: of that name, with ``number`` an HTTP status or an errno."""

    number: int
    error: str
    text: str
    status: int | None


FromNode = Load | Check | Run | Piece | Answer | Refuse


# --- From the child -------------------------------------------------------------------------------------------------


class Say(_Frame):
    """Progress, or an event, as JSON. What comes of a ``run`` that is over, here and below, is of no account."""

    run: int
    is_event: bool
    value: bytes


class Ask(_Frame):
    """A question of the port, by the name of its type."""

    run: int
    number: int
    question: str
    fields: dict[str, Any]


class Put(_Frame):
    """The question PutArtifact. ``content`` is a path where it ``is_file``."""

    run: int
    number: int
    rel_path: str
    content: bytes
    is_file: bool
    name: str | None
    data_type: str | None
    data_id: str | None


class WhereWorkspace(_Frame):
    """Answered with the path of the task's directory, made by then."""

    run: int
    number: int


class SetUp(_Frame):
    """User code is set up, and what it has started so far is the child's, not the task's. Answered with None, once that
    is known.
    """

    run: int
    number: int


class Done(_Frame):
    """The task, or the check, of that number has ended. ``alone``: the child knows of no process that it started.
    ``leaving``: it is not to be used again.
    """

    run: int
    code: FailureCode | None
    message: str
    chain: list[str]
    alone: bool
    leaving: bool

    @property
    def ending(self) -> Ending:
        """Without the node's secrets, which a child does not know as such."""
        if self.code is None:
            return Ending()
        details: dict[str, JSON] = {"chain": [scrub(each) for each in self.chain]} if self.chain else {}
        return Ending(code=self.code, message=scrub(self.message), details=details)


Asking: TypeAlias = Ask | Put | WhereWorkspace | SetUp
Wanted: TypeAlias = Question | WhereWorkspace | SetUp
"""A question as it travels, and what it is at both ends."""
FromChild = Say | Ask | Put | WhereWorkspace | SetUp | Done

_QUESTIONS: Final = {kind.__name__: kind for kind in get_args(Question) if kind is not PutArtifact}
_ANSWERS: Final[dict[type, Any]] = {
    GetToken: Secret,
    Materialize: MaterializedInput,
    PutArtifact: str,
    OpenUpload: int,
    WriteUpload: None,
    FinishUpload: str,
    AbortUpload: None,
    ListArtifacts: tuple[Artifact, ...],
    WhereWorkspace: Path,
    SetUp: None,
}
_ERRORS: Final = {
    kind.__name__: kind
    for kind in (
        *(errors.StorageError, errors.BadInput, errors.UploadFailed, errors.DiskFull),
        *(errors.InvalidCid, errors.TaskStopped, errors.PosemeshError),
    )
}


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return os.fsencode(value)
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"expected a value of the port, got {type(value).__name__}")


def _rich(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, bytes):
        return Path(os.fsdecode(value))
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise ValueError(f"expected a {kind.__name__}, got {type(value).__name__}")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_plain)
_json: Final = msgspec.json.Encoder(enc_hook=_plain)
_lease: Final = msgspec.json.Decoder(LeaseEnvelope, dec_hook=_rich)
from_node: Final = msgspec.msgpack.Decoder(FromNode).decode
from_child: Final = msgspec.msgpack.Decoder(FromChild).decode
"""Both raise ValueError for what is no message."""


def encode(frame: FromNode | FromChild) -> bytes:
    """Its bytes with their length. Raises ValueError or TypeError for what cannot be sent."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Takes bytes as they come and gives whole messages. Raises ValueError where one has more than ``size_max`` bytes,
    which is None for no limit.
    """

    def __init__(self, size_max: int | None = FRAME_BYTES_MAX) -> None:
        self._size_max = 2**32 if size_max is None else size_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | bytearray]:
        """The messages that are whole now. What one of them leads to may feed more."""
        buffer = self._buffer
        if not buffer and len(data) - 4 == int.from_bytes(data[:4], "big") <= self._size_max:
            yield data[4:]  # one and no more, as nearly always
            return
        buffer += data
        while len(buffer) >= 4:
            size = int.from_bytes(buffer[:4], "big")
            if size > self._size_max:
                raise ValueError(f"expected a message of at most {self._size_max} bytes, got one of {size}")
            if len(buffer) < 4 + size:
                break
            body = buffer[4 : 4 + size]
            del buffer[: 4 + size]
            yield body


# --- The port -------------------------------------------------------------------------------------------------------


def asked(run: int, number: int, question: Question) -> Ask | Put:
    """The question as it travels."""
    if not isinstance(question, PutArtifact):
        fields = {field.name: getattr(question, field.name) for field in dataclasses.fields(question)}
        return Ask(run, number, type(question).__name__, fields)
    is_file = isinstance(question.content, Path)
    content = os.fsencode(question.content) if isinstance(question.content, Path) else question.content
    return Put(run, number, question.rel_path, content, is_file, question.name, question.data_type, question.data_id)


def question_of(frame: Ask | Put) -> Question:
    """The question that travelled. Raises ValueError for what is none."""
    if isinstance(frame, Put):
        return PutArtifact(
            rel_path=frame.rel_path,
            content=Path(os.fsdecode(frame.content)) if frame.is_file else frame.content,
            name=frame.name,
            data_type=frame.data_type,
            data_id=frame.data_id,
        )
    kind = _QUESTIONS.get(frame.question)
    if kind is None:
        raise ValueError(f"expected a question of the port, got {frame.question!r:.80}")
    question: Question = msgspec.convert(frame.fields, kind)
    return question


def said_by(run: int, report: Progress | LogEvent) -> Say:
    """The report as it travels."""
    return Say(run, isinstance(report, LogEvent), msgspec.json.encode(report.value))


def report_of(frame: Say) -> Progress | LogEvent:
    """The report that travelled. Raises ValueError for what is no JSON."""
    value = msgspec.json.decode(frame.value)
    return LogEvent(value=value) if frame.is_event else Progress(value=value)


def run_of(run: int, lease: LeaseEnvelope) -> Run:
    """The task as it travels."""
    return Run(run, _json.encode(lease))


def lease_of(frame: Run) -> LeaseEnvelope:
    """The lease that travelled."""
    lease: LeaseEnvelope = _lease.decode(frame.lease)
    return lease


def value_of(question: Wanted, value: Any) -> Any:
    """The answer to ``question`` that travelled as ``value``, where it is no bytes."""
    return msgspec.convert(value, _ANSWERS[type(question)], dec_hook=_rich)


def refused(number: int, error: Exception) -> Refuse:
    """What went wrong at the node's end, as it travels."""
    if isinstance(error, OSError):
        return Refuse(number, "OSError", error.strerror or str(error), error.errno)
    kind = next((each.__name__ for each in type(error).__mro__ if each.__name__ in _ERRORS), None)
    if kind is None:
        return Refuse(number, "PosemeshError", said(error), None)
    return Refuse(number, kind, str(error), getattr(error, "status", None))


def raised(frame: Refuse) -> Exception:
    """The error that travelled."""
    if frame.error == "OSError":
        return OSError(frame.status, frame.text)
    kind = _ERRORS.get(frame.error, errors.PosemeshError)
    return kind(frame.text, frame.status) if issubclass(kind, errors.StorageError) else kind(frame.text)
