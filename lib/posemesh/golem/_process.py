"""The processes of a runtime, each kept so that nothing it starts outlives it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Final

from posemesh.golem.command import KILLED_CODE, Command, Event, Output
from posemesh.golem.failures import RuntimeEnded, RuntimeGarbled, RuntimeSilent
from posemesh.runners.executors.keeping import Exit, Kept, keep, signal_name
from posemesh.runners.executors.lines import Lines

__all__ = ("READ_BYTES", "Log", "Place", "Shot", "Tail", "begin", "ended", "reading", "run_streamed", "run_to_end")

Log = Callable[[Event], None]
"""Called on the loop with what a runtime says that is no answer and no command's, its stderr above all."""

ANSWER_MAX: Final = 4 * 1024 * 1024
"""Bytes that a step may write to its stdout."""
READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process of a runtime runs: with exactly ``env``, in ``cwd``, with ``memory_bytes`` of address space at
    most. ``log`` gets what it says beside its answers.
    """

    env: Mapping[str, str]
    cwd: Path
    memory_bytes: int | None
    log: Log


@dataclass(frozen=True, slots=True)
class Shot:
    """What a step that ran to its end came to."""

    step: str
    exit: Exit
    stdout: bytes
    said: str
    """The last lines of its stderr."""

    @property
    def code(self) -> int:
        return exit_code(self.exit)


class Tail:
    """The last lines of what is written to stderr, which goes on to ``log``."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lines = Lines()

    def take(self, stream: str, data: bytes) -> None:
        self._lines.feed(data)
        self._log(Output(stream, data))

    def close(self) -> str:
        self._lines.close()
        return "; ".join(self._lines.tail)


async def run_to_end(step: str, argv: Sequence[str], place: Place, seconds: float) -> Shot:
    """Run a step for at most ``seconds``, and until nothing of it is left.

    Raises RuntimeEnded where it cannot be started, RuntimeSilent where it does not end in time, and RuntimeGarbled
    where it writes more than ANSWER_MAX.
    """
    answer, tail = bytearray(), Tail(place.log)
    enough = asyncio.Event()

    def take(stream: str, data: bytes) -> None:
        if stream == "stderr":
            tail.take(stream, data)
        elif not enough.is_set():
            answer.extend(data)
            if len(answer) > ANSWER_MAX:
                enough.set()

    kept = await begin(step, argv, place, take)
    kept.on_end(enough.set)
    try:
        async with asyncio.timeout(seconds):
            await enough.wait()
    except TimeoutError:
        await kept.kill()  # its last words too
        message = f"{step}: the runtime did not end within {seconds:g} s{_said(tail)}"
        raise RuntimeSilent(step, message, seconds) from None
    finally:
        await kept.kill()
    if len(answer) > ANSWER_MAX:
        raise RuntimeGarbled(step, f"{step}: expected at most {ANSWER_MAX} bytes on the runtime's stdout, got more")
    return Shot(step, await kept.wait(), bytes(answer), tail.close())


async def run_streamed(name: str, argv: Sequence[str], place: Place, grace: float) -> Command:
    """Start a command that is a process of its own. Its output is read as the command is; it ends at the end of both
    its streams. SIGTERM is followed by SIGKILL after ``grace`` seconds; any other signal is that at once.

    Raises RuntimeEnded where it cannot be started.
    """
    readers: dict[str, int] = {}
    writers: dict[str, int] = {}
    for stream in ("stdout", "stderr"):
        readers[stream], writers[stream] = os.pipe()
    try:
        kept = await begin("run", argv, place, lambda *_: None, writers)
    except BaseException:
        for reader in readers.values():
            os.close(reader)
        raise
    finally:
        for writer in writers.values():
            os.close(writer)

    async def kill(command: Command, signal: int) -> None:
        kept.stop(grace if signal == SIGTERM else 0)

    async def follow() -> None:
        try:
            await asyncio.gather(*(_forward(stream, reader, command) for stream, reader in readers.items()))
            command.finish(exit_code(await kept.wait()))
        finally:
            await kept.kill()
            command.finish(KILLED_CODE)

    command = Command(name, None, kill)
    command.feeding = asyncio.get_running_loop().create_task(follow())
    return command


async def begin(
    step: str,
    argv: Sequence[str],
    place: Place,
    output: Callable[[str, bytes], None],
    stdio: Mapping[str, int] | None = None,
) -> Kept:
    """Start a process. Raises RuntimeEnded where that does not work."""
    try:
        return await keep(
            argv, env=place.env, cwd=place.cwd, stdio=stdio, memory_bytes=place.memory_bytes, output=output
        )
    except (OSError, ValueError) as error:
        raise RuntimeEnded(step, f"{step}: the runtime could not be started: {error}") from error


def ended(step: str, exit: Exit, tail: Tail, what: str) -> RuntimeEnded:
    """The error for a runtime that is gone; ``what`` says when."""
    name = None if exit.signal is None else signal_name(exit.signal)
    how = f"was killed by {name}" if name else f"ended with exit code {exit.code}"
    return RuntimeEnded(step, f"{step}: the runtime {how} {what}{_said(tail)}", code=exit.code, signal=name)


def exit_code(exit: Exit) -> int:
    return KILLED_CODE if exit.code is None else exit.code


def _said(tail: Tail) -> str:
    said = tail.close()
    return f"; its stderr: {said}" if said else ""


async def _forward(stream: str, pipe: int, command: Command) -> None:
    reader, transport = await reading(pipe)
    try:
        while data := await reader.read(READ_BYTES):
            await command.put(Output(stream, data))
    finally:
        transport.close()


async def reading(pipe: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    """What comes through the pipe, which is read only as far as it is asked for."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(READ_BYTES)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0))
    return reader, transport
