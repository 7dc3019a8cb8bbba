"""What a runtime that is driven can do wrong, as errors: what it was asked, what came of that, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping

from posemesh.errors import PosemeshError

__all__ = ("GolemError", "RuntimeEnded", "RuntimeGarbled", "RuntimeRefused", "RuntimeSilent", "StepFailed")


class GolemError(PosemeshError):
    """The base of all of them. ``step`` is what the runtime was asked: test, offer-template, deploy, start, run, kill,
    network or stop.
    """

    def __init__(self, step: str, message: str) -> None:
        self.step = step
        super().__init__(message)


class RuntimeEnded(GolemError):
    """The runtime could not be started, or ended before it had answered, or while a command ran. ``code`` is its exit
    code, None where there is none; ``signal`` the name of what killed it.
    """

    def __init__(self, step: str, message: str, *, code: int | None = None, signal: str | None = None) -> None:
        self.code = code
        self.signal = signal
        super().__init__(step, message)


class RuntimeSilent(GolemError, TimeoutError):
    """No answer within ``seconds``."""

    def __init__(self, step: str, message: str, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(step, message)


class RuntimeGarbled(GolemError):
    """Its stdout holds something else than was agreed, or more than any answer has. It was killed."""


class RuntimeRefused(GolemError):
    """It answered with an error: ``code``, ``message`` and ``context`` are its own."""

    def __init__(self, step: str, code: int, message: str, context: Mapping[str, str]) -> None:
        self.code = code
        self.message = message
        self.context = dict(context)
        known = f" {self.context}" if context else ""
        super().__init__(step, f"{step}: the runtime refused: {message or 'without a reason'} (code: {code}){known}")


class StepFailed(GolemError):
    """A step that runs to its end ended badly, with exit code ``code``, or with 0 and a word that it had failed."""

    def __init__(self, step: str, message: str, code: int) -> None:
        self.code = code
        super().__init__(step, message)
