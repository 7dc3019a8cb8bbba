"""A real node that offers Golem runtimes: tasks are their commands, and nothing of them outlives the node."""

from __future__ import annotations

import io
import shutil
from typing import Any

from PIL import Image

from .conftest import World
from .test_golem_supervisor import EXAMPLES, program
from .test_runner_ends import children, told, wait_until_gone

RUNNER = """
    import posemesh

    node = posemesh.Node()
    node.runtime(
        "/golem/thumbnails/v1", binary="./thumbnails", entrypoint="thumbnails", args=["64"],
        inputs="/golem/input", outputs="/golem/output", slots=1,
    )
    node.runtime("/golem/nap/v1", binary="./nap", allow_meta=True, slots=1)
"""
NAP = """
    import asyncio, json, os, subprocess, sys
    from posemesh import golem

    class Nap(golem.Runtime):
        NAME = "nap"

        async def start(self, ctx):
            subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL)

        async def run_command(self, command, mode, ctx):
            async def nap(run):
                await run.stdout(json.dumps({"event": {"pid": os.getpid()}}) + chr(10))
                await run.counter("naps", 1.0)
                await asyncio.sleep(float(command.args[1]))
                await run.stderr("overslept")
                raise golem.CommandExit(5)

            return ctx.command(nap)

        async def test(self, ctx):
            if os.path.exists(TIRED):
                raise golem.HandlerError("it is tired")

    if __name__ == "__main__":
        golem.run(Nap)
"""


def begin(world: World, **env: Any) -> Any:
    directory = world.directory
    shutil.copy(EXAMPLES / "thumbnails.py", directory / "source.py")
    program(directory, (directory / "source.py").read_text(), "thumbnails")
    program(directory, NAP.replace("TIRED", repr(str(directory / "tired"))), "nap")
    return world.node(RUNNER, **env)


def picture(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(data, "PNG")
    return data.getvalue()


def test_tasks_are_commands_of_a_runtime_that_is_kept(world: World) -> None:
    net = world.net
    items = [net.domain.add(f"picture-{side}", "png", picture(side, 100)) for side in (200, 400)]
    tasks = [net.dms.add("/golem/thumbnails/v1", 1, inputs=[item], max_attempts=1)[0] for item in items]
    [late] = net.dms.add("/golem/nap/v1", 1, max_attempts=1, meta={"entrypoint": "nap", "args": ["0"]})
    [bad] = net.dms.add("/golem/thumbnails/v1", 1, max_attempts=1, meta={"entrypoint": "/bin/sh"})
    node = begin(world)
    ended = [*tasks, late, bad]
    net.wait(lambda: all(task.state in ("completed", "failed") for task in ended), 60, "the tasks end")
    for task, size in zip(tasks, ((64, 32), (64, 16)), strict=True):
        assert task.state == "completed", task.reason
        [artifact] = task.outcomes[0][1]["meta"]["artifacts"]
        with Image.open(io.BytesIO(net.domain.items[artifact["id"]].data)) as image:
            assert (image.format, image.size) == ("PNG", size)
    assert late.reason.startswith("runner_error: the runtime's command ended with exit code 5")
    assert late.outcomes[0][1]["details"]["output"] == ["overslept"]
    assert bad.reason.startswith("bad_input: ")
    left = children(node._process.pid)
    assert left, "runtimes are kept"
    node.stop(10)
    wait_until_gone(left)


def test_a_cancelled_task_ends_a_runtime_that_cannot_kill(world: World) -> None:
    net = world.net
    nap = {"entrypoint": "nap", "args": ["1000"]}
    [task] = net.dms.add("/golem/nap/v1", 1, ttl=2.0, meta=nap)
    node = begin(world)
    net.wait(lambda: told(task, "pid"), 30, "the command runs")
    left = children(node._process.pid)
    net.do(lambda: net.dms.cancel(task))
    net.wait(lambda: task.state == "canceled", 30, "the service has it cancelled")
    wait_until_gone(left)
    [again] = net.dms.add("/golem/nap/v1", 1, max_attempts=1, meta={**nap, "args": ["0"]})
    net.wait(lambda: again.state == "failed", 30, "another one runs")
    assert "exit code 5" in again.reason
    node.stop(10)


def test_a_killed_node_leaves_nothing_of_a_runtime(world: World) -> None:
    net = world.net
    [task] = net.dms.add("/golem/nap/v1", 1, meta={"entrypoint": "nap", "args": ["1000"]})
    node = begin(world)
    net.wait(lambda: told(task, "pid") and task.progress == {"counters": {"naps": 1.0}}, 30, "the command runs")
    left = children(node._process.pid)
    assert told(task, "pid")[0] in left
    node.kill()
    wait_until_gone(left)


def test_a_runtime_that_does_not_work_here_keeps_the_node_from_starting(world: World) -> None:
    (world.directory / "tired").touch()
    node = begin(world)
    assert node.wait(30) == 1
    node.wait_line("runner /golem/nap/v1: StepFailed: test: the runtime ended with exit code 1")
    node.wait_line("it is tired")
