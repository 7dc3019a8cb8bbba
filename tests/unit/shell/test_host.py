"""The node's end of a running task: what user code may do, and what its end leaves behind."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from posemesh.commands import StartRunner
from posemesh.errors import BadInput, DiskFull, InvalidCid, StorageError, TaskStopped, UploadFailed
from posemesh.events import EventLogged, ProgressMade, RunnerFailed, RunnerFinished, TransferMoved
from posemesh.runners.ending import CHAIN_MAX
from posemesh.runners.metrics import MetricsHandle, noop_metrics
from posemesh.runners.port import GetBytes, PutArtifact
from posemesh.secret import Secret
from posemesh.shell.host import TaskHost
from posemesh.shell.offload import HostOffload, InlineOffload, ThreadOffload
from posemesh.telemetry import logger, register_secret
from posemesh.types import Artifact, LeaseEnvelope, TaskSpec

from ...registering import launching

ENVELOPE = LeaseEnvelope(task=TaskSpec(id=UUID(int=1), capability="/a/v1"), access_token=Secret("domain-token-1"))
ARTIFACT = Artifact(logical_path="a", name="a", data_type="binary", id="1")


class Store:
    """What a domain server would hold."""

    def __init__(self) -> None:
        self.puts: list[tuple[str, Any]] = []
        self.closed = False
        self.stops = 0
        self.cancelled: list[str] = []

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return (ARTIFACT,) * len(self.puts)

    async def answer(self, message: Any) -> Any:
        if isinstance(message, GetBytes):
            if message.cid == "missing":
                raise StorageError("no such item", 404)
            return message.cid.encode()
        assert isinstance(message, PutArtifact)
        try:
            await (asyncio.Event().wait() if message.rel_path == "endless" else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.cancelled.append(message.rel_path)
            raise
        self.puts.append((message.rel_path, message.content))
        return f"id of {message.rel_path}"

    def workspace(self) -> Path:
        return Path("/workspace/of/the/task")

    def stop(self) -> None:
        self.stops += 1

    async def close(self) -> None:
        assert not self.closed
        self.closed = True


class Rig:
    def __init__(self, offload: Any, envelope: LeaseEnvelope = ENVELOPE, metrics: MetricsHandle | None = None) -> None:
        self.offload = offload
        self.posted: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.cancelled: list[str] = []
        self.store = Store()
        command = StartRunner(lease=5, envelope=envelope)
        self.host = TaskHost(command, self._post, lambda host: self.store, metrics or noop_metrics())

    async def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        return await self.host.run(launching(work, self.offload))

    def _post(self, event: Any) -> None:
        self.posted.append(event)
        self.threads.append(threading.current_thread())


@pytest.fixture(params=[InlineOffload, HostOffload, ThreadOffload])
def hosted(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run one task's user code by each of the ways; gives the event it ended with and the rig."""

    def run(work: Callable[[Any], Awaitable[Any]], **options: Any) -> tuple[Any, Rig]:
        async def main() -> tuple[Any, Rig]:
            offload = request.param()
            rig = Rig(offload, **options)
            try:
                async with asyncio.timeout(20):
                    event = await rig.run(work)
                    rig.cancelled = list(rig.store.cancelled)
                    return event, rig
            finally:
                offload.close()

        return asyncio.run(main())

    return run


def test_a_task_from_begin_to_end(hosted: Callable[..., Any]) -> None:
    async def work(task: Any) -> str:
        assert task.lease is ENVELOPE
        task.ctrl.progress({"pct": 1})
        await task.ctrl.log_event("begun")
        assert await task.input.get_bytes_by_cid("abc") == b"abc"
        assert await task.output.put_bytes("out.bin", bytearray(b"data")) == "id of out.bin"
        assert await task.access_token.get() == "domain-token-1"
        assert not task.ctrl.is_cancelled()
        return "ignored"

    event, rig = hosted(work)
    assert event == RunnerFinished(lease=5, artifacts=(ARTIFACT,))
    assert rig.store.puts == [("out.bin", b"data")]
    assert rig.posted == [EventLogged(lease=5, record="begun"), ProgressMade(lease=5, progress={"pct": 1})]


def test_a_runner_that_reports_without_end_floods_nothing(hosted: Callable[..., Any]) -> None:
    """Each report woke the node's loop: its heartbeats came too late, and its signals found the pipe full."""

    async def work(task: Any) -> None:
        for number in range(20_000):
            task.ctrl.progress(number)
            task.ctrl.log_event(number)

    event, rig = hosted(work)
    assert isinstance(event, RunnerFinished)
    logged = [one.record for one in rig.posted if isinstance(one, EventLogged)]
    made = [one.progress for one in rig.posted if isinstance(one, ProgressMade)]
    assert logged[-256:] == list(range(20_000 - 256, 20_000)) and made[-1] == 19_999
    assert len(rig.posted) < 20_000


def test_reports_from_any_thread_are_taken_in_on_the_nodes_loop(hosted: Callable[..., Any]) -> None:
    """Under start() a report made in asyncio.to_thread moved the machines on that thread."""

    async def work(task: Any) -> None:
        await asyncio.to_thread(task.ctrl.progress, {"pct": 1})

    event, rig = hosted(work)
    assert isinstance(event, RunnerFinished)
    assert rig.posted == [ProgressMade(lease=5, progress={"pct": 1})]
    assert set(rig.threads) == {threading.main_thread()}


def test_what_user_code_left_running_ends_with_the_task(hosted: Callable[..., Any]) -> None:
    """A task of its own that was uploading went on under a lease that was over."""
    left: list[Any] = []

    async def work(task: Any) -> None:
        left.append(asyncio.ensure_future(task.output.put_bytes("endless", b"")))
        await asyncio.sleep(0)  # it has asked before the next line does
        await task.output.put_bytes("quick", b"")

    event, rig = hosted(work)
    assert isinstance(event, RunnerFinished)
    assert rig.cancelled == ["endless"]


def test_what_it_raises_is_the_reason(hosted: Callable[..., Any]) -> None:
    async def work(task: Any) -> None:
        await task.output.put_bytes("half", b"")
        try:
            raise KeyError("scan")
        except KeyError as error:
            raise RuntimeError("no scan") from error

    event, _ = hosted(work)
    assert isinstance(event, RunnerFailed)
    assert (event.code, event.message) == ("runner_error", "RuntimeError: no scan")
    assert event.details == {"chain": ["RuntimeError: no scan", "KeyError: 'scan'"]}
    assert event.artifacts == (ARTIFACT,)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidCid("another server"), "bad_input", "InvalidCid: another server"),
        (BadInput("too short"), "bad_input", "BadInput: too short"),
        (UploadFailed("503"), "upload_failed", "UploadFailed: 503"),
        (DiskFull("no room"), "disk_full", "DiskFull: no room"),
        (StorageError("no such item"), "runner_error", "StorageError: no such item"),
        (OSError(errno.ENOSPC, "No space left"), "disk_full", "OSError: [Errno 28] No space left"),
        (OSError(errno.EPERM, "No"), "runner_error", "PermissionError: [Errno 1] No"),
        (SystemExit(2), "runner_error", "SystemExit: 2"),
        (KeyboardInterrupt(), "runner_error", "KeyboardInterrupt"),
        (asyncio.CancelledError(), "cancelled", "the runner was cancelled"),
        (TimeoutError(), "runner_error", "TimeoutError"),
    ],
)
def test_ends_by_their_kind(hosted: Callable[..., Any], error: BaseException, code: str, message: str) -> None:
    async def work(task: Any) -> None:
        raise error

    event, _ = hosted(work)
    assert (event.code, event.message) == (code, message)


def test_errors_of_the_node_s_end_are_raised_in_user_code(hosted: Callable[..., Any]) -> None:
    async def work(task: Any) -> None:
        with pytest.raises(StorageError, match="no such item") as caught:
            await task.input.get_bytes_by_cid("missing")
        assert caught.value.status == 404
        with pytest.raises(TypeError):
            task.ctrl.progress(object())

    event, _ = hosted(work)
    assert isinstance(event, RunnerFinished)


def test_a_lease_without_a_token(hosted: Callable[..., Any]) -> None:
    async def work(task: Any) -> None:
        await task.access_token.get()

    event, _ = hosted(work, envelope=LeaseEnvelope(task=ENVELOPE.task))
    assert event.message == "StorageError: the lease carries no access token; the service gave none"


def test_secrets_are_taken_out_of_the_reason(hosted: Callable[..., Any]) -> None:
    register_secret(Secret("known-secret-9"))

    async def work(task: Any) -> None:
        try:
            raise ValueError("Authorization: Bearer abc.def")
        except ValueError as error:
            raise RuntimeError("it was known-secret-9") from error

    event, _ = hosted(work)
    assert event.message == "RuntimeError: it was ***"
    assert event.details["chain"][1] == "ValueError: Authorization: Bearer ***"


def test_a_reason_is_text_also_where_a_file_s_name_is_none(hosted: Callable[..., Any]) -> None:
    async def work(task: Any) -> None:
        raise OSError("no file a\udcff.ply")

    event, _ = hosted(work)
    assert event.message == "OSError: no file a\\udcff.ply"
    assert event.details["chain"] == [event.message]


def test_a_circle_of_causes_ends(hosted: Callable[..., Any]) -> None:
    async def work(task: Any) -> None:
        one, other = ValueError("1"), ValueError("2")
        one.__cause__, other.__cause__ = other, one
        raise one

    event, _ = hosted(work)
    assert event.details["chain"] == ["ValueError: 1", "ValueError: 2"]

    async def deep(task: Any) -> None:
        error: Exception = ValueError("0")
        for number in range(1, 30):
            error, cause = ValueError(str(number)), error
            error.__cause__ = cause
        raise error

    event, _ = hosted(deep)
    assert len(event.details["chain"]) == CHAIN_MAX

    async def hidden(task: Any) -> None:
        try:
            raise ValueError("inner")
        except ValueError:
            raise RuntimeError("outer") from None

    event, _ = hosted(hidden)
    assert event.details["chain"] == ["RuntimeError: outer"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_storage_is_closed_with_the_task(hosted: Callable[..., Any], fails: bool) -> None:
    async def work(task: Any) -> None:
        assert task.workspace == Path("/workspace/of/the/task")
        if fails:
            raise RuntimeError

    _, rig = hosted(work)
    assert rig.store.closed


@pytest.mark.parametrize("fails", [False, True])
def test_a_storage_that_cannot_be_closed_does_not_replace_the_end(
    hosted: Callable[..., Any], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workspace that could not be removed made a task's result an internal error."""

    async def close(store: Store) -> None:
        raise RecursionError

    async def work(task: Any) -> None:
        if fails:
            raise RuntimeError("its own")

    monkeypatch.setattr(Store, "close", close)
    said: list[str] = []
    logger().enable("posemesh")
    sink = logger().add(said.append, level="WARNING")
    try:
        event, _ = hosted(work)
    finally:
        logger().remove(sink)
        logger().disable("posemesh")
    assert isinstance(event, RunnerFailed if fails else RunnerFinished)
    assert "could not be removed" in said[0] and "RecursionError" in said[0]


def test_transfers_are_told_until_the_task_is_to_stop() -> None:
    async def main() -> None:
        rig = Rig(InlineOffload())
        rig.host.transferred("scan", "in", 1, None)
        rig.host.stop("shutdown")
        rig.host.transferred("scan", "in", 2, None)
        assert rig.posted == [TransferMoved(lease=5, transfer="scan", way="in", done=1, total=None)]

    asyncio.run(main())


def test_a_task_that_is_told_to_stop() -> None:
    async def main() -> None:
        rig = Rig(InlineOffload())
        seen: list[object] = []

        async def work(task: Any) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(task.ctrl.is_cancelled())
                for call in (
                    task.access_token.get(),
                    task.output.put_bytes("a", b""),
                    task.input.get_bytes_by_cid("a"),
                ):
                    with pytest.raises(TaskStopped, match="told to stop"):
                        await call
                raise

        running = asyncio.ensure_future(rig.run(work))
        for _ in range(3):
            await asyncio.sleep(0)
        rig.host.stop("lost")
        assert rig.store.stops == 1, "at once: user code may take its time"
        event = await running
        assert (event.code, seen) == ("cancelled", [True])
        assert rig.store.puts == []
        rig.host.stop("shutdown")
        assert rig.host.stop_reason == "lost"

    asyncio.run(main())


def test_a_stop_before_the_begin_keeps_user_code_from_running() -> None:
    async def main() -> None:
        rig = Rig(InlineOffload())
        began = []

        async def work(task: Any) -> None:
            began.append(1)

        rig.host.stop("shutdown")
        event = await rig.run(work)
        assert (event.code, began) == ("cancelled", [])

    asyncio.run(main())


def test_a_result_in_spite_of_a_stop_is_a_result() -> None:
    async def main() -> None:
        rig = Rig(InlineOffload())

        async def work(task: Any) -> None:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()

        running = asyncio.ensure_future(rig.run(work))
        for _ in range(3):
            await asyncio.sleep(0)
        rig.host.stop("shutdown")
        assert isinstance(await running, RunnerFinished)

    asyncio.run(main())


def test_new_terms_are_used_at_once() -> None:
    async def main() -> None:
        rig = Rig(InlineOffload())
        renewed = asyncio.Event()
        tokens = []

        async def work(task: Any) -> None:
            tokens.append(await task.access_token.get())
            await renewed.wait()
            tokens.append(await task.access_token.get())

        running = asyncio.ensure_future(rig.run(work))
        for _ in range(5):
            await asyncio.sleep(0)
        rig.host.envelope = LeaseEnvelope(task=ENVELOPE.task, access_token=Secret("domain-token-2"))
        renewed.set()
        await running
        assert tokens == ["domain-token-1", "domain-token-2"]

    asyncio.run(main())
