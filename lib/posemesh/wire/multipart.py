"""The domain server's multipart bodies: downloads with a size in each part's header, and uploads.

A part ends where its size says, not where its bytes look like a boundary, so any content survives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple, NoReturn

from posemesh.errors import BadInput, WireError

__all__ = ("HEADER_BYTES_MAX", "MultipartReader", "Part", "upload_frame")

HEADER_BYTES_MAX: Final = 16 * 1024
"""A part's headers are read up to this many bytes, where nothing else is said."""
PARTS_MAX: Final = 10_000
ALL_HEADERS_BYTES_MAX: Final = 8 * 1024 * 1024
"""What the headers of all parts say is kept as long as the download lasts."""
SKIPPED_BYTES_MAX: Final = 64 * 1024
"""What comes before the first part is skipped up to this many bytes, and as many after the last."""
_LINE_BYTES_MAX: Final = 1024
_CONTENT_TYPE: Final = re.compile(r"\s*multipart/form-data\s*(;.*)", re.IGNORECASE | re.DOTALL)
# One `; name=value`, the value quoted (with backslash escapes) or bare (RFC 9110 section 5.6.6).
_PARAMETER: Final = re.compile(r"""\s*;\s*([^\s;="]+)\s*=\s*(?:"([^"\\]*(?:\\.[^"\\]*)*)"|([^\s;"]*))\s*""", re.DOTALL)
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046 section 5.1.1
_BARE_BOUNDARY: Final = re.compile(r"[0-9A-Za-z_-]{1,70}")
# Lone surrogates besides: they are no text that could be sent.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HEADERS_END: Final = re.compile(rb"\r?\n\r?\n")
_SIZE: Final = re.compile(r"[0-9]{1,19}")


class Part(NamedTuple):
    """One downloaded item, as its headers describe it. ``size`` is in bytes; ``domain_id`` may be empty."""

    id: str
    name: str
    data_type: str
    size: int
    domain_id: str = ""


class _At(Enum):
    """What is expected next, outside of a part's content."""

    PREAMBLE = 1
    HEADERS = 2
    DELIMITER = 3
    EPILOGUE = 4


class MultipartReader:
    """Reads a download piece by piece: :meth:`feed` it what arrives, then :meth:`close` it.

    What it holds on to between two pieces is bounded by ``header_bytes_max``. Whatever is not whole raises
    :class:`BadInput`: another content type, a part without size, more or fewer bytes than its size, no end, or bytes
    without end before or after the parts.
    """

    def __init__(self, content_type: str | None, *, header_bytes_max: int = HEADER_BYTES_MAX) -> None:
        boundary = b"--" + _boundary_of(content_type).encode()
        self._line = re.compile(re.escape(boundary) + rb"(--)?[ \t]*(\r?\n|\Z)")
        # A body keeps to one kind of line end; else a size one too large could pass where \r\n is meant.
        self._opening = b""
        self._boundary = boundary
        self._header_bytes_max = header_bytes_max
        self._at = _At.PREAMBLE
        self._within_line = False
        self._rest = b""
        self._searched = 0
        self._left = 0
        self._part = Part("", "", "", 0)
        self._begun: Part | None = None
        self._parts = 0
        self._skipped = 0
        self._headers_left = ALL_HEADERS_BYTES_MAX

    def feed(self, data: bytes) -> list[Part | bytes]:
        """What ``data`` holds, in order: a :class:`Part` where one begins, then its content in pieces, none empty."""
        return list(self._read(data))

    def close(self) -> None:
        """The body has ended. Raises :class:`BadInput` where it should not have."""
        if self._left:
            _refuse(f"a part of {self._part.size} bytes breaks off after {self._part.size - self._left}")
        match self._at:
            case _At.PREAMBLE:
                found = None if self._within_line else self._line.fullmatch(self._rest)
                if found is None or not found[1]:
                    _refuse("no part begins")
            case _At.HEADERS:
                _refuse("a part's headers do not end")
            case _At.DELIMITER:
                found = self._line.fullmatch(self._rest, len(self._opening))
                if found is None or not found[1] or not self._rest.startswith(self._opening):
                    self._unended()

    def _read(self, data: bytes) -> Iterator[Part | bytes]:
        data = self._rest + data if self._rest else data
        at = 0
        while True:
            if self._left:
                piece = data[at : at + self._left]
                if not piece:
                    break
                at += len(piece)
                self._left -= len(piece)
                yield piece
            elif self._at is _At.EPILOGUE:
                self._skip(len(data) - at)
                at = len(data)
                break
            else:
                step = self._step(data, at)
                if step is None:
                    break
                at = step
                if self._begun is not None:
                    yield self._begun
                    self._begun = None
        self._rest = data[at:]

    def _step(self, data: bytes, at: int) -> int | None:
        """Where reading goes on, None where more has to arrive first."""
        match self._at:
            case _At.PREAMBLE:
                return self._skip_line(data, at)
            case _At.HEADERS:
                return self._headers(data, at)
            case _:
                return self._delimiter(data, at)

    def _skip_line(self, data: bytes, at: int) -> int | None:
        end = data.find(b"\n", at) + 1
        if not end:
            if len(data) - at <= _LINE_BYTES_MAX and not self._within_line:
                return None
            self._within_line = True
            self._skip(len(data) - at)
            return len(data) if at < len(data) else None
        found = None if self._within_line else self._line.fullmatch(data, at, end)
        self._within_line = False
        if found is None:
            self._skip(end - at)
        else:
            self._open(found)
        return end

    def _skip(self, count: int) -> None:
        self._skipped += count
        if self._skipped > SKIPPED_BYTES_MAX:
            _refuse(f"more than {SKIPPED_BYTES_MAX} bytes are around its parts")

    def _delimiter(self, data: bytes, at: int) -> int | None:
        held = len(data) - at
        opening = self._opening + self._boundary
        if not data.startswith(opening[:held], at):
            self._unended()
        end = data.find(b"\n", at + len(self._opening), at + len(opening) + _LINE_BYTES_MAX) + 1
        if not end:
            if held >= len(opening) + _LINE_BYTES_MAX:
                self._unended()
            return None
        found = self._line.fullmatch(data, at + len(self._opening), end)
        if found is None:
            self._unended()
        self._open(found)
        return end

    def _open(self, delimiter: re.Match[bytes]) -> None:
        self._opening = self._opening or delimiter[2]
        self._at = _At.EPILOGUE if delimiter[1] else _At.HEADERS
        self._skipped = 0

    def _headers(self, data: bytes, at: int) -> int | None:
        limit = at + self._header_bytes_max
        found = _HEADERS_END.search(data, at + max(0, self._searched - 3), limit)
        if found is None:
            if len(data) >= limit:
                _refuse(f"a part's headers exceed {self._header_bytes_max} bytes")
            self._searched = len(data) - at
            return None
        self._parts += 1
        if self._parts > PARTS_MAX:
            _refuse(f"it has more than {PARTS_MAX} parts")
        self._headers_left -= found.end() - at
        if self._headers_left < 0:
            _refuse(f"its parts' headers exceed {ALL_HEADERS_BYTES_MAX} bytes")
        self._part = self._begun = _part(data[at : found.start()])
        self._searched, self._left, self._at = 0, self._part.size, _At.DELIMITER
        return found.end()

    def _unended(self) -> NoReturn:
        _refuse(f"part {self._parts} does not end after its {self._part.size} bytes")


def _boundary_of(content_type: str | None) -> str:
    found = _CONTENT_TYPE.fullmatch(content_type or "")
    boundary = _parameters(found[1]).get("boundary", "") if found else ""
    if not _BOUNDARY.fullmatch(boundary):
        _refuse("expected Content-Type multipart/form-data with a boundary")
    return boundary


def _part(headers: bytes) -> Part:
    named = _disposition(headers)
    missing = [key for key in ("id", "name", "data-type", "size") if key not in named]
    if missing:
        _refuse(f"a part has no {missing[0]}")
    if not _SIZE.fullmatch(named["size"]):
        _refuse("a part's size is no number of bytes")
    return Part(named["id"], named["name"], named["data-type"], int(named["size"]), named.get("domain-id", ""))


def _disposition(headers: bytes) -> dict[str, str]:
    """The parameters of a part's Content-Disposition, wherever it stands among the headers."""
    try:
        lines = re.split(r"\r?\n", headers.decode())
    except UnicodeDecodeError:
        _refuse("a part's headers are not UTF-8")
    found = [value for name, _, value in (line.partition(":") for line in lines) if _is_disposition(name)]
    if len(found) != 1:
        _refuse(f"expected one Content-Disposition in a part, got {len(found)}")
    kind, semicolon, rest = found[0].partition(";")
    if kind.strip().lower() != "form-data":
        _refuse("a part is not form-data")
    return _parameters(semicolon + rest)


def _is_disposition(name: str) -> bool:
    return name.strip().lower() == "content-disposition"


def _parameters(text: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    at = 0
    while at < len(text):
        found = _PARAMETER.match(text, at)
        if found is None:
            if text[at:].strip("; \t"):
                _refuse("a header's parameters cannot be read")
            break
        quoted, bare = found[2], found[3]
        value = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        if parameters.setdefault(found[1].lower(), value) != value:
            _refuse(f"a header gives {found[1]!r} twice")
        at = found.end()
    return parameters


def _refuse(why: str) -> NoReturn:
    raise BadInput(f"the domain server's download cannot be read: {why}")


def upload_frame(
    *, boundary: str, name: str | None = None, data_type: str | None = None, data_id: str | None = None
) -> tuple[str, bytes, bytes]:
    """The Content-Type of one upload, and what comes before and after its data.

    It updates ``data_id``, else makes a new item of ``name`` and ``data_type``. ``boundary`` has to be random, so that
    the data does not hold it. Raises :class:`WireError` for a name that cannot stand in a header, and for a boundary
    that is not fit.
    """
    if not _BARE_BOUNDARY.fullmatch(boundary):
        raise WireError("upload: expected a boundary of 1 to 70 letters, digits, - and _")
    named = {"name": name, "data-type": data_type} if data_id is None else {"id": data_id}
    disposition = "; ".join(["form-data", *(f"{key}={_quoted(key, value)}" for key, value in named.items())])
    head = f"--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Disposition: {disposition}\r\n\r\n"
    return f"multipart/form-data; boundary={boundary}", head.encode(), f"\r\n--{boundary}--\r\n".encode()


def _quoted(key: str, value: str | None) -> str:
    if not value or _CONTROL.search(value):
        raise WireError(f"upload: expected a {key} without control characters, neither empty nor None")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
