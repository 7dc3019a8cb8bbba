"""``posemesh.Node``: what a host and a program see of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from posemesh import (
    ConfigError,
    Node,
    NodeConfig,
    NodeStartError,
    NodeStopped,
    PosemeshError,
    RegistrationRefused,
    Secret,
    SignInRefused,
)
from posemesh.capacity import Offer
from posemesh.devnet import Devnet, DevnetConfig
from posemesh.target import load_target
from posemesh.testing import LoopClock, ManualClock, run_virtual, simulated

CAPABILITY = "/examples/hello/v1"
KEY_A = "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90"
KEY_B = "e331b6d69882b4ed5bb7f55b585d7d0f7dc3aeca4a3deee8d16bde3eca51aace"


async def nothing(task: Any) -> None: ...


class Given:
    """A runner as an object."""

    def __init__(self, capability: str = CAPABILITY) -> None:
        self._capability = capability

    def capability(self) -> str:
        return self._capability

    async def run(self, task: Any) -> None: ...


GIVEN = (Given(),)


def config(**fields: Any) -> NodeConfig:
    return NodeConfig(reg_secret=Secret("x" * 8), secp256k1_privhex=Secret(KEY_A), **fields)


def with_node(test: Callable[[Devnet, Node], Awaitable[None]], *, runners: Any = GIVEN, **settings: str) -> None:
    async def main() -> None:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
            node = Node(NodeConfig.from_env(net.node_settings(KEY_A) | settings), runners=runners)
            await test(net, simulated(node))
            await node.stop(0)

    run_virtual(main(), limit=7200)


# --- Making one -------------------------------------------------------------------------------------------------


def test_making_one_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REG_SECRET", "")
    monkeypatch.setenv("MAX_CONCURRENCY", "many")
    monkeypatch.setattr("socket.socket", None)
    monkeypatch.setattr("builtins.open", None)
    clock = ManualClock()
    node = Node(runners=[Given()], clock=clock)
    assert node._clock is clock
    assert repr(node) == "<Node stopped []>"
    assert repr(Node(None, runners=iter([object()]))) == "<Node stopped []>"  # type: ignore[list-item]


def test_runners_are_offered() -> None:
    node = Node(config(enable_noop=True), runners=[Given("/given/v1")])
    assert node.runner(CAPABILITY)(nothing) is nothing
    offered = [declared.capability for declared in node._offered(config(enable_noop=True))]
    assert offered == [CAPABILITY, "/given/v1", "/posemesh/noop/v1"], "in the order of their routing"
    assert [declared.capability for declared in node._offered(config())] == [CAPABILITY, "/given/v1"]
    assert repr(node) == f"<Node stopped ['{CAPABILITY}']>"


def test_a_runner_of_the_user_s_takes_the_place_of_the_no_op() -> None:
    node = Node()
    node.runner("/posemesh/noop/v1")(nothing)
    assert node._offered(config(enable_noop=True)) == list(node._declared.values())


@pytest.mark.parametrize("capability", ["", "x" * 257, "é" * 129, "/a b/v1", " /a/v1", "/a\n", "/a\u00a0b", "/a\x00"])
def test_a_capability_has_a_form(capability: str) -> None:
    with pytest.raises(ValueError, match="expected a capability"):
        Node().runner(capability)(nothing)


def test_names_are_unique_and_capabilities_need_not_be() -> None:
    node = Node()
    node.runner(CAPABILITY)(nothing)
    with pytest.raises(ValueError, match="there is a runner named /examples/hello/v1 already"):
        node.runner(CAPABILITY)(nothing)
    with pytest.raises(ConfigError, match=r"runners\[1\]: .* for another one of the same capability give a name"):
        Node(runners=[Given(), Given()])._offered(config())
    node.runner(CAPABILITY, name="other", labels={"zone": "b"})(nothing)
    assert [declared.name for declared in node._offered(config())] == [CAPABILITY, "other"]


def test_what_was_given_and_is_no_runner_is_named() -> None:
    """It was a traceback, and called a fault of posemesh."""

    class Attribute:
        capability = CAPABILITY

        async def run(self, task: Any) -> None: ...

    class Blank(Given):
        def capability(self) -> str:
            return ""

    wrong: list[Any] = [Attribute(), Given, nothing, Blank(), Given()]
    with pytest.raises(ConfigError) as raised:
        Node(runners=wrong)._offered(config())
    assert [problem[:12] for problem in raised.value.problems] == [f"runners[{number}]: " for number in range(4)]
    assert all("@node.runner" in problem for problem in raised.value.problems[:3])
    assert "the class Given" in raised.value.problems[1]


def test_all_kinds_of_runners_are_offered() -> None:
    node = Node()

    @node.runner("/plain/v1", timeout=5, slots=2, resources={"gpu": 1})
    def plain(task: Any) -> None: ...

    @node.runner("/class/v1")
    class Model:
        async def run(self, task: Any) -> None: ...

    node.command("/command/v1", ["true"], timeout=1)
    assert [declared.capability for declared in node._offered(config())] == ["/plain/v1", "/class/v1", "/command/v1"]
    assert node._declared["/plain/v1"].offer == Offer("/plain/v1", "/plain/v1", 2, {"gpu": 1})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"executor": "fiber"}, "expected executor inline, thread or process, got 'fiber'"),
        ({"executor": "thread"}, "an async runner runs inline or in a process"),
        ({"timeout": 0}, "timeout: expected seconds above 0, got 0"),
        ({"timeout": float("inf")}, "timeout: expected seconds above 0"),
        ({"slots": 0}, "slots: expected a whole number of at least 1, got 0"),
        ({"slots": True}, "slots: expected a whole number"),
        ({"resources": {"gpu": 0.5}}, "resource 'gpu': expected a whole number of at least 1, got 0.5"),
        ({"memory_bytes": 1}, 'memory_bytes, keep and env are for executor="process", not inline'),
        ({"keep": False}, "are for executor"),
        ({"env": {}}, "are for executor"),
        ({"name": ""}, "expected a runner's name"),
        ({"labels": {"gpu": 1}}, "labels: expected text by name, got 'gpu': 1"),
    ],
)
def test_options_that_do_not_fit_say_so(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Node().runner(CAPABILITY, **options)(nothing)


def test_a_decorator_without_its_brackets_is_refused() -> None:
    """It gave back another decorator, and the runner was offered nowhere."""
    with pytest.raises(TypeError, match=r'as in @node.runner\("/examples/hello/v1"\), got hello'):

        @Node().runner  # type: ignore[arg-type]
        async def hello(task: Any) -> None: ...


def test_what_is_no_runner_is_refused() -> None:
    node = Node()
    with pytest.raises(TypeError, match="expected a runner"):
        node.runner(CAPABILITY)(5)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="a plain function would stop the loop"):
        node.runner(CAPABILITY, executor="inline")(lambda task: None)
    with pytest.raises(TypeError, match="expected name, supports"):
        node.register(5, CAPABILITY)  # type: ignore[arg-type]
    assert node._declared == {}


def test_a_runner_that_could_never_run_keeps_the_node_from_starting() -> None:
    async def test(net: Devnet, node: Node) -> None:
        node.runner("/big/v1", resources={"gpu": 3})(nothing)
        with pytest.raises(ConfigError, match="needs gpu:3 for one task"):
            await node.start()

    with_node(test, RESOURCES="gpu:2")


def test_a_node_that_serves_does_without_the_extra_for_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain installation has no prometheus-client, and `posemesh-node run` ended with the wish for it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    async def test(net: Devnet, node: Node) -> None:
        await node.start()
        assert node.statistics().machines["auth"].state == "signed_in"

    with_node(test, NODE_PORT="0")


def test_a_failed_check_keeps_the_node_from_starting() -> None:
    class Lacking:
        def check(self) -> None:
            raise RuntimeError("no camera")

        async def run(self, task: Any) -> None: ...

    async def test(net: Devnet, node: Node) -> None:
        node.runner("/lacking/v1", name="lacking")(Lacking)
        with pytest.raises(NodeStartError, match="runner lacking: RuntimeError: no camera"):
            await node.start()
        assert not net.requests

    with_node(test)


# --- Starting ---------------------------------------------------------------------------------------------------


def test_a_node_without_runners_does_not_start() -> None:
    async def test(net: Devnet, node: Node) -> None:
        with pytest.raises(ConfigError, match="no runner"):
            await node.start()
        assert not net.requests

    with_node(test, runners=())


def test_a_start_reads_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("REG_SECRET", "SECP256K1_PRIVHEX"):
        monkeypatch.delenv(name, raising=False)

    async def main() -> None:
        with pytest.raises(ConfigError, match="REG_SECRET") as caught:
            await Node(runners=[Given()]).start()
        assert len(caught.value.problems) == 2

    run_virtual(main())


def test_a_start_returns_signed_in_and_not_twice() -> None:
    async def test(net: Devnet, node: Node) -> None:
        await node.start()
        assert node.statistics().machines["auth"].state == "signed_in"
        assert repr(node).startswith("<Node '0xfdbb6caf")
        with pytest.raises(PosemeshError, match="running already"):
            await node.start()
        with pytest.raises(PosemeshError, match="before start"):
            node.runner("/other/v1")(nothing)
        await node.stop()
        await node.start()
        await node.stop()

    with_node(test)


@pytest.mark.parametrize(
    ("path", "error"), [("/register-wallet", RegistrationRefused), ("/verify", SignInRefused), ("/request", None)]
)
@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_start_ends_with_an_error(path: str, error: Any, status: int) -> None:
    """Reference: a process that hung until Ctrl-C."""

    async def test(net: Devnet, node: Node) -> None:
        async def refuse(request: web.Request) -> web.Response | None:
            return web.Response(status=status, text="node not found") if request.path.endswith(path) else None

        net.faults = refuse
        with pytest.raises(error or RegistrationRefused, match="node not found") as caught:
            await node.start()
        assert "Check" in str(caught.value)
        with pytest.raises(NodeStopped):
            node.transitions()
        before = len(net.requests)
        await asyncio.sleep(600)
        assert len(net.requests) == before

    with_node(test)


@pytest.mark.parametrize("status", [409, 500, 503])
def test_a_start_waits_for_a_service_in_trouble(status: int) -> None:
    async def test(net: Devnet, node: Node) -> None:
        async def trouble(request: web.Request) -> web.Response | None:
            early = asyncio.get_running_loop().time() < 300
            return web.Response(status=status) if early and "/register" in request.path else None

        net.faults = trouble
        await node.start()
        assert asyncio.get_running_loop().time() > 300

    with_node(test)


def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    async def test(net: Devnet, node: Node) -> None:
        async def down(request: web.Request) -> web.Response:
            return web.Response(status=503)

        net.faults = down
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.start(), 60)
        before = len(net.requests)
        await asyncio.sleep(600)
        assert len(net.requests) == before

    with_node(test)


def test_a_stop_while_it_starts() -> None:
    async def test(net: Devnet, node: Node) -> None:
        async def down(request: web.Request) -> web.Response:
            return web.Response(status=503)

        net.faults = down
        starting = asyncio.ensure_future(node.start())
        await asyncio.sleep(10)
        await node.stop()
        with pytest.raises(NodeStopped, match="before it had signed in"):
            await starting

    with_node(test)


# --- Stopping and looking ---------------------------------------------------------------------------------------


def test_a_stop_of_what_is_not_running() -> None:
    asyncio.run(Node().stop())
    with pytest.raises(NodeStopped, match=r"call start\(\)"):
        Node().statistics()
    with pytest.raises(NodeStopped, match="not running"):
        Node().transitions()


def test_statistics_and_records_outlive_the_node() -> None:
    async def test(net: Devnet, node: Node) -> None:
        async with node as entered:
            assert entered is node
            records = node.transitions()
            job = net.submit(CAPABILITY, count=2)
            await asyncio.sleep(30)
            assert net.jobs.job(job).state == "completed"
            assert node.statistics().counters == {"leased": 2, "completed": 2}
        assert node.statistics().counters == {"leased": 2, "completed": 2}
        assert node.statistics().machines["poller"].state == "stopped"
        moves = [record async for record in records]
        assert {record.machine for record in moves} >= {"poller", "lease", "session", "delivery"}
        assert [record.at for record in moves] == sorted(record.at for record in moves)
        assert moves[-1].dest == "stopped"

    with_node(test)


def test_an_error_inside_async_with_is_raised_after_the_stop() -> None:
    async def test(net: Devnet, node: Node) -> None:
        with pytest.raises(LookupError):
            async with node:
                raise LookupError
        assert node.statistics().machines["poller"].state == "stopped"

    with_node(test)


def test_stops_at_once_together_and_again() -> None:
    async def test(net: Devnet, node: Node) -> None:
        @node.runner(CAPABILITY)
        async def run(task: Any) -> None:
            await asyncio.sleep(1000)

        await node.start()
        net.submit(CAPABILITY)
        await asyncio.sleep(30)
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.stop(drain=500), 10)
        assert node.statistics().machines["poller"].state == "draining"
        await asyncio.gather(node.stop(0), node.stop(), node.stop(3))
        assert asyncio.get_running_loop().time() - began < 15
        await node.stop()

    with_node(test, runners=())


def test_nodes_share_nothing() -> None:
    async def main() -> None:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
            ran: list[int] = []
            nodes = []
            for number, key in enumerate((KEY_A, KEY_B, "aa" * 32)):
                node = simulated(Node(NodeConfig.from_env(net.node_settings(key, net.provision()))), seed=number)

                @node.runner(CAPABILITY)
                async def run(task: Any, number: int = number) -> None:
                    ran.append(number)
                    await asyncio.sleep(2)

                nodes.append(node)
            await asyncio.gather(*(node.start() for node in nodes))
            job = net.submit(CAPABILITY, count=12)
            await asyncio.sleep(5)
            await nodes[0].stop()
            await asyncio.sleep(60)
            assert net.jobs.job(job).state == "completed"
            assert set(ran) == {0, 1, 2}
            completed = [node.statistics().counters["completed"] for node in nodes]
            assert completed == [ran.count(number) for number in range(3)]
            assert sum(completed) == 12
            assert net.violations == []
            await asyncio.gather(*(node.stop() for node in nodes))

    run_virtual(main(), limit=600)


# --- run() ------------------------------------------------------------------------------------------------------


def test_run_does_nothing_while_posemesh_imports_the_file(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import posemesh\nnode = posemesh.Node()\nnode.run()\n")
    assert isinstance(load_target(str(tmp_path / "program.py"), Node), Node)


def test_run_on_a_running_loop_says_what_to_do() -> None:
    async def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(PosemeshError, match="await node.start"):
                Node(config(), runners=[Given()]).run()

    asyncio.run(main())


def program(directory: Path, text: str, env: dict[str, str]) -> subprocess.Popen[str]:
    source = f"import posemesh, asyncio\nnode = posemesh.Node()\n{text}\nnode.run()\n"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", source],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(directory)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


RUNNER = "@node.runner('/a/v1')\nasync def run(task): ...\n"


def test_run_ends_with_two_and_every_problem_of_the_configuration(tmp_path: Path) -> None:
    env = {"SECP256K1_PRIVHEX": "zz" * 32, "MAX_CONCURRENCY": "0", "LOG_LEVEL": "loud"}
    process = program(tmp_path, RUNNER, env)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    lines = said.splitlines()
    assert lines[0] == "posemesh: configuration:"
    assert sorted(line.split(":")[0].strip() for line in lines[1:]) == [
        "LOG_LEVEL",
        "MAX_CONCURRENCY",
        "REG_SECRET",
        "SECP256K1_PRIVHEX",
    ]
    assert "zz" not in said and "Traceback" not in said


def test_run_without_a_runner_ends_with_two(tmp_path: Path) -> None:
    process = program(tmp_path, "", {"REG_SECRET": "abc123", "SECP256K1_PRIVHEX": KEY_A})
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, "ENABLE_NOOP" in said, "Traceback" in said) == (2, True, False)


def test_run_ends_with_one_where_it_cannot_listen(tmp_path: Path) -> None:
    env = {"REG_SECRET": "abc123", "SECP256K1_PRIVHEX": KEY_A, "NODE_HOST": "192.0.2.1", "LOG_LEVEL": "error"}
    process = program(tmp_path, RUNNER, env)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.startswith("posemesh: cannot listen on 192.0.2.1:8080") and said.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_with_nought_when_told_to_stop(tmp_path: Path, number: int) -> None:
    env = {"REG_SECRET": "abc123", "SECP256K1_PRIVHEX": KEY_A, "NODE_PORT": "0"}
    # Nothing listens at port 1: the node is trying to register when the signal comes.
    env |= {"DDS_BASE_URL": "http://127.0.0.1:1", "DMS_BASE_URL": "http://127.0.0.1:1"}
    process = program(tmp_path, RUNNER, env)
    assert process.stdout is not None
    for line in process.stdout:
        if "offers /a/v1" in line:
            break
    process.send_signal(number)
    said = process.stdout.read()
    assert (process.wait(30), "Traceback" in said) == (0, False)
    process.stdout.close()


# --- Starts and stops that meet -----------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(12))
def test_a_stop_that_comes_during_the_start(turns: int) -> None:
    """The server was closed under the start, which ended in an AttributeError."""

    async def test(net: Devnet, node: Node) -> None:
        starting = asyncio.ensure_future(node.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        await node.stop()
        with pytest.raises(NodeStopped):
            await (starting if turns else _cancelled(starting))
        assert node._runtime is None

    with_node(test, NODE_PORT="0")


async def _cancelled(starting: asyncio.Future[None]) -> None:
    """A start that had not begun when the stop came goes on; this one is of no further interest."""
    starting.cancel()
    await asyncio.wait([starting])
    raise NodeStopped("cancelled")


def test_a_stop_that_is_cancelled_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port stayed open, and a second stop had nothing to close."""
    closed: list[str] = []

    async def slow(self: Any) -> None:
        await asyncio.sleep(5)
        closed.append("executor")

    monkeypatch.setattr("posemesh.shell.executor.Executor.close", slow)

    async def test(net: Devnet, node: Node) -> None:
        await node.start()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.stop(), 1)
        assert closed == []
        await asyncio.gather(node.stop(), node.stop())
        await asyncio.wait_for(node._closing or asyncio.sleep(0), 10)
        assert closed == ["executor"]

    with_node(test)


def test_a_port_that_was_asked_for_is_not_exchanged_for_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        async def test(net: Devnet, node: Node) -> None:
            with pytest.raises(PosemeshError, match="NODE_PORT"):
                await node.start()

        with_node(test, NODE_PORT=str(taken.getsockname()[1]))


def test_the_domain_server_knows_the_node_by_its_wallet() -> None:
    """Credits are deducted once for each client: a new name at every start would cost its owner."""

    async def name_of(key: str) -> str:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
            node = simulated(Node(NodeConfig.from_env(net.node_settings(key))))

            async def put(task: Any) -> None:
                await task.output.put_bytes("a", b"")

            node.runner(CAPABILITY)(put)
            net.submit(CAPABILITY)
            async with node:
                async for move in node.transitions():
                    if move.dest == "delivered":
                        break
            (name,) = net.domain.client_ids
            return str(name)

    first, again, other = (run_virtual(name_of(key), limit=600) for key in (KEY_A, KEY_A, KEY_B))
    assert first == again != other


def test_run_belongs_to_the_main_thread() -> None:
    raised: list[BaseException] = []

    def elsewhere() -> None:
        try:
            Node(config(enable_noop=True)).run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert isinstance(raised[0], PosemeshError) and "main thread" in str(raised[0])
