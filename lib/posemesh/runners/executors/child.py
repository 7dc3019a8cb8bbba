"""User code in an interpreter of its own: the child's end of :mod:`posemesh.runners.executors.process`.

The main thread runs user code. SIGTERM tells its task to stop, and the child to end after that; so does the end of the
node's socket.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
from typing import Any

from posemesh.errors import TargetError
from posemesh.runners.executors.async_place import AsyncPlace
from posemesh.runners.executors.blocking_place import BlockingPlace
from posemesh.runners.executors.frames import Check, FromNode, Load, Run
from posemesh.runners.executors.link import Link, failed
from posemesh.runners.kinds import AsyncRunner, user_runner
from posemesh.target import load_user_module

__all__ = ("main",)


def main(number: int) -> None:
    """Serve the node at the other end of that socket."""
    connection = socket.socket(fileno=number)
    connection.set_inheritable(False)
    os.register_at_fork(after_in_child=connection.close)  # what user code forks is not to speak for it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # so that a crash takes no line with it
    link = Link(connection)
    frames: list[FromNode] = []
    while not frames:
        more = link.read()
        if more is None:
            return
        frames += more
    load, *first = frames
    assert isinstance(load, Load)
    try:
        runner = user_runner(_found(load))
    except BaseException as error:
        _refuse(link, first, error)
        return
    if isinstance(runner, AsyncRunner):
        asyncio.run(_serve(link, runner, first))
    else:
        BlockingPlace(link, runner).serve(first)


async def _serve(link: Link, runner: AsyncRunner, first: list[FromNode]) -> None:
    await AsyncPlace(link, runner).serve(first)


def _found(load: Load) -> Any:
    found: Any = load_user_module(load.module, load.file)
    try:
        for name in load.name.split("."):
            found = getattr(found, name)
    except AttributeError:
        place = load.file or load.module
        raise TargetError(f"{place} has no {load.name!r} in another interpreter; define it at its top") from None
    return found


def _refuse(link: Link, frames: list[FromNode] | None, error: BaseException) -> None:
    """Answer the first thing that is wanted."""
    while frames is not None:
        for each in frames:
            if isinstance(each, Run | Check):
                link.finish(failed(each.run, error, in_setup=True))
                return
        frames = link.read()
