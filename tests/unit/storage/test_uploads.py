"""Sessions: parts go several at a time, each is tried again alone."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from aiohttp import web

from posemesh.devnet import Devnet
from posemesh.errors import UploadFailed
from posemesh.storage.uploads import PARTS_AT_ONCE
from posemesh.wire import uploads

from .rig import Rig, with_net
from .test_artifacts import IN_PARTS, LARGE, put_bytes, put_file


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


def test_a_session_has_so_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PARTS_MAX", 3)

    async def test(rig: Rig, net: Devnet) -> None:
        with pytest.raises(UploadFailed, match="more than 3 parts"):
            await put_bytes(rig, LARGE)
        assert not net._uploads._sessions

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
