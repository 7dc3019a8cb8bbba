"""The examples are programs, not a package: their folder goes on the path, as it does when one of them is run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from posemesh.runners.api import RunnerFunction
from posemesh.runners.port import GetBytes, Progress, PutArtifact
from posemesh.runners.task import PortTask
from posemesh.types import LeaseEnvelope, TaskSpec

EXAMPLES = Path(__file__).parents[3] / "examples"

# For good: their modules stay loaded, and import one another.
sys.path.append(str(EXAMPLES / "pointcloud"))


class MemoryPort:
    """A task's node, in memory: inputs are given, artifacts and progress are kept."""

    cancelled = False

    def __init__(self, inputs: dict[str, bytes]) -> None:
        self.inputs = inputs
        self.artifacts: dict[str, bytes] = {}
        self.progress: list[Any] = []

    def post(self, message: Any) -> None:
        assert isinstance(message, Progress)
        self.progress.append(message.value)

    async def call(self, message: Any) -> Any:
        if isinstance(message, GetBytes):
            return self.inputs[message.cid]
        assert isinstance(message, PutArtifact) and isinstance(message.content, bytes)
        self.artifacts[message.rel_path] = message.content
        return f"id-{len(self.artifacts)}"


Run = Callable[..., MemoryPort]


@pytest.fixture
def run_task(tmp_path: Path) -> Run:
    """``run_task(runner, *inputs, meta=...)`` runs one task and returns what its node saw of it."""

    def run(runner: RunnerFunction, *inputs: bytes, meta: Any = None) -> MemoryPort:
        port = MemoryPort({f"cid-{number}": data for number, data in enumerate(inputs)})
        task = TaskSpec(id=UUID(int=1), capability="/examples/any/v1", inputs_cids=list(port.inputs), meta=meta)
        context = PortTask(LeaseEnvelope(task=task), port, lambda: tmp_path)

        async def main() -> None:
            await runner(context)

        asyncio.run(main())
        return port

    return run
