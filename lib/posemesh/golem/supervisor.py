"""Drives a Golem runtime: any program that speaks as one, in whatever language it is written.

::

    line = CommandLine(binary="./ya-runtime-thing", workdir=Path("/var/lib/thing"))
    async with Supervisor(line) as runtime:
        await runtime.test()
        await runtime.deploy()
        await runtime.start()
        command = await runtime.run("/bin/ls", ["-l"])
        async for event in command:
            print(event)
        print(command.code)

At its end nothing that the runtime started is left, nor when this process is killed. Its state and counters are of the
runtime as a whole: each command that runs when they come gets them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from signal import SIGKILL, SIGTERM
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from posemesh import events
from posemesh.golem._process import Log, Place, Shot, run_streamed, run_to_end
from posemesh.golem.command import Command, Counter, Event, Output, State
from posemesh.golem.command_line import CommandLine
from posemesh.golem.deployment import Deployment, Offer, read_deploy, read_offer
from posemesh.golem.failures import (
    GolemError,
    RuntimeEnded,
    RuntimeGarbled,
    RuntimeRefused,
    RuntimeSilent,
    StepFailed,
)
from posemesh.golem.link import PROTOCOL, Link
from posemesh.golem.runtime import RuntimeMode, Volume
from posemesh.machines import activity
from posemesh.wire import golem as wire

__all__ = (
    "Command",
    "CommandLine",
    "Counter",
    "Deployment",
    "Event",
    "GolemError",
    "Offer",
    "Output",
    "RuntimeEnded",
    "RuntimeGarbled",
    "RuntimeMode",
    "RuntimeRefused",
    "RuntimeSilent",
    "State",
    "StepFailed",
    "Supervisor",
    "Timeouts",
    "Volume",
)

R = TypeVar("R")
SAID_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds for each step. ``reply`` is for that to a run, a kill or a network: a runtime may take one request after
    another. A command itself may take as long as it likes.
    """

    test: float = 120.0
    offer: float = 60.0
    deploy: float = 600.0
    start: float = 120.0
    reply: float = 60.0
    stop: float = 5.0


class Supervisor:
    """One activity of a runtime: deployed, started, given commands, stopped; then it may be deployed again.

    ``mode`` is what its deploy must say that it is; where that is None, whatever it says. It finds exactly ``env``, or
    else this process's environment, and ``memory_bytes`` of address space for each of its processes. ``log`` is called
    on the loop with what it says that is no command's, among it its stderr. Making one does nothing. For one loop.

    Every step may raise what is in :mod:`posemesh.golem.failures`, and OutOfOrder (:mod:`posemesh.machines.activity`)
    where another one is due; then the runtime was not asked.
    """

    def __init__(
        self,
        line: CommandLine,
        *,
        mode: RuntimeMode | None = None,
        timeouts: Timeouts | None = None,
        env: Mapping[str, str] | None = None,
        memory_bytes: int | None = None,
        log: Log | None = None,
    ) -> None:
        self.line = line
        self.timeouts = timeouts or Timeouts()
        self._wanted = mode
        self._env = env
        self._memory_bytes = memory_bytes
        self._log: Log = log or (lambda event: None)
        self._activity = activity.ActivitySubject()
        self._link: Link | None = None
        self._commands: set[Command] = set()
        self._mode = RuntimeMode.COMMAND
        self._busy: asyncio.Future[Any] | None = None
        self._stopping: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Supervisor {self.line.binary} {self.state}>"

    @property
    def state(self) -> activity.ActivityState:
        """Where it is in its life."""
        return activity.ActivityState[self._activity.state.name]

    @property
    def commands(self) -> tuple[Command, ...]:
        """Those that run."""
        return tuple(self._commands)

    async def test(self) -> None:
        """Have it look whether it works here, at any time. Raises StepFailed where it says that it does not."""
        _ended_well(await run_to_end("test", self.line.test(), self._place(None), self.timeouts.test))

    async def offer_template(self) -> Offer:
        """What it would have offered, at any time."""
        argv = self.line.offer_template()
        shot = await run_to_end("offer-template", argv, self._place(None), self.timeouts.offer)
        return read_offer(_ended_well(shot))

    async def deploy(self, args: Sequence[str] = ()) -> Deployment:
        """Have it prepare the work directory, which is made where there is none, as are its volumes. Raises StepFailed
        where it says that this failed, also where it says so with exit code 0.
        """
        self._take(events.DeployAsked())
        return await self._under_way("deploy", self._deploy(args), events.DeployEnded(), events.DeployFailed())

    def reuse(self, mode: RuntimeMode = RuntimeMode.SERVER) -> None:
        """Take the work directory as one that was deployed before."""
        self._take(events.DeployAsked())
        self._take(events.DeployEnded())
        self._mode = mode

    async def start(self, args: Sequence[str] = ()) -> bytes:
        """Have it become ready for commands: what it printed of that, or said before it was asked anything."""
        self._take(events.StartAsked())
        serve = self._serve if self._mode is RuntimeMode.SERVER else self._start
        return await self._under_way("start", serve(args), events.StartEnded(), events.StartFailed())

    async def run(self, entrypoint: str, args: Sequence[str] = (), *, work_dir: str = "") -> Command:
        """Start a command: ``entrypoint``, a path as the runtime sees it, with ``args`` that follow its name. Several
        may run at once. ``work_dir`` is for runtimes that serve.
        """
        name = PurePosixPath(entrypoint).name
        if not name or name == "..":
            raise ValueError(f"expected an entry point that ends in a file's name, got {entrypoint!r}")
        subject = self._activity
        self._take(events.CommandAsked())
        try:
            if self._link is not None:
                command = await self._link.run(wire.RunProcess(bin=entrypoint, args=(name, *args), work_dir=work_dir))
            else:
                argv, place = self.line.run(entrypoint, args), self._place(self.line.workdir)
                command = await run_streamed(entrypoint, argv, place, self.timeouts.stop)
        except BaseException:
            self._take(events.CommandEnded(), subject)
            raise
        self._commands.add(command)
        command.on_end(partial(self._over, command, subject))
        return command

    async def join_network(
        self, networks: Sequence[wire.Network], hosts: Mapping[str, str] | None = None, *, interface: int = 0
    ) -> wire.Endpoint:
        """Have a runtime that serves join a network: where its packets go then."""
        self._take(events.NetworkAsked())
        if self._link is None:
            raise RuntimeRefused("network", 1, "only a runtime that serves can join a network", {})
        request = wire.CreateNetwork(networks=tuple(networks), hosts=dict(hosts or {}), interface=interface)
        reply = await self._link.ask("network", request, wire.NetworkReply)
        if reply.endpoint is None:
            raise RuntimeGarbled("network", "network: expected an endpoint in the runtime's reply, there is none")
        return reply.endpoint

    async def stop(self, seconds: float | None = None) -> None:
        """Have it stop and end within ``seconds`` (``timeouts.stop``). What has not ended by then is killed, with all
        that it started. Raises RuntimeRefused where it says that its stop failed; it has ended all the same.
        """
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(self.timeouts.stop if seconds is None else seconds))
        await asyncio.shield(self._stopping)

    async def lost(self) -> GolemError:
        """What a runtime that serves ended with, once it has. Never returns where none does."""
        if self._link is None:
            await asyncio.Event().wait()
        assert self._link is not None
        return await self._link.lost()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(GolemError):
            await self.stop()

    # --- Within -----------------------------------------------------------------------------------------------------

    def _take(self, event: events.Event, subject: activity.ActivitySubject | None = None) -> None:
        activity.take(self._activity if subject is None else subject, event)

    async def _under_way(self, step: str, work: Coroutine[Any, Any, R], well: events.Event, badly: events.Event) -> R:
        """Do what only a stop may interrupt."""
        self._busy = busy = asyncio.ensure_future(work)
        try:
            result = await busy
        except BaseException as error:
            self._take(badly)
            if isinstance(error, asyncio.CancelledError) and self._stopping is not None:
                raise GolemError(step, f"{step}: the runtime was told to stop") from None
            raise
        finally:
            self._busy = None
        self._take(well)
        return result

    async def _deploy(self, args: Sequence[str]) -> Deployment:
        workdir = self.line.workdir
        workdir.mkdir(parents=True, exist_ok=True)
        shot = await run_to_end("deploy", self.line.deploy(args), self._place(workdir), self.timeouts.deploy)
        deployed = read_deploy(_ended_well(shot), workdir)
        self._mode = deployed.mode or self._wanted or RuntimeMode.COMMAND
        if self._wanted not in (None, self._mode):
            wanted, said = (getattr(mode, "name", "any").lower() for mode in (self._wanted, self._mode))
            raise StepFailed("deploy", f"deploy: expected a runtime in {wanted} mode, this one says {said}", 0)
        for volume in deployed.volumes:
            (workdir / volume.name).mkdir(parents=True, exist_ok=True)
        return replace(deployed, mode=self._mode)

    async def _start(self, args: Sequence[str]) -> bytes:
        argv, place = self.line.start(args), self._place(self.line.workdir)
        said = _ended_well(await run_to_end("start", argv, place, self.timeouts.start))
        if said:
            self._log(Output("stdout", said))
        return said

    async def _serve(self, args: Sequence[str]) -> bytes:
        said = bytearray()

        def hear(event: Output | Counter | State) -> None:
            if isinstance(event, Output) and event.stream == "stdout" and len(said) < SAID_MAX:
                said.extend(event.data)
            self._log(event)

        link = await Link.open(self.line.serve(args), self._place(self.line.workdir, hear), self.timeouts.reply)
        try:
            await link.ask("start", wire.Hello(version=PROTOCOL), wire.HelloReply, self.timeouts.start)
        except BaseException:
            await link.kill()
            raise
        self._link = link
        link.on_end(partial(self._take, events.RuntimeLost(), self._activity))
        return bytes(said)

    async def _stop(self, seconds: float) -> None:
        self._take(events.ShutdownAsked())
        try:
            if self._busy is not None:
                self._busy.cancel()
                await asyncio.wait((self._busy,))
            if self._link is not None:
                await self._link.close(seconds)
            else:
                await _end_all(self.commands, seconds)
        finally:
            self._link = self._stopping = None
            self._take(events.ShutdownEnded())
            self._activity = replace(self._activity)  # what belongs to the one before may still be told of its end
            self._take(events.ActivityRenewed())

    def _over(self, command: Command, subject: activity.ActivitySubject) -> None:
        self._commands.discard(command)
        self._take(events.CommandEnded(), subject)

    def _place(self, cwd: Path | None, log: Log | None = None) -> Place:
        env = dict(os.environ) if self._env is None else self._env
        return Place(env=env, cwd=cwd or Path.cwd(), memory_bytes=self._memory_bytes, log=log or self._log)


async def _end_all(commands: Sequence[Command], seconds: float) -> None:
    """End commands that are processes: by SIGTERM, and by SIGKILL after ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            for command in commands:
                await command.kill(SIGTERM)
            for command in commands:
                await command.ended()
    except TimeoutError:
        pass
    finally:
        for command in commands:
            await command.kill(SIGKILL)
            await command.ended()


def _ended_well(shot: Shot) -> bytes:
    if shot.code != 0:
        how = "was killed" if shot.exit.code is None else f"ended with exit code {shot.code}"
        said = f"; its stderr: {shot.said}" if shot.said else ""
        raise StepFailed(shot.step, f"{shot.step}: the runtime {how}{said}", shot.code)
    return shot.stdout
