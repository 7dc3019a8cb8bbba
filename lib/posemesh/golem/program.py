"""The whole program around a runtime: its command line, its configuration, and one subcommand.

What a subcommand prints is compact JSON without an end of line, or nothing. An error is text on stderr and exit code 1.
All that handlers print goes to stderr, but for ``run``, whose output is its command's.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from posemesh.golem.arguments import Cli, Leave, Parser
from posemesh.golem.commands import Commands, Emitter
from posemesh.golem.context import Context
from posemesh.golem.environment import Env, locate
from posemesh.golem.errors import SettingsError, report
from posemesh.golem.runtime import Runtime, RuntimeMode

__all__ = ("Setup", "configuration", "main", "prepare", "run")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Setup(NamedTuple):
    """All that is known before a handler is called."""

    runtime: Runtime
    cli: Cli
    conf: Any
    conf_path: str
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
    if setup.cli.command == "start" and runtime.MODE is RuntimeMode.SERVER:
        from posemesh.golem.serve import serve

        return serve(setup, SIGNALS)
    from posemesh.golem.oneshot import once

    return once(setup, SIGNALS)


def prepare(runtime: type[Runtime], env: Env) -> Setup:
    """Raises Leave where there is only something to print, SettingsError, and what the runtime's class raises."""
    name = runtime.NAME or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", runtime.__name__).lower()
    about = (runtime.__doc__ or "").strip() if runtime.__doc__ != Runtime.__doc__ else ""
    cli = env.cli(Parser(name, runtime.VERSION, about, runtime.ARGUMENTS))
    path = locate(env, env.runtime_name() or name)
    return Setup(runtime(), cli, configuration(path, runtime.CONFIG), path, env)


def configuration(path: str, into: Any) -> Any:
    """What the file ``path`` holds as ``into``, or the default of that where there is no file. Raises SettingsError."""
    if os.path.exists(path):
        from posemesh.golem.settings import read

        return read(path, into)
    if into is None:
        return {}
    if not isinstance(into, type):
        return into
    try:
        return into()
    except TypeError as error:
        hint = "give its fields defaults, or set CONFIG to an instance, which then is the default"
        problem = f"There is no configuration file, and {into.__name__} has no default"
        raise SettingsError(problem, f"{error}; {hint}") from error
