"""Where a runtime's name, its arguments and the folder of its configuration come from."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from posemesh.golem.arguments import Cli, Parser

__all__ = ("EXTENSIONS", "Env", "locate")

EXTENSIONS: Final = ("toml", "yaml", "yml", "json")
"""Of configuration files, in the order in which they are looked for; without any file it is the last."""


class Env:
    """What is usual. A class below it may say otherwise; :func:`posemesh.golem.run` is given one of it."""

    def args(self) -> Sequence[str]:
        """The arguments of the program, without its name."""
        return sys.argv[1:]

    def cli(self, parser: Parser) -> Cli:
        """The command line. What is asked afterwards may depend on it."""
        return parser.parse(self.args())

    def runtime_name(self) -> str | None:
        """What the configuration is named after; None for the runtime's NAME."""
        return None

    def data_directory(self, name: str) -> str | os.PathLike[str]:
        """The folder of the configuration of runtime ``name``."""
        folder = "".join(name.lower().split())
        if sys.platform == "darwin":
            return os.path.join(_home(), "Library", "Application Support", folder)
        data = os.environ.get("XDG_DATA_HOME", "")
        return os.path.join(data if os.path.isabs(data) else os.path.join(_home(), ".local", "share"), folder)


def locate(env: Env, name: str) -> str:
    """The file of the configuration of runtime ``name``, which need not exist."""
    folder = os.fspath(env.data_directory(name))
    paths = [os.path.join(folder, f"{name}.{extension}") for extension in EXTENSIONS]
    return next((path for path in paths if os.path.exists(path)), paths[-1])


def _home() -> str:
    home = os.environ.get("HOME")
    if home:
        return home
    import pwd

    return pwd.getpwuid(os.getuid()).pw_dir
