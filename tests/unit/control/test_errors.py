"""The two families of errors: their members, fields and texts are what others rely on."""

from __future__ import annotations

import pytest

from posemesh.control import errors
from posemesh.control.errors import RuntimeControlPlaneError, RuntimeDriverError, refused
from posemesh.control.records import LogicalRuntimeId, RuntimeState
from posemesh.errors import IllegalTransition, OperationRefused, PosemeshError

RUNTIME = LogicalRuntimeId("missing")
READY, IDLE = RuntimeState.INITIALIZING, RuntimeState.IDLE


@pytest.mark.parametrize(
    ("error", "fields", "text"),
    [
        (RuntimeDriverError.NotReady(READY), {"state": READY}, "Runtime not ready: initializing"),
        (RuntimeDriverError.NotFound(RUNTIME), {"runtime_id": RUNTIME}, "Runtime not found: missing"),
        (RuntimeDriverError.ValidationFailed("bad"), {"reason": "bad"}, "Input validation failed: bad"),
        (RuntimeDriverError.Destroyed(), {}, "Runtime destroyed"),
        (RuntimeDriverError.RecoveryCorruption("bad"), {"reason": "bad"}, "Recovery corruption: bad"),
        (RuntimeDriverError.Internal("bad"), {}, "Internal error: bad"),
        (RuntimeControlPlaneError.NotFound(RUNTIME), {"runtime_id": RUNTIME}, "Runtime not found: missing"),
        (RuntimeControlPlaneError.InvalidState(IDLE), {"state": IDLE}, "Invalid state for operation: idle"),
        (RuntimeControlPlaneError.StoreError("full"), {}, "Store error: full"),
        (RuntimeControlPlaneError.Internal("bad"), {}, "Internal error: bad"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_member(error: PosemeshError, fields: dict[str, object], text: str) -> None:
    assert str(error) == text
    assert {name: getattr(error, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("family", "members"),
    [
        (
            RuntimeDriverError,
            {"NotReady", "NotFound", "ValidationFailed", "Destroyed", "RecoveryCorruption", "Internal"},
        ),
        (RuntimeControlPlaneError, {"NotFound", "InvalidState", "StoreError", "Internal"}),
    ],
)
def test_the_members_are_these(family: type[PosemeshError], members: set[str]) -> None:
    named = {name: kind for name, kind in vars(family).items() if isinstance(kind, type)}
    assert set(named) == members and set(named.values()) == set(family.__subclasses__())


def test_the_families_are_apart() -> None:
    assert not issubclass(RuntimeDriverError, RuntimeControlPlaneError)
    assert RuntimeDriverError.NotFound is not RuntimeControlPlaneError.NotFound
    assert {getattr(errors, name) for name in errors.__all__ if name != "refused"} == {
        *RuntimeDriverError.__subclasses__(),
        *RuntimeControlPlaneError.__subclasses__(),
        RuntimeDriverError,
        RuntimeControlPlaneError,
    }


def test_what_a_machine_refuses_names_state_operation_and_guard() -> None:
    cause = OperationRefused("driver", "running", "RunCommitted", "the run is in progress")
    error = refused(cause, RuntimeState.RUNNING)
    assert isinstance(error, RuntimeDriverError.NotReady) and error.__cause__ is cause
    assert (error.state, error.operation, error.guard) == ("running", "RunCommitted", "the run is in progress")
    error = refused(IllegalTransition("driver", "destroyed", "InputAccepted"), RuntimeState.DESTROYED)
    assert isinstance(error, RuntimeDriverError.Destroyed) and error.operation == "InputAccepted"
    error = refused(OperationRefused("input", "staged", "InputApplied", "the run is its own"), IDLE)
    assert isinstance(error, RuntimeDriverError.ValidationFailed)
    assert (error.operation, error.guard) == ("InputApplied", "the run is its own")
