"""The benchmark of what a node costs runs and prints its factors; how large they are is for a quiet machine to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_benchmark_runs() -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "overhead.py"
    command = [sys.executable, program, "--tasks", "20", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ +factor +[\d.]+ \(", done.stdout, re.MULTILINE)) == 4, done.stdout
