"""Unpacking zip archives of strangers: nothing outside the directory, nothing but files, no more than agreed.

An archive can claim anything: what is written is counted, not what it says of itself.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, NoReturn

from posemesh.errors import BadInput
from posemesh.storage.workspace import disk_errors

__all__ = ("extract", "is_archive")

ENTRIES_MAX = 10_000
DIRECTORY_BYTES_MAX = 16 * 1024 * 1024
"""The list of entries is read whole; this is what it may take."""
RATIO_MAX = 200
"""Unpacked bytes for each packed one, beyond UNSUSPECTED_BYTES. Deflate reaches 1,032, scans and images below 20."""
UNSUSPECTED_BYTES = 64 * 1024 * 1024
PIECE_BYTES = 256 * 1024
NAME_BYTES_MAX = 255
DEPTH_MAX = 64


def is_archive(path: Path) -> bool:
    """Whether the file is a zip archive, by its content."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def extract(archive: Path, target: Path, *, limit: int, take: Callable[[int], None]) -> tuple[Path, ...]:
    """Unpack ``archive`` into the directory ``target``, which is made, and return its files in the archive's order.

    ``take`` is told of each piece before it is written, and may refuse it. Raises BadInput for what is not safe, broken
    or more than ``limit`` bytes; DiskFull. What was written until then is left to the caller.
    """
    with disk_errors(f"unpacking {archive.name}"), archive.open("rb") as raw:
        allowed = min(limit, max(UNSUSPECTED_BYTES, RATIO_MAX * os.fstat(raw.fileno()).st_size))
        try:
            with zipfile.ZipFile(_Bounded(raw)) as opened:
                target.mkdir()
                return _unpack(opened, archive.name, target, allowed, take)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
            raise BadInput(f"archive {archive.name} cannot be unpacked: {error}") from error


def _unpack(
    opened: zipfile.ZipFile, name: str, target: Path, allowed: int, take: Callable[[int], None]
) -> tuple[Path, ...]:
    entries = opened.infolist()
    if len(entries) > ENTRIES_MAX:
        _refuse(name, f"it has more than {ENTRIES_MAX} entries")
    places = [_place(name, entry) for entry in entries]
    files = []
    for entry, place in zip(entries, places, strict=True):
        path = target.joinpath(*place)
        if entry.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(entry) as source, path.open("xb") as file:
            while piece := source.read(PIECE_BYTES):
                allowed -= len(piece)
                if allowed < 0:
                    _refuse(name, "it unpacks to more than is allowed")
                take(len(piece))
                file.write(piece)
        files.append(path)
    return tuple(files)


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
    """A file of which no read takes more than the list of entries may have: zipfile reads that in one piece."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = self._size - self._file.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > DIRECTORY_BYTES_MAX:
            raise zipfile.BadZipFile("its list of entries is too long")
        return self._file.read(wanted)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset < 0:
            raise zipfile.BadZipFile("it points before its beginning")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
