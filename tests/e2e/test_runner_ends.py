"""Runners that share the node's process: however one ends, its task has its reason and the node goes on."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from .conftest import World
from .network import Fault, Request
from .test_runners import children, told, wait_until_gone

ENDS = """
    import asyncio, os, subprocess, sys, time
    import posemesh

    node = posemesh.Node()
    NEVER_ENDS = [sys.executable, "-c", "import time; time.sleep(1000)"]

    def start(task):
        left = subprocess.Popen(NEVER_ENDS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        task.ctrl.log_event({"left": left.pid})

    def leave(task):
        task.ctrl.log_event({"pid": os.getpid()})

    def fail(task):
        raise ValueError("no scan in it")

    def exit(task):
        sys.exit(3)

    def fill(task):
        bytes(1 << 62)

    def close(task):
        print("the last of it", flush=True)
        sys.stdout.close()

    def printing(task):
        print("to a stream that is closed")

    def swallow(task):
        task.ctrl.log_event({"pid": os.getpid()})
        while True:
            try:
                time.sleep(0.01)
                task.ctrl.progress(1)
            except BaseException:
                break

    async def swallow_inline(task):
        task.ctrl.log_event({"pid": os.getpid()})
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass

    def offer(plain, inline=None):
        async def the_same(task):
            plain(task)

        node.runner(f"/thread/{plain.__name__}/v1")(plain)
        node.runner(f"/inline/{plain.__name__}/v1")(inline or the_same)

    for each in (leave, start, fail, exit, fill, close, printing):
        offer(each)
    offer(swallow, swallow_inline)
    node.runner("/process/leave/v1", executor="process")(leave)
"""
REASONS = {
    "fail": "runner_error: ValueError: no scan in it",
    "exit": "runner_error: SystemExit: 3",
    "fill": "out_of_memory: MemoryError",
}


@pytest.mark.parametrize("place", ["inline", "thread"])
def test_each_end_in_the_node_s_own_process_has_its_reason_and_the_node_goes_on(world: World, place: str) -> None:
    net = world.net
    failing = {name: net.dms.add(f"/{place}/{name}/v1", max_attempts=1)[0] for name in REASONS}
    [starting] = net.dms.add(f"/{place}/start/v1")
    node = world.node(ENDS)

    def ended() -> bool:
        return not net.dms.in_state("queued", "leased", "running")

    net.wait(ended, 30, "every task has ended")
    for name, task in failing.items():
        assert task.reason.startswith(REASONS[name]), (name, task.reason)
        assert len(net.of("fail", task.id)) == 1 and not net.of("complete", task.id)
    # What it starts there is its own: the node does not know of it.
    assert starting.state == "completed"
    [left] = told(starting, "left")
    assert left in children(node._process.pid)
    os.kill(left, signal.SIGKILL)

    [closing] = net.dms.add(f"/{place}/close/v1")
    net.wait(lambda: closing.state == "completed", 10, "it closes stdout, which ends nothing")
    [printing] = net.dms.add(f"/{place}/printing/v1", max_attempts=1)
    net.wait(lambda: printing.state == "failed", 10, "who prints then fails alone")
    assert printing.reason.startswith("runner_error: ValueError: I/O operation on closed file")
    after = [net.dms.add(f"/{where}/leave/v1")[0] for where in ("inline", "thread", "process")]
    net.wait(ended, 20, "runners of every kind go on")
    assert {task.state for task in after} == {"completed"}
    heard = len(node.lines)
    node.stop(10)
    assert "told to stop" in "\n".join(node.lines[heard:]), "the node still logs"


@pytest.mark.parametrize("place", ["inline", "thread"])
def test_a_stop_that_is_swallowed_has_no_result(world: World, place: str) -> None:
    """The runner returns as if it were done; its task was cancelled all the same."""
    net = world.net
    [task] = net.dms.add(f"/{place}/swallow/v1", ttl=2.0)
    node = world.node(ENDS)
    net.wait(lambda: told(task, "pid"), 20, "it has begun")
    net.do(lambda: net.dms.cancel(task))
    net.wait(lambda: task.state == "canceled", 20, "the service has it cancelled")
    [after] = net.dms.add(f"/{place}/leave/v1")
    net.wait(lambda: after.state == "completed", 20, "the node goes on")
    assert not net.of("complete", task.id) and not net.of("fail", task.id)
    node.stop(10)


LOST = """
    import os, signal, time
    import posemesh

    node = posemesh.Node()

    @node.runner("/lost/process/v1", executor="process")
    def in_a_process(task):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        task.ctrl.log_event({"pid": os.getpid()})
        while True:
            time.sleep(1000)

    @node.runner("/lost/thread/v1")
    def in_a_thread(task):
        task.ctrl.log_event({"pid": os.getpid()})
        while not task.ctrl.is_cancelled():
            time.sleep(0.01)
        print("the thread was told", flush=True)

    @node.runner("/lost/after/v1")
    async def after(task):
        pass
"""


@pytest.mark.slow
def test_a_lost_lease_reaches_a_process_and_a_thread(world: World) -> None:
    net = world.net
    net.dms.ttl = 4.0  # no stall of a busy machine is to cost a lease before the fault does
    tasks = [net.dms.add(f"/lost/{place}/v1", max_attempts=1)[0] for place in ("process", "thread")]

    def fault(request: Request) -> Fault | None:
        task = next((task for task in tasks if task.id == request.task), None)
        if request.kind != "heartbeat" or task is None or not told(task, "pid"):
            return None
        task.state = "failed"
        return Fault("lost lease", status=404, body=b"gone")

    net.fault = fault
    node = world.node(LOST, MAX_CONCURRENCY=2)
    net.wait(lambda: len(net.dms.in_state("failed")) == 2, 20, "both leases are lost")
    [pid] = told(tasks[0], "pid")
    node.wait_line("the thread was told")
    wait_until_gone({pid})
    [after] = net.dms.add("/lost/after/v1", ttl=30.0)
    net.wait(lambda: after.state == "completed", 20, "the node goes on")
    for task in tasks:
        assert not net.of("complete", task.id) and not net.of("fail", task.id)
    node.stop(10)


OPEN = """
    import asyncio
    import posemesh

    node = posemesh.Node()
    node.command("/open/command/v1", ["sh", "-c", 'env > "$1/env"; cp "$2" "$1/task"', "sh", "{outputs}", "{task}"])

    @node.runner("/open/inline/v1")
    async def inline(task):
        task.ctrl.progress({"token": len(await task.access_token.get())})
        await asyncio.sleep(1000)
"""


def test_what_a_node_shows_and_gives_a_program_holds_no_secret(world: World) -> None:
    """Neither its pages while a task runs, nor a program's environment and its description of the task."""
    pytest.importorskip("prometheus_client")
    net = world.net
    [commanded] = net.dms.add("/open/command/v1", max_attempts=1)
    node = world.node(OPEN, MAX_CONCURRENCY=2, DRAIN_TIMEOUT_SECS=0)
    net.wait(lambda: commanded.state in ("completed", "failed"), 20, "the program has ended")
    assert commanded.state == "completed", commanded.reason
    [running] = net.dms.add("/open/inline/v1")
    net.wait(lambda: running.progress is not None, 10, "a task runs")
    pages = {path: node.get(path) for path in ("/metrics", "/status", "/ready", "/health")}
    assert {code for code, _ in pages.values()} == {200}
    assert b"posemesh" in pages["/metrics"][1] and running.id in pages["/status"][1].decode()
    [(_, body)] = commanded.outcomes
    files: dict[str, Any] = {one["logical_path"]: net.domain.items[one["id"]].data for one in body["meta"]["artifacts"]}
    assert json.loads(files["task"])["task"]["id"] == commanded.id and b"POSEMESH_TASK=" in files["env"]
    found = files | {path: content for path, (_, content) in pages.items()}
    shown = [(where, text[:12]) for where, what in found.items() for text in net.secrets if text.encode() in what]
    assert not shown
    assert running.tokens and net.dds.reg_secret in net.secrets and world.key in net.secrets
    node.stop(10)
