"""What a program writes: reports of the task, and lines for the log."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from posemesh.runners.api import ControlPlane
from posemesh.runners.executors.lines import TAIL_LINES, Lines, shown
from posemesh.telemetry import logger

__all__ = ("LOG_LINES_PER_SEC", "ProgramOutput")

LOG_LINES_PER_SEC: Final = 200
"""What a program writes beyond this is counted and not logged: the node has other things to do."""


class ProgramOutput:
    """A line on stdout that is a JSON object with the one key ``progress`` or ``event`` is reported to ``ctrl``. What
    that refuses, and all else, is logged: of stdout as info, of stderr as warnings; all of it where ``ctrl`` is None.
    ``clock`` gives seconds.
    """

    def __init__(self, ctrl: ControlPlane | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._ctrl = ctrl
        self._clock = clock
        self._last: deque[str] = deque(maxlen=TAIL_LINES)
        self._lines = {"stdout": Lines(self._of_stdout), "stderr": Lines(self._of_stderr)}
        self._second = clock()
        self._left = LOG_LINES_PER_SEC
        self._unlogged = 0

    @property
    def tail(self) -> list[str]:
        """The last lines of both that were no reports, fit to be reported."""
        return Lines(kept=self._last).tail

    def take(self, stream: str, data: bytes) -> None:
        """What came of ``stdout`` or ``stderr`` next."""
        self._lines[stream].feed(data)

    def close(self) -> None:
        """Nothing follows."""
        for lines in self._lines.values():
            lines.close()
        self._tell_of_unlogged()

    def _of_stdout(self, text: str, cut: bool) -> None:
        if not self._reported(text):
            self._line("INFO", text, cut)

    def _of_stderr(self, text: str, cut: bool) -> None:
        self._line("WARNING", text, cut)

    def _reported(self, text: str) -> bool:
        if self._ctrl is None or not text.lstrip().startswith("{"):
            return False
        try:
            match json.loads(text):
                case {"progress": value, **others} if not others:
                    self._ctrl.progress(value)
                case {"event": value, **others} if not others:
                    self._ctrl.log_event(value)
                case _:
                    return False
        except json.JSONDecodeError:
            return False
        except (TypeError, ValueError, RecursionError) as error:
            self._log("WARNING", f"a report was refused: {error}")
            return False
        return True

    def _line(self, level: str, text: str, cut: bool) -> None:
        self._last.append(text)
        self._log(level, text, " [cut]" if cut else "")

    def _log(self, level: str, text: str, mark: str = "") -> None:
        now = self._clock()
        if now - self._second >= 1:
            self._tell_of_unlogged()
            self._second, self._left = now, LOG_LINES_PER_SEC
        if self._left:
            self._left -= 1
            logger().log(level, shown(text) + mark)
        else:
            self._unlogged += 1

    def _tell_of_unlogged(self) -> None:
        count, self._unlogged = self._unlogged, 0
        if count:
            logger().warning(f"{count} more lines of the program are not logged, only {LOG_LINES_PER_SEC} a second")
