"""The domain server's uploads: what it takes in one request, and sessions that upload in parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from posemesh.errors import WireError
from posemesh.wire import _json, _url, domain

__all__ = (
    "PARTS_MAX",
    "UploadInfo",
    "decode_etag",
    "decode_finished",
    "decode_info",
    "decode_initiated",
    "decode_stored",
    "finish_body",
    "info_url",
    "initiate_body",
    "initiate_url",
    "part_url",
    "session_url",
)

PARTS_MAX: Final = 10_000
"""A session has at most this many parts."""
_ANSWER: Final = "domain server's answer"
_ID_CHARS_MAX: Final = 1024
"""Of what a server names sessions, parts and items by. All the parts' are kept until the session is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadInfo:
    """What the server says of uploads. ``request_max_bytes`` is 0 where one request may have any size."""

    request_max_bytes: int
    multipart: bool


def info_url(base: str) -> str:
    """``GET``, without authorization."""
    return _url.join(base, "api/v1/info")


def decode_info(body: bytes) -> UploadInfo | None:
    """None for what says nothing of uploads: other servers have other things to tell there."""
    try:
        told = _json.parse_json(body, "domain server's info")
        upload = told["upload"]
        limit, enabled = upload["request_max_bytes"], upload["multipart"]["enabled"]
    except (WireError, LookupError, TypeError):
        return None
    if type(limit) is not int or limit < 0 or type(enabled) is not bool:
        return None
    return UploadInfo(request_max_bytes=limit, multipart=enabled)


def _sessions_url(base: str, domain_id: UUID | str) -> str:
    return _url.join(base, f"api/v1/domains/{quote(str(domain_id), safe='')}/data/multipart")


def initiate_url(base: str, domain_id: UUID | str) -> str:
    """``POST`` begins a session."""
    return f"{_sessions_url(base, domain_id)}?uploads"


def session_url(base: str, domain_id: UUID | str, upload_id: str) -> str:
    """``POST`` completes the session, ``DELETE`` aborts it."""
    return f"{_sessions_url(base, domain_id)}?uploadId={quote(upload_id, safe='')}"


def part_url(base: str, domain_id: UUID | str, upload_id: str, number: int) -> str:
    """``PUT`` uploads one part; they are numbered from 1."""
    return f"{session_url(base, domain_id, upload_id)}&partNumber={number}"


def initiate_body(name: str, data_type: str, size: int | None, existing_id: str | None) -> bytes:
    """``size`` is in bytes, None where it is not known yet."""
    wish: Mapping[str, Any] = {
        "name": name,
        "data_type": data_type,
        "size": size,
        "content_type": "application/octet-stream",
        "existing_id": existing_id,
    }
    return _json.encode(wish, "upload")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Initiated:
    upload_id: str
    part_size: int


def decode_initiated(body: bytes) -> tuple[str, int]:
    """The session's id and the bytes of each part but the last. Raises :class:`WireError`."""
    told = _json.decode(_Initiated, body, _ANSWER)
    if told.part_size <= 0:
        raise WireError(f"{_ANSWER}: expected a part_size above 0")
    return _named(told.upload_id, "upload_id"), told.part_size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    etag: str


def decode_etag(body: bytes) -> str:
    """What names an uploaded part at the completion. Raises :class:`WireError`."""
    return _named(_json.decode(_Stored, body, _ANSWER).etag, "etag", least=0)


def finish_body(etags: Mapping[int, str]) -> bytes:
    """The parts by their numbers, in order."""
    parts = [{"part_number": number, "etag": etag} for number, etag in sorted(etags.items())]
    return _json.encode({"parts": parts}, "upload")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    id: str


def decode_finished(body: bytes) -> str:
    """The artifact's id. Raises :class:`WireError`."""
    return _named(_json.decode(_Finished, body, _ANSWER).id, "id")


def decode_stored(body: bytes) -> str:
    """The artifact's id, of the answer to an upload in one request. Raises :class:`WireError`."""
    items = domain.decode_metadata(body)
    return _named(items[0].id if items else "", "id")


def _named(text: str, what: str, *, least: int = 1) -> str:
    if not least <= len(text) <= _ID_CHARS_MAX:
        raise WireError(f"{_ANSWER}: expected an {what} of {least} to {_ID_CHARS_MAX} characters")
    return text
