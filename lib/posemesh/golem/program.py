"""The whole program around a runtime: its command line, its configuration, and one subcommand.

What a subcommand prints is compact JSON without an end of line, or nothing. An error is text on stderr and exit code 1.
All that handlers print goes to stderr, but for ``run``, whose output is its command's.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from posemesh.golem import children, settings
from posemesh.golem.arguments import Cli, Leave, Parser
from posemesh.golem.commands import Commands, Emitter, Gate, PlainEmitter, finish, settle
from posemesh.golem.context import Context, Control
from posemesh.golem.environment import Env
from posemesh.golem.errors import HandlerError, report
from posemesh.golem.pipes import claim_stdin, claim_stdout
from posemesh.golem.runtime import Deployed, Runtime, RuntimeMode, Volume
from posemesh.wire import golem as wire

__all__ = ("Setup", "main", "prepare", "run")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CAPTURE_BYTES: Final = 40960
"""What a requestor gets of a command's output, by whoever runs a command by the command line."""


class Setup(NamedTuple):
    """All that is known before a handler is called."""

    runtime: Runtime
    cli: Cli
    conf: Any
    conf_path: Path
    env: Env

    def context(
        self,
        commands: Commands,
        emitter: Emitter | None = None,
        shutdown: Callable[[], None] | None = None,
    ) -> Context[Any]:
        return Context(
            cli=self.cli,
            conf=self.conf,
            conf_path=self.conf_path,
            env=self.env,
            into=self.runtime.CONFIG,
            commands=commands,
            emitter=emitter,
            shutdown=shutdown,
        )


def run(runtime: type[Runtime], env: Env | None = None) -> NoReturn:
    """Be the program of ``runtime``: do what the command line says, and exit. ``env`` says where names, arguments and
    folders come from.
    """
    sys.exit(main(runtime, env))


def main(runtime: type[Runtime], env: Env | None = None) -> int:
    """What :func:`run` does, and its exit code. It takes over signals and standard streams."""
    try:
        setup = prepare(runtime, env or Env())
    except Leave as leave:
        stream = sys.stderr if leave.code else sys.stdout
        if stream is not None:
            stream.write(leave.text)
            stream.flush()
        return leave.code
    except Exception as error:
        report(error)
        return 1
    server = setup.cli.command == "start" and runtime.MODE is RuntimeMode.SERVER
    return _serve(setup) if server else _once(setup)


def prepare(runtime: type[Runtime], env: Env) -> Setup:
    """Raises Leave where there is only something to print, SettingsError, and what the runtime's class raises."""
    name = runtime.NAME or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", runtime.__name__).lower()
    about = (runtime.__doc__ or "").strip() if runtime.__doc__ != Runtime.__doc__ else ""
    cli = env.cli(Parser(name, runtime.VERSION, about, runtime.ARGUMENTS))
    path = settings.locate(env, env.runtime_name() or name)
    return Setup(runtime(), cli, settings.load(path, runtime.CONFIG), path, env)


# --- Server mode ----------------------------------------------------------------------------------------------------


def _serve(setup: Setup) -> int:
    from posemesh.golem.serve import LEAVE_SECS, End, Server

    def too_late(*_: object) -> NoReturn:
        children.kill_all()
        os._exit(0)

    def limit() -> None:
        """Nothing keeps the program from its end for longer, not a thread nor a handler that does not listen."""
        signal.signal(signal.SIGALRM, too_late)
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, LEAVE_SECS)

    async def serve() -> int:
        server = Server(setup, stdin, stdout, limit)
        loop = asyncio.get_running_loop()

        def leave(*_: object) -> None:
            limit()
            loop.call_soon_threadsafe(server.end, End.SIGNAL)

        for number in SIGNALS:
            signal.signal(number, leave)
        return await server.run()

    try:
        stdin, stdout = claim_stdin(), claim_stdout()
        return asyncio.run(serve())
    except OSError as error:
        report(error)
        return 1


# --- One subcommand -------------------------------------------------------------------------------------------------


def _once(setup: Setup) -> int:
    """Deploy, test, offer-template, run, or the start of a runtime in command mode."""
    is_run = setup.cli.command == "run"
    caught: list[int] = []

    async def work() -> tuple[str, int]:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(_run(setup, stdout) if is_run else _ask(setup))

        def leave(number: int, _: object) -> None:
            caught.append(number)
            loop.call_soon_threadsafe(task.cancel)

        for number in SIGNALS:
            signal.signal(number, leave)
        try:
            return await task
        finally:
            if caught:
                await children.end_all(0.3)

    try:
        stdout = os.dup(1) if is_run else claim_stdout()
        text, code = asyncio.run(work())
        left = text.encode()
        while left:
            left = left[os.write(stdout, left) :]
    except asyncio.CancelledError:
        return 128 + caught[0] if caught else 1
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
    code = emitter.codes.get(pid, 0)
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
