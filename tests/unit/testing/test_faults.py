"""Faults by a seed, on the real hooks of the local network."""

from __future__ import annotations

import asyncio
from random import Random

import aiohttp
import pytest

from posemesh.devnet import Devnet, DevnetConfig
from posemesh.testing import FaultPlan, LoopClock, run_virtual
from posemesh.testing.faults import ALL_FAULTS


def asked(plan: FaultPlan, times: int = 40) -> list[object]:
    """What ``times`` requests for /health meet: a status and body, or the name of an error; how long each took."""

    async def main() -> list[object]:
        met: list[object] = []
        config = DevnetConfig(sweep_interval=3600.0)
        async with Devnet(config, clock=LoopClock(), rng=Random(1)) as net, aiohttp.ClientSession() as http:
            net.faults, net.replies = plan.before, plan.after
            loop = asyncio.get_running_loop()
            for _ in range(times):
                began = loop.time()
                try:
                    async with http.post(f"{net.url}/v1/jobs") as reply:
                        met.append((reply.status, await reply.read(), loop.time() - began))
                except aiohttp.ClientError as error:
                    met.append(type(error).__name__)
                await asyncio.sleep(1)
        return met

    return run_virtual(main())


def test_a_seed_gives_the_same_faults_again() -> None:
    one, same, other = (FaultPlan(seed, rate=0.5) for seed in (7, 7, 8))
    assert asked(one) == asked(same)
    assert one.done == same.done
    assert asked(other) and other.done != one.done
    assert 8 < len(one.done) < 32


@pytest.mark.parametrize("kind", ALL_FAULTS)
def test_each_kind(kind: str) -> None:
    plan = FaultPlan(3, rate=1.0, kinds=[kind])
    met = asked(plan, 5)
    assert [fault.kind for fault in plan.done] == [kind] * 5
    assert (plan.done[0].method, plan.done[0].path) == ("POST", "/v1/jobs")
    for one in met:
        match kind, one:
            case ("cut" | "lost", name):
                assert name == "ServerDisconnectedError"
            case ("slow", (status, _, seconds)):
                assert (status, 0 < seconds <= 8) == (401, True)  # no token: the service's own answer
            case (_, (status, body, _)):
                assert status == {"busy": 503, "unauthorized": 401}.get(kind, 200)
                assert body or kind == "busy"


def test_a_plan_ends_and_spares() -> None:
    plan = FaultPlan(1, rate=1.0, kinds=["busy"], until=2.5)
    assert [status for status, *_ in asked(plan, 6)] == [503, 503, 503, 401, 401, 401]  # type: ignore[misc]
    spared = FaultPlan(1, rate=1.0, spares=lambda request: request.path == "/v1/jobs")
    assert [status for status, *_ in asked(spared, 3)] == [401] * 3  # type: ignore[misc]
    assert spared.done == []
    assert repr(plan) == "<FaultPlan 1: 3 so far>"


@pytest.mark.parametrize("wrong", [{"rate": -0.1}, {"rate": 1.1}, {"kinds": ["fire"]}, {"kinds": []}])
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        FaultPlan(1, **wrong)  # type: ignore[arg-type]
