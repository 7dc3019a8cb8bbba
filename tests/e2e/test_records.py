"""What a node keeps: for a task that comes again, for its next start, for the operator, and for no other node."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
from typing import Any

import pytest

from .conftest import PROGRAM, World
from .crashing import (
    FAILING,
    LONG,
    QUICK,
    RUNNER,
    answering,
    completed_once,
    die,
    faultless,
    idle,
    ledger,
    on_record,
    runs,
)
from .network import Fault, Request

# --- Leased again while the result waits ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stands", "artifact gone", "failed", "killed"])
def test_a_task_that_is_leased_again_while_its_outcome_waits(world: World, how: str) -> None:
    net = world.net
    [task] = net.dms.add(FAILING if how == "failed" else QUICK, ttl=60.0)
    net.fault = answering(503, "complete", "fail")
    node = world.node(RUNNER)
    net.wait(lambda: net.of("complete") or net.of("fail"), 20, "its outcome is offered")
    if how == "killed":
        die(node)
    if how == "artifact gone":
        net.do(net.domain.items.clear)
    net.do(lambda: net.dms.release(task))
    if how == "killed":
        node = world.again(RUNNER)
    net.wait(lambda: task.attempts == 2, 20, "it is leased again")
    faultless(world)
    net.wait(lambda: task.state in ("completed", "failed"), 20, "it ends")
    idle(world, node)
    completed_once(world, task)
    assert task.attempts == 2
    assert runs(world, task) == (1 if how in ("stands", "killed") else 2)
    node.stop()


# --- The directory ----------------------------------------------------------------------------------------------


def refused(world: World, *before: str, **env: Any) -> str:
    """The one line of a node that does not start."""
    command = [*before, str(PROGRAM), "run", "runner.py"]
    inherited = {"PATH": os.environ["PATH"], "HOME": str(world.directory)}
    environment = {**inherited, **world.env(**env)}
    ended = subprocess.run(command, cwd=world.directory, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended
    [line] = ended.stderr.splitlines()
    assert line.startswith("posemesh: ") and not ended.stdout
    return line


def test_a_second_node_on_the_same_directory_is_refused(world: World) -> None:
    node = world.node(RUNNER)
    world.signed_in()
    line = refused(world)
    assert "a node uses this directory already" in line and "STATE_DIR of its own" in line
    idle(world, node)
    node.stop()


@pytest.mark.slow
def test_a_ledger_that_cannot_be_used_is_refused_and_left_as_it_is(world: World) -> None:
    state = world.directory / "state"
    node = world.node(RUNNER, STATE_DIR=state)
    idle(world, node)
    node.stop()
    path = state / "ledger.db"
    sound = path.read_bytes()
    assert ledger(world, "verify", "--state", str(state))[0] == 0

    def refused_with(content: bytes) -> str:
        path.write_bytes(content)
        line = refused(world, STATE_DIR=state)
        assert path.read_bytes() == content
        log = path.with_name("ledger.db-wal")
        assert not log.exists() or not log.stat().st_size
        assert str(path) in line and "left as it is" in line
        return line

    noise = random.Random(1).randbytes(len(sound))
    refused_with(sound[:4096] + noise[4096:8192] + sound[8192:])
    refused_with(noise)
    assert "is empty" in refused_with(b"")
    path.write_bytes(sound)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    assert "later posemesh" in refused_with(path.read_bytes())
    path.write_bytes(sound)
    mounted = f"mount --bind {state} {state} && mount -o remount,ro,bind {state}"
    inside = ["unshare", "-rm", "sh", "-c", f'{mounted} && exec "$@"', "sh"]
    if shutil.which("unshare") and not subprocess.run([*inside, "true"], capture_output=True).returncode:
        assert "STATE_DIR" in refused(world, *inside, STATE_DIR=state)
    assert path.read_bytes() == sound
    world.net.do(world.net.dds.forget)
    node = world.again(RUNNER, STATE_DIR=state)
    idle(world, node)
    node.stop()


@pytest.mark.slow
def test_the_operator_sees_what_is_on_record(world: World) -> None:
    net = world.net
    net.dms.one_active = net.dms.judge_slots = False
    names = ("waiting", "stuck", "refused")
    tasks = dict(zip(names, net.dms.add(QUICK, 3, ttl=60.0), strict=True))
    [under_way] = net.dms.add(LONG, ttl=60.0)
    statuses = {tasks["waiting"].id: 503, tasks["stuck"].id: 422, tasks["refused"].id: 410}

    def fault(request: Request) -> Fault | None:
        reported = request.kind in ("complete", "fail") and request.task in statuses
        return Fault("planned", status=statuses[request.task or ""], body=b"a reason") if reported else None

    net.fault = fault
    node = world.node(RUNNER, MAX_CONCURRENCY=4)
    net.wait(lambda: under_way.events and net.of("complete", tasks["waiting"].id), 20, "all of it has happened")
    idle(world, node)
    for dead in (False, True):
        if dead:
            die(node)
        found = on_record(world)
        assert {name: found[task.id]["state"] for name, task in tasks.items()} == {name: name for name in names}
        assert found[under_way.id]["state"] == "under way"
        assert "422" in found[tasks["stuck"].id]["delivery"]["problem"]
        assert "410" in found[tasks["refused"].id]["delivery"]["problem"]
        said = [ledger(world, *command) for command in (("ls",), ("verify",), ("show", under_way.id))]
        assert [code for code, _ in said] == [0, 0, 0]
        assert not [text for text in net.secrets if any(text in each for _, each in said)]
        assert under_way.id in said[0][1] and "sound" in said[1][1] and under_way.job_id in said[2][1]
    faultless(world)
    node = world.again(RUNNER, MAX_CONCURRENCY=4)
    net.wait(lambda: tasks["waiting"].state == under_way.state == "completed", 20, "the rest is done")
    completed_once(world, tasks["waiting"], under_way)
    idle(world, node)
    for name in ("stuck", "refused"):
        assert len(net.of("complete", tasks[name].id)) == 1
    node.stop()


@pytest.mark.slow
def test_a_node_that_stops_while_the_service_is_down_delivers_at_its_next_start(world: World) -> None:
    net = world.net
    [task] = net.dms.add(QUICK, ttl=60.0)
    net.fault = answering(503, "complete")
    node = world.node(RUNNER, DRAIN_TIMEOUT_SECS=0)
    net.wait(lambda: net.of("complete"), 20, "its result is offered")
    node.stop(20)
    assert f"task {task.id}: its outcome (completed) is not delivered; it is on record" in node.output
    assert on_record(world)[task.id]["state"] == "waiting"
    faultless(world)
    node = world.again(RUNNER)
    net.wait(lambda: task.state == "completed", 20, "taken")
    idle(world, node)
    completed_once(world, task)
    assert runs(world, task) == 1 and task.attempts == 1
    node.stop()
