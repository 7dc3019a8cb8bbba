"""What a driver and the control plane raise. Two families, each with a fixed set of members and texts.

A member is found by its short name as well: ``except RuntimeDriverError.NotFound``. The plane's error for a driver's
has it as ``driver_error``, so that nothing is lost on the way up.
"""

from __future__ import annotations

from typing import ClassVar

from posemesh.control.records import LogicalRuntimeId, RuntimeState
from posemesh.errors import IllegalTransition, OperationRefused, PosemeshError

__all__ = (
    "DriverDestroyed",
    "DriverInternal",
    "DriverNotFound",
    "DriverNotReady",
    "DriverRecoveryCorruption",
    "DriverValidationFailed",
    "PlaneInternal",
    "PlaneInvalidState",
    "PlaneNotFound",
    "PlaneStoreError",
    "RuntimeControlPlaneError",
    "RuntimeDriverError",
    "refused",
)


class RuntimeDriverError(PosemeshError):
    """A driver did not do what was asked. ``operation`` and ``guard`` are what a machine refused and what has to hold
    for it, where a machine did.
    """

    NotReady: ClassVar[type[DriverNotReady]]
    NotFound: ClassVar[type[DriverNotFound]]
    ValidationFailed: ClassVar[type[DriverValidationFailed]]
    Destroyed: ClassVar[type[DriverDestroyed]]
    RecoveryCorruption: ClassVar[type[DriverRecoveryCorruption]]
    Internal: ClassVar[type[DriverInternal]]
    operation: str = ""
    guard: str = ""


class DriverNotReady(RuntimeDriverError):
    """The runtime is in a ``state`` in which the operation cannot be done."""

    def __init__(self, state: RuntimeState, operation: str = "", guard: str = "") -> None:
        self.state, self.operation, self.guard = state, operation, guard
        super().__init__(f"Runtime not ready: {state}")


class DriverNotFound(RuntimeDriverError):
    """No such runtime was ever made; one that was destroyed is another matter."""

    def __init__(self, runtime_id: LogicalRuntimeId) -> None:
        self.runtime_id = runtime_id
        super().__init__(f"Runtime not found: {runtime_id}")


class DriverValidationFailed(RuntimeDriverError):
    """What was given cannot be used."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Input validation failed: {reason}")


class DriverDestroyed(RuntimeDriverError):
    """The runtime is over for good."""

    def __init__(self, operation: str = "") -> None:
        self.operation = operation
        super().__init__("Runtime destroyed")


class DriverRecoveryCorruption(RuntimeDriverError):
    """What is stored does not make sense. It was left as it is."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Recovery corruption: {reason}")


class DriverInternal(RuntimeDriverError):
    """Anything else, first of all what the store did not do: that error is the cause."""

    def __init__(self, text: str) -> None:
        super().__init__(f"Internal error: {text}")


RuntimeDriverError.NotReady = DriverNotReady
RuntimeDriverError.NotFound = DriverNotFound
RuntimeDriverError.ValidationFailed = DriverValidationFailed
RuntimeDriverError.Destroyed = DriverDestroyed
RuntimeDriverError.RecoveryCorruption = DriverRecoveryCorruption
RuntimeDriverError.Internal = DriverInternal


class RuntimeControlPlaneError(PosemeshError):
    """The control plane did not do what was asked. ``driver_error`` is what the runtime's driver raised, if it did."""

    NotFound: ClassVar[type[PlaneNotFound]]
    InvalidState: ClassVar[type[PlaneInvalidState]]
    StoreError: ClassVar[type[PlaneStoreError]]
    Internal: ClassVar[type[PlaneInternal]]
    driver_error: RuntimeDriverError | None = None


class PlaneNotFound(RuntimeControlPlaneError):
    """No such runtime was ever made."""

    def __init__(self, runtime_id: LogicalRuntimeId) -> None:
        self.runtime_id = runtime_id
        super().__init__(f"Runtime not found: {runtime_id}")


class PlaneInvalidState(RuntimeControlPlaneError):
    """The runtime is in a ``state`` in which the ``operation`` cannot be done, or its ``guard`` does not hold."""

    def __init__(self, state: RuntimeState, operation: str = "", guard: str = "") -> None:
        self.state, self.operation, self.guard = state, operation, guard
        super().__init__(f"Invalid state for operation: {state}")


class PlaneStoreError(RuntimeControlPlaneError):
    """The store did not do its part; its own error is the cause."""

    def __init__(self, text: str) -> None:
        super().__init__(f"Store error: {text}")


class PlaneInternal(RuntimeControlPlaneError):
    """Anything else."""

    def __init__(self, text: str) -> None:
        super().__init__(f"Internal error: {text}")


RuntimeControlPlaneError.NotFound = PlaneNotFound
RuntimeControlPlaneError.InvalidState = PlaneInvalidState
RuntimeControlPlaneError.StoreError = PlaneStoreError
RuntimeControlPlaneError.Internal = PlaneInternal


def refused(error: IllegalTransition, state: RuntimeState) -> RuntimeDriverError:
    """What a driver raises where a machine refused: the state, the operation and the guard are named."""
    guard = error.guard if isinstance(error, OperationRefused) else ""
    if error.machine != "driver":
        made: RuntimeDriverError = DriverValidationFailed(str(error))
        made.operation, made.guard = error.trigger, guard
    elif state is RuntimeState.DESTROYED:
        made = DriverDestroyed(error.trigger)
    else:
        made = DriverNotReady(state, error.trigger, guard)
    made.__cause__ = error
    return made
