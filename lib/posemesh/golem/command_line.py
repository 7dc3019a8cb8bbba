"""The command lines by which a runtime is driven, as providers write them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

__all__ = ("CommandLine",)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """``binary`` with what it gets at every step: its work directory, and ``args`` of its own before the subcommand.

    ``package`` is what a requestor wants deployed. ``cpu_cores``, ``mem_gib`` and ``storage_gib`` are for runtimes that
    limit themselves, ``volume_override`` (JSON text) and ``hostname`` for their deploy, the endpoints
    (``udp://127.0.0.1:PORT``) for their start. ``plain_run`` leaves ``--entrypoint`` out, which runtimes of the Rust
    SDK do not know.
    """

    binary: str
    workdir: Path
    args: Sequence[str] = ()
    package: str | None = None
    cpu_cores: int | None = None
    mem_gib: float | None = None
    storage_gib: float | None = None
    volume_override: str | None = None
    hostname: str | None = None
    vpn_endpoint: str | None = None
    inet_endpoint: str | None = None
    plain_run: bool = False

    def test(self) -> list[str]:
        return [self.program, *self.args, "test"]

    def offer_template(self) -> list[str]:
        return [self.program, *self.args, "offer-template"]

    def deploy(self, args: Sequence[str] = ()) -> list[str]:
        own = _options({"--volume-override": self.volume_override, "--hostname": self.hostname})
        return [*self._common(), *own, "deploy", "--", *args]

    def start(self, args: Sequence[str] = ()) -> list[str]:
        """Of a runtime that ends when it has started."""
        return [*self._common(), "start", "--", *args]

    def serve(self, args: Sequence[str] = ()) -> list[str]:
        """Of one that goes on: without ``--``."""
        own = _options({"--vpn-endpoint": self.vpn_endpoint, "--inet-endpoint": self.inet_endpoint})
        return [*self._common(), *own, "start", *args]

    def run(self, entrypoint: str, args: Sequence[str] = ()) -> list[str]:
        if self.plain_run:
            return [*self._common(), "run", "--", entrypoint, *args]
        return [*self._common(), "run", "--entrypoint", entrypoint, "--", *args]

    @property
    def program(self) -> str:
        """A relative path is looked for where this process is; a mere name on the PATH."""
        return os.path.abspath(self.binary) if os.sep in self.binary else self.binary

    def _common(self) -> list[str]:
        own = _options(
            {
                "--workdir": str(self.workdir),
                "--task-package": self.package,
                "--cpu-cores": self.cpu_cores,
                "--mem-gib": self.mem_gib,
                "--storage-gib": self.storage_gib,
            }
        )
        return [self.program, *own, *self.args]


def _options(values: Mapping[str, str | float | None]) -> list[str]:
    """Those that are given, numbers as the shortest decimals."""
    found: list[str] = []
    for name, value in values.items():
        if value is not None:
            found += [name, value if isinstance(value, str) else _decimal(value)]
    return found


def _decimal(value: float) -> str:
    return format(Decimal(str(int(value) if value == int(value) else value)), "f")
