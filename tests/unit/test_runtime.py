"""One node put together on a loop: how it opens, what it shows, how it closes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from posemesh import NodeConfig, telemetry
from posemesh.capacity import Capacity
from posemesh.control.memory import MemoryStore
from posemesh.control.node_ledger import NodeLedger
from posemesh.control.store import LedgerFull
from posemesh.devnet import Devnet, DevnetConfig
from posemesh.runners.executors.declared import Terms, declare_runner
from posemesh.runners.metrics import MetricsBackend, noop_metrics
from posemesh.runners.prometheus import PrometheusMetrics
from posemesh.runtime import ListenError, Runtime
from posemesh.shell.offload import InlineOffload
from posemesh.shell.secrets import MemorySecretStore
from posemesh.testing import LoopClock, run_virtual

KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90"


@pytest.fixture
def log() -> Iterator[list[str]]:
    logger = telemetry.logger()
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level="INFO", format="{level} {message}")
    logger.enable("posemesh")
    yield lines
    logger.disable("posemesh")
    logger.remove(sink)


def with_runtime(
    test: Callable[[Devnet, Runtime], Awaitable[None]], metrics: MetricsBackend | None = None, **settings: str
) -> None:
    async def main() -> None:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:

            async def run(task: Any) -> None: ...

            runtime = Runtime(
                NodeConfig.from_env(net.node_settings(KEY) | settings),
                [declare_runner(capability, run, Terms()) for capability in ("/b/v1", "/a/v1")],
                capacity=Capacity(),
                metrics=metrics or noop_metrics(),
                clock=LoopClock(),
                offload=InlineOffload(),
                rng=Random(1),
                ledger=await NodeLedger.open(MemoryStore(), "rt:node:1", wall=lambda: 0.0, ids=lambda: str(uuid4())),
                secrets=MemorySecretStore(),
            )
            try:
                await test(net, runtime)
            finally:
                await runtime.close()

    run_virtual(main(), limit=3600)


def test_it_is_ready_after_the_first_sign_in() -> None:
    async def test(net: Devnet, runtime: Runtime) -> None:
        assert not runtime.can_lease()
        await runtime.open(None, fixed=False)
        assert not runtime.ready.done()
        await runtime.ready
        assert runtime.can_lease()
        assert runtime.port is None
        runtime.drain(5)
        assert not runtime.can_lease()
        await runtime.left

    with_runtime(test)


def test_it_serves_its_metrics_where_they_can_be_rendered() -> None:
    async def test(net: Devnet, runtime: Runtime) -> None:
        await runtime.open(0, fixed=True)
        await runtime.ready
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{runtime.port}/metrics") as reply:
            assert (reply.status == 200) == served
            assert ("dms_poll_latency_ms" in await reply.text()) == served

    for served in (False, True):
        with_runtime(test, PrometheusMetrics() if served else None)


def test_it_serves_on_its_port() -> None:
    async def test(net: Devnet, runtime: Runtime) -> None:
        await runtime.open(0, fixed=True)
        await runtime.ready
        async with aiohttp.ClientSession() as http:
            base = f"http://127.0.0.1:{runtime.port}"
            for path, status in (("/health", 200), ("/ready", 200), ("/status", 200)):
                async with http.get(base + path) as reply:
                    assert reply.status == status
                    body = await reply.text()
        for secret in (KEY, net.reg_secret, "node-"):
            assert secret not in body
        assert '"capabilities": ["/a/v1", "/b/v1"]' in body
        assert runtime.address in body

    with_runtime(test)


def test_a_port_that_is_taken(log: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        async def test(net: Devnet, runtime: Runtime) -> None:
            with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port} .*NODE_PORT"):
                await runtime.open(port, fixed=True)
            await runtime.open(port, fixed=False)
            assert runtime.port not in (None, port)
            assert any(line.startswith(f"WARNING port {port} is taken") for line in log)

        with_runtime(test)


def test_an_address_that_is_not_this_machine_s() -> None:
    async def test(net: Devnet, runtime: Runtime) -> None:
        with pytest.raises(ListenError, match="NODE_HOST"):
            await runtime.open(8080, fixed=False)

    with_runtime(test, NODE_HOST="192.0.2.1", ALLOW_INSECURE_HTTP="true")


def test_the_log_says_what_came_from_a_default(log: list[str]) -> None:
    async def test(net: Devnet, runtime: Runtime) -> None:
        await runtime.open(None, fixed=False)

    with_runtime(test, DDS_BASE_URL="", NODE_VERSION="v1.2.3")
    said = "".join(log)
    assert "DDS_BASE_URL is not set; using https://dds.auki.network" in said
    assert "DMS_BASE_URL is not set" not in said
    assert "NODE_VERSION 'v1.2.3' is sent as '1.2.3'" in said
    assert "offers /a/v1, /b/v1" in said


def test_closing_at_any_time() -> None:
    async def closed(net: Devnet, runtime: Runtime) -> None:
        await runtime.close()

    async def opening(net: Devnet, runtime: Runtime) -> None:
        await runtime.open(0, fixed=True)
        await asyncio.sleep(0)
        await runtime.close()
        before = len(net.requests)
        await asyncio.sleep(600)
        assert len(net.requests) <= before + 1

    with_runtime(closed)
    with_runtime(opening)


def test_an_outcome_that_is_not_on_record_is_told(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk it was lost without a word."""

    async def full(*args: object, **named: object) -> None:
        raise LedgerFull("the disk is full")

    monkeypatch.setattr(NodeLedger, "commit_outcome", full)

    async def test(net: Devnet, runtime: Runtime) -> None:
        await runtime.open(None, fixed=False)
        await runtime.ready
        net.submit("/a/v1")
        await asyncio.sleep(60)
        assert [task.state for task in runtime.statistics().tasks] == ["finishing"]
        runtime.drain(5)
        await runtime.left
        await runtime.close()
        assert len([line for line in log if "its outcome is not on record yet, and may be lost" in line]) == 1

    with_runtime(test)


def test_an_undelivered_outcome_is_told(log: list[str]) -> None:
    async def test(net: Devnet, runtime: Runtime) -> None:
        await runtime.open(None, fixed=False)
        await runtime.ready

        async def down(request: Any) -> Any:
            return aiohttp.web.Response(status=503) if request.path.endswith("complete") else None

        net.faults = down
        net.submit("/a/v1")
        await asyncio.sleep(30)
        await runtime.close()
        assert any("its outcome (completed) is not delivered; it is on record" in line for line in log)

    with_runtime(test)
