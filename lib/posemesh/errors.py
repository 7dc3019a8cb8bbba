"""Every error posemesh raises on purpose. Each message says what was expected and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from posemesh.outcomes import FailureCode

__all__ = (
    "BadInput",
    "CallbackRefused",
    "ChallengeRefused",
    "ConfigError",
    "DiskFull",
    "DuplicateRunner",
    "IllegalTransition",
    "InvalidCid",
    "InvalidSpec",
    "MissingField",
    "NoRunner",
    "NodeStartError",
    "NodeStopped",
    "OperationRefused",
    "PosemeshError",
    "RegistrationRefused",
    "RunnerError",
    "RunnerInternal",
    "RunnerIo",
    "SignInRefused",
    "StorageError",
    "TargetError",
    "TaskStopped",
    "UndecodableLease",
    "UnsupportedKind",
    "UploadFailed",
    "WireError",
)


class PosemeshError(Exception):
    """The base of all of them."""


class ConfigError(PosemeshError):
    """Settings that cannot be used. ``problems`` holds one line a variable, never a secret's value."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("configuration:\n" + "\n".join(f"  {line}" for line in self.problems))


class IllegalTransition(PosemeshError):
    """An event that the machine's table has no edge for. Nothing was changed.

    ``state`` and ``trigger`` name the cell of the table; ``story`` holds the latest moves before it.
    """

    def __init__(self, machine: str, state: str, trigger: str, story: Sequence[str] = ()) -> None:
        self.machine = machine
        self.state = state
        self.trigger = trigger
        self.story = tuple(story)
        past = "; before it: " + ", ".join(self.story) if self.story else ""
        super().__init__(f"{machine} in state {state!r} has no edge for {trigger}{past}")


class OperationRefused(IllegalTransition):
    """An event that the machine's table takes in this state, but not under these circumstances. Nothing was changed.

    ``guard`` is what has to hold for it.
    """

    def __init__(self, machine: str, state: str, trigger: str, guard: str, story: Sequence[str] = ()) -> None:
        super().__init__(machine, state, trigger, story)
        self.guard = guard
        self.args = (f"{machine} in state {state!r} takes {trigger} only where this holds: {guard}",)


class NodeStartError(PosemeshError):
    """The node could not start and will not try again."""


class RegistrationRefused(NodeStartError):
    """DDS answered 400, 401 or 403 to the registration three times running, before any success."""


class SignInRefused(NodeStartError):
    """DDS refused every sign-in of a round (400, 401 or 403), before the first token."""


class NodeStopped(PosemeshError):
    """Asked of a node that is not running."""


class TaskStopped(PosemeshError):
    """The task was told to stop, so nothing more goes out for it: its lease is over, it was cancelled, or the node
    leaves.
    """


class TargetError(PosemeshError):
    """The program or module given to ``run`` holds no usable ``Node``."""


class WireError(PosemeshError):
    """A body, header or name that does not have the form the protocol gives it."""


class UndecodableLease(WireError):
    """A lease that cannot be read. ``task_id`` is set where it names its task, so it can be failed back."""

    def __init__(self, reason: str, task_id: str | None = None) -> None:
        self.reason = reason
        self.task_id = task_id
        super().__init__(f"lease cannot be decoded: {reason}")


class CallbackRefused(WireError):
    """A registration callback the node does not take. ``status`` and ``text`` are the answer it gets."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(f"registration callback answered {status}: {text}")


class ChallengeRefused(WireError):
    """A sign-in challenge that is not for this node and this DDS. It was not signed."""


class InvalidCid(WireError):
    """An input id that names no item of the lease's domain."""


class StorageError(PosemeshError):
    """The domain server did not do what was asked. ``status`` is its HTTP status, None without an answer.

    ``code`` is what a task that ends with this error is failed with.
    """

    code: ClassVar[FailureCode] = FailureCode.RUNNER_ERROR

    def __init__(self, message: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class BadInput(StorageError):
    """An input that is not there, did not come whole, cannot be read, exceeds a limit or is not safe to unpack.

    Nothing is left of it.
    """

    code = FailureCode.BAD_INPUT


class UploadFailed(StorageError):
    """An artifact that is not, or not surely, on the domain server."""

    code = FailureCode.UPLOAD_FAILED


class DiskFull(StorageError):
    """No room is left for the task's files, on the disk or under WORKSPACE_BYTES_MAX."""

    code = FailureCode.DISK_FULL


class RunnerError(PosemeshError):
    """A task that no runner takes, or a runner that cannot be built for it.

    ``kind`` is one of a few fixed words, for metrics and for branching; the text is for people.
    """

    kind: ClassVar[str] = "other"


class NoRunner(RunnerError):
    """No runner of this node takes a task of ``capability``; the text says of each that came near what it lacked."""

    kind = "no_runner"

    def __init__(self, capability: str, why: str = "none is registered for it") -> None:
        self.capability = capability
        self.why = why
        super().__init__(f"no runner for {capability!r:.200}: {why}")


class UnsupportedKind(RunnerError):
    """Raised by a runner that is to be built for a ``capability`` (what the task is: its kind) which it cannot do."""

    kind = "unsupported_kind"

    def __init__(self, runner: str, capability: str) -> None:
        self.runner = runner
        self.capability = capability
        super().__init__(f"runner {runner!r} cannot do {capability!r:.200}; its supports() should say so")


class InvalidSpec(RunnerError):
    """A task that says something its runner, or the choice of one, cannot use."""

    kind = "invalid_spec"


class MissingField(RunnerError):
    """A task of ``capability`` without the ``field`` that its runner needs."""

    kind = "missing_field"

    def __init__(self, field: str, capability: str) -> None:
        self.field = field
        self.capability = capability
        super().__init__(f"a task of {capability!r:.200} needs the field {field!r:.200}, and has none")


class RunnerIo(RunnerError):
    """A file, program or connection that a runner needs cannot be had; the OSError is the cause."""

    kind = "io"


class RunnerInternal(RunnerError):
    """A runner met a state that it never should be in: an error of its program, not of the task."""

    kind = "internal"


class DuplicateRunner(RunnerError):
    """A second runner of the same ``name``. It was not registered, and the first one stays as it is."""

    kind = "duplicate_runner"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"a runner named {name!r} is registered already; give each runner a name of its own")
