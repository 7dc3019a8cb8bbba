"""Runners for tests that need some, registered as a node does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posemesh.runners.context import BuildContext
from posemesh.runners.executors.inline import InlineRunner
from posemesh.runners.job import Ended, Job, Run
from posemesh.runners.kinds import AsyncRunner
from posemesh.runners.registry import RunnerRegistry
from posemesh.runners.router import RunnerRouter
from posemesh.shell.host import Launch
from posemesh.shell.offload import InlineOffload, Offload
from posemesh.types import TaskSpec

__all__ = ("launching", "registering")


def registering(runners: Mapping[str, Any], offload: Offload | None = None) -> RunnerRegistry:
    """A registry of coroutine functions by capability."""
    router = RunnerRouter()
    for capability, work in runners.items():
        router.register(
            InlineRunner(capability, capability, AsyncRunner(work), offload or InlineOffload()), capability=capability
        )
    return RunnerRegistry(router)


def launching(work: Any, offload: Offload) -> Launch:
    """What runs ``work`` whatever the task."""
    runner = InlineRunner("work", "/test/v1", AsyncRunner(work), offload)

    def launch(job: Job, ended: Ended) -> Run:
        return runner.build_task(TaskSpec(id=job.lease.task.id, capability="/test/v1"), BuildContext()).start(
            job, ended
        )

    return launch
