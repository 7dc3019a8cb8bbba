"""Sessions: parts go several at a time, each is tried again alone."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from posemesh.devnet import Devnet
from posemesh.errors import TaskStopped, UploadFailed
from posemesh.runners.port import AbortUpload, FinishUpload, OpenUpload, WriteUpload
from posemesh.secret import Secret
from posemesh.shell.offload import InlineOffload
from posemesh.storage.uploads import ABORT_SECS, PARTS_AT_ONCE
from posemesh.storage.workspace import Workspace
from posemesh.wire import uploads

from .rig import Rig, with_net
from .test_artifacts import IN_PARTS, KB, LARGE, MB, Put, methods, open_multipart, put_bytes, put_file

#: A server whose sessions have one part of LARGE, and more.
ONE_PART = IN_PARTS | {"part_size_bytes": 10 * MB}


def test_parts_go_several_at_a_time_and_no_more() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        at_once = most = 0

        async def count(request: web.Request) -> web.StreamResponse | None:
            nonlocal at_once, most
            if request.method == "PUT":
                at_once += 1
                most = max(most, at_once)
                await asyncio.sleep(1)
                at_once -= 1
            return None

        net.faults = count
        assert net.get_data(await put_file(rig, LARGE * 2)) == LARGE * 2
        assert most == PARTS_AT_ONCE

    with_net(test, net=IN_PARTS)


def test_a_part_that_fails_is_tried_again_alone() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        tries: Counter[str] = Counter()

        async def busy(request: web.Request) -> web.StreamResponse | None:
            number = request.query.get("partNumber", "")
            tries[number] += 1
            return web.Response(status=503) if number in ("2", "5") and tries[number] < 3 else None

        net.faults = busy
        assert net.get_data(await put_file(rig, LARGE)) == LARGE
        del tries[""]
        assert tries == {"1": 1, "2": 3, "3": 1, "4": 1, "5": 3, "6": 1} or tries == {
            "1": 1,
            "2": 3,
            "3": 1,
            "4": 1,
            "5": 3,
        }
        assert rig.holder.moves[-1][2:] == (len(LARGE), len(LARGE))

    with_net(test, net=IN_PARTS)


@pytest.mark.parametrize("put", [put_bytes, put_file, open_multipart])
def test_a_session_has_so_many_parts(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the part after the last was refused, when ten thousand had been sent."""
    # More than go at once, where the size is known; what the first MiB takes, where it is not.
    monkeypatch.setattr(uploads, "PARTS_MAX", 3 if put is open_multipart else 5)

    async def test(rig: Rig, net: Devnet) -> None:
        with pytest.raises(UploadFailed, match="more than . parts of 307200 bytes"):
            await put(rig, LARGE)
        assert methods(net) == ["GET info", "POST multipart", "DELETE multipart"]
        assert not net._uploads._sessions and not rig.files

    with_net(test, net=IN_PARTS)


def test_what_is_written_after_the_last_part_has_begun_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PARTS_MAX", 4)

    async def test(rig: Rig, net: Devnet) -> None:
        with pytest.raises(UploadFailed, match="earlier write failed: .*more than 4 parts"):
            async with rig.task.output.open_multipart("a.bin") as part:
                await part.write(bytes(4 * 300 * KB))
                await asyncio.sleep(1)
                with pytest.raises(UploadFailed, match="4 parts of 307200 bytes, which is the domain server's choice"):
                    await part.write(b"x")
        assert not net._uploads._sessions

    with_net(test, net=IN_PARTS)


def test_a_part_that_fails_ends_the_upload_though_others_hang() -> None:
    """The parts were waited for in their order, so a failure was seen after the stall of an earlier one."""

    async def test(rig: Rig, net: Devnet) -> None:
        async def answer(request: web.Request) -> web.StreamResponse | None:
            if request.query.get("partNumber") == "1":
                await asyncio.sleep(500)
            return web.Response(status=403) if request.query.get("partNumber") == "5" else None

        net.faults = answer
        began = asyncio.get_running_loop().time()
        with pytest.raises(UploadFailed, match="part 5.*403"):
            await put_file(rig, LARGE)
        assert asyncio.get_running_loop().time() - began < 10

    with_net(test, net=IN_PARTS)


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("put", [put_bytes, put_file, open_multipart])
def test_a_session_that_goes_away(put: Put, status: int) -> None:
    for failing in range(1, 8):  # six parts, complete

        async def test(rig: Rig, net: Devnet, failing: int = failing) -> None:
            async def gone(request: web.Request) -> web.StreamResponse | None:
                steps = [r for r in net.requests if r.path.endswith("/multipart")]
                return web.Response(status=status) if request.method != "GET" and len(steps) >= failing else None

            net.faults = gone
            with pytest.raises(UploadFailed) as caught:
                await put(rig, LARGE)
            assert caught.value.status == status and not rig.files and not rig.storage.artifacts

        with_net(test, net=IN_PARTS)


@pytest.mark.parametrize("status", [400, 404, 409, 410])
def test_a_completion_whose_answer_was_lost(status: int) -> None:
    """What a server says of a session that is complete already differs."""

    async def test(rig: Rig, net: Devnet) -> None:
        finished: list[str] = []

        async def again(request: web.Request) -> web.StreamResponse | None:
            if request.method == "POST" and "uploadId" in request.query:
                finished.append(request.query["uploadId"])
                if finished.count(finished[-1]) == 2:
                    return web.Response(status=status)
            return None

        async def lose(request: web.Request, answer: web.StreamResponse) -> web.StreamResponse | None:
            return None if len(finished) == 1 else answer

        net.faults, net.replies = again, lose
        key = await put_file(rig, LARGE)
        assert net.get_data(key) == LARGE and len(net.domain.items) == 1
        assert len(finished) == (3 if status == 409 else 2)

    with_net(test, net=IN_PARTS)


def test_a_name_taken_at_the_end_of_a_session_is_updated_in_another() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        key = ""

        async def taken(request: web.Request) -> web.StreamResponse | None:
            nonlocal key
            if request.method == "POST" and "uploadId" in request.query and not key:
                key = net.put_data(f"a_bin_{rig.holder.envelope.task.id}", "bin_data", b"meanwhile")
                return web.Response(status=409)
            return None

        net.faults = taken
        assert await put_file(rig, LARGE) == key
        assert net.get_data(key) == LARGE and len(net.domain.items) == 1 and not net._uploads._sessions

    with_net(test, net=IN_PARTS)


# -- What a task that is told to stop leaves on the server: no session -------------------------------------------


def stop(rig: Rig, reason: str = "cancelled", *jobs: asyncio.Future[Any]) -> None:
    """As the task's host does."""
    rig.holder.cancelled, rig.holder.stop_reason = True, reason
    for job in jobs:
        job.cancel()
    rig.storage.stop()


async def under_way(rig: Rig, net: Devnet, put: Put) -> asyncio.Task[str]:
    """An upload whose parts hang at the server."""

    async def hang(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PUT":
            await asyncio.sleep(500)
        return None

    net.faults = hang
    job = asyncio.ensure_future(put(rig, LARGE))
    await asyncio.sleep(1)
    assert net._uploads._sessions
    return job


STOPPED = pytest.mark.parametrize("put", [put_bytes, put_file, open_multipart])


@STOPPED
@pytest.mark.parametrize("reason", ["cancelled", "shutdown", "timeout"])
def test_a_task_that_is_told_to_stop_aborts_its_sessions(put: Put, reason: str) -> None:
    """Nothing went out for a task that was stopped: the server kept the parts of what never came to its end."""

    async def test(rig: Rig, net: Devnet) -> None:
        job = await under_way(rig, net, put)
        rig.holder.envelope = replace(rig.holder.envelope, access_token=Secret(net.app_token()))
        stop(rig, reason, job)
        job.cancel()  # user code's cancellation reaches the request as well, and must not end the abort
        with pytest.raises(asyncio.CancelledError):
            await job
        await rig.storage.close()
        assert methods(net).count("DELETE multipart") == 1 and not net._uploads._sessions
        net.violations.clear()  # the bodies that were cut short

    with_net(test, net=IN_PARTS)


@STOPPED
@pytest.mark.parametrize("reason", ["expired", "lost"])
def test_under_a_lease_that_is_over_nothing_goes_out(put: Put, reason: str) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        job = await under_way(rig, net, put)
        stop(rig, reason, job)
        with pytest.raises(asyncio.CancelledError):
            await job
        await rig.storage.close()
        assert "DELETE multipart" not in methods(net) and not rig.files
        net.violations.clear()

    with_net(test, net=IN_PARTS)


def test_a_stop_aborts_what_nobody_waits_for_before_user_code_has_ended() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        part = rig.task.output.open_multipart("a.bin")
        await part.__aenter__()
        await part.write(LARGE)
        stop(rig)
        await asyncio.sleep(1)
        assert methods(net)[-1] == "DELETE multipart" and not net._uploads._sessions

    with_net(test, net=IN_PARTS)


def test_aborts_that_hang_hold_up_the_end_of_a_task_briefly_and_all_at_once() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        for number in range(3):
            part = rig.task.output.open_multipart(f"{number}.bin")
            await part.__aenter__()
            await part.write(LARGE)

        aborted = []

        async def hang(request: web.Request) -> web.StreamResponse | None:
            aborted.append(request.method)
            await asyncio.sleep(500)
            return None

        net.faults = hang
        loop = asyncio.get_running_loop()
        began = loop.time()
        stop(rig)
        await asyncio.sleep(0.5)
        await rig.storage.close()
        assert ABORT_SECS - 0.1 <= loop.time() - began < ABORT_SECS + 0.4
        assert aborted == ["DELETE"] * 3 and not rig.files

    with_net(test, net=ONE_PART)


def test_an_abort_waits_for_no_token_that_a_stopped_task_will_not_get() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        part = rig.task.output.open_multipart("a.bin")
        await part.__aenter__()
        await part.write(LARGE)
        net.revoke_tokens("app")
        began = asyncio.get_running_loop().time()
        stop(rig)
        await rig.storage.close()
        assert methods(net)[-1] == "DELETE multipart"
        assert asyncio.get_running_loop().time() - began < ABORT_SECS

    with_net(test, net=ONE_PART)


def test_after_a_stop_no_session_begins() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        stop(rig)
        for put in (put_bytes, put_file, open_multipart):
            with pytest.raises(TaskStopped):
                await put(rig, LARGE)
        await rig.storage.close()
        assert not net.requests

    with_net(test, net=IN_PARTS)


# -- A writer whose calls meet ---------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["info", "initiate", "part"])
def test_an_abort_meets_a_write(held: str) -> None:
    """The write went on to begin a session that nobody ended, or waited for a turn that never came."""

    async def test(rig: Rig, net: Devnet) -> None:
        async def hold(request: web.Request) -> web.StreamResponse | None:
            step = {"GET": "info", "POST": "initiate", "PUT": "part"}.get(request.method)
            if step == held:
                await asyncio.sleep(20 if held == "part" else 5)
            return None

        net.faults = hold
        upload = await rig.storage.answer(OpenUpload(rel_path="a.bin"))
        writing = asyncio.ensure_future(rig.storage.answer(WriteUpload(upload=upload, data=LARGE * 2)))
        await asyncio.sleep(1)
        await rig.storage.answer(AbortUpload(upload=upload))
        with pytest.raises(UploadFailed, match="was aborted"):
            await asyncio.wait_for(writing, 10)
        await asyncio.sleep(10)
        assert not net._uploads._sessions and not rig.files and not rig.storage.artifacts
        net.violations.clear()

    with_net(test, net=IN_PARTS)


@pytest.mark.parametrize("at", ["waiting", "parts", "complete", "one"])
def test_a_finish_that_is_cancelled_leaves_nothing(at: str) -> None:
    """One that was cancelled while a write held the turn left its file and its session."""

    async def test(rig: Rig, net: Devnet) -> None:
        upload = await rig.storage.answer(OpenUpload(rel_path="a.bin"))
        slow = asyncio.ensure_future(asyncio.sleep(0))

        async def hold(request: web.Request) -> web.StreamResponse | None:
            hit = {
                "waiting": request.method == "PUT",
                "parts": request.method == "PUT",
                "complete": request.method == "POST" and "uploadId" in request.query,
                "one": request.method == "POST",
            }
            if hit[at]:
                await asyncio.sleep(30)
            return None

        if at == "waiting":
            net.faults = hold
            slow = asyncio.ensure_future(rig.storage.answer(WriteUpload(upload=upload, data=LARGE * 2)))
            await asyncio.sleep(1)
        else:
            await rig.storage.answer(WriteUpload(upload=upload, data=b"small" if at == "one" else LARGE))
            net.faults = hold
        finishing = asyncio.ensure_future(rig.storage.answer(FinishUpload(upload=upload)))
        await asyncio.sleep(1)
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finishing
        await asyncio.gather(slow, return_exceptions=True)
        await asyncio.sleep(5)
        assert not net._uploads._sessions and not rig.files and not rig.storage.artifacts
        net.faults = None
        net.violations.clear()
        assert net.get_data(await put_bytes(rig, b"again")) == b"again", "nothing is held"

    with_net(test, net=IN_PARTS)


def test_after_a_write_that_failed_nothing_more_is_taken() -> None:
    """How much of it was written is not known: what came after it would not have been where it belonged."""

    async def test(rig: Rig, net: Devnet) -> None:
        async def refuse(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=403) if request.method == "POST" else None

        net.faults = refuse
        upload = await rig.storage.answer(OpenUpload(rel_path="a.bin"))
        with pytest.raises(UploadFailed, match="403"):
            await rig.storage.answer(WriteUpload(upload=upload, data=LARGE))
        net.faults = None
        with pytest.raises(UploadFailed, match="earlier write failed"):
            await rig.storage.answer(WriteUpload(upload=upload, data=b"x"))
        with pytest.raises(UploadFailed, match="earlier write failed"):
            await rig.storage.answer(FinishUpload(upload=upload))
        assert not net.domain.items and not rig.files

    with_net(test, net=IN_PARTS)


# -- Where it is written ---------------------------------------------------------------------------------------


class Watching(InlineOffload):
    """Knows whether something runs through it just now."""

    within = 0

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.within += 1
        try:
            return await super().call(function, *args, **kwargs)
        finally:
            self.within -= 1


def test_what_is_written_goes_through_the_offload_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """One write of a gigabyte held up the node's loop, and its heartbeats, for seconds."""
    offload, sizes, discarded = Watching(), [], []
    write, discard = os.write, Workspace.discard

    def written(file: int, data: Any) -> int:
        if len(data) > 100:  # asyncio wakes its loop by a write, too
            assert offload.within
            sizes.append(len(data))
        return write(file, data)

    def removed(workspace: Workspace, path: Any) -> None:
        assert offload.within
        discarded.append(path)
        discard(workspace, path)

    monkeypatch.setattr(os, "write", written)
    monkeypatch.setattr(Workspace, "discard", removed)

    async def test(rig: Rig, net: Devnet) -> None:
        upload = await rig.storage.answer(OpenUpload(rel_path="a.bin"))
        await rig.storage.answer(WriteUpload(upload=upload, data=LARGE * 3))
        key = await rig.storage.answer(FinishUpload(upload=upload))
        assert net.get_data(key) == LARGE * 3
        assert max(sizes) == MB and sum(sizes) == len(LARGE) * 3 and discarded

    with_net(test, net=IN_PARTS, offload=offload)


def test_an_upload_of_nothing_touches_no_disk() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        assert net.get_data(await open_multipart(rig, b"")) == b""
        assert not list(rig.state.glob("work/*"))

    with_net(test)
