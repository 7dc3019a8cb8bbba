"""Test doubles for nodes and for what runs on them: clocks, a loop whose time is virtual, faults that a seed replays.

async def main():
    async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
        node = simulated(Node(NodeConfig.from_env(net.node_settings()), runners=[...]), seed=1)
        async with node:
            await asyncio.sleep(86_400)

run_virtual(main())                          # a day of a node, in about a second

One task of a runner, without a node: ``run_runner(my_runner, inputs={"cid": b"..."})``.
"""

from __future__ import annotations

from posemesh.testing.clock import EPOCH, LoopClock, ManualClock
from posemesh.testing.faults import FaultPlan
from posemesh.testing.loop import Deadlock, VirtualLoop, run_virtual
from posemesh.testing.runner import RunOutcome, RunResult, run_runner
from posemesh.testing.simulation import simulated

__all__ = (
    "EPOCH",
    "Deadlock",
    "FaultPlan",
    "LoopClock",
    "ManualClock",
    "RunOutcome",
    "RunResult",
    "VirtualLoop",
    "run_runner",
    "run_virtual",
    "simulated",
)
