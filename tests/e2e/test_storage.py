"""Inputs and artifacts of real tasks, through a domain server that reads multipart strictly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .checks import further
from .conftest import World
from .network import Fault
from .test_asking import setting

HELLO = "/examples/hello/v1"
RUNNER = """
    import posemesh

    node = posemesh.Node()

    @node.runner("/examples/hello/v1")
    async def hello(task):
        data = await task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])
        (task.workspace / "seen").write_bytes(data)
        print("workspace", task.workspace, flush=True)
        await task.output.put_bytes("hello.bin", data.upper())
        await task.output.put_bytes("sub/stats.json", b"{}")
        await task.output.put_bytes("empty.bin", b"")
        assert await task.access_token.get()
"""


def cids(world: World, item: str) -> dict[str, str]:
    base = f"/api/v1/domains/{world.net.dms.domain_id}/data"
    return {
        "id": item,
        "blank": f" {item} ",
        "path": f"{base}/{item}",
        "url": f"{world.net.urls['domain']}{base}/{item}",
        "query": f"{world.net.urls['domain']}{base}?ids={item}",
    }


@pytest.mark.parametrize("form", ["url", *further("id", "blank", "path", "query")])
def test_hello(world: World, form: str) -> None:
    net = world.net
    data = b"hello\r\n--" + os.urandom(3).hex().encode() + b"\r\n\r\n" + bytes(range(256)) * 50
    item = net.domain.add("in", "binary", data)
    [task] = net.dms.add(HELLO, 1, inputs=[cids(world, item)[form]], outputs_prefix="out/run 1/", max_attempts=1)
    node = world.node(RUNNER)
    net.wait(lambda: task.state in ("completed", "failed"), 10, "the task ends")
    assert task.state == "completed", task.reason
    report = task.outcomes[0][1]
    artifacts = {artifact["logical_path"]: artifact for artifact in report["meta"]["artifacts"]}
    assert list(artifacts) == ["out/run 1/hello.bin", "out/run 1/sub/stats.json", "out/run 1/empty.bin"]
    hello = artifacts["out/run 1/hello.bin"]
    assert net.domain.items[hello["id"]].data == data.upper()
    assert hello["name"] == f"out_run_1_hello_bin_{task.id}" and hello["data_type"] == "bin_data"
    assert artifacts["out/run 1/sub/stats.json"]["data_type"] == "json"
    assert net.domain.items[artifacts["out/run 1/empty.bin"]["id"]].data == b""
    workspace = node.wait_line("workspace ").removeprefix("workspace ")
    node.stop()
    assert not os.path.exists(workspace), "the workspace is gone"


def test_a_put_whose_name_exists_updates_it(world: World) -> None:
    """Weakness 40; as after a second attempt."""
    net = world.net
    item = net.domain.add("in", "binary", b"abc")
    [task] = net.dms.add(HELLO, 1, inputs=[item], outputs_prefix="o", max_attempts=1)
    old = net.domain.add(f"o_hello_bin_{task.id}", "bin_data", b"of the first attempt")
    node = world.node(RUNNER)
    net.wait(lambda: task.state in ("completed", "failed"), 10, "the task ends")
    assert task.state == "completed", task.reason
    assert net.domain.items[old].data == b"ABC"
    assert task.outcomes[0][1]["output_cids"][0] == old
    assert len(net.of("update")) == 1
    node.stop()


def test_a_put_whose_answer_was_lost(world: World) -> None:
    net = world.net
    item = net.domain.add("in", "binary", b"abc")
    [task] = net.dms.add(HELLO, 1, inputs=[item], max_attempts=2)
    net.fault = lambda r: Fault("lost", apply=True) if r.kind == "create" and len(net.of("create")) == 1 else None
    node = world.node(RUNNER)
    net.wait(lambda: task.state in ("completed", "failed"), 10, "the task ends")
    assert task.state == "completed", task.reason
    assert len([i for i in net.domain.items.values() if i.name.startswith("hello")]) == 1
    node.stop()


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (Fault("404", status=404, body=b"nothing there"), "404"),
        (Fault("garbage", status=200, body=b"<html>", headers={"Content-Type": "text/html"}), "Content-Type"),
        (Fault("torn", torn=True, apply=True), ""),
        (Fault("short", status=200, body=b"--b\r\n", headers={"Content-Type": "multipart/form-data; boundary=b"}), ""),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_input_that_does_not_come_whole_fails_the_task(world: World, fault: Fault, word: str) -> None:
    """Weakness 28: a truncated download ended silently as success."""
    net = world.net
    item = net.domain.add("in", "binary", b"abc" * 1000)
    [task] = net.dms.add(HELLO, 1, inputs=[item], max_attempts=1)
    net.fault = lambda request: fault if request.kind == "fetch" else None
    node = world.node(RUNNER)
    net.wait(lambda: task.state == "failed", 10, "failed")
    assert word in task.reason and len(task.reason) > 20
    assert not net.of("create")
    node.stop()


@pytest.mark.parametrize("short", ["closed", "length", "chunks", "end"])
@pytest.mark.parametrize("size", [3_000, *further(3_000_000)])
def test_half_an_input_fails_the_task_and_leaves_nothing(world: World, tmp_path: Path, short: str, size: int) -> None:
    """Weakness 28, for a connection that ends in the middle and for an answer that says it is whole."""
    net = world.net
    item = net.domain.add("in", "binary", os.urandom(size))
    [task] = net.dms.add(HELLO, 1, inputs=[item], max_attempts=1)
    net.fault = lambda request: Fault(short, short=short) if request.kind == "fetch" else None
    node = world.node(
        """
        import posemesh

        node = posemesh.Node()

        @node.runner("/examples/hello/v1")
        async def hello(task):
            cid = task.lease.task.inputs_cids[0]
            try:
                found = await task.input.materialize_cid_to_temp(cid)
                await task.output.put_file("half.bin", found)
            finally:
                print("left", [path.name for path in task.workspace.rglob("*")], flush=True)
        """,
        STATE_DIR=tmp_path / "state",
    )
    net.wait(lambda: task.state in ("completed", "failed"), 20, "the task ends")
    [(kind, report)] = task.outcomes
    assert (kind, report["details"]["code"]) == ("fail", "bad_input"), report
    assert report["reason"].startswith(f"bad_input: BadInput: download of {item}: ")
    assert short == "closed" or f"{size} bytes breaks off after" in report["reason"]
    assert report["details"]["job"]["task_id"] == task.id and report["details"]["artifacts"] == []
    assert [request.kind for request in net.requests if request.service == "domain"] == ["fetch"]
    assert node.wait_line("left ") == "left []"
    assert not list((tmp_path / "state").glob("work/*/*"))
    node.stop()


@pytest.mark.parametrize(
    "cid",
    [
        "https://evil.example/api/v1/domains/{domain}/data/{item}",
        "/api/v1/domains/11111111-1111-4111-8111-111111111111/data/{item}",
        *further("", "/api/v1/domains/{domain}/data", "../../etc/passwd", "a b&name=x"),
    ],
    ids=["other-host", "other-domain", "empty", "whole-domain", "dots", "injection"],
)
def test_an_input_that_names_no_single_item_of_the_lease_is_refused(world: World, cid: str) -> None:
    """Weakness 36: another host was ignored, another domain honoured, and a bare URL downloaded everything."""
    net = world.net
    item = net.domain.add("in", "binary", b"abc")
    named = cid.format(domain=net.dms.domain_id, item=item)
    [task] = net.dms.add(HELLO, 1, inputs=[named], max_attempts=1)
    node = world.node(RUNNER)
    net.wait(lambda: task.state in ("completed", "failed"), 10, "the task ends")
    assert task.state == "failed" and not net.of("create")
    assert not [request for request in net.of("fetch") if request.answered and request.status == 200]
    net.violations[:] = [wrong for wrong in net.violations if "domain/" not in wrong]
    node.stop()


@pytest.mark.parametrize("service", ["same-port", *further("dds", "dms", "userinfo")])
def test_an_input_of_another_origin_gets_no_request(world: World, service: str) -> None:
    """Another port or name of this machine is another server, too."""
    net = world.net
    own = net.urls["domain"]
    bases = net.urls | {
        "same-port": own.replace("127.0.0.1", "localhost"),
        "userinfo": f"{own}@{net.urls['dds'].removeprefix('http://')}",
    }
    path = cids(world, net.domain.add("in", "binary", b"abc"))["path"]
    [task] = net.dms.add(HELLO, 1, inputs=[bases[service] + path], max_attempts=1)
    node = world.node(RUNNER)
    net.wait(lambda: task.state in ("completed", "failed"), 10, "the task ends")
    assert task.outcomes[0][1]["details"]["code"] == "bad_input", task.outcomes
    assert not [request for request in net.requests if "/domains/" in request.path]
    assert not [request for request in net.requests if request.service != "domain" and request.token in task.tokens]
    node.stop()


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1"])
def test_a_domain_server_whose_name_leads_to_this_machines_link_gets_no_connection(world: World, address: str) -> None:
    net = world.net
    item = net.domain.add("in", "binary", b"abc")
    mangle = setting("domain_server_url", value="https://domain.example")
    [task] = net.dms.add(HELLO, 1, inputs=[item], max_attempts=1, mangle=mangle)
    named = f"""
    import socket

    found = socket.getaddrinfo
    socket.getaddrinfo = lambda host, *rest, **more: found(
        "{address}" if host == "domain.example" else host, *rest, **more | {{"family": 0}}
    )
"""
    node = world.node(named + RUNNER)
    net.wait(lambda: task.state == "failed", 5, "failed at once, not after a timeout")
    assert "link-local" in task.reason
    node.stop()


def test_a_domain_server_in_the_clear_elsewhere_gets_no_token(world: World) -> None:
    net = world.net
    mangle = setting("domain_server_url", value="http://192.0.2.1:8000")
    item = net.domain.add("in", "binary", b"abc")
    [task] = net.dms.add(HELLO, 1, inputs=[item], max_attempts=1, mangle=mangle)
    node = world.node(RUNNER)
    net.wait(lambda: task.state == "failed", 5, "failed at once, not after a timeout")
    assert "http" in task.reason
    node.stop()


@pytest.mark.slow
def test_storage_uses_the_newest_token(world: World) -> None:
    """Weakness 34: an expired domain token failed the task; heartbeats renew it."""
    net = world.net
    net.dms.ttl, net.dms.token_ttl = 1.0, 1.2
    item = net.domain.add("in", "binary", b"abc")
    [task] = net.dms.add(HELLO, 1, inputs=[item], max_attempts=1)
    node = world.node("""
        import asyncio
        import posemesh

        node = posemesh.Node()

        @node.runner("/examples/hello/v1")
        async def hello(task):
            first = await task.access_token.get()
            for _ in range(4):
                await asyncio.sleep(0.6)
                await task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])
            assert await task.access_token.get() != first
    """)
    net.wait(lambda: task.state in ("completed", "failed"), 10, "the task ends")
    assert task.state == "completed", task.reason
    assert len({request.token for request in net.of("fetch")}) >= 3
    node.stop()


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("fetch", 307),
        ("create", 302),
        *further(("info", 308), ("initiate", 303), ("part", 303), ("finish", 302)),
    ],
)
def test_a_redirect_of_the_domain_server_gets_no_token(world: World, kind: str, status: int) -> None:
    net = world.net
    net.domain.request_max_bytes, net.domain.part_size = 1024 * 1024, 1024 * 1024
    item = net.domain.add("in", "binary", b"abc")
    [task] = net.dms.add(HELLO, 1, inputs=[item], max_attempts=1)
    net.fault = lambda request: (
        Fault("redirect", status=status, headers={"Location": net.urls["dms"] + "/v1/stolen"})
        if request.kind == kind
        else None
    )
    node = world.node("""
        import posemesh

        node = posemesh.Node()

        @node.runner("/examples/hello/v1")
        async def hello(task):
            await task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0])
            await task.output.put_bytes("small.bin", b"small")
            await task.output.put_bytes("large.bin", bytes(3 * 1024 * 1024))
    """)
    net.wait(lambda: task.state in ("completed", "failed"), 10, "the task ends")
    assert net.of(kind)
    assert task.state == ("completed" if kind == "info" else "failed"), task.outcomes
    assert not [request for request in net.requests if "stolen" in request.path]
    node.stop()


@pytest.mark.parametrize("form", ["json", "text"])
def test_user_code_that_logs_and_raises_secrets_leaks_nothing(world: World, form: str) -> None:
    net = world.net
    [task] = net.dms.add(HELLO, 1, max_attempts=1)
    node = world.node(
        """
        import os
        import posemesh
        from loguru import logger

        node = posemesh.Node()

        @node.runner("/examples/hello/v1")
        async def hello(task):
            token = await task.access_token.get()
            logger.info("the token is {}", token)
            logger.error(f"the key is {os.environ['SECP256K1_PRIVHEX']} and {os.environ['REG_SECRET']}")
            task.ctrl.log_event({"repr": repr(task), "lease": repr(task.lease)})
            raise RuntimeError(f"cannot fetch with Bearer {token}, {task.lease!r}")
        """,
        LOG_FORMAT=form,
        LOG_LEVEL="trace",
    )
    net.wait(lambda: task.state == "failed", 10, "failed")
    assert "cannot fetch" in task.reason
    assert task.events and not [secret for secret in net.secrets if secret in str(task.events)]
    node.stop()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_code_that_will_not_stop_gets_nothing_through(world: World, end: str) -> None:
    """The services note a heartbeat or a storage request under a lease that is over."""
    net = world.net
    net.dms.ttl = 1.2
    item = net.domain.add("in", "binary", b"abc")
    [task] = net.dms.add(HELLO, 1, inputs=[item], max_attempts=1, cancel_at=2 if end == "cancelled" else None)
    if end == "expired":
        net.fault = lambda r: (
            Fault("500", status=500) if r.kind == "heartbeat" and len(net.of("heartbeat")) > 1 else None
        )
    node = world.node("""
        import asyncio
        import posemesh

        node = posemesh.Node()

        @node.runner("/examples/hello/v1")
        async def hello(task):
            while not task.ctrl.is_cancelled():
                try:
                    await asyncio.sleep(5)
                except asyncio.CancelledError:
                    pass
            for number in range(8):
                try:
                    await asyncio.sleep(0.1)
                    task.ctrl.progress({"pct": number})
                    task.ctrl.log_event({"n": number})
                    await task.output.put_bytes("late.bin", b"late")
                    print("went through", flush=True)
                except (Exception, asyncio.CancelledError) as error:
                    print("refused", type(error).__name__, flush=True)
            print("ended", flush=True)
    """)
    node.wait_line("ended", within=10)
    assert "went through" not in node.output
    assert not net.of("create") and not net.of("fail")
    if end == "cancelled":  # under a lease that merely ran out here a finished result is offered
        assert not net.of("complete")
    assert task.attempts == 1
    node.stop()
