"""What a node serves: the callback of its registration, health probes, `/ready` and `/status`."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from typing import Any

import pytest

from .conftest import NOOP, World
from .network import Fault
from .test_starting import free_port


@pytest.mark.parametrize("callback", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_the_callback_flow(world: World, callback: str) -> None:
    net = world.net
    net.dds.callback, net.dds.probe_every = callback, 0.2
    net.dms.add(NOOP, 3)
    port = free_port()
    node = world.node(NODE_URL=f"http://127.0.0.1:{port}", NODE_PORT=port, REGISTER_INTERVAL_SECS=1)
    net.wait(lambda: len(net.dms.in_state("completed")) == 3, 10, "tasks run")
    assert net.dds.node_url == f"http://127.0.0.1:{port}/"
    assert net.dds.callbacks == [(200, '{"ok": true}')] or json.loads(net.dds.callbacks[0][1]) == {"ok": True}
    assert net.of("verify")[0].at > net.of("register_url")[0].at
    net.wait(lambda: len(net.dds.probes) >= 12, 9, "DDS probes the node's health")
    assert set(net.dds.probes) == {200}
    for again in net.of("register_url")[1:]:
        assert not [at for at in net.dds.probed if 0.3 < again.at - at < 0.8], "probes keep the registration alive"
    node.stop()


@pytest.mark.slow
def test_a_callback_that_never_comes(world: World) -> None:
    net = world.net
    net.dds.callback = None
    port = free_port()
    node = world.node(NODE_URL=f"http://127.0.0.1:{port}", NODE_PORT=port, REGISTER_INTERVAL_SECS=1)
    net.wait(lambda: len(net.of("register_url")) >= 2, 8, "it registers again")
    assert not net.of("verify") and not net.of("ask"), "no sign-in without the callback"
    pause = net.of("register_url")[1].at - net.of("register_url")[0].at
    assert 1 + 1.6 <= pause <= 1 + 2.6, "the interval, then the backoff"
    net.do(lambda: setattr(net.dds, "callback", "after"))
    world.signed_in(12)
    node.stop()


@pytest.mark.slow
def test_a_node_that_is_not_probed_registers_again(world: World) -> None:
    net = world.net
    port = free_port()
    node = world.node(NODE_URL=f"http://127.0.0.1:{port}", NODE_PORT=port, REGISTER_INTERVAL_SECS=1)
    net.wait(lambda: len(net.of("register_url")) >= 3, 8, "it registers again")
    times = [request.at for request in net.of("register_url")]
    assert 0.9 <= times[2] - times[1] <= 1.6
    assert len(net.of("ask")) > 3, "and works on meanwhile"
    assert all(code == 200 for code, _ in net.dds.callbacks)
    node.stop()


def callback(node: Any, body: bytes, kind: str | None = "application/json") -> tuple[int, str]:
    headers = {} if kind is None else {"Content-Type": kind}
    request = urllib.request.Request(node.url("/internal/v1/registrations"), data=body, headers=headers, method="POST")
    code, text = node.send(request)
    return code, text.decode()


def test_the_contract_of_the_callback(world: World) -> None:
    """Weakness 50: the callback accepted any caller."""
    net = world.net
    net.dds.probe_every = 0.3
    port = free_port()
    node = world.node(NODE_URL=f"http://127.0.0.1:{port}", NODE_PORT=port, REGISTER_INTERVAL_SECS=1)
    world.signed_in()
    own = {"id": net.dds.node_id, "secret": "s" * 4096}
    assert callback(node, b"{}", "text/plain")[0] == 415
    assert callback(node, b"{")[0] == 400
    assert callback(node, b'{"id": 1, "secret": "s"}')[0] == 422
    assert callback(node, b'{"id": "a"}')[0] == 422
    assert callback(node, b'{"id": null, "secret": "s"}')[0] == 422
    assert callback(node, b'{"id": " ", "secret": "s"}') == (422, "missing id")
    assert callback(node, b'{"id": "a", "secret": " "}') == (422, "missing secret")
    assert callback(node, json.dumps(own | {"secret": "s" * 4097}).encode()) == (403, "secret too large")
    assert callback(node, b'{"id": "' + b"a" * 2_200_000 + b'"}')[0] == 413
    assert callback(node, json.dumps(own | {"unknown": 1}).encode(), "application/json; charset=utf-8")[0] == 200
    assert callback(node, json.dumps(own | {"id": "a-stranger"}).encode())[0] == 409
    assert len(net.of("verify")) == 1 and node.get("/ready")[0] == 200
    code, body = node.get("/health", **{"User-Agent": "curl/8"})
    assert (code, body) == (200, b"")
    node.stop()


def test_a_callback_nobody_asked_for(world: World) -> None:
    net = world.net
    net.fault = lambda request: Fault("500", status=500) if request.service == "dds" else None
    node = world.node()
    node.wait_line("backing_off")
    assert callback(node, b'{"id": "a", "secret": "a-secret"}')[0] == 409
    assert not net.of("verify")
    node.stop()


def test_status_and_ready(world: World) -> None:
    net = world.net
    [task] = net.dms.add("/test/sleep/v1", 1)
    node = world.node("""
        import asyncio
        import posemesh

        node = posemesh.Node()

        @node.runner("/test/sleep/v1")
        async def work(task):
            await task.ctrl.progress({"pct": 40})
            await asyncio.sleep(60)
    """)
    net.wait(lambda: task.progress == {"pct": 40}, 10, "the task runs")
    status = node.status()
    assert set(status) == {"node", "machines", "tasks", "counters"}
    [shown] = status["tasks"]
    assert {name: shown[name] for name in ("task_id", "capability", "state", "progress")} == {
        "task_id": task.id,
        "capability": "/test/sleep/v1",
        "state": "running",
        "progress": {"pct": 40},
    }
    for machine in status["machines"].values():
        assert {"state", "since", "deadline"} <= set(machine)
    assert status["machines"]["registration"]["state"] == "registered"
    assert not [secret for secret in net.secrets if secret in json.dumps(status)]
    node.signal()
    node.wait_line("told to stop")
    assert node.get("/ready")[0] == 503
    node.signal(signal.SIGINT)
    assert node.wait(5) == 0


def test_a_port_that_is_taken(world: World) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        node = world.node(NODE_PORT=port)
        assert node.wait(5) == 1
        assert str(port) in node.lines[-1] and "NODE_PORT" in node.lines[-1]
