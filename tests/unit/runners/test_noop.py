from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

from posemesh.runners.noop import CAPABILITY, noop
from posemesh.runners.port import Progress
from posemesh.runners.task import PortTask
from posemesh.testing import run_virtual
from posemesh.types import LeaseEnvelope, TaskSpec

from .test_task import Port

LEASE = LeaseEnvelope(task=TaskSpec(id=UUID(int=1), capability=CAPABILITY))


def test_it_takes_its_time_and_leaves_nothing() -> None:
    async def main() -> None:
        port = Port()
        await noop(5.0)(PortTask(LEASE, port, lambda: Path("never made")))
        assert asyncio.get_running_loop().time() == 5.0
        assert port.posted == [Progress(value={"status": "sleeping", "seconds": 5.0})]
        assert port.called == []

    run_virtual(main())


def test_without_time_it_says_nothing() -> None:
    async def main() -> None:
        port = Port()
        await noop(0)(PortTask(LEASE, port, lambda: Path("never made")))
        assert asyncio.get_running_loop().time() == 0.0
        assert port.posted == port.called == []

    run_virtual(main())
