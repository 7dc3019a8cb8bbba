"""What a program has started is found and ended, at any depth, even if what lies between goes first."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are known on Linux only")

PROGRAM = """
import asyncio, subprocess, sys, time
from posemesh.golem.children import Family, end_all, kill_all
argv = ["/bin/sh", "-c", sys.argv[1]]
child = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
family = Family()
assert len(family.living()) == 3, family.living()
exec(sys.argv[2])
assert not family.living(), family.living()
child.wait()
"""
LISTENS = "/bin/sh -c 'sleep 1000 & echo; wait' & wait"
# Its first process ends at a SIGTERM and leaves the others to nobody.
DEAF = """/bin/sh -c 'trap "" TERM; sleep 1000 & echo; wait' & wait"""


@pytest.mark.parametrize(
    ("script", "end"),
    [
        (DEAF, "child.kill(); asyncio.run(end_all(family, 0, 60))"),  # as who is cancelled may do
        (LISTENS, "asyncio.run(end_all(family, 60))"),
        (DEAF, "asyncio.run(end_all(family, 0.1, 60))"),
        (DEAF, "asyncio.run(end_all(family, 0, 60))"),
        (
            DEAF,
            "asyncio.run(end_all(family, 0, 0)); [time.sleep(0.01) for _ in iter(family.living, set())]",
        ),  # on a busy machine
        (DEAF, "while family.living(): kill_all()"),
    ],
)
def test_children_and_theirs_are_ended(script: str, end: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, script, end], capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.returncode) == ("", 0)
