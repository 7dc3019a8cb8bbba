"""Connections that several clients share: what is kept apart, who closes them, and that nobody waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from posemesh.shell import http as module
from posemesh.shell.http import AddressRefused, Http
from posemesh.shell.offload import InlineOffload
from posemesh.shell.pool import Pool
from posemesh.testing import LoopClock, run_virtual

from .server_double import Handler, served


def with_pool(handler: Handler, test: Callable[[Pool, list[Http], str], Awaitable[None]]) -> None:
    """Two nodes' clients of the services, and a third of a domain server."""

    async def main() -> None:
        async with served(handler) as url:
            pool = Pool(InlineOffload())
            shared = (pool.services(), pool.services(), pool.domains(wary=False))
            clients = [Http(LoopClock(), InlineOffload(), user_agent="x", connector=each) for each in shared]
            try:
                await test(pool, clients, url)
            finally:
                for client in clients:
                    await client.close()
                await pool.close()

    run_virtual(main(), limit=600)


def test_connections_to_the_services_are_shared_and_outlive_a_client() -> None:
    seen: list[object] = []

    async def peer(request: web.Request) -> web.Response:
        assert request.transport is not None
        seen.append(request.transport.get_extra_info("peername"))
        return web.Response()

    async def test(pool: Pool, clients: list[Http], url: str) -> None:
        for client in (*clients, clients[0]):
            await client.request("GET", url, within=5)
        await clients[0].close()
        await clients[1].request("GET", url, within=5)
        first, second, third, again, after = seen
        assert first == second == again == after
        assert third != first, "a domain server has its own"
        await pool.close()
        assert pool.services() is not None, "a pool that was closed makes new ones"

    with_pool(peer, test)


def test_what_one_node_has_under_way_is_no_other_nodes_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one limit for all, the heartbeats of one node waited for the polls of the others."""
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 3)
    under_way = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal under_way
        if request.path == "/poll":
            under_way += 1
            await asyncio.sleep(50)
            under_way -= 1
        return web.Response()

    async def test(pool: Pool, clients: list[Http], url: str) -> None:
        busy, other, _ = clients
        polls = [asyncio.ensure_future(busy.request("GET", f"{url}/poll", within=500)) for _ in range(5)]
        await asyncio.sleep(10)
        assert under_way == 3
        began = asyncio.get_running_loop().time()
        await other.request("POST", f"{url}/heartbeat", body=b"{}", within=5)
        assert asyncio.get_running_loop().time() - began < 1
        await asyncio.gather(*polls)

    with_pool(handler, test)


def test_a_wary_pool_resolves_no_name_to_an_address_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def inside(host: str, port: int, **how: object) -> list[object]:
        return [(2, 1, 6, "", ("169.254.169.254", port))]

    async def main() -> None:
        monkeypatch.setattr("socket.getaddrinfo", inside)
        pool = Pool(InlineOffload())
        assert pool.domains(wary=True) is not pool.domains(wary=False)
        client = Http(LoopClock(), InlineOffload(), user_agent="x", wary=True, connector=pool.domains(wary=True))
        with pytest.raises(AddressRefused):
            await client.request("GET", "http://metadata.example/", within=5)
        await client.close()
        await pool.close()

    run_virtual(main(), limit=60)
