"""Whether SQLite's log (WAL) has lost commits that it held. SQLite reads it up to the first frame that is damaged, and
says nothing of those behind. See https://www.sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

__all__ = ("has_lost_commits",)

_HEADER: Final = struct.Struct(">8I")  # magic, version, page size, checkpoint, salt 1 and 2, checksum 1 and 2
_MAGIC: Final = 0x377F0682  # one more where checksums are of big-endian words
_FRAME: Final = struct.Struct(">6I")  # page, database size where it ends a commit, salt 1 and 2, checksum 1 and 2
# Of the index beside the log, in the machine's byte order: the last frame that counts is the fifth word.
_INDEX: Final = struct.Struct("=5I")


def has_lost_commits(database: Path) -> bool:
    """Whether more than one whole commit lies behind the last frame that counts. The disk was waited for at each, so
    that a crash may leave the last one broken and none before it. Damage to the log's own header, or a log that ends
    early, cannot be told from a crash.

    Something must have been read from the database before, so that the index is there. Raises OSError.
    """
    log, index = (database.with_name(f"{database.name}-{end}") for end in ("wal", "shm"))
    try:
        file = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        commits = _commits(file)
    finally:
        os.close(file)
    # Read after the log: what another process adds meanwhile counts.
    counted = _last_frame(index)
    return counted is not None and len([number for number in commits if number > counted]) > 1


def _commits(log: int) -> list[int]:
    """The frames that end a commit."""
    head = os.pread(log, _HEADER.size, 0)
    if len(head) < _HEADER.size:
        return []
    magic, _, page, _, *salts, one, two = _HEADER.unpack(head)
    if magic & ~1 != _MAGIC or (one, two) != _sum(head[:24], ">" if magic & 1 else "<"):
        return []
    found, size = [], _FRAME.size + page
    for number in range(1, (os.fstat(log).st_size - _HEADER.size) // size + 1):
        frame = os.pread(log, _FRAME.size, _HEADER.size + (number - 1) * size)
        _, ends, *own, _, _ = _FRAME.unpack(frame)
        if own != salts:  # of the log before it began anew
            break
        if ends:
            found.append(number)
    return found


def _sum(data: bytes, order: str) -> tuple[int, int]:
    one = two = 0
    for left, right in struct.iter_unpack(f"{order}2I", data):
        one = (one + left + two) & 0xFFFFFFFF
        two = (two + right + one) & 0xFFFFFFFF
    return one, two


def _last_frame(index: Path) -> int | None:
    try:
        head = index.read_bytes()[: _INDEX.size]
    except FileNotFoundError:
        return None
    return int(_INDEX.unpack(head)[4]) if len(head) == _INDEX.size else None
