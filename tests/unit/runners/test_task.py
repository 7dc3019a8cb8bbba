"""The task as user code sees it, over a port that only notes."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from posemesh.errors import StorageError
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
    WriteUpload,
)
from posemesh.runners.task import PortTask
from posemesh.secret import Secret
from posemesh.types import LeaseEnvelope, TaskSpec

LEASE = LeaseEnvelope(task=TaskSpec(id=UUID(int=1), capability="/a/v1"))


FOUND = MaterializedInput(
    path=Path("/w/scan.ply"), data_id="d", name="scan", data_type="ply", domain_id="m", root_dir=Path("/w")
)


class Port:
    def __init__(self) -> None:
        self.posted: list[Any] = []
        self.called: list[Any] = []
        self.cancelled = False
        self.answers: dict[type, Any] = {
            GetToken: Secret("token"),
            GetBytes: b"in",
            PutArtifact: "id-1",
            Materialize: FOUND,
            OpenUpload: 7,
            FinishUpload: "id-2",
            ListArtifacts: (),
        }

    def post(self, message: Any) -> None:
        self.posted.append(message)

    async def call(self, message: Any) -> Any:
        self.called.append(message)
        if isinstance(self.answers.get(type(message)), Exception):
            raise self.answers[type(message)]
        return self.answers.get(type(message))


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def task(port: Port, tmp_path: Path) -> PortTask:
    return PortTask(LEASE, port, lambda: tmp_path)


def test_reports_are_queued_at_once_and_need_no_await(task: PortTask, port: Port) -> None:
    async def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            task.ctrl.progress(1)
            task.ctrl.log_event("a")
        assert port.posted == [Progress(value=1), LogEvent(value="a")]
        assert await task.ctrl.progress(2) is None
        assert await task.ctrl.log_event("b") is None
        assert port.posted[2:] == [Progress(value=2), LogEvent(value="b")]

    asyncio.run(main())


def test_an_awaited_report_gives_others_a_turn(task: PortTask) -> None:
    async def main() -> None:
        order = []

        async def other() -> None:
            order.append("other")

        waiting = asyncio.create_task(other())
        task.ctrl.progress(1)
        order.append("not awaited")
        await task.ctrl.progress(2)
        order.append("awaited")
        await waiting
        assert order == ["not awaited", "other", "awaited"]

    asyncio.run(main())


def test_reports_are_copies_as_json_carries_them(task: PortTask, port: Port) -> None:
    value = {"list": [1], "tuple": (1, 2), "none": None, 5: "five", "é": 1.5}
    task.ctrl.progress(value)  # type: ignore[arg-type]
    value["list"].append(2)  # type: ignore[union-attr, attr-defined]
    value["more"] = 1
    assert port.posted[0].value == {"list": [1], "tuple": [1, 2], "none": None, "5": "five", "é": 1.5}


def circle() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        object(),
        b"bytes",
        {1, 2},
        float("nan"),
        float("inf"),
        [float("-inf")],
        circle(),
        deep(),
        {(1, 2): 3},
        Secret("s"),
        "a\udcff.ply",
        {"\udcff": 1},
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("report", ["progress", "log_event"])
def test_what_is_no_json_is_refused(task: PortTask, port: Port, value: Any, report: str) -> None:
    with pytest.raises(TypeError, match="expected JSON"):
        getattr(task.ctrl, report)(value)
    assert port.posted == []


def test_cancellation_is_the_port_s_word(task: PortTask, port: Port) -> None:
    assert not task.ctrl.is_cancelled()
    port.cancelled = True
    assert task.ctrl.is_cancelled()


def test_calls(task: PortTask, port: Port, tmp_path: Path) -> None:
    async def main() -> None:
        assert await task.input.get_bytes_by_cid("c") == b"in"
        assert await task.output.put_bytes("a/b.txt", memoryview(b"data")) == "id-1"  # type: ignore[arg-type]
        assert await task.access_token.get() == "token"

    asyncio.run(main())
    assert port.called == [GetBytes(cid="c"), PutArtifact(rel_path="a/b.txt", content=b"data"), GetToken()]
    assert task.workspace == tmp_path
    assert task.lease is LEASE
    assert repr(task) == f"<task {UUID(int=1)} /a/v1>"


def test_inputs_as_files(task: PortTask, port: Port) -> None:
    async def main() -> None:
        assert await task.input.materialize_cid_to_temp("c") == Path("/w/scan.ply")
        assert await task.input.materialize_cid_with_meta("c") is FOUND
        assert await task.input.materialize_cid_with_meta("c", extract=True) is FOUND

    asyncio.run(main())
    assert port.called == [Materialize(cid="c"), Materialize(cid="c"), Materialize(cid="c", extract=True)]


def test_files_and_names_of_one_s_own(task: PortTask, port: Port) -> None:
    async def main() -> None:
        assert await task.output.put_file("a.ply", "/w/a.ply") == "id-1"
        assert await task.output.put_domain_artifact("b", b"x", name="n", data_type="t") == "id-1"
        assert await task.output.put_domain_artifact("b", Path("/w/b"), data_id="d") == "id-1"
        assert await task.output.uploaded_artifacts() == ()

    asyncio.run(main())
    assert port.called == [
        PutArtifact(rel_path="a.ply", content=Path("/w/a.ply")),
        PutArtifact(rel_path="b", content=b"x", name="n", data_type="t"),
        PutArtifact(rel_path="b", content=Path("/w/b"), data_id="d"),
        ListArtifacts(),
    ]


def test_an_upload_of_unknown_size_is_finished_by_a_clean_end(task: PortTask, port: Port) -> None:
    """Weakness 25 of the reference: ``open_multipart`` is not implemented."""

    async def main() -> None:
        async with task.output.open_multipart("a") as part:
            await part.write(b"")
            await part.write(memoryview(b"x" * (1024 * 1024 + 1)))  # type: ignore[arg-type]
            assert part.id is None
        assert part.id == "id-2"
        with pytest.raises(RuntimeError, match="not open"):
            await part.write(b"late")

    asyncio.run(main())
    assert port.called == [
        OpenUpload(rel_path="a"),
        WriteUpload(upload=7, data=b"x" * 1024 * 1024),
        WriteUpload(upload=7, data=b"x"),
        FinishUpload(upload=7),
    ]


@pytest.mark.parametrize("also_fails", [False, True])
def test_an_upload_of_unknown_size_is_aborted_by_an_exception(task: PortTask, port: Port, also_fails: bool) -> None:
    async def main() -> None:
        with pytest.raises(KeyError, match="in the block"):
            async with task.output.open_multipart("a"):
                raise KeyError("in the block")

    port.answers[AbortUpload] = StorageError("gone") if also_fails else None
    asyncio.run(main())
    assert port.called == [OpenUpload(rel_path="a"), AbortUpload(upload=7)]


@pytest.mark.parametrize("data", [3, "text", [1, 2], None, 1.5])
def test_what_is_no_bytes_is_refused_where_it_is_put(data: Any) -> None:
    """`bytes(3)` is three zeros, which were uploaded."""

    async def test() -> None:
        port = Port()
        task = PortTask(LEASE, port, lambda: Path("/w"))
        with pytest.raises(TypeError, match="expected bytes, got"):
            await task.output.put_bytes("a", data)
        upload = task.output.open_multipart("a")
        await upload.__aenter__()
        with pytest.raises(TypeError, match="expected bytes, got"):
            await upload.write(data)
        assert port.called == [OpenUpload(rel_path="a")]

    asyncio.run(test())


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_whatever_holds_bytes_is_put(data: Any) -> None:
    async def test() -> None:
        port = Port()
        await PortTask(LEASE, port, lambda: Path("/w")).output.put_bytes("a", data)
        assert port.called == [PutArtifact(rel_path="a", content=b"abc")]

    asyncio.run(test())


def test_paths_and_ids_are_text() -> None:
    """What is none was told as a broken process, or as an error from inside the library."""

    async def test() -> None:
        port = Port()
        task = PortTask(LEASE, port, lambda: Path("/w"))
        number: Any = 3
        for call in (
            lambda: task.output.put_bytes(number, b""),
            lambda: task.output.put_file(number, "/x"),
            lambda: task.input.get_bytes_by_cid(number),
            lambda: task.input.materialize_cid_to_temp(number),
        ):
            with pytest.raises(TypeError, match=r"expected an (artifact's path|input's id) as text, got int"):
                await call()
        with pytest.raises(TypeError, match="expected an artifact's path as text, got int"):
            task.output.open_multipart(number)
        assert port.called == []

    asyncio.run(test())
