"""What programs write, line by line: bounded, decoded, and fit for a log."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Final

from posemesh.telemetry import scrub

__all__ = ("LINE_BYTES_MAX", "LINE_CHARS_MAX", "TAIL_CHARS_MAX", "TAIL_LINES", "Lines", "shown")

LINE_BYTES_MAX: Final = 64 * 1024
"""What is kept of one line; the rest of it is dropped."""
LINE_CHARS_MAX: Final = 4096
"""What is shown of one line."""
TAIL_LINES: Final = 20
TAIL_CHARS_MAX: Final = 16 * 1024
"""Of all lines of a tail together: a report that is too large is refused."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class Lines:
    """Bytes in, lines out: ``on_line`` is called with each one's text, without its end, and whether it was cut.

    The text is what is kept, up to LINE_BYTES_MAX; :func:`shown` makes it fit for a log. Bytes that are no UTF-8 come
    as U+FFFD. Two that are given the same ``kept`` have one tail.
    """

    def __init__(self, on_line: Callable[[str, bool], None] | None = None, *, kept: deque[str] | None = None) -> None:
        self._on_line = on_line
        self._line = bytearray()
        self._cut = False
        self._kept: deque[str] = deque(maxlen=TAIL_LINES) if kept is None else kept

    def feed(self, data: bytes) -> None:
        """Take in what was written next."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._add(data[start:end])
            self._end_line()
            start = end + 1
        self._add(data[start:])

    def close(self) -> None:
        """Nothing follows: what came since the last end of a line is a line."""
        if self._line or self._cut:
            self._end_line()

    @property
    def tail(self) -> list[str]:
        """The last lines as :func:`shown`, at most TAIL_LINES and TAIL_CHARS_MAX, without secrets."""
        found: list[str] = []
        room = TAIL_CHARS_MAX
        for line in reversed(self._kept):
            text = shown(line)
            room -= len(text)
            if room < 0 and found:
                break
            found.append(text)
        return found[::-1]

    def _add(self, piece: bytes) -> None:
        room = LINE_BYTES_MAX - len(self._line)
        self._line += piece[:room]
        self._cut = self._cut or len(piece) > room

    def _end_line(self) -> None:
        text = self._line.removesuffix(b"\r").decode("utf-8", "replace")
        cut, self._cut = self._cut, False
        self._line.clear()
        self._kept.append(text)
        if self._on_line is not None:
            self._on_line(text, cut)


def shown(text: str) -> str:
    """``text`` fit for a log: without secrets, control characters escaped, at most LINE_CHARS_MAX and what was cut."""
    text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], scrub(text))
    over = len(text) - LINE_CHARS_MAX
    return text if over <= 0 else f"{text[:LINE_CHARS_MAX]}… {over} more"
