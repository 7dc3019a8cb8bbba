"""``posemesh.Host``: what the nodes of one process share, and what becomes of it when something is amiss."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from posemesh import ConfigError, Host, Node, NodeConfig, NodeStopped, PosemeshError, telemetry
from posemesh.control.database import FILE, Database
from posemesh.control.memory import MemoryStore
from posemesh.control.store import Commit, LedgerBusy, LedgerCorrupt, LedgerFailed, Store
from posemesh.devnet import Devnet, DevnetConfig
from posemesh.runtime import ListenError
from posemesh.testing import LoopClock, run_virtual, simulated

CAPABILITY = "/examples/hello/v1"
KEY_A = "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90"
KEY_B = "e331b6d69882b4ed5bb7f55b585d7d0f7dc3aeca4a3deee8d16bde3eca51aace"


async def hello(task: Any) -> None:
    await asyncio.sleep(task.lease.task.meta["secs"])


class Rig:
    """A network, and a host on it."""

    def __init__(self, net: Devnet, host: Host) -> None:
        self.net = net
        self.host = host
        self._secrets = {KEY_A: net.reg_secret}

    def node(self, key: str = KEY_A, **settings: str) -> Node:
        secret = self._secrets.setdefault(key, "") or self.net.provision()
        self._secrets[key] = secret
        config = NodeConfig.from_env(self.net.node_settings(key, secret) | settings)
        node = simulated(Node(config, host=self.host))
        node.runner(CAPABILITY)(hello)
        return node

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{self.host.port}{path}") as reply:
            return reply.status, await reply.text()

    def submit(self, secs: float = 0.0, **options: Any) -> str:
        return self.net.submit(CAPABILITY, meta={"secs": secs}, **options)


def with_host(test: Callable[[Rig], Awaitable[None]], state: Path, *, port: int | None = 0, **options: Any) -> None:
    async def main() -> None:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
            async with simulated(Host(state, port=port, **options)) as host:
                await test(Rig(net, host))

    run_virtual(main(), limit=7200)


def address_of(node: Node) -> str:
    assert node._runtime is not None
    return node._runtime.address


@pytest.fixture
def log() -> Iterator[list[str]]:
    logger = telemetry.logger()
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level="WARNING", format="{message}")
    logger.enable("posemesh")
    yield lines
    logger.disable("posemesh")
    logger.remove(sink)


# --- Opening and closing ----------------------------------------------------------------------------------------


def test_making_one_does_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path / "host", port=1)
    assert repr(host) == f"<Host '{tmp_path}/host' closed>"
    assert host.port is None
    asyncio.run(host.close())
    assert not list(tmp_path.iterdir())


def test_it_opens_once_at_a_time_and_again(tmp_path: Path) -> None:
    async def main() -> None:
        host = Host(tmp_path)
        async with host:
            with pytest.raises(PosemeshError, match="open already; close it first"):
                await host.open()
            assert host.port is None, "it serves where it was given a port"
            with pytest.raises(LedgerBusy):
                await Host(tmp_path).open()
        await host.close()
        async with host:
            assert repr(host) == f"<Host '{tmp_path}' []>"
        assert (tmp_path / FILE).is_file()

    asyncio.run(main())


def test_a_port_that_is_taken_leaves_nothing_open(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port} .*give the host a free port"):
                await Host(tmp_path, port=port).open()
        Database.open(tmp_path).close()

    asyncio.run(main())


def test_a_ledger_that_cannot_be_read_leaves_nothing_open(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / FILE).touch()
        host = Host(tmp_path, port=0)
        with pytest.raises(LedgerCorrupt):
            await host.open()
        (tmp_path / FILE).unlink()
        async with host:
            assert host.port

    asyncio.run(main())


def test_closing_it_stops_the_nodes_that_still_run(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        nodes = [rig.node(KEY_A), rig.node(KEY_B)]
        await asyncio.gather(*(node.start() for node in nodes))
        job = rig.submit(20.0, count=2)
        await asyncio.sleep(10)
        await asyncio.gather(rig.host.close(), rig.host.close())
        assert rig.net.jobs.job(job).state == "completed", "they were drained"
        for node in nodes:
            with pytest.raises(NodeStopped):
                node.transitions()
        with pytest.raises(PosemeshError, match="host is not open"):
            await nodes[0].start()

    with_host(test, tmp_path)


def test_closing_it_with_little_patience_and_while_a_node_starts_or_leaves(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async def no_registration(request: web.Request) -> web.Response | None:
            known = any(node.wallet for node in rig.net.dds.nodes.values())
            return web.Response(status=503) if known and "register" in request.path else None

        rig.net.faults = no_registration
        running, starting = rig.node(KEY_A), rig.node(KEY_B)
        await running.start()
        rig.submit(500.0)
        begun = asyncio.ensure_future(starting.start())
        await asyncio.sleep(30)
        leaving = asyncio.ensure_future(running.stop(200))
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        await rig.host.close(drain=0)
        assert asyncio.get_running_loop().time() - began < 10
        with pytest.raises(NodeStopped):
            await begun
        await leaving

    with_host(test, tmp_path)


def test_a_close_that_is_cancelled_goes_on(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        node = rig.node()
        await node.start()
        rig.submit(60.0)
        await asyncio.sleep(10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rig.host.close(300), 5)
        await rig.host.close()
        assert node.statistics().counters == {"leased": 1, "completed": 1}

    with_host(test, tmp_path)


# --- Its nodes --------------------------------------------------------------------------------------------------


def test_a_node_needs_its_host_open_and_on_its_loop(tmp_path: Path) -> None:
    host = Host(tmp_path)
    config = NodeConfig.from_env({"REG_SECRET": "x" * 8, "SECP256K1_PRIVHEX": KEY_A, "ENABLE_NOOP": "true"})
    node = Node(config, host=host)
    with pytest.raises(PosemeshError, match=r"start its nodes within `async with host`"):
        asyncio.run(node.start())
    with pytest.raises(PosemeshError, match=r"await node.start\(\) on the host's"):
        node.run()
    asyncio.run(host.open())
    with pytest.raises(PosemeshError, match="opened on another loop"):
        asyncio.run(node.start())
    asyncio.run(host.close())


def test_one_node_for_a_wallet_at_a_time(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.node() as node:
            with pytest.raises(ConfigError, match=f"got that of {address_of(node)}; stop that node first"):
                await rig.node().start()
            assert (await rig.get("/ready"))[0] == 200, "the one that is here goes on"
        async with rig.node():
            pass

    with_host(test, tmp_path)


def test_a_node_that_cannot_start_leaves_its_place(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async def refuse(request: web.Request) -> web.Response:
            return web.Response(status=403)

        rig.net.faults = refuse
        for _ in range(2):
            with pytest.raises(PosemeshError, match="403"):
                await rig.node().start()
        assert json.loads((await rig.get("/status"))[1]) == {"nodes": {}}

    with_host(test, tmp_path)


@pytest.mark.parametrize("fails", [False, True])
def test_a_node_leaves_once_the_store_has_served_it(fails: bool, tmp_path: Path) -> None:
    """A commit that a stopping node gave up on may still happen: whoever took its place would not have seen it. The
    store takes commits in turn, so one without content is answered when all before it are.
    """
    commits: list[Commit] = []

    class Slow(MemoryStore):
        async def commit(self, commit: Commit) -> None:
            await asyncio.sleep(3)
            commits.append(commit)
            if fails and not list(commit.rows()):
                raise LedgerFailed("no disk")
            await super().commit(commit)

    async def open_store(place: Path, offload: object) -> Store:
        return Slow()

    async def main() -> None:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
            host = simulated(Host(tmp_path))
            host._open_store = open_store
            async with host:
                rig = Rig(net, host)
                for _ in range(2):
                    async with rig.node() as node:
                        name = f"rt:node:{address_of(node)}"
                    assert commits[-1] == Commit(runtime=name)

    run_virtual(main(), limit=600)


def test_what_a_node_keeps_apart(tmp_path: Path) -> None:
    """The ledger is the host's; its workspaces and its client id are its own, and go where its STATE_DIR says."""

    async def test(rig: Rig) -> None:
        found = []
        for key, settings in ((KEY_A, {}), (KEY_B, {"STATE_DIR": str(tmp_path / "own")})):
            node = rig.node(key, **settings)

            @node.runner("/where/v1")
            async def where(task: Any) -> None:
                found.append(task.workspace)
                await task.output.put_bytes("a", b"")

            async with node:
                rig.net.submit("/where/v1")
                await asyncio.sleep(60)
        assert found[0].is_relative_to(tmp_path / "host" / "nodes")
        assert found[1].is_relative_to(tmp_path / "own")
        assert (tmp_path / "own" / "client-id").is_file() and not (tmp_path / "own" / FILE).exists()
        assert len(rig.net.domain.client_ids) == 2

    with_host(test, tmp_path / "host")


def test_settings_that_are_the_hosts(tmp_path: Path, log: list[str]) -> None:
    async def test(rig: Rig) -> None:
        async with rig.node(NODE_PORT="1") as node:
            assert log == [f"NODE_PORT is not heeded: the host serves this node, at /nodes/{address_of(node)}\n"]
        log.clear()
        wrong = rig.node(NODE_URL=f"http://127.0.0.1:{rig.host.port}")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wrong.start(), 5)
        assert log[0].startswith("NODE_URL does not end with /nodes/0x")

    with_host(test, tmp_path)


def test_a_node_that_is_to_be_called_back_needs_a_host_that_serves(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(ConfigError, match="NODE_URL: expected a host that serves"):
            await rig.node(NODE_URL="http://127.0.0.1:9/nodes/0x").start()

    with_host(test, tmp_path, port=None)


# --- What it serves ---------------------------------------------------------------------------------------------


def test_what_it_serves(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert (await rig.get("/health"))[0] == 200
        assert (await rig.get("/ready"))[0] == 503, "without a node nothing can be leased"
        async with rig.node(KEY_A) as one:
            first = address_of(one)
            async with rig.node(KEY_B) as other:
                second = address_of(other)
                assert (await rig.get("/ready"))[0] == 200
                status = json.loads((await rig.get("/status"))[1])
                assert list(status["nodes"]) == [first, second]
                assert status["nodes"][second] == json.loads((await rig.get(f"/nodes/{second}/status"))[1])
                for path in ("health", "ready", "status", "metrics"):
                    assert (await rig.get(f"/nodes/{first}/{path}"))[0] == 200
                assert (await rig.get(f"/nodes/{first.upper()}/health"))[0] == 200
                rig.submit(20.0, count=2)
                await asyncio.sleep(10)
                stopping = asyncio.ensure_future(other.stop())
                await asyncio.sleep(0.1)
                assert (await rig.get("/ready"))[0] == 503, "all of them"
                await stopping
            assert (await rig.get("/ready"))[0] == 200
            assert (await rig.get(f"/nodes/{second}/health"))[0] == 404
            assert list(json.loads((await rig.get("/status"))[1])["nodes"]) == [first]
        assert (await rig.get("/nodes/unknown/status"))[0] == 404

    with_host(test, tmp_path)


def test_its_metrics_are_those_of_all_nodes(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with rig.node(KEY_A) as one, rig.node(KEY_B) as other:
            rig.submit(30.0, count=2)
            await asyncio.sleep(20)
            page = (await rig.get("/metrics"))[1]
            assert "dms_active_task 2.0" in page
            assert 'tasks_started_total{runner="inline"} 2.0' in page
            assert (await rig.get(f"/nodes/{address_of(one)}/metrics"))[1].count("dms_active_task 2.0") == 1
            await other.stop(0)
            assert "dms_active_task 1.0" in (await rig.get("/metrics"))[1]

    with_host(test, tmp_path)


@pytest.mark.parametrize("exposed", [False, True])
def test_who_may_look(exposed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(rig: Rig) -> None:
        async with rig.node(KEY_A, EXPOSE_STATUS=str(not exposed).lower()) as node:
            monkeypatch.setattr("posemesh.shell.server.is_loopback", lambda host: False)
            for path in ("ready", "status", "metrics"):
                assert (await rig.get(f"/{path}"))[0] == (200 if exposed else 403)
                own = await rig.get(f"/nodes/{address_of(node)}/{path}")
                assert own[0] == (403 if exposed else 200), "each node says that for itself"
            assert (await rig.get("/health"))[0] == 200

    with_host(test, tmp_path, expose_status=exposed)
