"""The whole node against the whole network in virtual time, both registration flows: working as it should."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from .checks import further
from .simulation import CAPABILITY, FLOWS, Simulation, answering, errors, simulate

__all__ = ("errors",)


# --- Working as it should ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("slots", [1, 4])
def test_a_queue_of_a_hundred_tasks(flow, slots):
    async def test(sim: Simulation):
        began = sim.now
        job = sim.submit(100, secs=1.0, put="out.bin")
        await sim.ended(job)
        assert sim.state(job) == "completed"
        assert set(sim.attempts(job)) == {1}
        assert len(set(sim.runs)) == len(sim.runs) == 100
        assert sim.net.violations == []
        # The slots are kept busy: 100 tasks of a second each, and what it takes to find the queue.
        assert sim.now - began < 100 / slots + 5
        # A lease, a heartbeat, an upload and a completion for each.
        assert len(sim.net.requests) < 420
        assert sim.counters == {"leased": 100, "completed": 100}

    # A registration with a URL has no field for the number of slots.
    simulate(test, flow=flow, active_leases="unlimited", settings={"MAX_CONCURRENCY": str(slots)})


@pytest.mark.parametrize("flow", [FLOWS[0], *further(*FLOWS[1:])])
def test_an_idle_day_costs_little(flow):
    ports = set()

    async def test(sim: Simulation):
        async def watch(request):
            if request.path == "/v1/tasks":
                ports.add(request.transport.get_extra_info("peername"))

        sim.net.faults = watch
        since = sim.now
        await asyncio.sleep(86_400)
        asks = sim.seen("/v1/tasks", since=since)
        assert 86_400 / 30 - 10 < len(asks) < 86_400 / 15 + 10
        # 24 tokens of an hour, each renewed after three quarters of it.
        assert 30 <= len(sim.seen("/verify", since=since)) <= 34
        assert sim.net.violations == []
        # A connection serves many polls; sign-ins beside them may open another.
        assert len(ports) < 10
        assert len(sim.seen("/register")) + len(sim.seen("/register-wallet")) == 1

    simulate(test, flow=flow, limit=100_000, sweep_interval=3600.0, health_probe_interval=60.0)


def test_long_tasks_keep_their_leases():
    async def test(sim: Simulation):
        job = sim.submit(6, secs=100.0, reports=40)
        await sim.ended(job)
        assert (sim.state(job), set(sim.attempts(job))) == ("completed", {1})
        assert max(sim.gaps()) < 3.0
        assert [event["number"] for event in sim.net.jobs.tasks_of(job)[0].events] == list(range(40))
        assert sim.net.jobs.tasks_of(job)[0].progress == {"pct": 97}
        assert sim.net.violations == []

    simulate(test, lease_ttl=3.0, settings={"MAX_CONCURRENCY": "3"})


def test_every_fourth_heartbeat_fails():
    async def test(sim: Simulation):
        number = 0

        async def fault(request):
            nonlocal number
            number += request.path.endswith("/heartbeat")
            return web.Response(status=503) if request.path.endswith("/heartbeat") and number % 4 == 0 else None

        sim.net.faults = fault
        job = sim.submit(3, secs=7.0)
        await sim.ended(job)
        assert (sim.state(job), sim.attempts(job)) == ("completed", [1, 1, 1])
        assert max(sim.gaps()) < 3.0
        assert sim.net.violations == []

    simulate(test, lease_ttl=3.0)


def test_the_domain_token_is_renewed_under_way():
    async def test(sim: Simulation):
        cid = sim.net.put_data("in", "t", b"x")
        job = sim.net.submit(CAPABILITY, inputs_cids=[cid], meta={"secs": 200.0, "put": "late.bin"})
        await sim.ended(job)
        assert sim.state(job) == "completed"
        assert sim.net.violations == []

    simulate(test, domain_token_ttl=40.0)


def test_what_a_runner_raises_fails_its_task_with_the_reason():
    async def test(sim: Simulation):
        job = sim.submit(attempts=1, **{"raise": "no such scan"})
        await sim.ended(job)
        assert sim.state(job) == "failed"
        assert sim.task(job).failure["reason"] == "runner_error: RuntimeError: no such scan"
        assert sim.task(job).failure["details"]["chain"] == ["RuntimeError: no such scan"]

    simulate(test)


# --- Tokens and registration ------------------------------------------------------------------------------------


def test_tokens_are_renewed_for_hours():
    async def test(sim: Simulation):
        job = sim.submit(30, secs=200.0)
        await sim.ended(job, within=3 * 3600)
        assert (sim.state(job), set(sim.attempts(job))) == ("completed", {1})
        assert len(sim.seen("/verify")) > 60
        assert not [one for one in sim.net.requests if one.status == 401]
        assert sim.net.violations == []

    simulate(test, node_token_ttl=120.0)


def test_an_outage_of_dds_stops_nothing_while_the_token_is_valid():
    async def test(sim: Simulation):
        # Refreshes fail from 450 s on; the token of that time lasts until 600 s at least.
        sim.net.faults = answering(503, beginning="/internal/", until=590.0)
        job = sim.submit(55, secs=10.0)
        await sim.ended(job)
        assert (sim.state(job), set(sim.attempts(job))) == ("completed", {1})
        assert not [one for one in sim.net.requests if one.status == 401]
        failed = [one.at for one in sim.net.requests if one.path.startswith("/internal/") and one.status == 503]
        assert 4 <= len(failed) <= 40
        assert sim.net.violations == []

    simulate(test, node_token_ttl=600.0)


def test_an_outage_of_dds_beyond_the_token_holds_requests_back_until_it_is_over():
    async def test(sim: Simulation):
        sim.net.faults = answering(503, beginning="/internal/", until=1000.0)
        await asyncio.sleep(600)
        assert not [one for one in sim.net.requests if 301 < one.at and one.service == "dms"]
        job = sim.submit(3, secs=1.0)
        await sim.ended(job)
        assert 1000 < sim.now < 1400
        assert sim.net.violations == []

    simulate(test, node_token_ttl=300.0)


def test_a_revoked_token_is_replaced_by_one_sign_in():
    async def test(sim: Simulation):
        job = sim.submit(8, secs=20.0)
        await asyncio.sleep(10)
        before = len(sim.seen("/verify"))
        sim.net.revoke_tokens()
        await sim.ended(job)
        assert (sim.state(job), set(sim.attempts(job))) == ("completed", {1})
        assert len(sim.seen("/verify")) == before + 1
        assert sim.net.violations == []

    simulate(test, settings={"MAX_CONCURRENCY": "4"})


@pytest.mark.parametrize("flow", FLOWS)
def test_a_forgotten_wallet_registers_again(flow):
    async def test(sim: Simulation):
        sim.net.dds.forget_wallets()
        sim.net.revoke_tokens()
        job = sim.submit(2, secs=1.0)
        await sim.ended(job)
        assert sim.state(job) == "completed"
        assert len(sim.seen("/register")) + len(sim.seen("/register-wallet")) == 2
        assert sim.net.violations == []

    simulate(test, flow=flow)


@pytest.mark.parametrize("inside", [True, False])
def test_a_callback_may_come_before_or_after_the_answer(inside):
    async def test(sim: Simulation):
        assert [status for _, status in sim.net.dds.callbacks] == [200]
        await asyncio.sleep(600)
        assert len(sim.seen("/register")) == 1
        assert {status for _, status in sim.net.dds.probes} == {200}

    simulate(test, flow="callback", callback_inside=inside)


def test_a_node_that_is_not_probed_registers_again():
    async def test(sim: Simulation):
        await asyncio.sleep(1000)
        assert 8 <= len(sim.seen("/register")) <= 10  # every 120 s
        assert sim.net.violations == []

    simulate(test, flow="callback", health_probe_interval=None)


def test_a_callback_that_never_comes_is_asked_for_again():
    async def test(sim: Simulation):
        sim.net.dds._call_back = lambda node: asyncio.sleep(0)  # type: ignore[method-assign,assignment]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(500):
                await sim.node.start()
        assert 3 <= len(sim.seen("/register")) <= 5
        assert sim.seen("/verify") == []

    simulate(test, flow="callback", start=False)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_a_clock_that_is_wrong_by_an_hour(flow, skew):
    async def test(sim: Simulation):
        job = sim.submit(3, secs=20.0, reports=5)
        await sim.ended(job)
        assert (sim.state(job), sim.attempts(job)) == ("completed", [1, 1, 1])
        assert max(sim.gaps()) < 30
        assert len(sim.seen("/heartbeat")) < 40

    simulate(test, flow=flow, skew=skew)
