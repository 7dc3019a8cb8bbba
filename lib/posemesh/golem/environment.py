"""Where a runtime's name, its arguments and the folder of its configuration come from."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posemesh.golem.arguments import Cli, Parser

__all__ = ("Env",)


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

    def data_directory(self, name: str) -> Path:
        """The folder of the configuration of runtime ``name``."""
        folder = "".join(name.lower().split())
        if sys.platform == "darwin":
            return _home() / "Library" / "Application Support" / folder
        data = Path(os.environ.get("XDG_DATA_HOME", ""))
        return (data if data.is_absolute() else _home() / ".local" / "share") / folder


def _home() -> Path:
    home = os.environ.get("HOME")
    if home:
        return Path(home)
    import pwd

    return Path(pwd.getpwuid(os.getuid()).pw_dir)
