"""The task with plain methods, over a port that only notes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posemesh.errors import StorageError
from posemesh.runners.api import SyncMultipartUpload, SyncTaskContext
from posemesh.runners.blocking import BlockingTask
from posemesh.runners.port import (
    AbortUpload,
    FinishUpload,
    GetBytes,
    GetToken,
    ListArtifacts,
    LogEvent,
    Materialize,
    OpenUpload,
    Progress,
    PutArtifact,
    WriteUpload,
)

from . import test_task
from .test_task import FOUND, LEASE

CALLS: dict[str, Callable[[SyncTaskContext], object]] = {
    "get_bytes_by_cid": lambda task: task.input.get_bytes_by_cid("c"),
    "materialize_cid_to_temp": lambda task: task.input.materialize_cid_to_temp("c"),
    "materialize_cid_with_meta": lambda task: task.input.materialize_cid_with_meta("c"),
    "put_bytes": lambda task: task.output.put_bytes("a", b""),
    "put_file": lambda task: task.output.put_file("a", "/w/a"),
    "put_domain_artifact": lambda task: task.output.put_domain_artifact("a", b""),
    "uploaded_artifacts": lambda task: task.output.uploaded_artifacts(),
    "open_multipart": lambda task: task.output.open_multipart("a").__enter__(),
    "progress": lambda task: task.ctrl.progress(1),
    "log_event": lambda task: task.ctrl.log_event(1),
    "access_token": lambda task: task.access_token.get(),
}


class Port(test_task.Port):
    def call(self, message: Any) -> Any:  # type: ignore[override]
        self.called.append(message)
        answer = self.answers.get(type(message))
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def task(port: Port, tmp_path: Path) -> BlockingTask:
    return BlockingTask(LEASE, port, lambda: tmp_path)


def test_calls_answer_at_once(task: BlockingTask, port: Port, tmp_path: Path) -> None:
    assert task.input.get_bytes_by_cid("c") == b"in"
    assert task.input.materialize_cid_to_temp("c") == Path("/w/scan.ply")
    assert task.input.materialize_cid_with_meta("c", extract=True) is FOUND
    assert task.output.put_bytes("a", b"x") == "id-1"
    assert task.output.put_file("b", "/w/b") == "id-1"
    assert task.output.put_domain_artifact("c", b"x", name="n", data_type="t", data_id="d") == "id-1"
    assert task.output.uploaded_artifacts() == ()
    assert task.access_token.get() == "token"
    assert port.called == [
        GetBytes(cid="c"),
        Materialize(cid="c"),
        Materialize(cid="c", extract=True),
        PutArtifact(rel_path="a", content=b"x"),
        PutArtifact(rel_path="b", content=Path("/w/b")),
        PutArtifact(rel_path="c", content=b"x", name="n", data_type="t", data_id="d"),
        ListArtifacts(),
        GetToken(),
    ]
    assert (task.workspace, task.lease) == (tmp_path, LEASE)
    assert repr(task) == f"<task {LEASE.task.id} /a/v1>"


def test_reports(task: BlockingTask, port: Port) -> None:
    task.ctrl.progress(1)
    task.ctrl.log_event({"a": [None]})
    assert port.posted == [Progress(value=1), LogEvent(value={"a": [None]})]
    with pytest.raises(TypeError, match="expected JSON"):
        task.ctrl.progress(object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most"):
        task.ctrl.log_event("x" * 70_000)


def test_an_upload_of_unknown_size_is_a_plain_with(task: BlockingTask, port: Port) -> None:
    upload: SyncMultipartUpload
    with task.output.open_multipart("a") as upload:
        upload.write(b"x")
        assert upload.id is None
    assert upload.id == "id-2"
    assert port.called == [OpenUpload(rel_path="a"), WriteUpload(upload=7, data=b"x"), FinishUpload(upload=7)]
    with pytest.raises(RuntimeError, match="not open"):
        upload.write(b"late")


@pytest.mark.parametrize("also", [None, StorageError("gone"), "stopped"])
def test_it_is_aborted_by_an_exception_which_is_the_one_to_tell(task: BlockingTask, port: Port, also: Any) -> None:
    port.answers[AbortUpload] = also
    with pytest.raises(KeyError, match="in the block"), task.output.open_multipart("a"):
        port.cancelled = also == "stopped"
        raise KeyError("in the block")
    assert port.called == [OpenUpload(rel_path="a"), *([] if also == "stopped" else [AbortUpload(upload=7)])]


@pytest.mark.parametrize("name", CALLS)
def test_a_task_told_to_stop_raises_at_each_call(task: BlockingTask, port: Port, name: str) -> None:
    """What ``except Exception`` cannot swallow."""
    assert not task.ctrl.is_cancelled()
    port.cancelled = True
    assert task.ctrl.is_cancelled()
    with pytest.raises(asyncio.CancelledError):
        CALLS[name](task)
    assert port.called == port.posted == []


def test_an_upload_does_not_end_well_after_the_stop(task: BlockingTask, port: Port) -> None:
    with pytest.raises(asyncio.CancelledError), task.output.open_multipart("a"):
        port.cancelled = True
    assert port.called == [OpenUpload(rel_path="a")]
