"""What a runtime's handlers raise, and what becomes of it: a message and a code, as whoever asked is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final

from posemesh.errors import PosemeshError

__all__ = ("EXITS", "CommandExit", "HandlerError", "NotSupported", "SettingsError", "as_error", "report")


EXITS: Final = (SystemExit, KeyboardInterrupt)
"""What would end the loop with all that runs on it, were it not caught in the handler that raises it."""


class HandlerError(PosemeshError):
    """What a handler raises to say why it cannot do what it was asked. ``code`` is 1 where there is no better one;
    ``context`` goes with it to whoever asked over the protocol.
    """

    def __init__(self, message: str, code: int = 1, context: Mapping[str, str] | None = None) -> None:
        self.message = message
        self.code = code
        self.context: Mapping[str, str] = context or {}
        super().__init__(message)


class NotSupported(HandlerError):
    """What a runtime answers to a request that it has no handler for."""

    def __init__(self) -> None:
        super().__init__("Not supported")


class CommandExit(Exception):
    """Raised in a command, it ends with this exit ``code``, of 32 bits, instead of 0 or 1."""

    def __init__(self, code: int) -> None:
        if not -(1 << 31) <= code < 1 << 31:
            raise ValueError(f"an exit code has 32 bits, got {code}")
        self.code = code
        super().__init__(f"exit code {code}")


class SettingsError(PosemeshError):
    """A configuration file that cannot be used. ``cause`` says what is wrong in it."""

    def __init__(self, message: str, cause: str) -> None:
        self.cause = cause
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.args[0]}\n\nCaused by:\n    {self.cause}"


def as_error(error: BaseException) -> HandlerError:
    """Any exception as a message and a code. An OSError has the system's text and number, without file names."""
    if isinstance(error, HandlerError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        text = error.strerror or os.strerror(error.errno)
        return HandlerError(f"{text} (os error {error.errno})", error.errno)
    if isinstance(error, SystemExit):
        return HandlerError(f"The handler wanted to end the program, with exit code {error.code}")
    return HandlerError(str(error) or type(error).__name__)


def report(error: BaseException, before: str = "") -> None:
    """Tell stderr of it; with a traceback where nobody raised it on purpose."""
    stderr = sys.stderr
    if stderr is None:
        return
    known = as_error(error)
    try:
        if not isinstance(error, PosemeshError | OSError):
            import traceback

            traceback.print_exception(error, file=stderr)
        text = str(error) if isinstance(error, SettingsError) else f"{known.message} (code: {known.code})"
        stderr.write(f"Error: {before}{text}\n")
        stderr.flush()
    except (OSError, ValueError):
        pass  # nobody listens
