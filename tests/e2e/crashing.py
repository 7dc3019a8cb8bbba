"""What tests of nodes that are killed and started again have in common: runners that count their runs, and what may be
said of a task, of a ledger and of a node afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from .conftest import PROGRAM, NodeProcess, World
from .dms import Task
from .network import Fault, Request

QUICK, LONG, NEVER, DEADLY, FAILING, LARGE = (
    f"/crash/{name}/v1" for name in ("quick", "long", "never", "deadly", "failing", "large")
)
RUNNER = """
    import asyncio, os, signal
    from pathlib import Path
    import posemesh

    node = posemesh.Node()

    def begin(task):
        with open("runs", "a") as file:
            file.write(f"{task.lease.task.id}\\n")
        task.ctrl.log_event({"begun": True})
        return Path("runs").read_text().split().count(str(task.lease.task.id))

    async def put(task):
        await task.output.put_bytes("out.bin", f"made of {task.lease.task.id}".encode())

    @node.runner("/crash/quick/v1")
    async def quick(task):
        begin(task)
        await asyncio.sleep(task.lease.task.meta.get("secs", 0))
        await put(task)

    async def long(task):
        if begin(task) == 1:
            await asyncio.sleep(1000)
        await put(task)

    node.runner("/crash/long/v1")(long)
    node.runner("/crash/never/v1", restart="never")(long)

    @node.runner("/crash/deadly/v1")
    async def deadly(task):
        begin(task)
        os.kill(os.getpid(), signal.SIGKILL)

    @node.runner("/crash/failing/v1")
    async def failing(task):
        if begin(task) == 1:
            raise ValueError("no scan in it")
        await put(task)

    @node.runner("/crash/large/v1")
    async def large(task):
        begin(task)
        async with task.output.open_multipart("out.bin") as part:
            await part.write(bytes(2_500_000))
"""


def runs(world: World, task: Task) -> int:
    """How often user code began with it."""
    path = world.directory / "runs"
    return path.read_text().split().count(task.id) if path.exists() else 0


def die(node: NodeProcess) -> None:
    node.signal(signal.SIGKILL)
    assert node.wait() == -signal.SIGKILL


def reports(task: Task) -> list[str]:
    """Of what kind those are which the service accepted."""
    return [kind for kind, _ in task.outcomes]


def completed_once(world: World, *tasks: Task) -> None:
    """The service has each completed by one report, and at the domain what that one says."""
    for task in tasks:
        assert task.state == "completed" and reports(task) == ["complete"], (task.state, task.outcomes)
        [(_, body)] = task.outcomes
        [artifact] = body["meta"]["artifacts"]
        items = [item for item in world.net.domain.items.values() if item.name == artifact["name"]]
        assert [item.id for item in items] == body["output_cids"], "one item, the reported one"
        if task.capability != LARGE:
            assert items[0].data == f"made of {task.id}".encode()


def ledger(world: World, *arguments: str) -> tuple[int, str]:
    """``posemesh-node ledger``: its exit code, and what it says."""
    env = {"PATH": os.environ["PATH"], "HOME": str(world.directory), **world.env()}
    ended = subprocess.run(
        [str(PROGRAM), "ledger", *arguments], cwd=world.directory, env=env, capture_output=True, text=True, timeout=60
    )
    return ended.returncode, ended.stdout + ended.stderr


def on_record(world: World) -> dict[str, Any]:
    """What the ledger says of each task, the latest lease of it."""
    code, said = ledger(world, "ls", "--json")
    assert code == 0, said
    return {line["task"]: line for line in reversed(json.loads(said))}


def answering(status: int, *kinds: str) -> Callable[[Request], Fault | None]:
    """A plan of faults: these requests get this answer, and the service takes no part."""
    return lambda request: Fault(str(status), status=status) if request.kind in kinds else None


def faultless(world: World) -> None:
    world.net.do(lambda: setattr(world.net, "fault", lambda request: None))


def idle(world: World, node: NodeProcess) -> None:
    """It has done all that it found: it takes another task, and has that completed."""
    [task] = world.net.do(lambda: world.net.dms.add(QUICK))
    world.net.wait(lambda: task.state == "completed", 20, "another task is completed")
