"""A node made to keep to the time and the chance of a test."""

from __future__ import annotations

import asyncio
from random import Random

from posemesh import Node, NodeConfig
from posemesh.devnet import Devnet, DevnetConfig
from posemesh.shell.offload import InlineOffload
from posemesh.testing import LoopClock, run_virtual, simulated


def test_the_whole_node_runs_on_the_loop() -> None:
    async def main() -> list[float]:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
            node = Node(NodeConfig.from_env(net.node_settings()))
            assert simulated(node, seed=5) is node
            assert node._offload is InlineOffload
            ran = []

            @node.runner("/examples/hello/v1")
            async def hello(task: object) -> None:
                ran.append(asyncio.get_running_loop().time())

            async with node:
                net.submit("/examples/hello/v1", count=3)
                await asyncio.sleep(3600)
            return ran

    ran = run_virtual(main())
    assert len(ran) == 3
    assert ran == run_virtual(main())
