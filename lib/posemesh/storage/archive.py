"""Unpacking zip archives of strangers: nothing outside the directory, nothing but files, no more than agreed.

An archive can claim anything: what is written is counted, not what it says of itself.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from posemesh.errors import BadInput
from posemesh.storage.workspace import disk_errors

__all__ = ("Budget", "extract", "is_archive")

ENTRIES_MAX = 10_000
"""So many files and directories are made of one input, and so many entries has an archive."""
DIRECTORY_BYTES = 4096
"""What a directory counts for: a file system gives it a block."""
LIST_BYTES_MAX = 3 * 1024 * 1024
"""The list of entries is read whole, and takes eight times as much memory then. With 300 bytes each it is full."""
RATIO_MAX = 200
"""Unpacked bytes for each packed one, beyond UNSUSPECTED_BYTES. Deflate reaches 1,032, scans and images below 20."""
UNSUSPECTED_BYTES = 64 * 1024 * 1024
PIECE_BYTES = 256 * 1024
ENDS_BYTES = 128 * 1024
"""At most so much is read of an archive's end before its list of entries, which may overlap it."""
NAME_BYTES_MAX = 255
DEPTH_MAX = 64
# Two entries of one name, one below a file, a name that the file system does not take.
_ILL_NAMED = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL})


@dataclass(slots=True)
class Budget:
    """What may still be made of one input.

    ``take`` is told of so many bytes before they are written, and may refuse them; ``check`` is called at least once
    for each entry and each piece, and may raise, to stop it.
    """

    bytes: int
    take: Callable[[int], None]
    check: Callable[[], None]
    entries: int = ENTRIES_MAX


def is_archive(path: Path) -> bool:
    """Whether the file is a zip archive, by its content."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def extract(archive: Path, target: Path, budget: Budget) -> tuple[Path, ...]:
    """Unpack ``archive`` into the directory ``target``, which is made, and return its files in the archive's order.

    Raises BadInput for what is not safe, broken or beyond the budget; DiskFull; what the budget's functions raise. What
    was written until then is left to the caller.
    """
    with disk_errors(f"unpacking {archive.name}"), archive.open("rb") as raw:
        packed = os.fstat(raw.fileno()).st_size
        try:
            with zipfile.ZipFile(_Bounded(raw, packed, budget.check)) as opened:
                target.mkdir()
                unpacking = _Unpacking(archive.name, target, budget, max(UNSUSPECTED_BYTES, RATIO_MAX * packed))
                return unpacking.run(opened)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
            raise BadInput(f"archive {archive.name} cannot be unpacked: {error}") from error


class _Unpacking:
    """One archive's, of which no more than ``allowed`` bytes may come."""

    def __init__(self, name: str, target: Path, budget: Budget, allowed: int) -> None:
        self._name = name
        self._target = target
        self._budget = budget
        self._allowed = allowed

    def run(self, opened: zipfile.ZipFile) -> tuple[Path, ...]:
        entries = opened.infolist()
        if len(entries) > ENTRIES_MAX:
            _refuse(self._name, f"it has more than {ENTRIES_MAX} entries")
        places = [_place(self._name, entry) for entry in entries]
        files = []
        for entry, place in zip(entries, places, strict=True):
            self._budget.check()
            path = self._target.joinpath(*place)
            directory = path if entry.is_dir() else path.parent
            try:
                self._make(directory)
                file = None if entry.is_dir() else self._open(path)
            except OSError as error:
                if error.errno not in _ILL_NAMED:
                    raise
                _refuse(self._name, f"one of its entries cannot be made beside the others: {error.strerror}")
            if file is not None:
                with file, opened.open(entry) as source:
                    self._fill(file, source)
                files.append(path)
        return tuple(files)

    def _make(self, directory: Path) -> None:
        missing = []
        while not directory.is_dir():
            missing.append(directory)
            directory = directory.parent
        for each in reversed(missing):
            self._count()
            self._take(DIRECTORY_BYTES)
            each.mkdir()

    def _open(self, path: Path) -> IO[bytes]:
        self._count()
        return path.open("xb")

    def _fill(self, file: IO[bytes], source: IO[bytes]) -> None:
        while piece := source.read(PIECE_BYTES):
            self._budget.check()
            self._take(len(piece))
            file.write(piece)

    def _count(self) -> None:
        self._budget.entries -= 1
        if self._budget.entries < 0:
            _refuse(self._name, f"more than {ENTRIES_MAX} files and directories would be made")

    def _take(self, size: int) -> None:
        self._allowed -= size
        self._budget.bytes -= size
        if min(self._allowed, self._budget.bytes) < 0:
            _refuse(self._name, "it unpacks to more than is allowed")
        self._budget.take(size)


def _place(name: str, entry: zipfile.ZipInfo) -> list[str]:
    """Where an entry goes below the directory, part by part."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        _refuse(name, "it holds a link or a device")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        _refuse(name, "it is packed otherwise than by deflate, the one way that unpacks in pieces")
    if entry.flag_bits & 0x1:
        _refuse(name, "it is encrypted")
    # zipfile cuts a name at a NUL: what is shown elsewhere is then not what is written here.
    path = entry.orig_filename
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not parts or "\\" in path or path[1:2] == ":":
        _refuse(name, "it holds a path that leads outside")
    if len(parts) > DEPTH_MAX:
        _refuse(name, f"it has more than {DEPTH_MAX} directories in one another")
    if not all(part.isprintable() and len(part.encode("utf-8", "replace")) <= NAME_BYTES_MAX for part in parts):
        _refuse(name, "it holds a name that is none")
    return parts


def _refuse(name: str, why: str) -> NoReturn:
    raise BadInput(f"archive {name} is refused: {why}")


class _Bounded(io.RawIOBase):
    """A file of which no read takes more than the list of entries may have: zipfile reads that in one piece.

    All of them together take no more than twice the file. Entries that share their bytes could else be read without
    end, and bytes that unpack to nothing as often as there are entries.
    """

    def __init__(self, file: IO[bytes], size: int, check: Callable[[], None]) -> None:
        self._file = file
        self._size = size
        self._left = 2 * size + ENDS_BYTES
        self._check = check

    def read(self, size: int | None = -1) -> bytes:
        self._check()
        left = max(0, self._size - self._file.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > LIST_BYTES_MAX:
            raise zipfile.BadZipFile("its list of entries is too long")
        self._left -= wanted
        if self._left < 0:
            raise zipfile.BadZipFile("its entries share their bytes")
        return self._file.read(wanted)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and not 0 <= offset <= self._size:
            raise zipfile.BadZipFile("it points outside of itself")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
