"""Lines of what programs write: bounded, whole where they are short, and fit for a log."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from posemesh.runners.executors.lines import (
    LINE_BYTES_MAX,
    LINE_CHARS_MAX,
    TAIL_CHARS_MAX,
    TAIL_LINES,
    Lines,
    shown,
)
from posemesh.secret import Secret
from posemesh.telemetry import register_secret


def lines_of(*pieces: bytes) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    lines = Lines(lambda text, cut: found.append((text, cut)))
    for piece in pieces:
        lines.feed(piece)
    lines.close()
    return found


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7))
def test_lines_are_the_same_however_they_arrive(parts: list[bytes], size: int) -> None:
    data = b"\n".join(parts)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert lines_of(*pieces) == lines_of(data)


def test_the_last_line_needs_no_end() -> None:
    assert lines_of(b"a\nb") == [("a", False), ("b", False)]
    assert lines_of(b"a\n") == [("a", False)]
    assert lines_of() == []


def test_both_ends_of_lines_are_taken_off_and_a_lone_return_stays() -> None:
    assert lines_of(b"a\r\n\n b\rc \n") == [("a", False), ("", False), (" b\rc ", False)]


def test_a_line_over_the_limit_is_cut_and_the_next_arrives_whole() -> None:
    long = b"x" * (LINE_BYTES_MAX + 1)
    cut = ("x" * LINE_BYTES_MAX, True)
    assert lines_of(long, b"\nnext\n") == [cut, ("next", False)]
    assert lines_of(long * 3, long, b"\n" + long) == [cut, cut]
    assert lines_of(long[1:] + b"\n") == [("x" * LINE_BYTES_MAX, False)]


def test_what_is_no_text_is_replaced() -> None:
    assert lines_of(b"a\xffb\n") == [("a�b", False)]


def test_a_line_in_a_log_has_no_control_characters_no_secret_and_an_end() -> None:
    register_secret(Secret("hunter2-hunter2"))
    assert shown("\x1b[2Jpass: hunter2-hunter2\x00\r\u2028\tdone") == "\\x1b[2Jpass: ***\\x00\\r\\u2028\tdone"
    text = shown("x" * (LINE_CHARS_MAX + 5))
    assert text == "x" * LINE_CHARS_MAX + "… 5 more"


def test_the_tail_is_the_last_lines_of_all_streams_that_share_it() -> None:
    kept: deque[str] = deque(maxlen=TAIL_LINES)
    out, err = Lines(kept=kept), Lines(kept=kept)
    out.feed(b"".join(b"%d\n" % number for number in range(50)))
    err.feed(b"oh\n")
    assert out.tail == err.tail == [*map(str, range(31, 50)), "oh"]


def test_the_tail_has_a_size_that_a_report_can_have() -> None:
    lines = Lines()
    lines.feed(b"first\n" + (b"x" * LINE_BYTES_MAX + b"\n") * TAIL_LINES)
    assert 0 < sum(map(len, lines.tail)) <= TAIL_CHARS_MAX
    assert lines.tail[-1].startswith("xxx")


def test_a_secret_that_became_known_later_is_not_in_the_tail() -> None:
    lines = Lines()
    lines.feed(b"the token is tell-nobody-of-this\n")
    register_secret(Secret("tell-nobody-of-this"))
    assert lines.tail == ["the token is ***"]
