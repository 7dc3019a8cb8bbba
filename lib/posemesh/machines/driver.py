"""Driver: one hosted runtime, from its creation to its end."""

from __future__ import annotations

from posemesh.machines._kernel import State

__all__ = ("RuntimeState",)


class RuntimeState(State):
    INITIALIZING = "initializing", "Made, and not registered by any process."
    IDLE = "idle", "Registered; nothing is there to run inputs."
    ATTACHED = "attached", "What runs inputs is ready."
    RUNNING = "running", "At least one run is in progress."
    RETIRED = "retired", "It takes no new input and works off what it has."
    STOPPED = "stopped", "What ran inputs is gone."
    DESTROYED = "destroyed", "It is over for good."
