#!/usr/bin/env python3
"""A Golem runtime in command mode: each command is a program of its own, told back by /bin/echo.

python command_mode.py --workdir W deploy
python command_mode.py --workdir W start
python command_mode.py --workdir W run -- ls -la
"""

from __future__ import annotations

import asyncio
from subprocess import PIPE

from posemesh import golem


class CommandModeRuntime(golem.Runtime):
    """An example of a runtime in command mode."""

    NAME = "command-mode"
    VERSION = "0.1.1"
    MODE = golem.RuntimeMode.COMMAND
    ARGUMENTS = (golem.Positional("path", help="A path of which nothing is made"),)

    async def deploy(self, ctx: golem.Context[None]) -> None:
        if ctx.cli.workdir is None:
            raise golem.HandlerError("Workdir argument not provided")

    async def start(self, ctx: golem.Context[None]) -> dict[str, str]:
        return {"exampleProperty": "running"}

    async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[None]) -> int:
        if mode is golem.RuntimeMode.SERVER:
            raise golem.HandlerError("Server mode is not supported")

        async def tell(run: golem.RunContext) -> None:
            process = await asyncio.create_subprocess_exec(
                "/bin/echo", command.bin, *command.args, stdout=PIPE, stderr=PIPE
            )
            stdout, stderr = await process.communicate()
            await run.stdout(b"stdout: " + stdout.rstrip() + b"\n")
            await run.stderr(b"stderr: " + stderr.rstrip() + b"\n")

        return ctx.command(tell)


if __name__ == "__main__":
    golem.run(CommandModeRuntime)
