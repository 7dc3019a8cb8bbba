"""What a node's tasks share, and what each has of its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp import web

from posemesh.devnet import Devnet
from posemesh.errors import StorageError
from posemesh.runners.port import FinishUpload, OpenUpload, WriteUpload
from posemesh.storage.artifacts import Writer
from posemesh.storage.task import LOOK_SECS

from .rig import Rig, with_net
from .test_artifacts import IN_PARTS, LARGE


def test_an_upload_left_open_ends_with_the_task() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        part = rig.task.output.open_multipart("a.bin")
        await part.__aenter__()
        await part.write(LARGE)
        rig.holder.cancelled = True
        await rig.storage.close()
        assert net.requests[-1].method == "DELETE" and not net._uploads._sessions and not rig.files
        for message in (WriteUpload(upload=1, data=b"x"), FinishUpload(upload=1)):
            with pytest.raises(StorageError, match="not open"):
                await rig.storage.answer(message)

    with_net(test, net=IN_PARTS)


def test_tasks_share_the_client_and_nothing_else() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        other = rig.node.task(rig.holder)
        assert other.workspace() != rig.storage.workspace()
        await rig.task.output.put_bytes("a", b"")
        assert other.artifacts == ()
        await other.close()
        assert rig.storage.workspace().exists()

    with_net(test)


def test_the_client_is_named_by_what_is_kept() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        await rig.task.output.put_bytes("a", b"")
        assert net.domain.client_ids == {(rig.state / "client-id").read_text().strip()}

    with_net(test, client_id=None)


def test_nothing_is_kept_for_a_node_without_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def test(rig: Rig, net: Devnet) -> None:
        assert await rig.node.sweep() == 0
        assert not list(rig.state.iterdir())

    with_net(test)


def test_one_upload_that_cannot_be_ended_keeps_neither_the_others_nor_the_workspace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first failure ended the clean-up."""
    ended = []
    abort = Writer.abort

    async def failing(writer: Writer) -> None:
        await abort(writer)
        ended.append(writer)
        if len(ended) == 1:
            raise OSError("no good")

    async def test(rig: Rig, net: Devnet) -> None:
        for name in ("a", "b"):
            number = await rig.storage.answer(OpenUpload(rel_path=name))
            await rig.storage.answer(WriteUpload(upload=number, data=b"x"))
        workspace = rig.storage.workspace()
        monkeypatch.setattr(Writer, "abort", failing)
        with pytest.raises(OSError, match="no good"):
            await rig.storage.close()
        assert len(ended) == 2 and not workspace.exists()

    with_net(test)


def test_artifacts_stand_unless_the_server_says_that_one_is_gone() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        lease = rig.holder.envelope
        await rig.task.output.put_bytes("a", b"1")
        await rig.task.output.put_bytes("b", b"2")
        both = rig.storage.artifacts
        assert await rig.node.stands(lease, both)
        assert await rig.node.stands(lease, ())
        assert not await rig.node.stands(lease, (*both, replace(both[0], id=str(UUID(int=99)))))
        asked = len(net.requests)
        assert await rig.node.stands(lease, [replace(both[0], id=None)])
        assert len(net.requests) == asked, "what has no id cannot be asked for"

    with_net(test)


def test_a_server_that_does_not_say_is_no_reason_to_make_artifacts_again() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        await rig.task.output.put_bytes("a", b"1")
        loop = asyncio.get_running_loop()

        async def broken(request: web.Request) -> web.StreamResponse:
            return web.Response(status=500)

        async def silent(request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(600)
            return web.Response()

        for fault in (broken, silent):
            net.faults, began = fault, loop.time()
            assert await rig.node.stands(rig.holder.envelope, rig.storage.artifacts)
            assert loop.time() - began <= LOOK_SECS + 0.1

    with_net(test)
