"""The events of one activity of a Golem runtime, seen from whoever drives it and from the runtime's own program.

The driver sends all of them: a supervisor to the machine ``activity``, a runtime's program to ``serving``.
"""

from __future__ import annotations

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


class DeployAsked(Event, frozen=True, kw_only=True):
    """Driver: the work directory is to be prepared."""

    machines: ClassVar[tuple[str, ...]] = ("activity",)


class DeployEnded(Event, frozen=True, kw_only=True):
    """Driver: the work directory is prepared."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


class DeployFailed(Event, frozen=True, kw_only=True):
    """Driver: the work directory could not be prepared."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


class StartAsked(Event, frozen=True, kw_only=True):
    """Driver: the runtime is to become ready for commands."""

    machines: ClassVar[tuple[str, ...]] = ("activity",)


class StartEnded(Event, frozen=True, kw_only=True):
    """Driver: the runtime is ready for commands."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


class StartFailed(Event, frozen=True, kw_only=True):
    """Driver: the runtime did not become ready."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


class HelloAsked(Event, frozen=True, kw_only=True):
    """Driver: somebody says hello."""

    machines: ClassVar[tuple[str, ...]] = ("serving",)


class NetworkAsked(Event, frozen=True, kw_only=True):
    """Driver: the runtime is to join a network."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


class CommandAsked(Event, frozen=True, kw_only=True):
    """Driver: one more command is to run."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


class CommandEnded(Event, frozen=True, kw_only=True):
    """Driver: one command is over, or did not begin."""

    machines: ClassVar[tuple[str, ...]] = ("activity",)


class CommandsEnded(Event, frozen=True, kw_only=True):
    """Driver: the last command that ran is over."""

    machines: ClassVar[tuple[str, ...]] = ("serving",)


class KillAsked(Event, frozen=True, kw_only=True):
    """Driver: a command is to be ended by a signal."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


class RuntimeLost(Event, frozen=True, kw_only=True):
    """Driver: the runtime's process is gone, and nobody had asked for that."""

    machines: ClassVar[tuple[str, ...]] = ("activity",)


class ShutdownAsked(Event, frozen=True, kw_only=True):
    """Driver: the runtime is to stop."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


class InputEnded(Event, frozen=True, kw_only=True):
    """Driver: nothing will be asked of the runtime any more, or it was told so by a signal."""

    machines: ClassVar[tuple[str, ...]] = ("serving",)


class ShutdownEnded(Event, frozen=True, kw_only=True):
    """Driver: the runtime has stopped; to who drives it, however that came about."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")


class ShutdownFailed(Event, frozen=True, kw_only=True):
    """Driver: the runtime could not stop what it had started."""

    machines: ClassVar[tuple[str, ...]] = ("serving",)


class ActivityRenewed(Event, frozen=True, kw_only=True):
    """Driver: nothing is left of what was stopped; the work directory may be deployed again."""

    machines: ClassVar[tuple[str, ...]] = ("activity", "serving")
