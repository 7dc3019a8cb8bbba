"""The examples are programs, not a package: their folder goes on the path, as it does when one of them is run."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posemesh.node
from posemesh.runners.api import RunnerTarget
from posemesh.testing import RunResult, run_runner

from .offers import Offer, Offers

EXAMPLES = Path(__file__).parents[3] / "examples"

# For good: their modules stay loaded, and import one another.
sys.path.append(str(EXAMPLES / "pointcloud"))


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Offer]]:
    """``offers("hello.py")`` imports an example and returns what its node offers."""

    def load(name: str) -> dict[str, Offer]:
        monkeypatch.setattr(posemesh.node, "Node", Offers)
        offered: dict[str, Offer] = runpy.run_path(str(EXAMPLES / name))["node"].offered
        return offered

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
