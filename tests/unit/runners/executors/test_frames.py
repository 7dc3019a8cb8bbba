"""Messages between a child and its node: whole, typed, and nothing but data."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posemesh import errors
from posemesh.outcomes import FailureCode
from posemesh.runners.executors import frames
from posemesh.runners.port import (
    AbortUpload,
    FinishUpload,
    GetBytes,
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
from posemesh.telemetry import register_secret
from posemesh.types import Artifact, LeaseEnvelope, TaskSpec

ODD = Path("/tmp/\udcff")
QUESTIONS: list[tuple[Question, Any]] = [
    (GetToken(), Secret("t")),
    (Materialize(cid="c", extract=True), None),
    (PutArtifact(rel_path="a", content=b"\0\xff"), "id"),
    (PutArtifact(rel_path="a", content=ODD, name="n", data_type="t", data_id="d"), "id"),
    (OpenUpload(rel_path="a"), 3),
    (WriteUpload(upload=3, data=b"x"), None),
    (FinishUpload(upload=3), "id"),
    (AbortUpload(upload=3), None),
    (ListArtifacts(), (Artifact(logical_path="l", name="n", data_type="t", id=None),)),
]
MATERIALIZED = MaterializedInput(
    path=ODD, data_id="1", name="n", data_type="t", domain_id="d", root_dir=Path("/tmp"), related_files=(ODD, Path("b"))
)


def travelled(frame: Any) -> Any:
    (body,) = frames.Frames().feed(frames.encode(frame))
    decode = frames.from_node if type(frame) in get_args(frames.FromNode) else frames.from_child
    return decode(body)


@given(st.lists(st.binary(max_size=30), max_size=8), st.integers(1, 9))
def test_messages_are_whole_however_they_arrive(bodies: list[bytes], size: int) -> None:
    data = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    splitter = frames.Frames()
    found = [body for at in range(0, len(data), size) for body in splitter.feed(data[at : at + size])]
    assert found == bodies


def test_what_came_before_a_message_that_is_too_large_is_given() -> None:
    given = frames.Frames(5).feed(b"\0\0\0\1a\0\0\0\6")
    assert next(given) == b"a"
    with pytest.raises(ValueError, match="at most 5 bytes, got one of 6"):
        next(given)


def test_a_message_that_comes_alone_has_the_same_limit() -> None:
    assert list(frames.Frames(5).feed(b"\0\0\0\5abcde")) == [b"abcde"]
    with pytest.raises(ValueError, match="at most 5 bytes, got one of 6"):
        list(frames.Frames(5).feed(b"\0\0\0\6abcdef"))


def test_more_may_come_while_a_message_is_taken() -> None:
    """A child's idle check reads in the middle of its last task's message; it once took that message twice."""
    splitter = frames.Frames()
    given = splitter.feed(b"\0\0\0\1a\0\0\0\1b")
    assert next(given) == b"a"
    assert list(splitter.feed(b"\0\0\0\1c")) == [b"b", b"c"]
    assert list(given) == []


def test_every_question_of_the_port_travels_with_its_answer() -> None:
    assert {type(question) for question, _ in QUESTIONS} | {GetBytes} == set(get_args(Question))
    for question, value in [*QUESTIONS, (Materialize(cid="c"), MATERIALIZED)]:
        frame = travelled(frames.asked(7, 8, question))
        assert (frame.run, frame.number, frames.question_of(frame)) == (7, 8, question)
        if value is not None or not isinstance(question, Materialize):
            answer = travelled(frames.Answer(8, value))
            assert frames.value_of(question, answer.value) == value


def test_what_is_about_the_port_travels() -> None:
    done = frames.Done(1, FailureCode.KILLED, "m", ["a"], True, False)
    for frame in (
        *(frames.Load("m", None, "n"), frames.Check(1), frames.Piece(1, b"x")),
        *(frames.WhereWorkspace(1, 2), frames.SetUp(1, 2), done),
    ):
        assert travelled(frame) == frame
    assert frames.value_of(frames.WhereWorkspace(1, 2), travelled(frames.Answer(2, ODD)).value) == ODD


@pytest.mark.parametrize("report", [Progress(value={"a": [1.5, None, "ü", 2**70]}), LogEvent(value=None)])
def test_reports_travel_with_numbers_of_any_size(report: Progress | LogEvent) -> None:
    assert frames.report_of(travelled(frames.said_by(1, report))) == report


def test_a_lease_travels() -> None:
    task = TaskSpec(id=UUID(int=1), capability="/a/v1", meta={"large": 2**70}, priority=3)
    lease = LeaseEnvelope(
        task=task, access_token=Secret("t"), lease_expires_at=datetime(2030, 1, 1, tzinfo=UTC), domain_id=UUID(int=2)
    )
    assert frames.lease_of(travelled(frames.run_of(1, lease))) == lease


@pytest.mark.parametrize(
    "error",
    [
        errors.StorageError("a", 503),
        errors.BadInput("a"),
        errors.UploadFailed("a", 500),
        errors.DiskFull("a"),
        errors.InvalidCid("a"),
        errors.TaskStopped("a"),
        FileNotFoundError(2, "No such file"),
    ],
)
def test_errors_travel(error: Exception) -> None:
    found = frames.raised(travelled(frames.refused(1, error)))
    assert type(found) is type(error)
    assert vars(found) == vars(error)
    assert found.args == error.args


def test_an_error_of_another_kind_comes_as_its_text() -> None:
    found = frames.raised(travelled(frames.refused(1, LookupError("a"))))
    assert type(found) is errors.PosemeshError
    assert str(found) == "LookupError: a"


@given(
    st.binary(max_size=40) | st.recursive(st.integers() | st.text() | st.binary(), st.lists).map(repr).map(str.encode)
)
def test_what_is_no_message_is_a_value_error(body: bytes) -> None:
    try:
        frame = frames.from_child(body)
    except ValueError:
        return
    assert isinstance(frame, msgspec.Struct)


def test_a_child_s_end_is_told_without_the_node_s_secrets() -> None:
    """A child does not know what is one: a token in an error's text was in the report."""
    register_secret(Secret("hunter2hunter2"))
    told = "ValueError: with hunter2hunter2"
    ending = travelled(frames.Done(1, FailureCode.RUNNER_ERROR, told, [told, "KeyError"], True, False)).ending
    assert (ending.message, ending.details) == ("ValueError: with ***", {"chain": ["ValueError: with ***", "KeyError"]})


@pytest.mark.parametrize(
    ("question", "fields"), [("GetBytes", {}), ("GetBytes", {"cid": 1}), ("PutArtifact", {}), ("Job", {})]
)
def test_a_question_that_is_none_is_a_value_error(question: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"[Ee]xpected|missing"):
        frames.question_of(frames.Ask(1, 1, question, fields))


def test_what_cannot_travel_is_refused_where_it_is_sent() -> None:
    with pytest.raises(TypeError, match="expected a value of the port, got object"):
        frames.encode(frames.Answer(1, object()))
    with pytest.raises(ValueError, match="surrogates"):
        frames.encode(frames.asked(1, 1, GetBytes(cid="\udcff")))
