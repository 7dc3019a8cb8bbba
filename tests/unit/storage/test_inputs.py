"""Inputs: every form of an id, whole or not at all, and never outside of their place."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web

from posemesh.devnet import Devnet, DevnetConfig
from posemesh.errors import BadInput, DiskFull, InvalidCid, StorageError, TaskStopped
from posemesh.runners.port import Materialize
from posemesh.shell.offload import HostOffload, InlineOffload
from posemesh.storage.archive import DIRECTORY_BYTES, Budget
from posemesh.storage.inputs import Inputs
from posemesh.storage.task import NodeStorage
from posemesh.testing import LoopClock
from posemesh.types import LeaseEnvelope
from posemesh.wire.multipart import Part

from .rig import DOMAIN, ITEM, Holder, Rig, config, envelope, with_net, with_server


def part(data: bytes, *, name: str = "n", data_type: str = "t", key: str = ITEM, size: object = None) -> bytes:
    about = (
        f'form-data; name="{name}"; data-type="{data_type}"; id="{key}"; size="{len(data) if size is None else size}"'
    )
    return b"--B\r\nContent-Disposition: " + about.encode() + b"\r\n\r\n" + data + b"\r\n"


def multipart(*parts: bytes) -> web.Response:
    return web.Response(
        body=b"".join(parts) + b"--B--\r\n", headers={"Content-Type": "multipart/form-data; boundary=B"}
    )


def answering(*parts: bytes) -> Any:
    async def answer(request: web.Request) -> web.Response:
        return multipart(*parts)

    return answer


@pytest.mark.parametrize("data", [b"", b"\x00\r\n--boundary--\r\n", bytes(range(256)) * 5000])
def test_an_input_by_id_path_url_and_name(data: bytes) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        key = net.put_data("scan_2024", "t", data)
        path = f"/api/v1/domains/{net.domain_id}/data/{key}"
        query = f"{net.url}/api/v1/domains/{net.domain_id}/data?name=scan_2024&data_type=t"
        for cid in (key, f" {key} ", path, net.url + path, query, "scan_2024"):
            assert await rig.task.input.get_bytes_by_cid(cid) == data
            found = await rig.task.input.materialize_cid_with_meta(cid)
            assert found.path.read_bytes() == data
            assert (found.data_id, found.name, found.data_type) == (key, "scan_2024", "t")
            assert (found.domain_id, found.related_files, found.extracted_paths) == (net.domain_id, (), ())
            assert found.path.is_relative_to(found.root_dir) and found.root_dir.parent == rig.task.workspace
        assert len(rig.files) == 6

    with_net(test)


def test_the_layout() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        keys = [
            net.put_data("scan_2024-01-02_03-04-05", "refined_scan_zip", b"1"),
            net.put_data("manifest", "dmt_manifest_json", b"2"),
        ]
        url = f"/api/v1/domains/{net.domain_id}/data?ids={','.join(keys)}"
        found = await rig.task.input.materialize_cid_with_meta(url)
        assert str(found.path.relative_to(found.root_dir)) == (
            "datasets/2024-01-02_03-04-05/scan_2024-01-02_03-04-05.refined_scan_zip"
        )
        (other,) = found.related_files
        assert str(other.relative_to(found.root_dir)) == "datasets/manifest/manifest.dmt_manifest_json"
        assert await rig.task.input.materialize_cid_to_temp(keys[1]) != other
        for move in rig.holder.moves:
            assert move[1] == "in" and move[2] == move[3]

    with_net(test)


def test_of_several_items_of_a_name_the_refined_scan_is_meant() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        net.put_data("scan", "manifest", b"no")
        net.put_data("scan", "refined_scan_zip", b"yes")
        net.put_data("two", "a", b"")
        net.put_data("two", "b", b"")
        assert await rig.task.input.get_bytes_by_cid("scan") == b"yes"
        with pytest.raises(InvalidCid, match="2 items"):
            await rig.task.input.get_bytes_by_cid("two")

    with_net(test)


@pytest.mark.parametrize("cid", ["https://elsewhere.example/api/v1/domains/x/data/y", "", "/api/v1/domains/x/data"])
def test_an_input_that_is_none_sends_nothing(cid: str) -> None:
    """Weakness 36 of the reference: the host was ignored, and a URL without a filter downloaded the whole domain."""

    async def test(rig: Rig, net: Devnet) -> None:
        for call in (rig.task.input.get_bytes_by_cid, rig.task.input.materialize_cid_to_temp):
            with pytest.raises(InvalidCid):
                await call(cid)
        assert not net.requests

    with_net(test)


@pytest.mark.parametrize("cid", [str(UUID(int=1)), "no_such_name", "no such? name"])
def test_an_input_that_is_not_there(cid: str) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        with pytest.raises(StorageError, match=re.escape(cid)) as caught:
            await rig.task.input.materialize_cid_to_temp(cid)
        assert caught.value.status in (400, 404)
        assert isinstance(caught.value, BadInput) == (caught.value.status == 404)
        assert not rig.files

    with_net(test)


def test_of_several_items_none_may_be_missing() -> None:
    """What was there passed for the whole input."""

    async def test(rig: Rig, net: Devnet) -> None:
        keys = [net.put_data(name, "t", name.encode()) for name in ("one", "two")]
        path = f"/api/v1/domains/{net.domain_id}/data?ids={','.join(keys)}"
        found = await rig.task.input.materialize_cid_with_meta(path)
        assert found.name == "one" and [file.name for file in found.related_files] == ["two.t"]
        absent = str(UUID(int=1))
        for call in (rig.task.input.get_bytes_by_cid, rig.task.input.materialize_cid_to_temp):
            with pytest.raises(BadInput, match=f"no item {absent}"):
                await call(f"{path},{absent}")
        # With a name the server is asked for those of the ids that have it.
        assert await rig.task.input.get_bytes_by_cid(f"{path},{absent}&name=two") == b"two"

    with_net(test)


def test_an_item_that_was_not_asked_for() -> None:
    async def test(rig: Rig) -> None:
        for call in (rig.task.input.get_bytes_by_cid, rig.task.input.materialize_cid_to_temp):
            with pytest.raises(BadInput, match="other items"):
                await call(str(UUID(int=12)))
        assert not rig.files

    with_server(answering(part(b"x")), test)


def test_the_item_asked_for_is_the_primary_one_wherever_it_comes() -> None:
    async def test(rig: Rig) -> None:
        found = await rig.task.input.materialize_cid_with_meta(ITEM.upper())
        assert found.path.read_bytes() == b"mine" == await rig.task.input.get_bytes_by_cid(ITEM)
        assert [path.read_bytes() for path in found.related_files] == [b"other", b"third"]
        assert found.domain_id == str(DOMAIN)

    with_server(answering(part(b"other", key="o"), part(b"mine", name="m"), part(b"third", key="p")), test)


@pytest.mark.parametrize("cid", [ITEM, "/data?name=n"])
def test_of_several_parts_the_bytes_are_those_of_the_first(cid: str) -> None:
    async def test(rig: Rig) -> None:
        assert await rig.task.input.get_bytes_by_cid(cid) == b"first"

    with_server(answering(part(b"first"), part(b"second")), test)


def test_parts_of_one_name_do_not_overwrite_each_other() -> None:
    """Weakness 39 of the reference."""
    parts = [part(str(number).encode(), name="../scan", key=ITEM) for number in range(50)]

    async def test(rig: Rig) -> None:
        found = await rig.task.input.materialize_cid_with_meta(ITEM)
        paths = (found.path, *found.related_files)
        assert [path.read_bytes() for path in paths] == [str(number).encode() for number in range(50)]
        assert len(set(paths)) == 50

    with_server(answering(*parts), test)


HOSTILE = ["..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "C:x", "nul", "CON", "", ".", "~", "x" * 5000, "ä☃"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_leads_nowhere_else(name: str) -> None:
    written = name.replace("\\", "\\\\")

    async def test(rig: Rig) -> None:
        found = await rig.task.input.materialize_cid_with_meta(ITEM)
        assert found.name == found.data_type == name
        assert found.path.resolve().is_relative_to(rig.task.workspace.resolve())
        assert rig.files == [found.path]
        assert len(found.path.name) < 255 and found.path.stem.lower() not in ("nul", "con", "", "..")

    with_server(answering(part(b"x", name=written, data_type=written)), test)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        part(b"abc"),
        part(b"abc", size=-1) + b"--B--",
        part(b"abc", size=2) + b"--B--",
        part(b"abc", size=4) + b"--B--",
        part(b"abc", size="many") + b"--B--",
        part(b"abc") + part(b"more", size=10**18) + b"--B--",
        part(b"abc", name="a\x00b", size="") + b"--B--",
        b"--B\r\nX: " + b"x" * 100_000,
        part(b"") * 10_001 + b"--B--",
    ],
)
def test_what_is_not_whole_leaves_nothing(body: bytes) -> None:
    """Weakness 28 of the reference: a truncated or malformed stream ended silently as success."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": "multipart/form-data; boundary=B"})

    async def test(rig: Rig) -> None:
        for call in (rig.task.input.get_bytes_by_cid, rig.task.input.materialize_cid_to_temp):
            with pytest.raises(BadInput):
                await call(ITEM)
            assert not rig.files
        assert rig.storage._workspace._used == 0

    with_server(answer, test)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "multipart/mixed; boundary=B"])
def test_another_content_type(kind: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"{}", headers={"Content-Type": kind})

    async def test(rig: Rig) -> None:
        with pytest.raises(BadInput, match="Content-Type"):
            await rig.task.input.materialize_cid_to_temp(ITEM)

    with_server(answer, test)


def test_a_download_that_is_cut_is_not_asked_for_again_and_leaves_nothing() -> None:
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        response = web.StreamResponse(headers={"Content-Type": "multipart/form-data; boundary=B"})
        await response.prepare(request)
        await response.write(part(b"x" * 100_000)[:50_000])
        if len(asked) == 1:
            assert request.transport is not None
            request.transport.abort()
        return response

    async def test(rig: Rig) -> None:
        for _ in range(2):
            with pytest.raises(BadInput, match=f"download of {ITEM}: "):
                await rig.task.input.materialize_cid_to_temp(ITEM)
            assert not rig.files
        assert len(asked) == 2

    with_server(answer, test)


def test_limits() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        small, large = net.put_data("a", "t", b"x" * 1000), net.put_data("b", "t", b"x" * 1001)
        for call in (rig.task.input.get_bytes_by_cid, rig.task.input.materialize_cid_to_temp):
            await call(small)
            with pytest.raises(BadInput, match=f"download of {large}: it exceeds 1000 bytes"):
                await call(large)
        await rig.task.input.materialize_cid_to_temp(small)
        with pytest.raises(DiskFull, match="WORKSPACE_BYTES_MAX"):
            await rig.task.input.materialize_cid_to_temp(small)
        assert len(rig.files) == 2

    with_net(test, input_bytes_max=1000, workspace_bytes_max=2500)


def test_the_parts_of_an_input_share_its_limit() -> None:
    async def test(rig: Rig) -> None:
        for call in (rig.task.input.get_bytes_by_cid, rig.task.input.materialize_cid_to_temp):
            with pytest.raises(BadInput, match="exceeds 1000 bytes"):
                await call("/data?name=n")
        assert not rig.files

    with_server(answering(part(b"x" * 600), part(b"y" * 600)), test, input_bytes_max=1000)


def test_a_download_under_way_ends_with_its_task() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "multipart/form-data; boundary=B"})
        await response.prepare(request)
        whole = part(b"x" * 100) + b"--B--\r\n"
        await response.write(whole[:-50])
        await asyncio.sleep(5)
        await response.write(whole[-50:])
        return response

    async def test(rig: Rig) -> None:
        def stop() -> None:
            rig.holder.cancelled = True

        asyncio.get_running_loop().call_later(2, stop)
        with pytest.raises(TaskStopped):
            await rig.task.input.materialize_cid_to_temp(ITEM)
        assert not rig.files

    with_server(answer, test)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        key = net.put_data("a", "t", b"x" * 100_000)
        monkeypatch.setattr("posemesh.storage.inputs._Folder.write", lambda folder, piece: full(folder, piece))

        def full(folder: Any, piece: bytes) -> None:
            from posemesh.storage.workspace import disk_errors

            with disk_errors("input a"):
                raise OSError(28, "No space left on device")

        with pytest.raises(DiskFull, match="No space left") as caught:
            await rig.task.input.materialize_cid_to_temp(key)
        assert caught.value.code == "disk_full"
        assert not rig.files

    with_net(test)


def archive(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in entries.items():
            opened.writestr(name, data)
    return buffer.getvalue()


def test_archives_are_unpacked_on_request() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        key = net.put_data("scan", "refined_scan_zip", archive(a=b"1", b=b"2"))
        plain = await rig.task.input.materialize_cid_with_meta(key)
        assert plain.extracted_paths == () and len(rig.files) == 1
        found = await rig.task.input.materialize_cid_with_meta(key, extract=True)
        assert [path.read_bytes() for path in found.extracted_paths] == [b"1", b"2"]
        assert all(path.is_relative_to(found.root_dir) for path in found.extracted_paths)
        other = net.put_data("text", "t", b"PK is no archive")
        with pytest.raises(BadInput, match="expected a zip archive"):
            await rig.task.input.materialize_cid_with_meta(other, extract=True)

    with_net(test)


def test_an_archive_that_is_not_safe_leaves_nothing() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        key = net.put_data("scan", "refined_scan_zip", archive(**{"ok": b"1", "../out": b"2"}))
        with pytest.raises(BadInput, match="outside"):
            await rig.task.input.materialize_cid_with_meta(key, extract=True)
        bomb = net.put_data("bomb", "refined_scan_zip", archive(a=bytes(100_000)))
        with pytest.raises(BadInput, match="more than is allowed"):
            await rig.task.input.materialize_cid_with_meta(bomb, extract=True)
        assert not rig.files and rig.storage._workspace._used == 0

    with_net(test, input_bytes_max=10_000)


def test_directories_of_an_archive_count_as_room() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        data = archive(**{"a/b/c": b"123", "d/": b"", "e": b""})
        key = net.put_data("scan", "refined_scan_zip", data)
        found = await rig.task.input.materialize_cid_with_meta(key, extract=True)
        assert [path.read_bytes() for path in found.extracted_paths] == [b"123", b""]
        assert rig.storage._workspace._used == len(data) + 3 + 3 * DIRECTORY_BYTES
        with pytest.raises(DiskFull):
            await rig.task.input.materialize_cid_with_meta(key, extract=True)
        assert rig.storage._workspace._used == len(data) + 3 + 3 * DIRECTORY_BYTES

    with_net(test, workspace_bytes_max=20_000)


def test_archives_of_one_input_share_what_may_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of ten thousand archives could make ten thousand files."""
    monkeypatch.setattr("posemesh.storage.inputs.Budget", partial(Budget, entries=5))
    parts = [part(archive(a=b"", b=b""), name=f"n{number}") for number in range(3)]

    async def test(rig: Rig) -> None:
        with pytest.raises(BadInput, match="files and directories"):
            await rig.task.input.materialize_cid_with_meta(ITEM, extract=True)
        assert not rig.files

    with_server(answering(*parts), test)


class Slow(InlineOffload):
    """A thread that begins late, and which, as any, no cancellation reaches."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.running = 0

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            self.begun.set()
            self.running += 1
            try:
                await asyncio.sleep(5)
                return function(*args, **kwargs)
            finally:
                self.running -= 1

        return await asyncio.shield(asyncio.ensure_future(run()))


class Gate(Holder):
    """Holds the thread that unpacks where it asks for the first time whether it may go on."""

    def __init__(self, lease: LeaseEnvelope) -> None:
        self.asked, self.go_on = threading.Semaphore(0), threading.Event()
        self.times = 0
        super().__init__(lease)

    @property
    def cancelled(self) -> bool:
        if threading.current_thread() is not threading.main_thread():
            self.times += 1
            self.asked.release()
            assert self.go_on.wait(60)
        return False

    @cancelled.setter
    def cancelled(self, value: bool) -> None: ...


@pytest.mark.parametrize("cancels", [1, 3])
def test_a_cancelled_extraction_has_ended_when_its_caller_has(tmp_path: Path, cancels: int) -> None:
    """Its thread went on, and made the workspace again that was removed meanwhile."""

    async def main() -> None:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
            key = net.put_data("scan", "refined_scan_zip", archive(**{"a/b/": b"", "c": b"", "d": b""}))
            gate = Gate(envelope(net.url, net.app_token(), UUID(net.domain_id)))
            node = NodeStorage(config(state_dir=tmp_path), "0xabc", LoopClock(), HostOffload(), Random(1))
            storage = node.task(gate)
            job = asyncio.ensure_future(storage.answer(Materialize(cid=key, extract=True)))
            assert await asyncio.to_thread(gate.asked.acquire, timeout=60)
            for _ in range(cancels):
                job.cancel()
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not job.done()
            gate.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await job
            assert gate.times == 1, "it ends where it is asked"
            assert not list(storage.workspace().iterdir()) and storage._workspace._used == 0
            await storage.close()
            await node.close()

    asyncio.run(main())
    assert not list(tmp_path.glob("work/*"))


def test_the_end_of_a_task_waits_for_what_still_unpacks() -> None:
    offload = Slow()

    async def test(rig: Rig, net: Devnet) -> None:
        key = net.put_data("scan", "refined_scan_zip", archive(**{"a/b/": b"", "c": b""}))
        job = asyncio.ensure_future(rig.task.input.materialize_cid_with_meta(key, extract=True))
        await offload.begun.wait()
        workspace = rig.storage.workspace()
        await rig.storage.close()
        assert not workspace.exists()
        with pytest.raises(TaskStopped):
            await job
        assert not offload.running and not workspace.exists()

    with_net(test, offload=offload)


def test_an_input_in_memory_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was copied at the end: two gigabytes of input were four of memory."""
    size, piece = 32 * 2**20, bytes(2**20)

    async def download(inputs: Inputs, cid: str, ref: object, receiver: Any, limit: int) -> list[Part]:
        receiver.begin(found := Part(ITEM, "n", "t", size))
        for _ in range(32):
            receiver.write(piece)
        return [found]

    monkeypatch.setattr(Inputs, "_download", download)

    async def test(rig: Rig, net: Devnet) -> None:
        tracemalloc.start()
        try:
            assert len(await rig.task.input.get_bytes_by_cid(ITEM)) == size
            assert tracemalloc.get_traced_memory()[1] < 1.5 * size
        finally:
            tracemalloc.stop()

    with_net(test)


def test_a_download_ends() -> None:
    """What came after the last part was read without end."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "multipart/form-data; boundary=B"})
        await response.prepare(request)
        await response.write(part(b"x") + b"--B--\r\n")
        for _ in range(200):
            await response.write(b"epilogue" * 128)
        return response

    async def test(rig: Rig) -> None:
        for call in (rig.task.input.get_bytes_by_cid, rig.task.input.materialize_cid_to_temp):
            with pytest.raises(BadInput, match="around its parts"):
                await call(ITEM)
        assert not rig.files

    with_server(answer, test)
