"""The events of one activity of a Golem runtime, seen from whoever drives it and from the runtime's own program.

The driver sends all of them: a supervisor to the machine ``activity``, a runtime's program to ``serving``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posemesh.events._base import Event

__all__ = (
    "ActivityRenewed",
    "CommandAsked",
    "CommandEnded",
    "CommandsEnded",
    "DeployAsked",
    "DeployEnded",
    "DeployFailed",
    "HelloAsked",
    "InputEnded",
    "KillAsked",
    "NetworkAsked",
    "RuntimeLost",
    "ShutdownAsked",
    "ShutdownEnded",
    "ShutdownFailed",
    "StartAsked",
    "StartEnded",
    "StartFailed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployAsked(Event):
    """Driver: the work directory is to be prepared."""

    machines: ClassVar[tuple[str, ...]] = ("activity",)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployEnded(Event):
    """Driver: the work directory is prepared."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployFailed(Event):
    """Driver: the work directory could not be prepared."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAsked(Event):
    """Driver: the runtime is to become ready for commands."""

    machines: ClassVar[tuple[str, ...]] = ("activity",)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEnded(Event):
    """Driver: the runtime is ready for commands."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed(Event):
    """Driver: the runtime did not become ready."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloAsked(Event):
    """Driver: somebody says hello."""

    machines: ClassVar[tuple[str, ...]] = ("serving",)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAsked(Event):
    """Driver: the runtime is to join a network."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAsked(Event):
    """Driver: one more command is to run."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEnded(Event):
    """Driver: one command is over, or did not begin."""

    machines: ClassVar[tuple[str, ...]] = ("activity",)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandsEnded(Event):
    """Driver: the last command that ran is over."""

    machines: ClassVar[tuple[str, ...]] = ("serving",)


@dataclass(frozen=True, slots=True, kw_only=True)
class KillAsked(Event):
    """Driver: a command is to be ended by a signal."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeLost(Event):
    """Driver: the runtime's process is gone, and nobody had asked for that."""

    machines: ClassVar[tuple[str, ...]] = ("activity",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownAsked(Event):
    """Driver: the runtime is to stop."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputEnded(Event):
    """Driver: nothing will be asked of the runtime any more, or it was told so by a signal."""

    machines: ClassVar[tuple[str, ...]] = ("serving",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownEnded(Event):
    """Driver: the runtime has stopped; to who drives it, however that came about."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownFailed(Event):
    """Driver: the runtime could not stop what it had started."""

    machines: ClassVar[tuple[str, ...]] = ("serving",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityRenewed(Event):
    """Driver: nothing is left of what was stopped; the work directory may be deployed again."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")
