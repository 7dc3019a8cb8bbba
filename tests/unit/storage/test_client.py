"""Who is asked, with which token, and how often."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from posemesh.devnet import Devnet
from posemesh.errors import StorageError, TaskStopped
from posemesh.secret import Secret
from posemesh.storage.client import (
    INFO_WAIT_SECS,
    RETRIES_MAX,
    RETRY_AFTER_MAX_SECS,
    ROTATION_SECS,
    ROTATIONS_MAX,
    TIME_SECS,
    InfoCache,
)
from posemesh.testing.clock import EPOCH

from .rig import ITEM, TASK, Rig, envelope, with_net, with_server
from .test_artifacts import IN_PARTS, LARGE, open_multipart, put_bytes, put_file
from .test_inputs import answering, multipart, part


def renew(rig: Rig, token: str, **fields: Any) -> None:
    rig.holder.envelope = replace(rig.holder.envelope, access_token=Secret(token), **fields)


async def get(rig: Rig) -> Any:
    return await rig.task.input.get_bytes_by_cid(ITEM)


def test_requests_carry_the_token_of_the_moment_and_the_client() -> None:
    seen: list[tuple[str | None, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.headers.get("Authorization"), request.headers.get("posemesh-client-id")))
        return multipart(part(b"x"))

    async def test(rig: Rig) -> None:
        for token in ("one", "two"):
            renew(rig, token)
            await get(rig)
        rig.holder.envelope = replace(rig.holder.envelope, access_token=None)
        await get(rig)

    with_server(answer, test)
    assert seen == [("Bearer one", "c-1"), ("Bearer two", "c-1"), (None, "c-1")]


@pytest.mark.parametrize("put", [put_bytes, put_file, open_multipart])
def test_a_token_that_rotates_before_any_request_is_used_at_once(put: Callable[..., Awaitable[str]]) -> None:
    """Weakness 34 of the reference: a 401 failed the task."""

    async def test(rig: Rig, net: Devnet) -> None:
        before: list[str] = []

        async def rotate(request: web.Request) -> web.StreamResponse | None:
            if "Authorization" in request.headers:
                before.append(request.headers["Authorization"])
                if len(before) % 2:  # what is under way is refused; the next token comes a little later
                    net.revoke_tokens("app")
                    asyncio.get_running_loop().call_later(1.0, lambda: renew(rig, net.app_token()))
            return None

        net.faults = rotate
        key = await put(rig, LARGE)
        assert net.get_data(key) == LARGE
        assert len(set(before)) >= 2

    with_net(test, net=IN_PARTS | {"part_size_bytes": 10**7})


def test_a_401_waits_briefly_for_a_new_token_each_time() -> None:
    tokens = []

    async def answer(request: web.Request) -> web.Response:
        tokens.append(request.headers["Authorization"])
        return web.Response(status=401, text="no")

    async def test(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(StorageError, match="401: no") as caught:
            await get(rig)
        assert caught.value.status == 401 and tokens == ["Bearer t"]
        assert ROTATION_SECS <= loop.time() - began < ROTATION_SECS + 0.5
        loop.call_later(0.5, lambda: renew(rig, "u"))
        loop.call_later(1.0, lambda: renew(rig, "v"))  # one that comes before the first is accepted is no end
        with pytest.raises(StorageError):
            await get(rig)
        assert tokens[1:] == ["Bearer t", "Bearer u", "Bearer v"]
        assert ROTATION_SECS + 1 <= loop.time() - began - ROTATION_SECS < ROTATION_SECS + 1.5
        assert rig.holder.envelope.access_token == Secret("v")

    with_server(answer, test)


def test_tokens_that_are_refused_one_after_another_have_an_end() -> None:
    asked = []

    async def test(rig: Rig) -> None:
        with pytest.raises(StorageError, match="401"):
            await get(rig)
        assert len(asked) == ROTATIONS_MAX + 1
        asked.clear()
        with pytest.raises(StorageError, match="401"):
            await put_bytes(rig, b"x")
        assert len(asked) == ROTATIONS_MAX + 1

    async def main(rig: Rig) -> None:
        rigs.append(rig)
        await test(rig)

    rigs: list[Rig] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        renew(rigs[0], f"token {len(asked)}")
        return web.Response(status=401)

    with_server(answer, main)


def test_an_expired_token_is_not_sent() -> None:
    tokens = []

    async def answer(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("Authorization"))
        return web.Response(status=404) if request.path.endswith("/info") else multipart(part(b"x"))

    async def test(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        past = datetime.fromtimestamp(EPOCH - 1, UTC)
        renew(rig, "old", access_token_expires_at=past)
        with pytest.raises(StorageError, match="expired"):
            await get(rig)
        assert tokens == [None], "the server was asked for its time alone"
        loop.call_later(1.0, lambda: renew(rig, "new", access_token_expires_at=past + timedelta(hours=1)))
        assert await get(rig) == b"x"
        assert tokens[1:] == [None, "Bearer new"]

    with_server(answer, test)


def test_what_has_expired_by_a_wrong_clock_alone_is_sent() -> None:
    async def answer(request: web.Request) -> web.Response:
        return dated(request, -7200.0)

    async def test(rig: Rig) -> None:
        renew(rig, "t", access_token_expires_at=datetime.fromtimestamp(EPOCH - 3600, UTC))
        assert await get(rig) == b"x"

    with_server(answer, test)


def dated(request: web.Request, off: float) -> web.Response:
    """An answer of a server whose clock is ``off`` by so many seconds."""
    response = web.Response(status=404) if request.path.endswith("/info") else multipart(part(b"x"))
    response.headers["Date"] = formatdate(EPOCH + asyncio.get_running_loop().time() + off, usegmt=True)
    return response


@pytest.mark.parametrize("off", [6.0, 7200.0, 20 * 365 * 86400.0])
def test_one_wrong_date_holds_up_nothing(off: float) -> None:
    """It did, for the life of the process: no answer could correct it, as nothing was sent any more."""
    dates = iter((off,))

    async def answer(request: web.Request) -> web.Response:
        return dated(request, next(dates, 0.0))

    async def test(rig: Rig) -> None:
        renew(rig, "t", access_token_expires_at=datetime.fromtimestamp(EPOCH + 5, UTC))
        assert await get(rig) == b"x"
        assert await get(rig) == b"x"
        assert asyncio.get_running_loop().time() < 1

    with_server(answer, test)


@pytest.mark.parametrize("off", [7200.0, -7200.0])
def test_a_server_whose_clock_differs_is_followed(off: float) -> None:
    """A token in its last moments is not sent, by the clock of the server that is to judge it."""
    tokens = []

    async def answer(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("Authorization"))
        return dated(request, off)

    async def test(rig: Rig) -> None:
        renew(rig, "t", access_token_expires_at=datetime.fromtimestamp(EPOCH + off + 10, UTC))
        assert await get(rig) == b"x"
        del tokens[:]
        await asyncio.sleep(11)
        with pytest.raises(StorageError, match="expired"):
            await get(rig)
        assert tokens == [None]

    with_server(answer, test)


@pytest.mark.parametrize("off", [20 * 365 * 86400.0, -20 * 365 * 86400.0])
def test_clocks_that_are_years_apart_leave_the_token_to_the_server(off: float) -> None:
    async def answer(request: web.Request) -> web.Response:
        return dated(request, off)

    async def test(rig: Rig) -> None:
        renew(rig, "t", access_token_expires_at=datetime.fromtimestamp(EPOCH + min(off, 0.0) + 60, UTC))
        for _ in range(3):
            assert await get(rig) == b"x"
        assert asyncio.get_running_loop().time() < 1
        await asyncio.sleep(61)
        with pytest.raises(StorageError, match="expired"):
            await get(rig)

    with_server(answer, test)


def test_what_a_server_says_of_the_time_is_forgotten() -> None:
    infos = InfoCache()
    assert infos.ahead("a", 0.0) == 0.0
    infos.put_ahead("a", 7200.0, 0.0)
    assert infos.ahead("a", TIME_SECS - 1) == 7200.0 and infos.ahead("b", 0.0) == 0.0
    assert infos.ahead("a", TIME_SECS) == 0.0


def test_a_token_revoked_before_any_one_request_of_a_session() -> None:
    async def count(rig: Rig, net: Devnet) -> None:
        await open_multipart(rig, LARGE)
        counted.append(len(net.requests))

    counted: list[int] = []
    with_net(count, net=IN_PARTS)
    for revoked in range(counted[0]):

        async def test(rig: Rig, net: Devnet, revoked: int = revoked) -> None:
            seen = 0

            async def revoke(request: web.Request) -> web.StreamResponse | None:
                nonlocal seen
                seen += 1
                if seen == revoked + 1:
                    net.revoke_tokens("app")
                    asyncio.get_running_loop().call_later(1.0, lambda: renew(rig, net.app_token()))
                return None

            net.faults = revoke
            assert net.get_data(await open_multipart(rig, LARGE)) == LARGE and len(net.domain.items) == 1

        with_net(test, net=IN_PARTS)


def test_info_that_hangs_holds_up_an_upload_briefly() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        async def hang(request: web.Request) -> web.StreamResponse | None:
            if request.path.endswith("/info"):
                await asyncio.sleep(1000)
            return None

        net.faults = hang
        began = asyncio.get_running_loop().time()
        assert net.get_data(await put_bytes(rig, LARGE)) == LARGE
        assert asyncio.get_running_loop().time() - began < INFO_WAIT_SECS + 1

    with_net(test)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int) -> None:
    times = []

    async def answer(request: web.Request) -> web.Response:
        times.append(asyncio.get_running_loop().time())
        if len(times) <= RETRIES_MAX:
            wait = [None, "3", "86400"][len(times) - 1]
            return web.Response(status=status, headers={} if wait is None else {"Retry-After": wait})
        return multipart(part(b"x"))

    async def test(rig: Rig) -> None:
        assert await get(rig) == b"x"
        pauses = [b - a for a, b in zip(times, times[1:], strict=False)]
        assert 0.4 <= pauses[0] <= 0.7 and 3 <= pauses[1] <= 3.1
        assert RETRY_AFTER_MAX_SECS <= pauses[2] <= RETRY_AFTER_MAX_SECS + 0.1, "not for as long as it likes"

    with_server(answer, test)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 402, 403, 404, 410, 413, 500, 501, 503])
def test_a_status_is_told(status: int) -> None:
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status, text="because\nof this", headers={"Location": "/elsewhere"})

    async def test(rig: Rig) -> None:
        for call in (get(rig), put_bytes(rig, b"")):
            with pytest.raises(StorageError, match=f"{status}: because of this") as caught:
                await call
            assert caught.value.status == status
        assert "/elsewhere" not in asked

    with_server(answer, test)


def test_a_connection_that_breaks_is_tried_again_a_bounded_number_of_times() -> None:
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def test(rig: Rig) -> None:
        with pytest.raises(StorageError) as caught:
            await get(rig)
        assert caught.value.status is None and len(asked) == RETRIES_MAX + 1

    with_server(answer, test)


def test_a_transfer_that_stalls_fails() -> None:
    """Weakness 33 of the reference: no timeout of any kind."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "multipart/form-data; boundary=B"})
        await response.prepare(request)
        for at in range(5):
            await response.write(part(b"x" * 100)[at : at + 1])
            await asyncio.sleep(8)
        await asyncio.sleep(1000)
        return response

    async def test(rig: Rig) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(StorageError, match="within 10 s of the last byte"):
            await get(rig)
        assert 42 <= asyncio.get_running_loop().time() - began <= 43

    with_server(answer, test, stall_timeout_secs=10.0)


@pytest.mark.parametrize(("url", "allowed"), [("http://d.example", False), ("http://10.0.0.1", False)])
def test_a_token_does_not_travel_in_the_clear(url: str, allowed: bool) -> None:
    async def test(rig: Rig) -> None:
        rig.holder.envelope = envelope(url)
        for call in (get(rig), put_bytes(rig, b"")):
            with pytest.raises(StorageError, match="ALLOW_INSECURE_HTTP"):
                await call

    with_server(answering(), test)


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200", "[::ffff:169.254.1.1]", "0.0.0.0",
     "[64:ff9b::169.254.169.254]", "[2002:a9fe:a9fe::1]"],
)  # fmt: skip
def test_addresses_that_are_no_servers_are_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = host.strip("[]")
    family = socket.AF_INET6 if ":" in plain else socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: [
        (socket.AF_INET, 1, 6, "", ("192.0.2.1", 443)),  # one that is fit does not make up for it
        (family, 1, 6, "", (plain, 443)),
    ])  # fmt: skip

    async def test(rig: Rig) -> None:
        for url in (f"https://{host}", "https://named.example"):
            rig.holder.envelope = envelope(url)
            began = asyncio.get_running_loop().time()
            with pytest.raises(StorageError, match="link-local"):
                await get(rig)
            assert asyncio.get_running_loop().time() == began, "and not tried again"

    with_server(answering(), test)


@pytest.mark.parametrize(
    "host", ["2852039166", "169.254.43518", "0251.0376.0251.0376", "169.254.169.254.", "\u246069.254.169.254", "0"]
)
def test_an_address_in_another_form_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits of another script became an address on the way to the connection, behind the look at it."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: pytest.fail("it needs no name server"))

    async def test(rig: Rig) -> None:
        rig.holder.envelope = envelope(f"https://{host}")
        with pytest.raises(StorageError, match="link-local"):
            await get(rig)

    with_server(answering(), test)


def test_a_lease_that_moves_takes_its_token_with_it() -> None:
    async def test(rig: Rig) -> None:
        asking = asyncio.ensure_future(get(rig))
        await asyncio.sleep(0.1)
        rig.holder.envelope = envelope("https://elsewhere.example", token="u")
        with pytest.raises(StorageError, match="moved to another domain server"):
            await asking

    async def busy(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer t"
        return web.Response(status=503)

    with_server(busy, test)


def test_nothing_goes_out_for_a_task_that_was_stopped() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        rig.holder.cancelled = True
        for call in (get(rig), put_bytes(rig, b""), put_file(rig, LARGE), open_multipart(rig, LARGE)):
            with pytest.raises(TaskStopped):
                await call
        assert not net.requests

    with_net(test, net=IN_PARTS)


def test_an_upload_under_way_ends_with_its_task() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        async def stop(request: web.Request) -> web.StreamResponse | None:
            rig.holder.cancelled = request.method == "PUT"
            return None

        net.faults = stop
        with pytest.raises(TaskStopped):
            await put_file(rig, LARGE * 4)
        assert not net.domain.items
        net.violations.clear()

    with_net(test, net=IN_PARTS | {"part_size_bytes": 10**7})


def test_what_a_server_says_of_uploads_is_asked_once_a_minute() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        for _ in range(3):
            await put_bytes(rig, LARGE)
        assert [request.path for request in net.requests].count("/api/v1/info") == 1
        await asyncio.sleep(61)
        await put_bytes(rig, LARGE)
        assert [request.path for request in net.requests].count("/api/v1/info") == 2

    with_net(test)


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (503, 2), (403, 2)])
def test_a_server_that_tells_nothing_is_asked_again_unless_it_has_nothing_to_tell(status: int, asked: int) -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        async def fault(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=status) if request.path == "/api/v1/info" else None

        net.faults = fault
        for _ in range(2):
            await put_bytes(rig, LARGE)
        assert [request.path for request in net.requests].count("/api/v1/info") == asked

    with_net(test)


def test_every_request_names_the_client() -> None:
    """Weakness 37 of the reference: uploads did not, and downloads by another name for each task."""
    seen = set()

    async def test(rig: Rig, net: Devnet) -> None:
        async def note(request: web.Request) -> web.StreamResponse | None:
            assert request.headers.get("posemesh-client-id") == "c-1", request.path
            step = [key for key in ("uploads", "partNumber", "uploadId", "name", "ids") if key in request.query]
            seen.add(f"{request.method} {''.join(step[:1]) or request.path.rpartition('/')[2]}")
            return None

        net.faults = note
        net.put_data(f"a_bin_{TASK}", "bin_data", b"of an earlier attempt")
        for data in (b"small", LARGE):
            key = await put_bytes(rig, data)
        await rig.task.input.get_bytes_by_cid(key)
        with pytest.raises(StorageError, match="400"):
            await rig.task.input.get_bytes_by_cid("no_name_of_the_domain")

    with_net(test, net=IN_PARTS)
    assert seen == {
        "POST data", "GET name", "PUT data", "GET info",
        "POST uploads", "PUT partNumber", "POST uploadId", "GET ids",
    }  # fmt: skip


def test_a_small_artifact_is_one_request() -> None:
    async def test(rig: Rig, net: Devnet) -> None:
        await put_bytes(rig, b"x" * 1024)
        assert len(net.requests) == 1

    with_net(test)
