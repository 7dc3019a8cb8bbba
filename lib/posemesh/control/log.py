"""Whether SQLite's log (WAL) has lost commits that it held. SQLite reads it up to the first frame that is damaged, and
says nothing of those behind. See https://www.sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ("has_lost_commits",)

_MAGIC: Final = 0x377F0682  # one more where checksums are of big-endian words
_HEADER: Final = struct.Struct(">8I")  # magic, version, page size, checkpoint, salt 1 and 2, checksum 1 and 2
_FRAME: Final = struct.Struct(">6I")  # page, database size where it ends a commit, salt 1 and 2, checksum 1 and 2


class _Found(NamedTuple):
    """The header as it is, the frames that are whole, and how many commits end behind them."""

    header: bytes = b""
    whole: int = 0
    lost: int = 0


def has_lost_commits(database: Path) -> bool:
    """Whether more than one commit lies behind the last frame that is whole. The disk was waited for at each, so that a
    crash may leave the last one broken and none before it. Damage to the log's own header, or a log that ends early,
    cannot be told from a crash. Raises OSError.

    The index beside the log would say it too; but who closes that file drops the locks that SQLite has on it.
    """
    try:
        log = os.open(database.with_name(f"{database.name}-wal"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        found = _look(log)
        # A writer may be at work: what it has not finished it will have, and what it began anew begins otherwise.
        return found.lost > 1 and found == _look(log)
    finally:
        os.close(log)


def _look(log: int) -> _Found:
    head = os.pread(log, _HEADER.size, 0)
    if len(head) < _HEADER.size:
        return _Found()
    magic, _, page, _, *salts, one, two = _HEADER.unpack(head)
    words = struct.Struct(">2I" if magic & 1 else "<2I")
    if magic & ~1 != _MAGIC or (one, two) != _sum(words, head[:24], 0, 0):
        return _Found(head)
    whole = lost = 0
    broken = False
    at, size = _HEADER.size, _FRAME.size + page
    while len(frame := os.pread(log, size, at)) == size:
        _, ends, *own, sum1, sum2 = _FRAME.unpack_from(frame)
        if own != salts:  # of the log before it began anew
            break
        if not broken:
            one, two = _sum(words, frame[_FRAME.size :], *_sum(words, frame[:8], one, two))
            broken = (one, two) != (sum1, sum2)
        whole += not broken
        lost += broken and ends > 0
        at += size
    return _Found(head, whole, lost)


def _sum(words: struct.Struct, data: bytes, one: int, two: int) -> tuple[int, int]:
    for left, right in words.iter_unpack(data):
        one = (one + left + two) & 0xFFFFFFFF
        two = (two + right + one) & 0xFFFFFFFF
    return one, two
