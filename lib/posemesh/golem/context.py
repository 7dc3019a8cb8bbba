"""What handlers get beside their request: the command line, the configuration, and how to run commands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from posemesh.golem.arguments import Cli
    from posemesh.golem.commands import Commands, Emitter, Handler
    from posemesh.golem.environment import Env

__all__ = ("Context", "Control")

C = TypeVar("C")
T = TypeVar("T")


class Control:
    """Ends the runtime from inside."""

    def __init__(self, shutdown: Callable[[], None] | None) -> None:
        self._shutdown = shutdown

    def shutdown(self) -> None:
        """Stop the runtime, tell what is left to tell, and end the program with exit code 0. Returns at once; nothing
        happens at the second call, and outside of server mode.
        """
        if self._shutdown is not None:
            self._shutdown()


class Context(Generic[C]):
    """One for the whole program.

    ``cli`` is the command line, ``conf`` the configuration, ``conf_path`` its file, which need not exist, ``env`` what
    names and places come from. ``emitter`` tells of commands that the runtime runs by other means than
    :meth:`command`; it is None but for ``start`` in server mode, and all that follows it.
    """

    def __init__(
        self,
        *,
        cli: Cli,
        conf: C,
        conf_path: str,
        env: Env,
        into: Any,
        commands: Commands,
        emitter: Emitter | None = None,
        shutdown: Callable[[], None] | None = None,
    ) -> None:
        self.cli = cli
        self.conf = conf
        self._conf_path = conf_path
        self.env = env
        self.emitter = emitter
        self._into = into
        self._commands = commands
        self._control = Control(shutdown)

    @property
    def conf_path(self) -> Path:
        from pathlib import Path

        return Path(self._conf_path)

    def control(self) -> Control:
        return self._control

    def read_config(self, path: str | Path) -> C:
        """The configuration in the file ``path``; its extension says the format: json, toml, yaml, yml. Raises
        SettingsError.
        """
        from posemesh.golem import settings

        conf: C = settings.read(path, self._into)
        return conf

    def write_config(self, conf: C, path: str | Path) -> None:
        """Write ``conf`` into ``path``, and make the folders above it. The extension says the format."""
        from posemesh.golem import settings

        settings.write(conf, path)

    def command(self, handler: Handler) -> int:
        """Run ``handler(run)`` as a command and return its number, at once.

        The command has begun when the request is answered. It ends when ``handler`` does: with exit code 0, with 1
        where it raises, or as CommandExit says. What it returns, unless None, is written to its stdout as JSON.
        """
        return self._commands.begin(handler)

    async def as_command(self, first: Awaitable[T], handler: Callable[[T, Any], Any]) -> int:
        """Await ``first``, whose failure is the answer to the request, then run ``handler(value, run)`` as
        :meth:`command` does.
        """
        pid = self._commands.take_pid()
        value = await first
        return self._commands.begin(lambda run: handler(value, run), pid)

    def cancel(self, pid: int) -> bool:
        """Cancel the handler of command ``pid``, which then ends with exit code 1 unless it says otherwise. False where
        there is no such command, or no longer.
        """
        return self._commands.cancel(pid)
