"""Several nodes on one host, beside the local network in virtual time: what they share, and what they do not."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from posemesh import Host, Node, NodeConfig, cli
from posemesh.control.audit import audit
from posemesh.control.database import FILE, reading
from posemesh.control.ledger import SqliteStore
from posemesh.devnet import Devnet, DevnetConfig, cut
from posemesh.shell.signer import Signer
from posemesh.testing import LoopClock, run_virtual, simulated

from .simulation import CAPABILITY, KEY, answering, errors

__all__ = ("errors",)

KEYS = (KEY, *(f"{number:02x}" * 32 for number in range(1, 8)))


class Hosted:
    """A network, and hosts on it one after another. ``runs`` are the wallet and the task of each run, in order."""

    def __init__(self, net: Devnet, state: Path) -> None:
        self.net = net
        self.state = state
        self.runs: list[tuple[str, str]] = []
        self._secrets = {KEY: net.reg_secret}
        self._seeds = iter(range(1000))

    def host(self, **options: Any) -> Host:
        return simulated(Host(self.state, **options), durable=True)

    def node(self, host: Host, key: str = KEY, *, callback: bool = False, **settings: str) -> Node:
        if key not in self._secrets:
            self._secrets[key] = self.net.provision()
        config = NodeConfig.from_env(self.net.node_settings(key, self._secrets[key]) | settings)
        address = Signer(config.secp256k1_privhex).address
        if callback:
            url = f"http://127.0.0.1:{host.port}/nodes/{address}"
            config = NodeConfig.from_env(self.net.node_settings(key, self._secrets[key]) | settings | {"NODE_URL": url})
        node = simulated(Node(config, host=host), seed=next(self._seeds))

        @node.runner(CAPABILITY)
        async def run(task: Any) -> None:
            task_id = str(task.lease.task.id)
            self.runs.append((address, task_id))
            await asyncio.sleep(task.lease.task.meta["secs"])
            await task.output.put_bytes(f"{task_id}.bin", task_id.encode())

        return node

    def submit(self, count: int, secs: float) -> str:
        return self.net.submit(CAPABILITY, count=count, meta={"secs": secs})

    async def ended(self, job: str, within: float = 600.0) -> None:
        async with asyncio.timeout(within):
            while self.net.jobs.job(job).state not in ("completed", "failed", "canceled"):  # noqa: ASYNC110
                await asyncio.sleep(0.25)
        assert self.net.jobs.job(job).state == "completed"

    def tasks_of(self, address: str) -> set[str]:
        return {task for runner, task in self.runs if runner == address}


def hosted(test: Callable[[Hosted], Awaitable[None]], state: Path, *, limit: float = 7200.0, **network: Any) -> None:
    async def main() -> None:
        async with Devnet(DevnetConfig(**network), clock=LoopClock(), rng=random.Random(1)) as net:
            await test(Hosted(net, state))
            assert net.violations == []

    run_virtual(main(), limit=limit)


def address_of(key: str) -> str:
    return Signer(NodeConfig.from_env({"REG_SECRET": "x", "SECP256K1_PRIVHEX": key}).secp256k1_privhex).address


def listed(state: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    """What `ledger ls` says."""
    with pytest.raises(SystemExit) as left:
        cli.main(["ledger", "ls", "--state", str(state), "--json", *options])
    assert left.value.code == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_nodes_on_one_host_share_a_ledger_and_work_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = map(address_of, KEYS[:3])

    async def test(rig: Hosted) -> None:
        async with rig.host() as host, AsyncExitStack() as running:
            nodes = [rig.node(host, key, MAX_CONCURRENCY="2") for key in KEYS[:3]]
            for node in nodes:
                await running.enter_async_context(node)
            await rig.ended(rig.submit(30, 5.0))
            assert {address for address, _ in rig.runs} == {first, second, third}
            job = rig.submit(20, 5.0)
            await asyncio.sleep(40)
            await nodes[0].stop(0)
            rig.runs.clear()
            await rig.ended(job)
            assert {address for address, _ in rig.runs} <= {second, third}, "the others work on"
            before = len(rig.runs)
            async with rig.node(host, KEYS[0]):
                await rig.ended(rig.submit(12, 5.0))
            assert first in {address for address, _ in rig.runs[before:]}, "it may come back"

    hosted(test, tmp_path, active_leases="max_concurrency")
    assert list(tmp_path.rglob(FILE)) == [tmp_path / FILE]
    with reading(tmp_path) as db:
        assert audit(db) == []
    everything = listed(tmp_path, capsys)
    by_node = {each: listed(tmp_path, capsys, "--runtime", f"rt:node:{each}") for each in (first, second, third)}
    assert all(by_node.values()) and sum(map(len, by_node.values())) == len(everything) >= 62


def test_each_node_is_called_back_below_its_own_address(tmp_path: Path) -> None:
    async def test(rig: Hosted) -> None:
        async with rig.host(port=0) as host:
            nodes = [rig.node(host, key, callback=True, REGISTER_INTERVAL_SECS="120") for key in KEYS[:2]]
            async with nodes[0], nodes[1]:
                assert sorted(status for _, status in rig.net.dds.callbacks) == [200, 200]
                assert len({node for node, _ in rig.net.dds.callbacks}) == 2
                await rig.ended(rig.submit(10, 1.0))
                assert len({address for address, _ in rig.runs}) == 2
                await asyncio.sleep(1800)
                assert {status for _, status in rig.net.dds.probes} == {200}
                registered = [one for one in rig.net.requests if one.path.endswith("/nodes/register")]
                assert len(registered) == 2, "probes keep each registration alive"
                await nodes[0].stop()
                await asyncio.sleep(120)
                assert {status for _, status in list(rig.net.dds.probes)[-2:]} == {200, 404}

    hosted(test, tmp_path, health_probe_interval=60.0)


def test_each_node_recovers_its_own_leftovers_only(tmp_path: Path) -> None:
    """The second host has the files as they were when the process was killed in the middle of two runs, with an outcome
    of each node on record that the service had not taken.
    """

    async def test(rig: Hosted) -> None:
        first, second = map(address_of, KEYS[:2])
        async with rig.host() as host:
            nodes = [rig.node(host, key, MAX_CONCURRENCY="2") for key in KEYS[:2]]
            async with nodes[0], nodes[1]:
                rig.net.faults = answering(503, ending="/complete")
                rig.submit(2, 1.0)
                await asyncio.sleep(60)
                job = rig.submit(2, 300.0)
                await asyncio.sleep(60)
                owed_or_under_way = {each: rig.tasks_of(each) for each in (first, second)}
                assert sum(map(len, owed_or_under_way.values())) == 4
                shutil.copytree(rig.state, rig.state.with_name("after"))

                async def dead(request: Any) -> Any:
                    return cut(request)

                rig.net.faults = dead
                await host.close(0)
        rig.net.faults, rig.state = None, rig.state.with_name("after")
        rig.runs.clear()
        async with rig.host() as host:
            async with rig.node(host, KEYS[0], MAX_CONCURRENCY="2") as node:
                found = node.statistics().counters
                await asyncio.sleep(400)
                mine = {task for _, task in rig.runs}
                assert mine and mine <= owed_or_under_way[first], "it left alone what is the other's"
                assert found.get("leased", 0) <= len(owed_or_under_way[first])
                async with rig.node(host, KEYS[1], MAX_CONCURRENCY="2"):
                    await rig.ended(job)
        assert rig.tasks_of(second) <= owed_or_under_way[second]
        done = [receipt.task_id for receipts in rig.net.jobs.receipts.values() for receipt in receipts]
        assert sorted(done) == sorted(set().union(*owed_or_under_way.values())), "each was taken once"

    hosted(test, tmp_path / "state", lease_ttl=1200.0, health_probe_interval=None)


def test_nodes_share_connections(tmp_path: Path) -> None:
    """What they need at the same time is open, not what each of them needed once."""

    async def test(rig: Hosted) -> None:
        transports: set[Any] = set()
        most = 0

        async def watch(request: Any) -> None:
            nonlocal most
            transports.add(request.transport)
            transports.intersection_update({each for each in transports if not each.is_closing()})
            most = max(most, len(transports))

        rig.net.faults = watch
        async with rig.host() as host, AsyncExitStack() as running:
            for key in KEYS:
                await running.enter_async_context(rig.node(host, key, MAX_CONCURRENCY="4"))
                await asyncio.sleep(100)
            await asyncio.sleep(3600)
            assert most < len(KEYS) / 2, "eight idle nodes, each of which asks now and then"
            await rig.ended(rig.submit(64, 20.0))
            # Each task has one request to a service and one to a domain server under way, each node two of its own.
            assert most <= (2 * 4 + 2) * len(KEYS)

    hosted(test, tmp_path)


def test_a_host_is_one_writer(tmp_path: Path) -> None:
    """All commits go through one store."""
    opened: list[Path] = []

    async def test(rig: Hosted) -> None:
        host = rig.host()

        async def open_store(place: Path, offload: Any) -> SqliteStore:
            opened.append(place)
            return await SqliteStore.open(place, offload)

        host._open_store = open_store
        async with host, rig.node(host, KEYS[0]), rig.node(host, KEYS[1]):
            await rig.ended(rig.submit(4, 1.0))

    hosted(test, tmp_path)
    assert opened == [tmp_path]
