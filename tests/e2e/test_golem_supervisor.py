"""The supervisor and runtimes made with the SDK, each a process: what they say to each other holds on both sides."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from posemesh.golem.supervisor import (
    Command,
    CommandLine,
    Counter,
    Output,
    RuntimeMode,
    RuntimeRefused,
    State,
    Supervisor,
)

from .test_runner_ends import wait_until_gone

T = TypeVar("T")
EXAMPLES = Path(__file__).parents[2] / "examples" / "golem"
LIMIT_SECS = 120.0

BUSY = """
    import asyncio, os, subprocess
    from posemesh import golem

    class Busy(golem.Runtime):
        NAME, VERSION = "busy", "0.1.0"

        async def start(self, ctx):
            self.child = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=subprocess.DEVNULL)
            self.running = {}
            return {"pids": [os.getpid(), self.child.pid]}

        async def stop(self, ctx):
            self.child.kill()

        async def run_command(self, command, mode, ctx):
            return ctx.command(getattr(self, command.bin))

        async def many(self, run):
            await asyncio.sleep(0.01)
            await run.stdout(str(run.id))
            raise golem.CommandExit(run.id % 7)

        async def big(self, run):
            for number in range(256):
                await run.stdout(bytes([number]) * 65536)
                await run.stderr(b"e")

        async def told(self, run):
            await run.counter("frames", 1.5)
            await run.state("phase", {"of": [1, None]})
            print("this does not reach the protocol")

        async def nap(self, run):
            await run.stdout("zzz")
            await asyncio.sleep(1000)

    if __name__ == "__main__":
        golem.run(Busy)
"""


def program(directory: Path, source: str, name: str = "runtime") -> str:
    """A runtime as one executable file."""
    path = directory / name
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(source)}")
    path.chmod(0o755)
    return str(path)


def finished(work: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(LIMIT_SECS):
            return await work()

    return asyncio.run(limited())


def supervisor(directory: Path, binary: str, **options: Any) -> Supervisor:
    env = {**os.environ, "XDG_DATA_HOME": str(directory)}
    return Supervisor(CommandLine(binary=binary, workdir=directory / "work"), env=env, **options)


async def stdout(command: Command) -> bytes:
    return b"".join([event.data async for event in command if isinstance(event, Output) and event.stream == "stdout"])


@pytest.mark.parametrize(
    ("example", "mode", "started", "pids", "said"),
    [
        ("example_runtime", RuntimeMode.SERVER, b'{"exampleProperty":"running"}', [1, 2], b"ls ls -l\n"),
        ("environment", RuntimeMode.SERVER, b"", [0, 1], b'[RunProcess { bin: "/bin/ls", args: ["ls", "-l"]'),
        ("command_mode", RuntimeMode.COMMAND, b'{"exampleProperty":"running"}', [None, None], b"stdout: /bin/ls -l\n"),
    ],
)
def test_the_examples_are_driven(
    tmp_path: Path, example: str, mode: RuntimeMode, started: bytes, pids: list[int | None], said: bytes
) -> None:
    async def test() -> None:
        source = (EXAMPLES / f"{example}.py").read_text()
        async with supervisor(tmp_path, program(tmp_path, source, example), mode=mode) as runtime:
            await runtime.test()
            offer = await runtime.offer_template()
            assert (offer.constraints, offer.properties) == ("", {})
            assert (await runtime.deploy()).volumes == ()
            assert await runtime.start() == started
            commands = [await runtime.run("/bin/ls", ["-l"]) for _ in pids]
            assert [command.pid for command in commands] == pids
            for command in commands:
                wrote = await stdout(command)
                assert said.split()[0] in wrote and command.code == 0, wrote
            if mode is RuntimeMode.SERVER:
                with pytest.raises(RuntimeRefused, match="Not supported"):
                    await runtime.join_network([])
            await runtime.stop()
            await runtime.deploy()

    finished(test)


def test_many_commands_big_output_and_usage(tmp_path: Path) -> None:
    async def test() -> list[int]:
        async with supervisor(tmp_path, program(tmp_path, BUSY)) as runtime:
            await runtime.deploy()
            pids = [int(word) for word in (await runtime.start()).strip(b'{"pids":[]}').split(b",")]
            commands = [await runtime.run("many") for _ in range(1000)]
            assert len({command.pid for command in commands}) == 1000
            big = await runtime.run("big")
            wrote = await stdout(big)
            assert wrote == b"".join(bytes([number]) * 65536 for number in range(256))
            for command in commands:
                assert await stdout(command) == str(command.pid).encode()
                assert command.pid is not None and command.code == command.pid % 7
            told = await runtime.run("told")
            seen = [event async for event in told]
            assert seen == [Counter("frames", 1.5), State("phase", {"of": [1, None]})]
            return pids

    wait_until_gone(set(finished(test)))


def test_a_stop_with_commands_running_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> list[int]:
        async with supervisor(tmp_path, program(tmp_path, BUSY)) as runtime:
            await runtime.deploy()
            pids = [int(word) for word in (await runtime.start()).strip(b'{"pids":[]}').split(b",")]
            nap = await runtime.run("nap")
            assert await anext(nap) == Output("stdout", b"zzz")
            await runtime.stop()
            assert nap.over
            return pids

    wait_until_gone(set(finished(test)))
