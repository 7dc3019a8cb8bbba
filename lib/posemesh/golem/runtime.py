"""What a Golem runtime is: its handlers, each with what is done where it is not given.

::

    class Renderer(golem.Runtime):
        NAME = "renderer"
        VERSION = "1.0.0"

        async def run_command(self, command, mode, ctx):
            async def render(run):
                await run.stdout(f"rendering {command.args[1]}")

            return ctx.command(render)

    if __name__ == "__main__":
        golem.run(Renderer)

A handler that raises answers with an error: :class:`HandlerError` has its own code and context, an OSError the code of
the system, anything else code 1. Handlers may be plain functions; nothing else is answered while one of these works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from posemesh.golem.errors import NotSupported

if TYPE_CHECKING:
    from posemesh.golem.arguments import Argument
    from posemesh.golem.context import Context
    from posemesh.wire.golem import CreateNetwork, Endpoint, KillProcess, RunProcess

__all__ = ("Deployed", "Runtime", "RuntimeMode", "Volume")

JSON: TypeAlias = Mapping[str, Any]


class RuntimeMode(Enum):
    """How a runtime, or one command of it, runs."""

    SERVER = "blocking"
    """``start`` stays, and is given commands over its standard input."""
    COMMAND = "empty"
    """``start`` ends at once, and each command is a process of its own: ``run``."""


class Volume(NamedTuple):
    """The folder ``name`` of the work directory, which requestors know as ``path``."""

    name: str
    path: str


class Deployed:
    """What a deploy came to. ``valid`` is a word of success, or ``{"Err": "why not"}``; ``custom`` is passed on."""

    def __init__(self, valid: str | Mapping[str, str] = "", vols: Sequence[Volume] = (), **custom: Any) -> None:
        self.valid = {"Ok": valid} if isinstance(valid, str) else valid
        self.vols = vols
        self.custom = custom

    def as_json(self) -> dict[str, Any]:
        return {**self.custom, "valid": self.valid, "vols": list(self.vols)}


class Runtime:
    """A runtime: a class below this one, given to :func:`posemesh.golem.run`. There is one of it in a process.

    A supervisor calls the program once for each of deploy and start. In server mode, what follows start happens in
    that same process: commands, their ends, networks, stop. In command mode every command is another process.
    """

    NAME: ClassVar[str] = ""
    """Names the program and its configuration; without one, that of the class in small letters: ``my-runtime``."""
    VERSION: ClassVar[str] = "0.1.0"
    MODE: ClassVar[RuntimeMode] = RuntimeMode.SERVER
    ARGUMENTS: ClassVar[Sequence[Argument]] = ()
    """Options and positionals of its own, which stand before the subcommand."""
    CONFIG: ClassVar[Any] = None
    """The dataclass of its configuration, which is ``ctx.conf``; or an instance, which then holds without a file."""

    async def deploy(self, ctx: Context[Any]) -> Deployed | JSON | None:
        """Make ready what ``start`` needs, such as an image, below the work directory."""
        return None

    async def start(self, ctx: Context[Any]) -> Any:
        """Begin. What is returned, unless None, is told as JSON. In server mode requests are read afterwards."""
        return None

    async def run_command(self, command: RunProcess, mode: RuntimeMode, ctx: Context[Any]) -> int | None:
        """Start a command and return its number, as ``ctx.command`` gives it. ``mode`` is COMMAND under ``run``, where
        the program ends with the exit code of its command; None is good enough there.
        """
        raise NotSupported

    async def kill_command(self, kill: KillProcess, ctx: Context[Any]) -> None:
        """Begin to end command ``kill.pid`` as by the signal ``kill.signal``, which may be negative. Its end is told
        as any other.
        """
        raise NotSupported

    async def stop(self, ctx: Context[Any]) -> None:
        """Give back what ``start`` took. Called at a shutdown, SIGTERM, and where requests end, within 2 seconds (3 at
        a shutdown). Commands and processes that are left afterwards are ended.
        """

    async def test(self, ctx: Context[Any]) -> None:
        """See whether the runtime can work here; raise where it cannot. Called at any time, without work directory."""

    async def offer(self, ctx: Context[Any]) -> JSON | None:
        """``properties`` (a flat object) and ``constraints`` (text) for offers. Called as :meth:`test` is."""
        return None

    async def join_network(self, network: CreateNetwork, ctx: Context[Any]) -> Endpoint | None:
        """Join, and return where the network's packets go: ``Endpoint("udp_datagram", "127.0.0.1:5000")``."""
        raise NotSupported
