"""Artifacts: created or updated, in one request or in parts, whatever the server answers on the way."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from posemesh.devnet import Devnet
from posemesh.errors import DiskFull, UploadFailed
from posemesh.testing.clock import EPOCH

from .rig import TASK, Rig, with_net, with_server

KB, MB = 1024, 1024 * 1024
#: A server that takes 1 MB in a request and parts of 300 KB.
IN_PARTS = {"request_max_bytes": MB, "part_size_bytes": 300 * KB}
LARGE = os.urandom(64 * KB) * 24  # 1.5 MB, six parts


def methods(net: Devnet) -> list[str]:
    return [f"{request.method} {request.path.rpartition('/')[2]}" for request in net.requests]


async def put_bytes(rig: Rig, data: bytes) -> str:
    return await rig.task.output.put_bytes("a.bin", data)


async def put_file(rig: Rig, data: bytes) -> str:
    return await rig.task.output.put_file("a.bin", rig.write("a.bin", data))


async def put_domain_artifact(rig: Rig, data: bytes) -> str:
    name, kind = f"a_bin_{TASK}", "bin_data"
    return await rig.task.output.put_domain_artifact("a.bin", rig.write("b.bin", data), name=name, data_type=kind)


async def open_multipart(rig: Rig, data: bytes) -> str:
    async with rig.task.output.open_multipart("a.bin") as part:
        for at in range(0, len(data), 100_000):
            await part.write(data[at : at + 100_000])
    assert part.id is not None
    return part.id


PUTS = pytest.mark.parametrize("put", [put_bytes, put_file, put_domain_artifact, open_multipart])
SIZES = pytest.mark.parametrize("data", [b"", b"small", LARGE], ids=["empty", "small", "large"])
NETS = pytest.mark.parametrize(
    "server", [{}, IN_PARTS, {"multipart_enabled": False}], ids=["unlimited", "parts", "no-sessions"]
)
Put = Callable[[Rig, bytes], Awaitable[str]]


@PUTS
@SIZES
@NETS
def test_every_put_of_every_size_to_every_server(put: Put, data: bytes, server: dict[str, Any]) -> None:
    """Weakness 38 of the reference: empty content was refused for files and taken for bytes."""

    async def test(rig: Rig, net: Devnet) -> None:
        key = await put(rig, data)
        assert net.get_data(key) == data
        assert [artifact.id for artifact in await rig.task.output.uploaded_artifacts()] == [key]
        assert await put(rig, data[:100] + b"again") == key
        assert net.get_data(key) == data[:100] + b"again"
        assert len(net.domain.items) == 1 and net.domain.client_ids == {"c-1"}
        assert rig.holder.moves[-1][1:] == ("out", len(data[:100]) + 5, len(data[:100]) + 5)
        assert not rig.files

    with_net(test, net=server)


@PUTS
@SIZES
@NETS
def test_a_second_attempt_updates_what_the_first_left(put: Put, data: bytes, server: dict[str, Any]) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        key = net.put_data(f"a_bin_{TASK}", "bin_data", b"first attempt")
        assert await put(rig, data) == key
        assert net.get_data(key) == data and len(net.domain.items) == 1

    with_net(test, net=server)


@PUTS
@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
@NETS
def test_any_reply_may_be_lost_once(put: Put, data: bytes, server: dict[str, Any]) -> None:
    async def count(rig: Rig, net: Devnet) -> None:
        await put(rig, data)
        counted.append(len(net.requests))

    counted: list[int] = []
    with_net(count, net=server)
    for lost in range(counted[0]):

        async def test(rig: Rig, net: Devnet, lost: int = lost) -> None:
            seen = 0

            async def lose(request: web.Request, answer: web.StreamResponse) -> web.StreamResponse | None:
                nonlocal seen
                seen += 1
                return None if seen == lost + 1 else answer

            net.replies = lose
            key = await put(rig, data)
            assert net.get_data(key) == data and len(net.domain.items) == 1
            assert [artifact.id for artifact in rig.storage.artifacts] == [key]

        with_net(test, net=server)


@PUTS
@pytest.mark.parametrize("status", [400, 403, 500])
def test_a_failure_at_each_step_is_told_and_aborts_the_session(put: Put, status: int) -> None:
    for failing in range(8):  # initiate, six parts, complete

        async def test(rig: Rig, net: Devnet, failing: int = failing) -> None:
            async def fail(request: web.Request) -> web.StreamResponse | None:
                steps = [r for r in net.requests if r.path.endswith("/multipart")]
                if request.path.endswith("/multipart") and request.method != "DELETE" and len(steps) >= failing:
                    return web.Response(status=status, text="because")
                return None

            net.faults = fail
            with pytest.raises(UploadFailed, match=f"{status}: because") as caught:
                await put(rig, LARGE)
            assert caught.value.status == status and caught.value.code == "upload_failed"
            assert not net.domain.items and not rig.storage.artifacts and not rig.files
            assert [r.method for r in net.requests].count("DELETE") == (1 if failing else 0)
            assert not net._uploads._sessions

        with_net(test, net=IN_PARTS)


@PUTS
@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_sessions_gets_one_request(put: Put, status: int) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        async def none(request: web.Request) -> web.StreamResponse | None:
            if request.path.endswith("/multipart"):
                return web.Response(status=status)
            if request.path.endswith("/info"):
                return web.json_response({"upload": {"request_max_bytes": MB, "multipart": {"enabled": True}}})
            return None

        net.faults = none
        key = await put(rig, LARGE)
        assert net.get_data(key) == LARGE
        await put(rig, LARGE)
        assert methods(net) == ["GET info", "POST multipart", "POST data", "PUT data"], "it is remembered"

    with_net(test)


@PUTS
@pytest.mark.parametrize("info", [{"status": 404}, {"status": 500}, {"text": "<html>"}, {"text": '{"upload": 1}'}])
def test_a_server_that_says_nothing_of_uploads(put: Put, info: dict[str, Any]) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        async def strange(request: web.Request) -> web.StreamResponse | None:
            return web.Response(**info) if request.path.endswith("/info") else None

        net.faults = strange
        assert net.get_data(await put(rig, LARGE)) == LARGE

    with_net(test, net=IN_PARTS)


@pytest.mark.parametrize("put", [put_bytes, put_file])
def test_what_is_too_large_for_a_request_goes_in_parts_also_without_info(put: Put) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        key = await put(rig, b"x" * 5000)
        assert net.get_data(key) == b"x" * 5000
        assert methods(net)[:2] == ["POST data", "POST multipart"]

    with_net(test, net={"request_max_bytes": 1000, "part_size_bytes": 2000})


@pytest.mark.parametrize("told", [True, False], ids=["no-limit", "no-info"])
def test_what_nobody_likes_to_send_twice_goes_in_parts(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posemesh.storage.artifacts.SINGLE_BYTES_MAX", len(LARGE) - 1)

    async def test(rig: Rig, net: Devnet) -> None:
        async def fault(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=404) if request.path == "/api/v1/info" and not told else None

        net.faults = fault
        assert net.get_data(await put_bytes(rig, LARGE)) == LARGE
        assert "POST data" not in methods(net)
        await rig.task.output.put_bytes("b.bin", LARGE[:-1])
        assert methods(net)[-1] == "POST data"

    with_net(test, net={"part_size_bytes": 300 * KB})


@PUTS
@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b"{}", b'{"data": []}', b'{"data": [{"id": 5}]}', b"\xff"])
@pytest.mark.parametrize("stored", [False, True])
def test_an_answer_that_names_nothing(put: Put, body: bytes, stored: bool) -> None:
    """Weakness 11 of the reference: a malformed 2xx was a panic. Where the artifact did arrive, it is found."""

    async def test(rig: Rig, net: Devnet) -> None:
        garbage = web.Response(body=body, content_type="application/json")

        async def instead(request: web.Request) -> web.StreamResponse | None:
            return None if stored or request.method == "GET" else garbage

        async def garbled(request: web.Request, answer: web.StreamResponse) -> web.StreamResponse | None:
            return garbage if request.method == "POST" else answer

        net.faults, net.replies = instead, garbled
        if stored:
            assert net.get_data(await put(rig, b"data")) == b"data"
        else:
            with pytest.raises(UploadFailed):
                await put(rig, b"data")
            assert not rig.storage.artifacts

    with_net(test)


def test_a_name_that_is_taken_by_another_item() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=409) if request.method == "POST" else web.json_response({"data": []})

    async def test(rig: Rig) -> None:
        with pytest.raises(UploadFailed, match="by no item of its type") as caught:
            await put_bytes(rig, b"")
        assert caught.value.status == 409

    with_server(answer, test)


@pytest.mark.parametrize("path", ["x" * 200 + ".bin", "a\udcff.bin"])
def test_a_name_the_server_would_refuse_sends_nothing(path: str) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        with pytest.raises(UploadFailed, match="output"):
            await rig.task.output.put_bytes(path, b"")
        for name in ("a/b", "", "x" * 129, "a\nb"):
            with pytest.raises(UploadFailed):
                await rig.task.output.put_domain_artifact("a", b"", name=name or "?", data_type="t")
        assert not net.requests

    with_net(test)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    async def test(rig: Rig, net: Devnet) -> None:
        for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
            with pytest.raises(UploadFailed, match=str(path)):
                await rig.task.output.put_file("a.bin", path)
        assert not net.requests

    with_net(test)


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("key", ["", "\n", 'x"\r\nX: y', "\ud800"])
def test_an_id_that_is_none_sends_nothing(key: str, data: bytes) -> None:
    """It was told as a WireError, of which user code is told nothing."""

    async def test(rig: Rig, net: Devnet) -> None:
        with pytest.raises(UploadFailed, match="output 'a.bin': .* is no item's id"):
            await rig.task.output.put_domain_artifact("a.bin", data, data_id=key)
        assert not net.requests and not rig.storage.artifacts

    with_net(test, net=IN_PARTS)


def test_two_paths_with_one_name_do_not_replace_each_other() -> None:
    """The second found its name taken, as a second attempt does, and updated what the first had put."""

    async def test(rig: Rig, net: Devnet) -> None:
        output = rig.task.output
        first = await output.put_bytes("a/b.txt", b"first")
        with pytest.raises(UploadFailed, match="output 'o/a_b.txt': .* is that of 'o/a/b.txt' too"):
            await output.put_bytes("a_b.txt", b"second")
        with pytest.raises(UploadFailed, match="choose another path"):
            async with output.open_multipart("a b.txt") as part:
                await part.write(b"third")
        assert await output.put_bytes("a/b.txt", b"again") == first
        assert await output.put_domain_artifact("a_b.txt", b"second", name="a_b") != first
        assert net.get_data(first) == b"again"
        # Who names an item means it.
        name = rig.storage.artifacts[0].name
        assert await output.put_domain_artifact("b.txt", b"named", name=name, data_type="txt_data") == first
        assert await output.put_domain_artifact("c.txt", b"by id", data_id=first) == first

    with_net(test, task={"outputs_prefix": "o"})


@SIZES
def test_what_a_path_had_under_another_name_stays(data: bytes) -> None:
    """A stream of more than a request updated it, whatever it was called; a smaller one did not."""

    async def test(rig: Rig, net: Devnet) -> None:
        named = await rig.task.output.put_domain_artifact("a.bin", b"model", name="model", data_type="mesh")
        assert await open_multipart(rig, data) != named
        assert net.get_data(named) == b"model"

    with_net(test, net=IN_PARTS)


def test_an_item_is_updated_by_its_id() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        key = net.put_data("model", "mesh", b"old")
        for data in (b"new", LARGE):
            assert await rig.task.output.put_domain_artifact("m", data, data_id=key) == key
            assert net.get_data(key) == data
        with pytest.raises(UploadFailed):
            await rig.task.output.put_domain_artifact("m", b"", data_id=str(TASK))

    with_net(test, net=IN_PARTS)


@PUTS
@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
def test_an_artifact_that_somebody_removed_is_made_anew(put: Put, data: bytes) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        key = await put(rig, data)
        net.domain.items.clear()
        again = await put(rig, data + b"again")
        assert again != key and net.get_data(again) == data + b"again"
        assert [artifact.id for artifact in rig.storage.artifacts] == [again]

    with_net(test, net=IN_PARTS)


def test_an_item_that_is_gone_is_no_sign_that_there_are_no_sessions() -> None:
    """For a minute the server was taken for one without, and large artifacts went in requests that it refused."""

    async def test(rig: Rig, net: Devnet) -> None:
        with pytest.raises(UploadFailed, match="is gone") as caught:
            await rig.task.output.put_domain_artifact("m", LARGE, data_id=str(TASK))
        assert caught.value.status == 404
        assert net.get_data(await put_bytes(rig, LARGE)) == LARGE
        assert methods(net)[2:] == ["GET data", "POST multipart"] + ["PUT multipart"] * 6 + ["POST multipart"]

    with_net(test, net=IN_PARTS)


def test_an_update_on_a_server_without_sessions() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        async def none(request: web.Request) -> web.StreamResponse | None:
            if request.path.endswith("/info"):
                return web.json_response({"upload": {"request_max_bytes": MB, "multipart": {"enabled": True}}})
            return web.Response(status=404) if request.path.endswith("/multipart") else None

        net.faults = none
        key = net.put_data("model", "mesh", b"old")
        for _ in range(2):
            assert await rig.task.output.put_domain_artifact("m", LARGE, data_id=key) == key
        assert net.get_data(key) == LARGE
        assert methods(net) == ["GET info", "POST multipart", "GET data", "PUT data", "PUT data"]

    with_net(test)


@pytest.mark.parametrize("old", [True, False])
def test_what_an_earlier_attempt_left_is_not_taken_for_what_was_sent(old: bool) -> None:
    """Whatever the server's clock said before: the look-up's own answer tells its time."""
    off = 7200.0
    seen = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.method)
        now = EPOCH + asyncio.get_running_loop().time() + off
        response: web.Response = web.Response(text="garbage")
        if request.method == "GET":
            at = datetime.fromtimestamp(now - (60 if old else 1), UTC).isoformat()
            item = {"id": "d", "domain_id": "d", "name": f"a_bin_{TASK}", "data_type": "bin_data", "size": 4}
            response = web.json_response({"data": [item | {"created_at": at, "updated_at": at}]})
        # Only the look-up tells the time as it is there.
        response.headers["Date"] = formatdate(now if request.method == "GET" else now - 86_000, usegmt=True)
        return response

    async def test(rig: Rig) -> None:
        for _ in range(2):
            if old:
                with pytest.raises(UploadFailed):
                    await put_bytes(rig, b"data")
            else:
                assert await put_bytes(rig, b"data") == "d"
        assert "GET" in seen

    with_server(answer, test)


def test_artifacts_are_listed_in_the_order_of_the_puts() -> None:
    """Weakness 39 of the reference: their order was that of a hash map."""

    async def test(rig: Rig, net: Devnet) -> None:
        async def slow(request: web.Request) -> web.StreamResponse | None:
            await asyncio.sleep(10 - len(net.requests))
            return None

        net.faults = slow
        paths = [f"{number}.bin" for number in (3, 1, 2)]
        await asyncio.gather(*(rig.task.output.put_bytes(path, b"") for path in paths))
        await rig.task.output.put_bytes("1.bin", b"again")
        assert [artifact.logical_path for artifact in await rig.task.output.uploaded_artifacts()] == [
            f"jobs/1/{path}" for path in paths
        ]
        assert len(net.domain.items) == 3

    with_net(test, task={"outputs_prefix": "/jobs/1/"})


def test_puts_of_one_path_follow_one_another() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        await asyncio.gather(*(rig.task.output.put_bytes("a", bytes([n])) for n in range(5)))
        assert len(net.domain.items) == 1 and len(rig.storage.artifacts) == 1
        assert methods(net) == ["POST data"] + ["PUT data"] * 4

    with_net(test)


def test_an_exception_in_the_block_aborts() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        with pytest.raises(KeyError):
            async with rig.task.output.open_multipart("a.bin") as part:
                await part.write(LARGE)
                assert rig.files
                raise KeyError
        assert methods(net)[-1] == "DELETE multipart"
        assert not rig.files and not net.domain.items and not net._uploads._sessions and not rig.storage.artifacts

    with_net(test, net=IN_PARTS)


def test_what_was_written_is_sent_while_more_is_written() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        async with rig.task.output.open_multipart("a.bin") as part:
            await part.write(LARGE)
            await asyncio.sleep(5)
            assert methods(net).count("PUT multipart") == 5
            await part.write(b"rest")
        assert net.get_data(part.id or "") == LARGE + b"rest"

    with_net(test, net=IN_PARTS)


def test_limits() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        with pytest.raises(UploadFailed, match="PART_BYTES_MAX"):
            await put_bytes(rig, LARGE)
        with pytest.raises(DiskFull, match="WORKSPACE_BYTES_MAX"):
            await open_multipart(rig, LARGE * 2)
        assert not net._uploads._sessions and not rig.files and not rig.storage.artifacts

    with_net(test, net=IN_PARTS, part_bytes_max=200 * KB, workspace_bytes_max=1000 * KB)


def test_a_part_size_that_is_absurd_takes_no_memory() -> None:
    """Weakness 29 of the reference: the size that the server chose was allocated blindly."""
    sizes: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/info"):
            return web.json_response({"upload": {"request_max_bytes": 1, "multipart": {"enabled": True}}})
        if "uploads" in request.query:
            return web.json_response({"upload_id": "u", "part_size": 2**62})
        if request.method == "PUT":
            sizes.append(len(await request.read()))
            return web.json_response({"etag": "e"})
        assert json.loads(await request.read()) == {"parts": [{"part_number": 1, "etag": "e"}]}
        return web.json_response({"id": "d"})

    async def test(rig: Rig) -> None:
        assert await put_file(rig, LARGE) == await open_multipart(rig, LARGE + b"x") == "d"
        assert sizes == [len(LARGE), len(LARGE) + 1]

    with_server(answer, test)


@pytest.mark.parametrize("answer", [{"part_size": 0}, {"part_size": -1}, {"upload_id": ""}, {"part_size": None}])
def test_a_session_that_is_none(answer: dict[str, Any]) -> None:
    async def serve(request: web.Request) -> web.Response:
        if request.path.endswith("/info"):
            return web.json_response({"upload": {"request_max_bytes": 1, "multipart": {"enabled": True}}})
        return web.json_response({"upload_id": "u", "part_size": 1} | answer)

    async def test(rig: Rig) -> None:
        with pytest.raises(UploadFailed):
            await put_bytes(rig, LARGE)

    with_server(serve, test)


def test_a_file_that_shrinks_fails_the_upload() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        path = rig.write("a.bin", LARGE)

        async def shrink(request: web.Request) -> web.StreamResponse | None:
            os.truncate(path, 1000)
            return None

        net.faults = shrink
        with pytest.raises(UploadFailed, match="shorter"):
            await rig.task.output.put_file("a.bin", path)
        net.violations.clear()

    with_net(test)
