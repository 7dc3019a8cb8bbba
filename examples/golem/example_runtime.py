#!/usr/bin/env python3
"""A Golem runtime in server mode: each command is told back by /bin/echo.

python example_runtime.py --workdir W deploy
python example_runtime.py --workdir W start
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from subprocess import PIPE

from posemesh import golem


@dataclass
class Config:
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError("value is 0 or more")


class ExampleRuntime(golem.Runtime):
    """An example of a runtime in server mode."""

    NAME = "example-runtime"
    VERSION = "1.2.3"
    ARGUMENTS = (golem.Positional("path", help="A path of which nothing is made"),)
    CONFIG = Config(value=0)

    async def start(self, ctx: golem.Context[Config]) -> dict[str, str]:
        return {"exampleProperty": "running"}

    async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Config]) -> int:
        if mode is golem.RuntimeMode.COMMAND:
            raise golem.HandlerError("Command mode is not supported")

        async def tell(output: tuple[bytes, bytes], run: golem.RunContext) -> None:
            await run.stdout(output[0])
            await run.stderr(output[1])

        return await ctx.as_command(echo(command.bin, *command.args), tell)


async def echo(*words: str) -> tuple[bytes, bytes]:
    """What it writes to its two streams."""
    process = await asyncio.create_subprocess_exec("/bin/echo", *words, stdout=PIPE, stderr=PIPE)
    return await process.communicate()


if __name__ == "__main__":
    golem.run(ExampleRuntime)
