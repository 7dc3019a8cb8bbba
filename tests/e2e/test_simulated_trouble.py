"""The whole node against the whole network in virtual time: trouble, stops, and faults by seed."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from posemesh import telemetry
from posemesh.devnet import cut
from posemesh.testing import FaultPlan

from .checks import further
from .simulation import FLOWS, Simulation, answering, errors, simulate

__all__ = ("errors",)


# --- Trouble ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-3600.0, 3600.0])
def test_an_expiry_that_is_wrong_by_an_hour(shift):
    async def test(sim: Simulation):
        job = sim.submit(1, secs=5.0)
        await sim.ended(job)
        assert (sim.state(job), sim.attempts(job)) == ("completed", [1])
        assert 1 <= len(sim.seen("/heartbeat")) <= 20
        assert sim.net.violations == []

    simulate(test, told_expiry_shift=shift)


def test_a_cancelled_job_ends_its_task_and_is_not_reported():
    async def test(sim: Simulation):
        job = sim.submit(1, secs=1000.0)
        await sim.until(lambda: sim.runs)
        sim.net.jobs.cancel(job, sim.net.clock.wall())
        await sim.until(lambda: sim.stopped, within=15)
        await asyncio.sleep(60)
        assert sim.state(job) == "canceled"
        assert sim.seen("/complete") == sim.seen("/fail") == []
        assert sim.counters == {"leased": 1, "cancelled": 1}
        assert sim.net.violations == []

    simulate(test)


def test_a_task_cancelled_before_its_first_heartbeat_never_runs():
    async def test(sim: Simulation):
        async def cancel(request, answer):
            if request.path == "/v1/tasks" and answer.status == 200:
                sim.net.jobs.cancel(job, sim.net.clock.wall())
            return answer

        sim.net.replies = cancel
        job = sim.submit(1, secs=1.0)
        await sim.until(lambda: sim.counters.get("cancelled"))
        assert sim.runs == []
        assert sim.seen("/complete") == sim.seen("/fail") == []
        assert sim.net.violations == []

    simulate(test)


def test_a_lease_that_comes_cancelled_is_no_hot_loop():
    """Reference: an already cancelled lease was asked for again at once, 1,816 times a second."""

    async def test(sim: Simulation):
        async def cancelled(request, answer):
            if request.path == "/v1/tasks" and answer.status == 200:
                terms = json.loads(answer.body) | {"cancel": True, "status": "canceled"}
                return web.json_response(terms)
            return answer

        sim.net.replies = cancelled
        sim.submit(100)
        since = sim.now
        await asyncio.sleep(20)
        assert len(sim.seen("/v1/tasks", since=since)) <= 10
        assert sim.runs == []

    simulate(test, active_leases="unlimited")


def test_a_result_outlives_an_outage_of_completions():
    async def test(sim: Simulation):
        job = sim.submit(1, secs=10.0)
        await sim.until(lambda: sim.runs)
        sim.net.faults = answering(503, beginning="/v1/tasks/", ending="complete", until=sim.now + 600)
        await sim.ended(job)
        assert 600 < sim.now < 700
        assert len(sim.net.jobs.receipts[job]) == 1
        assert sim.attempts(job) == [1]
        assert len(sim.runs) == 1
        assert sim.net.violations == []

    simulate(test)


def test_a_result_outlives_an_outage_of_all_of_dms():
    async def test(sim: Simulation):
        job = sim.submit(1, secs=10.0)
        await sim.until(lambda: sim.runs)
        await asyncio.sleep(9.0)
        sim.net.faults = answering(503, beginning="/v1/", until=sim.now + 600)
        await sim.ended(job)
        assert 600 < sim.now < 700
        assert len(sim.net.jobs.receipts[job]) == 1
        assert (len(sim.runs), sim.counters) == (1, {"leased": 1, "completed": 1})
        # No heartbeat under a lease that had run out; the outcome was offered all the same.
        assert not [one for one in sim.seen("/heartbeat") if one.at > 60]
        assert sim.net.violations == []

    # While it is down it does not take leases back either.
    simulate(test, sweep_interval=3600.0)


def test_a_result_counts_once_where_its_task_was_given_out_again():
    async def test(sim: Simulation):
        job = sim.submit(1, secs=10.0)
        await sim.until(lambda: sim.runs)
        sim.net.faults = answering(503, beginning="/v1/tasks/", until=sim.now + 40)
        await sim.ended(job)
        await sim.until(lambda: not sim.node.statistics().tasks)
        assert (sim.state(job), sim.attempts(job)) == ("completed", [2])
        # The service gave the task to this node again and took the first result under the second lease.
        assert sim.counters == {"leased": 2, "superseded": 1, "completed": 1}
        assert (len(sim.runs), len(sim.net.jobs.receipts[job])) == (1, 1)
        assert sim.net.violations == []

    simulate(test)


def test_a_lost_reply_to_a_completion_is_unconfirmed():
    async def test(sim: Simulation):
        async def lose(request, answer):
            return None if request.path.endswith("/complete") else answer

        sim.net.replies = lose
        job = sim.submit(1, secs=1.0)
        await sim.ended(job)
        sim.net.replies = None
        await sim.until(lambda: not sim.node.statistics().tasks)
        assert sim.counters == {"leased": 1, "unconfirmed": 1}
        assert len(sim.net.jobs.receipts[job]) == 1
        assert sim.net.violations == []

    simulate(test)


def test_heartbeats_fail_for_a_while_and_nothing_is_lost():
    """Reference: one failed heartbeat lost the task, 8,500 asks in 10 s followed."""

    async def test(sim: Simulation):
        sim.net.faults = answering(500, ending="/heartbeat", until=sim.now + 15)
        job = sim.submit(20, secs=2.0)
        await sim.ended(job)
        assert (sim.state(job), set(sim.attempts(job))) == ("completed", {1})
        assert sim.seen("/fail") == []
        assert sim.now < 60
        assert sim.net.violations == []

    simulate(test)


def test_tasks_without_a_runner_are_failed_back_slowly():
    """Reference: 15 attempts were burnt in 13 ms."""

    async def test(sim: Simulation):
        (node,) = sim.net.dds.nodes.values()
        node.capabilities.append("/unheard/of/v1")
        job = sim.net.submit("/unheard/of/v1", count=100)
        since = sim.now
        await asyncio.sleep(20)
        leased = sim.seen("/v1/tasks", status=200, since=since)
        assert 2 <= len(leased) <= 10
        assert len(sim.seen("/fail", status=200)) == len(leased)
        failed = [task.failure["reason"] for task in sim.net.jobs.tasks_of(job) if task.failure]
        assert all("no_runner: no runner registered for capability /unheard/of/v1" in reason for reason in failed)
        assert sim.net.violations == []

    simulate(test)


@pytest.mark.parametrize("how", [500, 429, None])
def test_an_idle_node_does_not_hammer_a_service_in_trouble(how):
    async def test(sim: Simulation):
        async def hang_up(request):
            return cut(request) if request.path == "/v1/tasks" else None

        sim.net.faults = hang_up if how is None else answering(how, ending="/v1/tasks")
        since = sim.now
        await asyncio.sleep(60)
        assert 2 <= len(sim.seen("/v1/tasks", since=since)) <= 10

    simulate(test)


# --- Stopping ---------------------------------------------------------------------------------------------------


def test_an_idle_node_is_gone_at_once():
    async def test(sim: Simulation):
        await asyncio.sleep(100)
        began = sim.now
        await sim.node.stop()
        assert sim.now - began < 1

    simulate(test)


def test_a_running_task_ends_before_the_node_does():
    async def test(sim: Simulation):
        job = sim.submit(3, secs=20.0)
        await sim.until(lambda: sim.runs)
        asks = len(sim.seen("/v1/tasks", status=200))
        await sim.node.stop(drain=60)
        assert len(sim.seen("/v1/tasks", status=200)) == asks == 1
        assert len(sim.net.jobs.receipts[job]) == 1
        assert max(sim.gaps()) < 6
        assert sim.net.violations == []

    simulate(test, lease_ttl=6.0)


def test_a_task_that_outlasts_the_drain_is_failed_back():
    async def test(sim: Simulation):
        job = sim.submit(1, secs=1000.0)
        await sim.until(lambda: sim.runs)
        began = sim.now
        await sim.node.stop(drain=5)
        assert 5 <= sim.now - began < 6
        assert sim.task(job).failure["reason"] == "node_shutdown: the node was told to stop"
        assert sim.net.violations == []

    simulate(test)


def test_a_result_that_cannot_be_delivered_does_not_hold_up_the_stop():
    told: list[str] = []
    sink = telemetry.logger().add(lambda line: told.append(str(line)), level="WARNING", format="{message}")

    async def test(sim: Simulation):
        job = sim.submit(1, secs=1.0)
        await sim.until(lambda: sim.runs)
        sim.net.faults = answering(503, beginning="/v1/tasks/")
        await asyncio.sleep(5)
        began = sim.now
        await sim.node.stop(drain=10)
        assert sim.now - began < 20
        assert "is on record and goes out when the node is started again" in told[-1]
        sim.net.faults = None
        await sim.node.start()
        await sim.ended(job)
        assert (sim.state(job), len(sim.runs), len(sim.net.jobs.receipts[job])) == ("completed", 1, 1)
        sim.check = lambda: None  # type: ignore[method-assign]  # what it leased is not in its second life's count

    simulate(test)
    telemetry.logger().remove(sink)


# --- Faults by seed ---------------------------------------------------------------------------------------------


def faulty(seed: int) -> list[tuple[object, ...]]:
    """Some minutes of a busy node on a bad network."""

    async def test(sim: Simulation):
        plan = FaultPlan(seed, rate=0.12, until=sim.now + 90)
        sim.net.faults, sim.net.replies = plan.before, plan.after
        jobs = [
            sim.submit(1 + number % 3, secs=float(number * 2), reports=number % 4, attempts=20, put=f"{number}.bin")
            for number in range(8)
        ]
        await sim.ended(*jobs, within=900)
        await sim.until(lambda: not sim.node.statistics().tasks, within=120)
        assert plan.done
        assert [sim.state(job) for job in jobs] == ["completed"] * len(jobs), plan.done
        assert sim.net.violations == [], plan.done

    return simulate(
        test,
        seed=seed,
        flow=FLOWS[seed % 2],
        lease_ttl=(6.0, 15.0, 30.0)[seed % 3],
        settings={"MAX_CONCURRENCY": str(1 + seed % 4), "REQUEST_TIMEOUT_SECS": "5"},
    )


@pytest.mark.parametrize("seed", [*range(10), *further(*range(10, 30))])
def test_a_bad_network_loses_nothing(seed):
    faulty(seed)


@pytest.mark.parametrize("seed", [3, 4])
def test_a_seed_replays_its_run(seed):
    assert faulty(seed) == faulty(seed)
