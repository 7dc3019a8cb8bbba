"""The examples are programs, not a package: their folder goes on the path, as it does when one of them is run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from posemesh.runners.api import RunnerTarget
from posemesh.testing import RunResult, run_runner

from .importing import imported

EXAMPLES = Path(__file__).parents[3] / "examples"

# For good: their modules stay loaded, and import one another.
sys.path.append(str(EXAMPLES / "pointcloud"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """``example("hello.py")`` imports one."""

    def load(name: str) -> ModuleType:
        return imported(EXAMPLES / name, monkeypatch)

    return load


@pytest.fixture
def run_task() -> Callable[..., RunResult]:
    """``run_task(runner, *inputs, meta=...)`` runs one task; what the runner raises is raised here."""

    def run(runner: RunnerTarget, *inputs: bytes, meta: Any = None) -> RunResult:
        result = run_runner(runner, inputs={f"cid-{number}": data for number, data in enumerate(inputs)}, meta=meta)
        if result.outcome.error is not None:
            raise result.outcome.error
        return result

    return run
