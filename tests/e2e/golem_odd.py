"""A runtime that does, in each handler, what its configuration's ``does`` says, and in each command what its arguments
say.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posemesh import golem


@dataclass
class Config:
    does: str = ""


class Odd(golem.Runtime):
    """It is odd."""

    NAME = "odd"
    VERSION = "0.0.7"
    CONFIG = Config

    async def deploy(self, ctx: golem.Context[Config]) -> Any:
        await do(ctx.conf.does, ctx)
        if ctx.conf.does == "list":
            return []
        return golem.Deployed("fine", [golem.Volume("in", "/in")], floats=[1.0, 1e16, 0.00001, 1e-6], name="żółw")

    async def start(self, ctx: golem.Context[Config]) -> None:
        await do(ctx.conf.does, ctx)

    async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Config]) -> int:
        async def work(run: golem.RunContext) -> None:
            await do(command.args[-1], ctx)
            await run.stdout(f"{command.bin} {' '.join(command.args)}")

        return ctx.command(work)

    async def stop(self, ctx: golem.Context[Config]) -> None:
        leave("stopped")

    async def test(self, ctx: golem.Context[Config]) -> Any:
        await do(ctx.conf.does, ctx)
        return ctx.conf.does != "false"

    async def offer(self, ctx: golem.Context[Config]) -> Any:
        await do(ctx.conf.does, ctx)
        return {"properties": {"golem.b": 1.0, "golem.a": ["x"]}, "constraints": "(a=b)"}


async def do(what: str, ctx: golem.Context[Config]) -> None:
    if what == "print":
        say_everywhere()
    elif what == "fail":
        raise golem.HandlerError("it is odd", 7)
    elif what == "open":
        os.close(os.open("nothing/here", os.O_RDONLY))
    elif what == "crash":
        raise KeyError("x")
    elif what == "exit":
        raise golem.CommandExit(3)
    elif what == "child":
        await child()
        await asyncio.Event().wait()
    elif what == "block":
        leave("child")
        while True:
            time.sleep(1000)  # noqa: ASYNC251
    elif what == "thread":
        threading.Thread(target=time.sleep, args=(1000,)).start()
    elif what == "deaf":
        leave("child")
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
    elif what == "end":
        ctx.control().shutdown()


def say_everywhere() -> None:
    print("printed", flush=True)  # noqa: T201
    sys.__stdout__.write("written\n")  # type: ignore[union-attr]
    os.write(1, b"by number\n")
    subprocess.run(["/bin/echo", "by a child"], check=True)
    read = subprocess.run(["/bin/cat"], stdout=subprocess.PIPE, check=True)
    print("read", read.stdout)  # noqa: T201


def leave(name: str) -> None:
    Path(name).write_text("")


async def child() -> None:
    """One that starts another, and does not listen."""
    script = "trap '' TERM; sleep 1000 & echo $! >half; mv half child; wait"
    await asyncio.create_subprocess_exec("/bin/sh", "-c", script)


if __name__ == "__main__":
    golem.run(Odd)
