"""The benchmark of Golem runtimes runs and prints its ratios; how large they are is for a quiet machine to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_benchmark_runs() -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "golem.py"
    few = ["--rounds", "1", "--hellos", "20", "--mib", "5", "--commands", "50", "--starts", "1"]
    done = subprocess.run([sys.executable, program, *few], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ +ratio +[\d.]+ \(", done.stdout, re.MULTILINE)) == 4, done.stdout
