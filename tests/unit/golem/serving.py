"""A runtime's server in this process, and whoever talks to it over its pipes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from posemesh import golem
from posemesh.golem import children
from posemesh.golem.program import Setup
from posemesh.golem.serve import Server
from posemesh.wire import golem as wire

__all__ = ("PATIENCE_SECS", "Methods", "Peer", "no_children", "play", "serving", "turns")

PATIENCE_SECS = 60.0


@pytest.fixture(autouse=True)
def no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has children that are none of the runtime's."""

    async def end_all(family: children.Family, grace: float) -> None:
        pass

    monkeypatch.setattr(children, "end_all", end_all)


def play(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, PATIENCE_SECS))


async def turns(number: int) -> None:
    """Let the loop go round."""
    for _ in range(number):
        await asyncio.sleep(0)


class Peer:
    """Who asks. All that the runtime says is kept in order."""

    def __init__(self, there: int, back: int) -> None:
        self._there = there
        self._back = back
        self._frames = wire.Frames()
        self.raw = b""
        self.said: list[wire.Response] = []
        self._id = 1
        self._news = asyncio.Event()
        self.over = False
        self.exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        os.set_blocking(back, False)
        self.read()

    def read(self, on: bool = True) -> None:
        loop = asyncio.get_running_loop()
        if on:
            loop.add_reader(self._back, self._hear)
        else:
            loop.remove_reader(self._back)

    def _hear(self) -> None:
        data = os.read(self._back, 1 << 16)
        if not data:
            self.over = True
            self.read(False)
        self.raw += data
        self.said += [wire.decode_response(payload) for payload in self._frames.feed(data)]
        self._news.set()

    def send(self, command: Any) -> int:
        """The number of the request."""
        self._id += 1
        self.write(wire.frame(wire.Request(self._id, command)))
        return self._id

    def write(self, data: bytes) -> None:
        assert os.write(self._there, data) == len(data)

    def run(self, *words: str) -> int:
        return self.send(wire.RunProcess(words[0], words))

    async def until(self, condition: Callable[[], Any]) -> Any:
        while not (found := condition()):
            assert not self.over, self.said
            self._news.clear()
            await self._news.wait()
        return found

    async def reply(self, request: int) -> Any:
        def found() -> list[wire.Response]:
            return [each for each in self.said if not each.event and each.id == request]

        (reply,) = await self.until(found)
        return reply.command

    async def ask(self, command: Any) -> Any:
        return await self.reply(self.send(command))

    def events(self, pid: int) -> list[wire.ProcessStatus]:
        statuses = [each.command for each in self.said if isinstance(each.command, wire.ProcessStatus)]
        return [each for each in statuses if each.pid == pid]

    async def exit(self, pid: int) -> int:
        """The command's exit code, once it has ended."""
        await self.until(lambda: any(not each.running for each in self.events(pid)))
        return self.events(pid)[-1].return_code

    async def hang_up(self) -> int:
        """End the runtime's input; its exit code, when it has said all it had to say."""
        self.end_input()
        return await self.exit_code

    def end_input(self) -> None:
        os.close(self._there)
        self._there = -1

    async def all(self) -> int:
        """Wait for the runtime's end; its exit code."""
        code = await self.exit_code
        while not self.over:
            self._news.clear()
            await self._news.wait()
        return code

    def close(self) -> None:
        self.read(False)
        os.close(self._back)
        if self._there != -1:
            os.close(self._there)


@asynccontextmanager
async def serving(runtime: golem.Runtime) -> AsyncIterator[Peer]:
    """``runtime`` serves until the end of its input, at the latest when the block is left."""
    cli = golem.Cli("start", (), SimpleNamespace())
    setup = Setup(runtime, cli, {"its": "conf"}, "/nowhere/conf.json", golem.Env())
    stdin, there = os.pipe()
    back, stdout = os.pipe()
    server = Server(setup, stdin, stdout)
    peer = Peer(there, back)
    serve = asyncio.create_task(server.run())

    def ended(task: asyncio.Task[int]) -> None:
        os.close(server._outbox._fd)
        os.close(stdin)
        peer.exit_code.set_result(task.result())

    serve.add_done_callback(ended)
    try:
        yield peer
    finally:
        if peer._there != -1:
            peer.end_input()
        await serve
        await peer.exit_code
        peer.close()


class Methods(golem.Runtime):
    """Its commands are its methods by name."""

    VERSION = "1.2.3"

    async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Any]) -> Any:
        handler: Callable[..., Awaitable[Any]] = getattr(self, command.bin)
        return ctx.command(lambda run: handler(run, *command.args[1:]))
