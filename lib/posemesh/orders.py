"""What the program of a Golem runtime takes, and in which state: plain data, as it is loaded each time one is started.

The names of events and states are those of ``events.activity`` and ``machines.serving``, which makes a machine of it.
"""

from __future__ import annotations

from typing import Final

__all__ = ("SERVED", "SERVED_ROWS")

_BEFORE: Final = ("initialized", "deployed")
_SERVES: Final = ("ready", "running", "stopping", "stopped", "failed")

SERVED_ROWS: Final[tuple[tuple[str, tuple[str, ...], str | None, str], ...]] = (
    ("DeployEnded", ("initialized",), "deployed", "it is prepared"),
    ("DeployEnded", ("deployed", *_SERVES), None, "it may be prepared again, by a process of its own"),
    ("DeployFailed", _BEFORE, "failed", "it could not be prepared"),
    ("StartEnded", _BEFORE, "ready", "it serves; nobody asks whether it was deployed"),
    ("StartFailed", _BEFORE, "failed", "there is nothing that could serve"),
    ("HelloAsked", _SERVES, None, "a hello changes nothing and may come again"),
    ("NetworkAsked", _SERVES, None, "networks come and go beside commands"),
    ("KillAsked", _SERVES, None, "the end of the command is told by itself"),
    ("CommandAsked", ("ready", "stopped", "failed"), "running", "no hello is needed, and a shutdown is no end"),
    ("CommandAsked", ("running", "stopping"), None, "commands run beside each other"),
    ("CommandsEnded", ("running",), "ready", "nothing runs"),
    ("CommandsEnded", ("ready", "stopping", "stopped", "failed"), None, "stopping is not over with its commands"),
    ("ShutdownAsked", ("ready", "running", "stopped", "failed"), "stopping", "it may be asked for more than once"),
    ("ShutdownAsked", ("stopping",), None, "it is under way"),
    ("InputEnded", ("ready", "running", "failed"), "stopping", "nobody else will stop what was started"),
    ("InputEnded", ("stopping", "stopped"), None, "what was started is stopped already, or about to be"),
    ("ShutdownEnded", ("stopping",), "stopped", "it goes on serving until its input ends"),
    ("ShutdownFailed", ("stopping",), "failed", "it goes on serving, and may be asked again"),
    ("ActivityRenewed", ("stopped",), "initialized", "the same work directory may see another deploy"),
)
"""Event, states, the state after it (None: the same) and why."""

SERVED: Final = {(state, event): to or state for event, states, to, _ in SERVED_ROWS for state in states}
"""The state after it, by state and event. What is not in it cannot happen."""
