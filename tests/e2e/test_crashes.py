"""A node that is killed and started again: nothing that was finished is lost, run twice or reported twice."""

from __future__ import annotations

import random
import secrets
import signal
import sqlite3
from pathlib import Path

import pytest

from .conftest import NodeProcess, World
from .crashing import (
    DEADLY,
    LARGE,
    LONG,
    NEVER,
    QUICK,
    RUNNER,
    answering,
    completed_once,
    die,
    faultless,
    idle,
    on_record,
    reports,
    runs,
)
from .network import Fault, Request

# --- Killed at each step of a task ------------------------------------------------------------------------------


def test_a_result_outlives_its_node_while_the_service_is_down(world: World) -> None:
    net = world.net
    [task] = net.dms.add(QUICK, ttl=60.0)
    net.fault = answering(503, "complete")
    node = world.node(RUNNER)
    net.wait(lambda: net.of("complete"), 20, "its result is offered")
    die(node)
    offers = len(net.of("complete"))
    node = world.again(RUNNER)
    net.wait(lambda: len(net.of("complete")) > offers, 20, "and offered again by the next process")
    assert not task.outcomes
    faultless(world)
    net.wait(lambda: task.state == "completed", 20, "taken")
    idle(world, node)
    completed_once(world, task)
    assert runs(world, task) == 1 and task.attempts == 1
    node.stop()


@pytest.mark.slow
def test_work_under_way_runs_again_under_the_lease_that_stands(world: World) -> None:
    net = world.net
    [task] = net.dms.add(LONG, ttl=60.0)
    node = world.node(RUNNER)
    net.wait(lambda: task.events, 20, "it runs")
    die(node)
    told = len(task.handed)
    node = world.again(RUNNER)
    net.wait(lambda: task.state == "completed", 20, "completed")
    idle(world, node)
    completed_once(world, task)
    assert runs(world, task) == 2 and task.attempts == 1
    assert {request.token for request in net.of("create", task.id)} <= set(task.handed[told:]), "the new token"
    node.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "kind", "stored"), [(QUICK, "create", True), (LARGE, "part", False), (LARGE, "finish", True)]
)
def test_killed_during_an_upload(world: World, capability: str, kind: str, stored: bool) -> None:
    net = world.net
    net.domain.request_max_bytes, net.domain.part_size = 2_000_000, 1_000_000
    [task] = net.dms.add(capability, ttl=60.0)
    dead: list[bool] = []
    if stored:
        net.hold = lambda request: (lambda: dead) if request.kind == kind and not dead else None
    else:
        net.fault = lambda request: Fault("unheard", delay=20.0) if request.kind == kind and not dead else None
    node = world.node(RUNNER)
    net.wait(lambda: net.of(kind), 20, "the upload is on its way")
    if stored:
        net.wait(lambda: net.domain.items, 20, "stored, and its answer withheld")
    die(node)
    net.do(lambda: dead.append(True))
    node = world.again(RUNNER)
    net.wait(lambda: task.state == "completed", 20, "completed")
    completed_once(world, task)
    [item] = net.domain.items.values()
    assert item.size == (len(f"made of {task.id}") if capability == QUICK else 2_500_000)
    assert runs(world, task) == 2 and task.attempts == 1
    node.stop()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["unheard", "taken"])
def test_killed_while_its_report_is_in_flight(world: World, way: str) -> None:
    net = world.net
    [task] = net.dms.add(QUICK, ttl=60.0)
    dead: list[bool] = []
    if way == "unheard":
        net.fault = lambda request: Fault(way, delay=20.0) if request.kind == "complete" and not dead else None
    else:
        net.hold = lambda request: (lambda: dead) if request.kind == "complete" and not dead else None
    node = world.node(RUNNER)
    net.wait(lambda: net.of("complete") and (way == "unheard" or task.outcomes), 20, "its report is there")
    die(node)
    net.do(lambda: dead.append(True))
    if way != "unheard":
        net.wait(lambda: net.of("complete")[0].answered, 20, "answered, for nobody")
    node = world.again(RUNNER)
    net.wait(lambda: len(net.of("complete")) == 2, 20, "offered by the next process")
    idle(world, node)
    die(node)
    assert on_record(world)[task.id]["state"] == {"unheard": "delivered", "taken": "unconfirmed"}[way]
    node = world.again(RUNNER)
    idle(world, node)
    assert len(net.of("complete", task.id)) == 2, "settled is settled"
    completed_once(world, task)
    assert runs(world, task) == 1 and task.attempts == 1
    node.stop()


@pytest.mark.slow
def test_a_refusal_on_record_is_not_asked_for_again(world: World) -> None:
    net = world.net
    tasks = dict(zip((404, 409, 410), net.dms.add(QUICK, 3, ttl=60.0, max_attempts=1), strict=True))
    net.dms.one_active = False

    def fault(request: Request) -> Fault | None:
        status = next((status for status, task in tasks.items() if task.id == request.task), 0)
        return Fault("refused", status=status) if request.kind == "complete" and status else None

    net.fault = fault
    node = world.node(RUNNER, MAX_CONCURRENCY=4)
    net.wait(lambda: len(net.of("complete")) == 3, 20, "three are offered")
    idle(world, node)  # what it keeps of that task comes after what it keeps of these
    die(node)
    for task in tasks.values():
        net.do(lambda task=task: setattr(task, "state", "failed"))  # type: ignore[misc]
    found = on_record(world)
    assert {found[task.id]["state"] for task in tasks.values()} == {"refused"}
    node = world.again(RUNNER, MAX_CONCURRENCY=4)
    idle(world, node)
    for task in tasks.values():
        assert len(net.of("complete", task.id)) == 1 and not net.of("fail", task.id) and runs(world, task) == 1
    node.stop()


KILLED = """
    import os, signal, sqlite3
    from functools import partial
    from pathlib import Path
    import posemesh
    from posemesh.control.ledger import SqliteStore

    node = posemesh.Node()
    name, left, counting = os.environ["NAME"], int(os.environ["BOUNDARY"]), False

    def boundary(what):
        global left
        if not counting:
            return
        if left == 0:
            print("killed", what, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    class Killing(sqlite3.Connection):
        def execute(self, sql, *values):
            if sql == "COMMIT":
                boundary("before a commit")
            done = super().execute(sql, *values)
            if sql == "COMMIT":
                boundary("after a commit")
            return done

    async def open_store(place, offload):
        global counting
        store = await SqliteStore.open(place, offload, connect=partial(sqlite3.connect, factory=Killing))
        counting = True
        return store

    node._open_store = open_store

    @node.runner(f"/crash/{name}/v1")
    async def run(task):
        with open("runs", "a") as file:
            file.write(f"{task.lease.task.id}\\n")
        await task.output.put_bytes("out.bin", f"made of {task.lease.task.id}".encode())
"""
COMMITS = ("of the node", "of the lease", "of its outcome", "of its delivery's end")


def rows(state: Path, table: str) -> int:
    """How many are on record."""
    if not (state / "ledger.db").exists():
        return 0
    with sqlite3.connect(f"file:{state / 'ledger.db'}?mode=ro", uri=True) as db:
        (count,) = db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    db.close()
    return int(count)


@pytest.mark.slow
def test_killed_before_and_after_each_commit_of_a_task(world: World) -> None:
    """The nodes differ in where they are killed, each with a wallet, a capability and a task of its own."""
    net = world.net
    net.dms.one_active = net.dms.judge_slots = False
    names = [str(number) for number in range(2 * len(COMMITS) + 1)]
    tasks = {name: net.dms.add(f"/crash/{name}/v1", ttl=60.0)[0] for name in names}
    plans = {name: {"NAME": name, "STATE_DIR": world.directory / name} for name in names}
    for plan in plans.values():
        plan["SECP256K1_PRIVHEX"] = net.secret(secrets.token_hex(32))
    nodes = {name: world.node(KILLED, BOUNDARY=name, **plan) for name, plan in plans.items()}
    killed = [name for name, node in nodes.items() if ended_by_kill(node)]
    assert killed == names[:-1]
    found = {}
    for name in killed:
        task, state = tasks[name], world.directory / name
        found[name] = rows(state, "inputs"), rows(state, "outbox"), runs(world, task)
        if task.active and not rows(state, "inputs"):
            net.do(lambda task=task: net.dms.release(task))  # type: ignore[misc]
    assert list(found.values()) == [*[(0, 0, 0)] * 3, *[(1, 0, 0), (1, 0, 1)], *[(1, 1, 1)] * 3]
    heirs = [world.again(KILLED, BOUNDARY=-1, **plans[name]) for name in killed]
    net.wait(lambda: all(task.state == "completed" for task in tasks.values()), 40, "all are completed")
    for node in heirs:
        node.wait_line("signed_in", 20)
        node.stop(10)
    completed_once(world, *tasks.values())
    for name in names:
        assert runs(world, tasks[name]) == (2 if name == "4" else 1), "only what is not on record runs again"


def ended_by_kill(node: NodeProcess) -> bool:
    """Once its task is over it is told to stop, and may be killed then."""
    if "killed" not in node.wait_line("killed ", 40, instead='"ending"'):
        node.signal()
    return node.wait(20) == -signal.SIGKILL


@pytest.mark.slow
def test_forty_tasks_of_a_node_that_is_killed_a_dozen_times(world: World) -> None:
    net, rng = world.net, random.Random(7)
    net.dms.ttl = 3.0
    tasks = [net.dms.add(QUICK, max_attempts=50, meta={"secs": number % 4 / 20})[0] for number in range(40)]
    for life in range(13):
        node = (world.again if life else world.node)(RUNNER, MAX_CONCURRENCY=4)
        if life < 12:
            enough = len(net.requests) + rng.randrange(1, 32)
            net.wait(lambda enough=enough: len(net.requests) >= enough, 40, "it is at work")  # type: ignore[misc]
            die(node)
    net.wait(lambda: len(net.dms.in_state("completed")) == 40, 60, "all are completed")
    for task in tasks:
        assert reports(task).count("complete") == 1 and (not task.reason or task.reason.startswith("killed: "))
        [artifact] = task.outcomes[-1][1]["meta"]["artifacts"]
        assert net.domain.items[artifact["id"]].data == f"made of {task.id}".encode()
    node.stop()
    assert not [line for line in on_record(world).values() if line["state"] in ("under way", "waiting", "stuck")]


# --- What was under way -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_must_not_run_twice_is_failed(world: World) -> None:
    net = world.net
    [task] = net.dms.add(NEVER, ttl=60.0, max_attempts=1)
    node = world.node(RUNNER)
    net.wait(lambda: task.events, 20, "it runs")
    die(node)
    node = world.again(RUNNER)
    net.wait(lambda: task.state == "failed", 20, "failed")
    idle(world, node)
    assert reports(task) == ["fail"] and runs(world, task) == 1
    assert task.reason.startswith("killed: ") and 'restart="never"' in task.reason
    node.stop()


@pytest.mark.slow
def test_a_task_that_ends_its_node_each_time_is_failed(world: World) -> None:
    net = world.net
    [task] = net.dms.add(DEADLY, ttl=60.0, max_attempts=1)
    for life in range(3):
        node = (world.again if life else world.node)(RUNNER)
        assert node.wait(30) == -signal.SIGKILL
    node = world.again(RUNNER)
    net.wait(lambda: task.state == "failed", 20, "failed")
    idle(world, node)
    assert reports(task) == ["fail"] and runs(world, task) == 3
    assert task.reason.startswith("killed: the node ended 3 times")
    node.stop()


@pytest.mark.slow
def test_work_whose_lease_stands_goes_on_with_the_token_on_record(world: World) -> None:
    """This service's heartbeats say nothing, which means that nothing has changed."""
    net = world.net
    [task] = net.dms.add(LONG, ttl=60.0, mangle_beat=lambda answer: {})
    node = world.node(RUNNER)
    net.wait(lambda: task.events, 20, "it runs")
    die(node)
    node = world.again(RUNNER)
    net.wait(lambda: task.state == "completed", 20, "completed under the same lease")
    idle(world, node)
    assert reports(task) == ["complete"] and task.attempts == 1
    assert runs(world, task) == 2
    node.stop()


OTHER = f"""
    import posemesh

    node = posemesh.Node()

    @node.runner("{QUICK}")
    async def run(task):
        await task.output.put_bytes("out.bin", f"made of {{task.lease.task.id}}".encode())
"""


@pytest.mark.slow
def test_work_that_nobody_here_can_do_any_more_is_failed(world: World) -> None:
    net = world.net
    [task] = net.dms.add(LONG, ttl=60.0, max_attempts=1)
    node = world.node(RUNNER)
    net.wait(lambda: task.events, 20, "it runs")
    die(node)
    node = world.again(OTHER)
    net.wait(lambda: task.state == "failed", 20, "failed")
    idle(world, node)
    assert reports(task) == ["fail"] and runs(world, task) == 1
    assert task.reason.startswith("no_runner: ")
    node.stop()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["elsewhere", "run out"])
def test_work_whose_lease_is_gone_is_left(world: World, how: str) -> None:
    """The service says so: 404 where another node has the task, 409 where it has ended."""
    net = world.net
    [task] = net.dms.add(LONG, ttl=60.0, max_attempts=1)
    node = world.node(RUNNER)
    net.wait(lambda: task.events, 20, "it runs")
    die(node)
    net.do(lambda: (net.dms.give_elsewhere if how == "elsewhere" else net.dms.release)(task))
    beats = len(net.of("heartbeat", task.id))
    node = world.again(RUNNER)
    net.wait(lambda: len(net.of("heartbeat", task.id)) > beats, 20, "the service is asked")
    net.do(lambda: setattr(net.dms, "one_active", False))
    idle(world, node)
    assert len(net.of("heartbeat", task.id)) == beats + 1, "once"
    assert not task.outcomes and not net.of("complete", task.id) and not net.of("fail", task.id)
    assert runs(world, task) == 1
    node.stop()
    assert on_record(world)[task.id]["state"] == "abandoned"


@pytest.mark.slow
def test_a_task_whose_lease_ran_out_meanwhile_is_leased_again_and_runs_once(world: World) -> None:
    """The node asks for no other work before it knows what became of its earlier lease."""
    net = world.net
    [task] = net.dms.add(LONG, ttl=60.0)
    node = world.node(RUNNER, MAX_CONCURRENCY=2)
    net.wait(lambda: task.events, 20, "it runs")
    die(node)
    net.do(lambda: net.dms.release(task))
    before = len(net.requests)

    def heard() -> list[str]:
        return [request.kind for request in net.requests[before:] if request.service == "dms"]

    net.fault = lambda request: Fault("503", status=503) if heard() == ["heartbeat"] else None
    node = world.again(RUNNER, MAX_CONCURRENCY=2)
    net.wait(lambda: task.state == "completed", 20, "completed")
    assert heard()[:3] == ["heartbeat", "heartbeat", "ask"]
    idle(world, node)
    completed_once(world, task)
    assert runs(world, task) == 2 and task.attempts == 2
    node.stop()
