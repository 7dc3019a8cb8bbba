"""A runtime in one's hands: a line in, its output out."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import click

from posemesh.cli._client import printable
from posemesh.golem.supervisor import (
    Command,
    CommandLine,
    Event,
    Output,
    RuntimeEnded,
    RuntimeMode,
    RuntimeRefused,
    Supervisor,
)

__all__ = ("Debugger",)

PROMPT = "> "


class Debugger:
    """``shell`` runs each line; without one, a line is a program and its arguments."""

    def __init__(self, line: CommandLine, mode: RuntimeMode | None, shell: str | None) -> None:
        self._mode = mode
        self._shell = shell
        self._runtime = Supervisor(line, mode=mode, log=self._show)
        self._command: Command | None = None
        self._left = asyncio.Event()
        self._killed: Command | None = None
        self._ending: asyncio.Future[None] | None = None
        self._at_start = True
        """Whether the cursor is where a line begins."""

    async def run(self, *, deploy: Sequence[str] | None, start: Sequence[str]) -> None:
        """To the end of the input. Without ``deploy`` it was deployed before. Raises GolemError where the runtime does
        not do its part.
        """
        loop = asyncio.get_running_loop()
        async with self._runtime as runtime:
            if deploy is None:
                runtime.reuse(self._mode or RuntimeMode.SERVER)
            else:
                deployment = await runtime.deploy(deploy)
                volumes = ", ".join(volume.path for volume in deployment.volumes) or "none"
                self._tell(f"deployed {deployment.message!r}; volumes: {volumes}")
            await runtime.start(start)
            self._tell("started; C-d stops it")
            loop.add_signal_handler(signal.SIGINT, self._interrupted)
            try:
                with _terminal():
                    while (line := await self._next_line()) is not None:
                        if line.strip():
                            await self._carry_out(line)
            finally:
                loop.remove_signal_handler(signal.SIGINT)
            await runtime.stop()
            self._tell("stopped")

    async def _carry_out(self, line: str) -> None:
        try:
            words = [self._shell, "-c", line] if self._shell else shlex.split(line)
            self._command = command = await self._runtime.run(words[0], words[1:])
        except (RuntimeRefused, ValueError) as error:
            self._tell(str(error))
            return
        try:
            async for event in command:
                self._show(event)
        except RuntimeEnded:
            if not self._left.is_set():
                raise
        finally:
            self._command = None
        if command.code:
            self._tell(f"command failed with code {command.code}")

    def _interrupted(self) -> None:
        if self._command is not None and self._command is not self._killed:
            self._killed = self._command
            self._ending = asyncio.ensure_future(self._kill(self._command))
            return
        self._left.set()
        if self._command is not None:
            self._ending = asyncio.ensure_future(self._runtime.stop())

    async def _kill(self, command: Command) -> None:
        try:
            await command.kill()
        except RuntimeRefused as error:
            self._tell(f"{error}; C-c again stops the runtime")

    async def _next_line(self) -> str | None:
        """None at the end of the input. Raises what the runtime ended with, where it does so first."""
        self._begin_line()
        line = asyncio.ensure_future(_read_line())
        left, lost = asyncio.ensure_future(self._left.wait()), asyncio.ensure_future(self._runtime.lost())
        try:
            await asyncio.wait((line, left, lost), return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                raise lost.result()
            return line.result() if line.done() else None
        finally:
            for each in (line, left, lost):
                each.cancel()

    def _show(self, event: Event) -> None:
        if isinstance(event, Output):
            stream = sys.stdout if event.stream == "stdout" else sys.stderr
            click.echo(event.data, file=stream, nl=False)
            self._at_start = event.data.endswith(b"\n")
        else:
            self._tell(f"{printable(event.name)} = {printable(json.dumps(event.value))}")

    def _tell(self, text: str) -> None:
        self._begin_line()
        click.echo(text, err=True)

    def _begin_line(self) -> None:
        if not self._at_start and sys.stdout.isatty():
            click.echo()
        self._at_start = True


@contextmanager
def _terminal() -> Iterator[None]:
    """Leave the terminal as it was: who is stopped while reading a line does not do that."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    known = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, known)


async def _read_line() -> str | None:
    """In a thread that ends with this process: nothing interrupts who reads a terminal."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[str | None] = loop.create_future()

    def take(line: str | None) -> None:
        if not found.done():
            found.set_result(line)

    def read() -> None:
        try:
            line: str | None = input(PROMPT) if sys.stdin.isatty() else sys.stdin.readline() or None
        except (EOFError, ValueError, OSError):
            line = None
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(take, line)

    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401
    threading.Thread(target=read, name="posemesh-golem-input", daemon=True).start()
    return await found
