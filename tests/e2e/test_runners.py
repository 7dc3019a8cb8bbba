"""Runners in their own processes beside one on the loop: each end has its reason, and nothing is left."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import World

FILE = """
    import asyncio, ctypes, os, signal, subprocess, sys, time
    import posemesh

    node = posemesh.Node()

    def process(capability):
        return node.runner(capability, executor="process", timeout=2)

    def say(task):
        task.ctrl.log_event({"pid": os.getpid()})

    @process("/bar/exit/v1")
    async def leave(task):
        say(task)
        os._exit(3)

    @process("/bar/segfault/v1")
    def crash(task):
        say(task)
        ctypes.string_at(0)

    @process("/bar/hang/v1")
    def hang(task):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say(task)
        while True:
            time.sleep(1000)

    @process("/bar/raise/v1")
    async def fail(task):
        say(task)
        await task.output.put_bytes("half.bin", b"half")
        raise ValueError("no scan in it")

    @process("/bar/fork/v1")
    def leave_a_child(task):
        say(task)
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
        task.ctrl.log_event({"left": left.pid})
        task.output.put_bytes("whole.bin", b"whole")

    @node.runner("/bar/inline/v1")
    async def inline(task):
        say(task)
        await asyncio.sleep(0.2)
        await task.output.put_bytes("inline.bin", b"inline")

    @node.runner("/bar/deaf/v1", timeout=0.5, slots=1)
    def deaf(task):
        task.ctrl.log_event({"begun": task.lease.task.id.hex})
        time.sleep(6)
"""


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: set[int], within: float = 20.0) -> None:
    """Their end is no event of the network's, so they are looked at again and again."""
    end = time.monotonic() + within
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < end, f"still there after {within} s: {left}"
        threading.Event().wait(0.02)


def told(task: Any, name: str) -> list[int]:
    return [event[name] for event in task.events if name in event]


def children(pid: int) -> set[int]:
    """All that descend from the process."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: set[int] = {pid}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def test_each_end_of_a_process_has_its_reason_and_nothing_is_left(world: World) -> None:
    net = world.net
    ends = {
        "/bar/exit/v1": "runner_error: the runner's process ended with exit code 3",
        "/bar/segfault/v1": "killed: the runner's process was killed by SIGSEGV",
        "/bar/hang/v1": "timeout: the runner took longer than its 2 s",
        "/bar/raise/v1": "runner_error: ValueError: no scan in it",
    }
    failing = {capability: net.dms.add(capability, max_attempts=1)[0] for capability in ends}
    [forking] = net.dms.add("/bar/fork/v1")
    beside = net.dms.add("/bar/inline/v1", 12)
    node = world.node(FILE, MAX_CONCURRENCY=4)
    net.wait(lambda: not net.dms.in_state("queued", "leased", "running"), 60, "every task has ended")
    descendants = children(node._process.pid)
    for capability, reason in ends.items():
        task = failing[capability]
        assert task.reason.startswith(reason), (capability, task.reason)
        assert len(net.of("fail", task.id)) == 1 and task.attempts == 1
        [(_, body)] = task.outcomes
        assert body["details"]["code"] == reason.partition(":")[0]
    [(_, body)] = failing["/bar/raise/v1"].outcomes
    assert [one["logical_path"] for one in body["details"]["artifacts"]] == ["half.bin"]
    assert body["details"]["chain"] == ["ValueError: no scan in it"]
    assert {task.state for task in (forking, *beside)} == {"completed"}
    [left] = told(forking, "left")
    assert not is_alive(left)
    assert {pid for task in beside for pid in told(task, "pid")} == {node._process.pid}
    node.stop(10)
    pids = descendants | {pid for task in net.dms.tasks for name in ("pid", "left") for pid in told(task, name)}
    wait_until_gone(pids - {node._process.pid})


def test_a_killed_node_leaves_no_process(world: World) -> None:
    net = world.net
    [task] = net.dms.add("/bar/hang/v1")
    node = world.node(FILE.replace("timeout=2", "timeout=100"))
    net.wait(lambda: told(task, "pid"), 20, "the child has begun")
    descendants = children(node._process.pid)
    assert told(task, "pid")[0] in descendants
    node.kill()
    wait_until_gone(descendants)


@pytest.mark.slow
def test_a_thread_that_does_not_listen_is_given_up_and_keeps_its_slot(world: World) -> None:
    """Its capability is not asked for while it goes on; the others are."""
    net = world.net
    [deaf, next_one] = net.dms.add("/bar/deaf/v1", 2, max_attempts=1)
    beside = net.dms.add("/bar/inline/v1", 3)
    node = world.node(FILE, MAX_CONCURRENCY=4)
    net.wait(lambda: deaf.state == "failed", 20, "the overdue task is given up")
    assert deaf.reason.startswith("timeout: ")
    net.wait(lambda: all(task.state == "completed" for task in beside), 20, "the others complete")
    assert not told(next_one, "begun")
    net.wait(lambda: next_one.state == "failed", 20, "the slot is free again, and the next task is overdue too")
    node.signal()
    node.wait(15)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["/bar/hang/v1", "/bar/inline/v1"])
def test_a_cancelled_task_leaves_no_process_and_no_report(world: World, capability: str) -> None:
    net = world.net
    source = FILE.replace("asyncio.sleep(0.2)", "asyncio.sleep(1000)").replace("timeout=2", "timeout=100")
    [task] = net.dms.add(capability, ttl=2.0)
    node = world.node(source)
    net.wait(lambda: told(task, "pid"), 20, "it has begun")
    net.do(lambda: net.dms.cancel(task))
    net.wait(lambda: task.state == "canceled", 20, "the service has it cancelled")
    [pid] = told(task, "pid")
    if pid != node._process.pid:
        wait_until_gone({pid})
    [after] = net.dms.add("/bar/raise/v1", max_attempts=1)
    net.wait(lambda: after.state == "failed", 20, "the node goes on")
    assert not net.of("complete", task.id) and not net.of("fail", task.id)
    node.stop(10)


STUBBORN = """
    import asyncio, os, signal, time
    import posemesh

    node = posemesh.Node()

    def say(task):
        task.ctrl.log_event({"pid": os.getpid()})

    @node.runner("/bar/hang/v1", executor="process")
    def hang(task):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say(task)
        while True:
            time.sleep(1000)

    @node.runner("/bar/deaf/v1")
    def deaf(task):
        say(task)
        time.sleep(1000)

    @node.runner("/bar/swallow/v1")
    async def swallow(task):
        say(task)
        while True:
            try:
                await asyncio.sleep(1000)
            except BaseException:
                pass

    TRAP = '''trap "" TERM; printf '{{"event": {{"pid": %d}}}}\\\\n' $$; while :; do sleep 1; done'''
    node.command("/bar/trap/v1", ["sh", "-c", TRAP])
"""


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_a_node_leaves_in_time_whatever_its_runners_do(world: World, signals: int) -> None:
    """At once, by a drain of no time or by the second signal; each task is failed back, and nothing is left."""
    net = world.net
    tasks = [net.dms.add(f"/bar/{name}/v1", max_attempts=1)[0] for name in ("hang", "deaf", "swallow", "trap")]
    node = world.node(STUBBORN, MAX_CONCURRENCY=4, DRAIN_TIMEOUT_SECS=0 if signals == 1 else 100)
    net.wait(lambda: all(told(task, "pid") for task in tasks), 30, "all have begun")
    descendants = children(node._process.pid)
    node.signal()
    if signals == 2:
        node.wait_line("told to stop: ")
        node.signal()
    assert node.wait(40) == 0
    wait_until_gone(descendants)
    for task in tasks:
        assert task.reason == "node_shutdown: the node was told to stop", (task.capability, task.reason)


EXAMPLES = Path(__file__).parents[2] / "examples" / "runners"
LINES = b"pear\napple\nfig\n"


@pytest.mark.parametrize(
    ("file", "capability", "meta", "data"),
    [
        ("process.py", "/examples/digest/v1", {"rounds": 3}, None),
        ("command.py", "/examples/sort/v1", {}, b"apple\nfig\npear\n"),
        (
            "routed.py",
            "/examples/reverse/v1",
            {"runner_selector": {"matchLabels": {"size": "any"}}},
            b"pear\nfig\napple\n",
        ),
        ("function.py", "/examples/count-words/v1", {}, None),
        ("prepared.py", "/examples/squeeze/v1", {}, None),
    ],
)
def test_an_example_does_its_task(world: World, file: str, capability: str, meta: Any, data: bytes | None) -> None:
    net = world.net
    [task] = net.dms.add(capability, inputs=[net.domain.add("lines", "txt", LINES)], meta=meta)
    node = world.node((EXAMPLES / file).read_text())
    net.wait(lambda: task.state in ("completed", "failed"), 30, "the task has ended")
    assert task.state == "completed", task.reason
    [(_, body)] = task.outcomes
    [artifact] = body["meta"]["artifacts"]
    expected = hashlib.sha256(hashlib.sha256(hashlib.sha256(LINES).digest()).digest()).hexdigest().encode()
    if file in ("process.py", "command.py", "routed.py"):
        assert net.domain.items[artifact["id"]].data == (data or expected)
    node.stop(10)


def test_a_task_that_no_runner_s_labels_meet_is_given_back_with_the_reason(world: World) -> None:
    net = world.net
    meta = {"runner_selector": {"matchLabels": {"size": "none"}}}
    [task] = net.dms.add("/examples/reverse/v1", meta=meta, max_attempts=1)
    node = world.node((EXAMPLES / "routed.py").read_text())
    net.wait(lambda: task.state == "failed", 20, "it is given back")
    assert task.reason.startswith("no_runner: no runner for capability /examples/reverse/v1")
    assert "size" in task.reason
    node.stop()
