"""How user code ended, told so that it can be reported: a code, one line, and what helps to find the cause."""

from __future__ import annotations

import asyncio
import errno
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from posemesh.errors import InvalidCid, StorageError
from posemesh.outcomes import FailureCode
from posemesh.telemetry import scrub
from posemesh.types import JSON

__all__ = ("FAULTS", "Ending", "chain_of", "ending_of", "said", "unasked")

FAULTS: Final = (Exception, asyncio.CancelledError, SystemExit)
"""What user code may raise where it is called by the node, which goes on all the same."""
CHAIN_MAX = 8
SAID_CHARS_MAX = 4000
"""A report that is too large is refused, and the reason lost with it."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """``code`` is None where user code returned. ``details`` are JSON: ``chain``, the errors, outermost first;
    ``output``, the last lines that a program wrote; more where an executor knows more.
    """

    code: FailureCode | None = None
    message: str = ""
    details: dict[str, JSON] = field(default_factory=dict)


def ending_of(error: BaseException | None, output: Sequence[str] = (), *, ready: bool = True) -> Ending:
    """The ending of user code that raised ``error``, or returned where that is None. ``ready`` is False where its
    ``setup()`` had not returned.
    """
    if error is None:
        return Ending()
    details: dict[str, JSON] = {"chain": [*chain_of(error)]}
    if output:
        details["output"] = list(output)
    if isinstance(error, asyncio.CancelledError):
        return Ending(code=FailureCode.CANCELLED, message="the runner was cancelled", details=details)
    code = _code(error) if ready else FailureCode.SETUP_FAILED
    return Ending(code=code, message=said(error), details=details)


def unasked(ending: Ending) -> Ending:
    """The ending of a task that nobody had told to stop: a cancellation is an error of its own then."""
    if ending.code is not FailureCode.CANCELLED:
        return ending
    message = "CancelledError: the runner was cancelled from within; nobody had told it to stop"
    return replace(ending, code=FailureCode.RUNNER_ERROR, message=message)


def chain_of(error: BaseException) -> list[str]:
    """The error, those of a group, and what they came of, each as :func:`said`, nearest first."""
    return [said(each) for each in _causes(error)]


def said(error: BaseException) -> str:
    """The error in words that may be sent: its type and text, cut, without secrets and control characters."""
    try:
        text = str(error).encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
    except Exception as problem:  # user code's own, and how a task ended is told all the same
        text = f"(its text raised {type(problem).__name__})"
    text = scrub(text)  # before it is cut, which may leave a part of a secret
    if len(text) > SAID_CHARS_MAX:
        text = f"{text[:SAID_CHARS_MAX]}…"
    text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)  # some databases take no NUL, some terminals the rest
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _code(error: BaseException) -> FailureCode:
    if isinstance(error, StorageError):
        return error.code
    if isinstance(error, InvalidCid):
        return FailureCode.BAD_INPUT
    if isinstance(error, MemoryError):
        return FailureCode.OUT_OF_MEMORY
    if isinstance(error, BaseExceptionGroup):  # of one mind, as where inputs are fetched at once
        codes = {_code(each) for each in error.exceptions}
        return codes.pop() if len(codes) == 1 else FailureCode.RUNNER_ERROR
    full = (errno.ENOSPC, errno.EDQUOT)
    if any(isinstance(each, OSError) and each.errno in full for each in _causes(error)):
        return FailureCode.DISK_FULL  # user code met it, in its workspace most likely
    return FailureCode.RUNNER_ERROR


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    coming: deque[BaseException] = deque((error,))
    while coming and len(seen) < CHAIN_MAX:
        current = coming.popleft()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            coming.extend(current.exceptions)
        cause = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        if cause is not None:
            coming.append(cause)
