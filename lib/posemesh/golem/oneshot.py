"""What runs to its end: deploy, test, offer-template, run, and the start of a runtime in command mode."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from posemesh.golem import children
from posemesh.golem.commands import Commands, Data, Emitter, Gate, as_bytes, finish, settle
from posemesh.golem.context import Control
from posemesh.golem.errors import HandlerError, report
from posemesh.golem.pipes import claim_stdout
from posemesh.golem.runtime import Deployed, RuntimeMode, Volume
from posemesh.wire import golem as wire

if TYPE_CHECKING:
    from posemesh.golem.program import Setup

__all__ = ("PlainEmitter", "deployed", "offered", "once")

LEAVE_SECS: Final = 3.5
"""What the end by a signal may take."""
CAPTURE_BYTES: Final = 40960
"""What a requestor gets of a command's output, by whoever runs a command by the command line."""


class PlainEmitter(Emitter):
    """For a command that is a process of its own: both streams go to the file ``fd``, all else nowhere."""

    def __init__(self, fd: int) -> None:
        super().__init__(None)
        self._fd = fd
        self.codes: dict[int, int] = {}
        """Exit codes of commands that have ended."""

    def exited(self, pid: int, code: int) -> None:
        super().exited(pid, code)
        self.codes[pid] = code

    async def stdout(self, pid: int, data: Data) -> None:
        if sys.stdout is not None:
            sys.stdout.flush()
        left = memoryview(as_bytes(data))
        while left:
            left = left[os.write(self._fd, left) :]

    stderr = stdout


def once(setup: Setup, signals: Sequence[signal.Signals]) -> int:
    """The exit code. ``signals`` end it, as they do others, though not its children by themselves."""
    is_run = setup.cli.command == "run"
    caught: list[tuple[int, children.Family]] = []

    async def work() -> tuple[str, int]:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(_run(setup, stdout) if is_run else _ask(setup))

        def leave(number: int, _: object) -> None:
            signal.setitimer(signal.ITIMER_REAL, LEAVE_SECS)  # what does not listen is killed by the system
            caught.append((number, children.Family()))
            loop.call_soon_threadsafe(task.cancel)

        for number in signals:
            signal.signal(number, leave)
        try:
            return await task
        finally:
            if caught:
                await children.end_all(caught[0][1], 0.3)

    try:
        stdout = os.dup(1) if is_run else claim_stdout()
        text, code = asyncio.run(work())
        left = text.encode()
        while left:
            left = left[os.write(stdout, left) :]
    except asyncio.CancelledError:
        return 128 + caught[0][0] if caught else 1
    except Exception as error:
        report(error)
        return 1
    return code


async def _ask(setup: Setup) -> tuple[str, int]:
    """What is to be printed, and the exit code."""
    runtime, ctx = setup.runtime, setup.context(Commands(Emitter(None), Control(None)))
    command = setup.cli.command
    value: Any
    if command == "deploy":
        value = deployed(await settle(runtime.deploy(ctx)), runtime.MODE)
    elif command == "start":
        value = await settle(runtime.start(ctx))
    elif command == "offer-template":
        value = offered(await settle(runtime.offer(ctx)))
    else:
        answer: object = await settle(runtime.test(ctx))
        if answer is False:
            raise HandlerError("The test of the runtime failed")
        value = None
    return _json(value), 0


async def _run(setup: Setup, stdout: int) -> tuple[str, int]:
    """One command, until it has ended."""
    program, *args = setup.cli.args
    output = wire.Output(CAPTURE_BYTES)
    command = wire.RunProcess(program, tuple(args), str(setup.cli.workdir or ""), output, output)
    emitter = PlainEmitter(stdout)
    commands = Commands(emitter, Control(None))
    gate = Gate()
    gate.enter()
    pid = await settle(setup.runtime.run_command(command, RuntimeMode.COMMAND, setup.context(commands)))
    gate.open()
    try:
        while commands.running:
            await finish(commands.running, 3600)
    finally:
        await commands.end(0.3)
    code = emitter.codes.get(pid, next(filter(None, emitter.codes.values()), 0))
    printed = _json(pid) if setup.runtime.MODE is RuntimeMode.SERVER else ""
    return printed, code if 0 <= code < 256 else code & 255 or 1


def _json(value: Any) -> str:
    if value is None:
        return ""
    from posemesh.golem.text import compact

    return compact(value)


def deployed(answer: Any, mode: RuntimeMode) -> dict[str, Any]:
    """What ``deploy`` answered, as supervisors read it. Raises HandlerError where it has not that form."""
    if answer is None:
        answer = Deployed()
    shown = answer.as_json() if isinstance(answer, Deployed) else answer
    if not isinstance(shown, Mapping):
        raise HandlerError(f"deploy returns a Deployed, a dict or None, got {type(shown).__name__}")
    value = {"startMode": mode.value, **shown}
    if value["startMode"] not in (each.value for each in RuntimeMode):
        raise HandlerError(f'deploy: "startMode" is "blocking" or "empty", got {value["startMode"]!r:.100}')
    valid = value.get("valid")
    if not isinstance(valid, Mapping) or len(valid) != 1 or not {*valid} & {"Ok", "Err"} or not _all_text(valid):
        raise HandlerError(f'deploy: "valid" is {{"Ok": "…"}} or {{"Err": "…"}}, got {valid!r:.100}')
    if "vols" in value:
        value["vols"] = [_volume(each) for each in _listed(value["vols"])]
    return value


def _listed(vols: Any) -> Any:
    if not isinstance(vols, list | tuple) or isinstance(vols, Volume):
        raise HandlerError(f'deploy: "vols" is a list, got {vols!r:.100}')
    return vols


def _volume(each: Any) -> Mapping[str, Any]:
    volume = each._asdict() if isinstance(each, Volume) else each
    named = isinstance(volume, Mapping) and "name" in volume and "path" in volume
    if not named or not _all_text({"name": volume["name"], "path": volume["path"]}):
        raise HandlerError(f'deploy: each of "vols" is a Volume or {{"name": "…", "path": "…"}}, got {each!r:.100}')
    shown: Mapping[str, Any] = volume
    return shown


def _all_text(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(each, str) for each in value.values())


def offered(answer: Any) -> dict[str, Any]:
    """What ``offer`` answered, whole. Raises HandlerError where it is no offer."""
    if answer is None:
        answer = {}
    if not isinstance(answer, Mapping):
        raise HandlerError(f"offer returns a dict or None, got {type(answer).__name__}")
    value = {"constraints": "", "properties": {}, **answer}
    if not isinstance(value["constraints"], str) or not isinstance(value["properties"], Mapping):
        raise HandlerError('offer: "constraints" is text and "properties" an object')
    return value
