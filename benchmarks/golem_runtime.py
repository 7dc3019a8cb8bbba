"""The runtime that ``golem.py`` measures: two commands, by their arguments.

``flood BYTES`` writes so much; ``say TEXT N`` says ``TEXT`` once as many as ``N`` have been begun.
"""

from __future__ import annotations

import asyncio

from posemesh import golem

CHUNK = b"x" * (48 * 1024)


class Measured(golem.Runtime):
    VERSION = "0.1.0"

    def __init__(self) -> None:
        self._begun = 0
        self._all_here = asyncio.Event()

    async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[None]) -> int:
        _, what, *rest = command.args
        if what == "flood":
            return ctx.command(lambda run: self._flood(run, int(rest[0])))
        self._begun += 1
        return ctx.command(lambda run: self._say(run, what, int(rest[0])))

    async def _flood(self, run: golem.RunContext, left: int) -> None:
        while left:
            chunk = CHUNK if left >= len(CHUNK) else CHUNK[:left]
            left -= len(chunk)
            await run.stdout(chunk)

    async def _say(self, run: golem.RunContext, text: str, commands: int) -> None:
        if self._begun == commands:
            self._all_here.set()
        await self._all_here.wait()
        await run.stdout(text)


if __name__ == "__main__":
    golem.run(Measured)
