"""The keeper by itself, as the script it is. What it does for the node is tested through ``keeping``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from posemesh.runners.executors import keeper


@pytest.mark.parametrize("told", [b"", b'{"argv": ["tru'])
def test_it_ends_where_the_node_ends_before_it_said_what_to_start(told: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        script = [sys.executable, "-I", "-S", str(Path(keeper.__file__)), str(theirs.fileno())]
        with subprocess.Popen(script, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE) as process:
            theirs.close()
            ours.sendall(told)
            ours.close()
            assert process.communicate() == (None, b"")
            assert process.returncode == 0


def test_it_sees_processes_with_their_parents() -> None:
    (this,) = [each for each in keeper.processes() if each.pid == os.getpid()]
    assert this.parent == os.getppid()
    assert this.start > 0
    assert not this.ended
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        (child,) = [each for each in keeper.processes() if each.pid == process.pid]
        assert (child.parent, child.ended) == (os.getpid(), True)
