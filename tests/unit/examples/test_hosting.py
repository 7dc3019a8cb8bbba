"""hosting.py: several nodes in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

import posemesh
from posemesh import Host, Node
from posemesh.devnet import Devnet, DevnetConfig
from posemesh.testing import LoopClock, run_virtual, simulated


def test_two_nodes_work_until_they_are_told_to_stop(
    example: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosting = example("hosting.py")
    monkeypatch.setattr(posemesh, "Node", lambda *args, **options: simulated(Node(*args, **options)), raising=False)

    async def main() -> None:
        async with Devnet(DevnetConfig(), clock=LoopClock(), rng=Random(1)) as net:
            files = [tmp_path / "a.env", tmp_path / "b.env"]
            for file, key in zip(files, ("11" * 32, "22" * 32), strict=True):
                settings = net.node_settings(key, net.provision())
                file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
            host = simulated(Host(tmp_path / "hosted-nodes", port=0))
            running = asyncio.ensure_future(hosting.main(host, files))
            job = net.submit("/examples/hello/v1", inputs_cids=[net.put_data("in", "t", b"hello")], count=10)
            await asyncio.sleep(120)
            assert net.jobs.job(job).state == "completed"
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{host.port}/status") as reply:
                assert len((await reply.json())["nodes"]) == 2
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert host.port is None

    run_virtual(main(), limit=600)
