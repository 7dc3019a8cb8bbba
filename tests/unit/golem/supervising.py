"""The stub as an executable file, and a supervisor of it whose processes bear a mark."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from posemesh.golem.supervisor import Command, CommandLine, Event, Output, RuntimeMode, Supervisor, Timeouts

from ..runners.executors.processes import children, living, wait_until

SOURCE = Path(__file__).with_name("stub.py")
LONG_SECS = 1000.0
SHORT_SECS = 0.5


def executable(directory: Path) -> Path:
    """The stub, started by its shebang."""
    path = directory / "stub-runtime"
    path.write_text(f"#!{sys.executable} -IS\n{SOURCE.read_text()}")
    path.chmod(0o755)
    return path


class Stub:
    """Supervisors of one stub."""

    def __init__(self, directory: Path, mark: str) -> None:
        self.directory = directory
        self.binary = executable(directory)
        self.workdir = directory / "work dir"
        self.said: list[Event] = []
        self.mark = mark
        self._argv = directory / "argv"

    def supervisor(
        self, be: str = "", *, mode: RuntimeMode | None = None, env: dict[str, str] | None = None, **options: Any
    ) -> Supervisor:
        """One whose runtime behaves as ``be`` says; limits that are not in ``timeouts`` are long,
        but for that of the stop."""
        timeouts = Timeouts(
            **dict.fromkeys(Timeouts.__slots__, LONG_SECS) | {"stop": 5.0} | options.pop("timeouts", {})
        )
        line = CommandLine(binary=str(self.binary), workdir=self.workdir, args=["--be", be] if be else [], **options)
        env = {"PATH": os.environ["PATH"], "MARK": self.mark, "STUB_ARGV": str(self._argv), **(env or {})}
        return Supervisor(line, mode=mode, timeouts=timeouts, env=env, log=self.said.append)

    async def told(self, text: bytes) -> None:
        """When that was said beside all commands."""
        while not any(text in event.data for event in self.said if isinstance(event, Output)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def argv(self) -> list[list[str]]:
        """The arguments of each process, and where it was."""
        return [json.loads(line) for line in self._argv.read_text().splitlines()]

    def living(self) -> list[int]:
        return living(self.mark)

    async def begun(self) -> None:
        """When there is a process of it."""
        await asyncio.to_thread(wait_until, lambda: bool(self.living()))


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    """Nothing of it may be left when the test ends."""
    before = set(children())
    made = Stub(tmp_path, f"mark-{uuid4()}")
    yield made
    try:
        wait_until(lambda: not made.living() and set(children()) <= before)
    finally:
        for pid in made.living():
            with suppress(ProcessLookupError):
                os.kill(pid, 9)


async def events(command: Command) -> list[Event]:
    return [event async for event in command]


async def output(command: Command) -> dict[str, bytes]:
    """All that it wrote, by stream."""
    wrote = {"stdout": bytearray(), "stderr": bytearray()}
    async for event in command:
        if isinstance(event, Output):
            wrote[event.stream] += event.data
    return {stream: bytes(data) for stream, data in wrote.items()}
