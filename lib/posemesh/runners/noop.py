"""The runner that does nothing, to see whether a node works (ENABLE_NOOP)."""

from __future__ import annotations

import asyncio

from posemesh.runners.api import RunnerFunction, TaskContext

__all__ = ("CAPABILITY", "noop")

CAPABILITY = "/posemesh/noop/v1"


def noop(seconds: float) -> RunnerFunction:
    """A runner that takes ``seconds`` and leaves nothing behind."""

    async def run(task: TaskContext) -> None:
        if seconds:
            task.ctrl.progress({"status": "sleeping", "seconds": seconds})
            await asyncio.sleep(seconds)

    return run
