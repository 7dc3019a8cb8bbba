"""Golem runtimes: programs that a provider of the Golem network starts, and asks over a protocol to run commands.

A class below :class:`Runtime`, given to :func:`run`, is such a program::

    from posemesh import golem

    class Echo(golem.Runtime):
        async def run_command(self, command, mode, ctx):
            return ctx.command(lambda run: run.stdout(" ".join(command.args)))

    if __name__ == "__main__":
        golem.run(Echo)

Names load when first used: a runtime starts no slower for what it does not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from posemesh.golem.arguments import Cli as Cli
    from posemesh.golem.arguments import Option as Option
    from posemesh.golem.arguments import Parser as Parser
    from posemesh.golem.arguments import Positional as Positional
    from posemesh.golem.commands import Emitter as Emitter
    from posemesh.golem.commands import RunContext as RunContext
    from posemesh.golem.context import Context as Context
    from posemesh.golem.context import Control as Control
    from posemesh.golem.environment import Env as Env
    from posemesh.golem.errors import CommandExit as CommandExit
    from posemesh.golem.errors import HandlerError as HandlerError
    from posemesh.golem.errors import NotSupported as NotSupported
    from posemesh.golem.errors import SettingsError as SettingsError
    from posemesh.golem.program import run as run
    from posemesh.golem.runtime import Deployed as Deployed
    from posemesh.golem.runtime import Runtime as Runtime
    from posemesh.golem.runtime import RuntimeMode as RuntimeMode
    from posemesh.golem.runtime import Volume as Volume
    from posemesh.wire.golem import CreateNetwork as CreateNetwork
    from posemesh.wire.golem import Endpoint as Endpoint
    from posemesh.wire.golem import KillProcess as KillProcess
    from posemesh.wire.golem import Network as Network
    from posemesh.wire.golem import NetworkInterface as NetworkInterface
    from posemesh.wire.golem import Output as Output
    from posemesh.wire.golem import RunProcess as RunProcess

__all__ = (
    "Cli",
    "CommandExit",
    "Context",
    "Control",
    "CreateNetwork",
    "Deployed",
    "Emitter",
    "Endpoint",
    "Env",
    "HandlerError",
    "KillProcess",
    "Network",
    "NetworkInterface",
    "NotSupported",
    "Option",
    "Output",
    "Parser",
    "Positional",
    "RunContext",
    "RunProcess",
    "Runtime",
    "RuntimeMode",
    "SettingsError",
    "Volume",
    "run",
)

_HOMES: Final = {
    "Cli": "posemesh.golem.arguments",
    "CommandExit": "posemesh.golem.errors",
    "Context": "posemesh.golem.context",
    "Control": "posemesh.golem.context",
    "Deployed": "posemesh.golem.runtime",
    "Emitter": "posemesh.golem.commands",
    "Env": "posemesh.golem.environment",
    "HandlerError": "posemesh.golem.errors",
    "NotSupported": "posemesh.golem.errors",
    "Option": "posemesh.golem.arguments",
    "Parser": "posemesh.golem.arguments",
    "Positional": "posemesh.golem.arguments",
    "RunContext": "posemesh.golem.commands",
    "Runtime": "posemesh.golem.runtime",
    "RuntimeMode": "posemesh.golem.runtime",
    "SettingsError": "posemesh.golem.errors",
    "Volume": "posemesh.golem.runtime",
    "run": "posemesh.golem.program",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'posemesh.golem' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "posemesh.wire.golem")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
