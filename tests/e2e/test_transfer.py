"""A node's transfers as a whole: few requests, constant memory, the newest token, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from posemesh import Node, NodeConfig
from posemesh.devnet import Devnet, DevnetConfig
from posemesh.shell.offload import InlineOffload
from posemesh.testing import LoopClock, run_virtual

CAPABILITY = "/examples/transfer/v1"
MB = 1024 * 1024


def with_node(
    runner: Any, test: Any, tmp_path: Path, *, settings: dict[str, str] | None = None, inputs: int = 1, **net: Any
) -> list[str]:
    """One task of a node on a devnet, in virtual time; the requests from its lease to its report."""
    seen: list[str] = []

    async def main() -> None:
        async with Devnet(DevnetConfig(**net), clock=LoopClock(), rng=Random(1)) as network:
            env = network.node_settings() | {"STATE_DIR": str(tmp_path / "state")} | (settings or {})
            node = Node(NodeConfig.from_env(env), clock=LoopClock())
            node._offload = InlineOffload
            node.runner(CAPABILITY)(runner)
            cids = [network.put_data(f"in-{number}", "binary", b"x" * 1024) for number in range(inputs)]
            job = network.submit(CAPABILITY, inputs_cids=cids)
            async with node:
                async with asyncio.timeout(600):
                    while network.jobs.job(job).state not in ("completed", "failed"):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                await test(network, job)
            paths = [(r.service, r.method, r.path.rpartition("/")[2]) for r in network.requests if r.status != 204]
            seen.extend(f"{method} {path}" for service, method, path in paths if service != "dds")
            assert network.violations == []

    run_virtual(main(), limit=3600)
    assert not list((tmp_path / "state").glob("work/*"))
    return seen


def test_a_small_task_takes_five_requests(tmp_path: Path) -> None:
    """The reference: eight."""

    async def runner(task: Any) -> None:
        path = await task.input.materialize_cid_to_temp(task.lease.task.inputs_cids[0])
        await task.output.put_file("out.bin", path)

    async def test(net: Devnet, job: str) -> None:
        (task,) = net.jobs.tasks_of(job)
        assert task.state == "completed", task
        assert len(net.domain.client_ids) == 1

    assert with_node(runner, test, tmp_path)[:5] == [
        "GET tasks",
        "POST heartbeat",
        "GET data",
        "POST data",
        "POST complete",
    ]


def test_a_thousand_inputs_take_few_connections(tmp_path: Path) -> None:
    peers = set()

    async def runner(task: Any) -> None:
        for cid in task.lease.task.inputs_cids:
            await task.input.materialize_cid_to_temp(cid)

    async def test(net: Devnet, job: str) -> None:
        (task,) = net.jobs.tasks_of(job)
        assert task.state == "completed", task

    real = Devnet._serve

    async def noting(self: Devnet, request: web.Request, handler: Any) -> Any:
        if request.transport is not None:
            peers.add(request.transport.get_extra_info("peername"))
        return await real(self, request, handler)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devnet, "_serve", web.middleware(noting))
        with_node(runner, test, tmp_path, inputs=1000)
    assert len(peers) <= 10


def test_heartbeats_tell_of_transfers_where_the_runner_tells_nothing(tmp_path: Path) -> None:
    told: list[Any] = []

    async def runner(task: Any) -> None:
        await task.input.materialize_cid_to_temp(task.lease.task.inputs_cids[0])
        await asyncio.sleep(20)
        task.ctrl.progress({"mine": 1})
        await asyncio.sleep(20)

    async def test(net: Devnet, job: str) -> None:
        (task,) = net.jobs.tasks_of(job)
        told.append(task.progress)

    real = Devnet._serve

    async def noting(self: Devnet, request: web.Request, handler: Any) -> Any:
        if request.path.endswith("/heartbeat"):
            told.append((await request.json())["progress"])
        return await real(self, request, handler)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devnet, "_serve", web.middleware(noting))
        with_node(runner, test, tmp_path)
    (cid,) = next(progress for progress in told if progress.get("transfers"))["transfers"]
    assert told[0] == {} and {"transfers": {cid: {"way": "in", "done": 1024, "total": 1024}}} in told
    assert told[-1] == {"mine": 1}


@pytest.mark.parametrize("put", [False, True])
def test_a_full_disk_is_reported_and_the_workspace_cleaned(tmp_path: Path, put: bool) -> None:
    async def runner(task: Any) -> None:
        if put:
            async with task.output.open_multipart("out") as part:
                await part.write(b"x" * 2000)
        await task.input.materialize_cid_to_temp(task.lease.task.inputs_cids[0])

    async def test(net: Devnet, job: str) -> None:
        (task,) = net.jobs.tasks_of(job)
        assert task.state == "failed" and "disk_full" in str(task), task

    with_node(runner, test, tmp_path, settings={"WORKSPACE_BYTES_MAX": "1000"})


@pytest.mark.parametrize("end", ["shutdown", "cancelled", "lost"])
def test_a_stop_leaves_no_upload_open_and_asks_for_nothing_under_a_lost_lease(tmp_path: Path, end: str) -> None:
    stopped = []

    async def runner(task: Any) -> None:
        try:
            async with task.output.open_multipart("out.bin") as part:
                await part.write(bytes(4 * MB))
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(asyncio.get_running_loop().time())
            await asyncio.sleep(1)  # the session does not wait for it
            raise

    async def main() -> None:
        limits = {"request_max_bytes": MB, "part_size_bytes": MB}
        async with Devnet(DevnetConfig(**limits), clock=LoopClock(), rng=Random(1)) as net:
            env = net.node_settings() | {"STATE_DIR": str(tmp_path / "state")}
            node = Node(NodeConfig.from_env(env), clock=LoopClock())
            node._offload = InlineOffload
            node.runner(CAPABILITY)(runner)
            job = net.submit(CAPABILITY, max_attempts=1)

            async def gone(request: web.Request) -> web.StreamResponse | None:
                return web.Response(status=404) if request.path.endswith("/heartbeat") else None

            async with node:
                async with asyncio.timeout(600):
                    while not net._uploads._sessions:  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                    if end == "cancelled":
                        net.jobs.cancel(job, net.clock.wall())
                    elif end == "lost":
                        net.faults = gone
                    else:
                        await node.stop(0)
                    while not stopped:  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                    await asyncio.sleep(3)
            aborts = [(one.at, one.status) for one in net.requests if one.method == "DELETE"]
            assert len(aborts) == (0 if end == "lost" else 1)
            if end == "shutdown":
                assert not net._uploads._sessions and net.jobs.tasks_of(job)[0].state == "failed"
            assert all(at - stopped[0] < 0.5 for at, _ in aborts)
            assert net.violations == []

    run_virtual(main(), limit=3600)
    assert not list((tmp_path / "state").glob("work/*"))


NODE = """
import asyncio
from pathlib import Path
import posemesh

node = posemesh.Node()

@node.runner("/examples/transfer/v1")
async def transfer(task):
    cid = task.lease.task.inputs_cids[0]
    found = await task.input.materialize_cid_with_meta(cid)
    seen = {await task.access_token.get()}
    for number in range(3):
        await task.output.put_file(f"out-{number}.bin", found.path)
        seen.add(await task.access_token.get())
        await asyncio.sleep(1.0)
    async with task.output.open_multipart("stream.bin") as part:
        with found.path.open("rb") as file:
            while piece := file.read(1024 * 1024):
                await part.write(piece)
    # Not getrusage: it counts what the process was before it became this program.
    (peak,) = [int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
    await task.output.put_bytes("said.json", f"{len(seen)} {peak}".encode())
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_300_mb_in_and_out_under_rotating_tokens_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "node.py").write_text(NODE)

    async def main() -> None:
        config = DevnetConfig(
            rotate_domain_token=True,
            lease_ttl=40.0,
            domain_token_ttl=40.0,
            request_max_bytes=200 * MB,
            data_dir=tmp_path / "net",
        )
        async with Devnet(config) as net:
            data = os.urandom(MB) * 300
            job = net.submit(CAPABILITY, inputs_cids=[net.put_data("in", "binary", data)], max_attempts=1)
            state = {"STATE_DIR": str(tmp_path / "state"), "NODE_PORT": "0", "TMPDIR": str(tmp_path / "tmp")}
            state |= {"HEARTBEAT_MIN_RATIO": "0.02", "HEARTBEAT_MAX_RATIO": "0.03"}  # often, and with time to spare
            (tmp_path / "tmp").mkdir()
            command = [sys.executable, "-c", "from posemesh.cli import main; main()", "run", str(tmp_path / "node.py")]
            node = await asyncio.create_subprocess_exec(*command, env=os.environ | net.node_settings() | state)
            try:
                while net.jobs.tasks_of(job)[0].state not in ("completed", "failed"):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
                node.send_signal(signal.SIGTERM)
                assert await node.wait() == 0
            finally:
                if node.returncode is None:
                    node.kill()
                    await node.wait()
            (task,) = net.jobs.tasks_of(job)
            assert task.state == "completed", task
            assert net.violations == []
            items = {item.name: net.get_data(item.id) for item in net.domain.items.values()}
            said = next(text for name, text in items.items() if name.startswith("said"))
            tokens, peak = map(int, said.split())
            assert tokens >= 2 and peak < 150, said
            assert sum(found == data for found in items.values()) == 5
        assert not list((tmp_path / "state").glob("work/*")) and not list((tmp_path / "tmp").iterdir())

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_benchmark_runs(tmp_path: Path) -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "transfer.py"
    command = [sys.executable, program, "--mib", "8", "--pairs", "1", "--dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "curl is the yardstick" in done.stderr:
        pytest.skip("no curl here")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^down 8 MiB: .* ratio [\d.]+", done.stdout, re.MULTILINE)
    assert re.search(r"^up +8 MiB: .* ratio [\d.]+", done.stdout, re.MULTILINE)
