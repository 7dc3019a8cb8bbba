"""The domain server: how its items are named, asked for, packed and unpacked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Final, NamedTuple, NoReturn
from urllib.parse import parse_qs, quote, unquote, urljoin, urlsplit
from uuid import UUID

from posemesh.errors import InvalidCid
from posemesh.wire import _json, _url

__all__ = (
    "ArtifactName",
    "DataMetadata",
    "ItemRef",
    "bare_name",
    "data_url",
    "decode_metadata",
    "infer_artifact",
    "input_path",
    "parse_cid",
    "same_origin",
    "valid_id",
    "valid_name",
)

# Names and types on the domain server: these and control characters are refused.
_FORBIDDEN: Final = re.compile(r"[;!?<>\[\]{}()/\\\"$#@*^&|~%=+\x00-\x1f\x7f-\x9f]")
_NAME_BYTES_MAX: Final = 128
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")
_TIMED: Final = re.compile(r"\d{4}-\d{2}-\d{2}[_-]\d{2}-\d{2}-\d{2}")
# Names that some file systems keep for devices.
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE | re.ASCII)
_PATH_CHARS_MAX: Final = 100
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PLAIN_TYPES: Final = frozenset({"json", "ply", "glb", "obj", "csv", "mp4"})
_DATA_PATH: Final = re.compile(r"/domains/([^/]+)/data(?:/([^/]+))?(?:/|$)")


# -- Names --------------------------------------------------------------------------------------


class ArtifactName(NamedTuple):
    """What an uploaded file is called, in the task's result and on the domain server."""

    logical_path: str
    name: str
    data_type: str


def valid_name(text: str) -> bool:
    """Whether the domain server takes ``text`` as a name or a type: 1 to 128 bytes, none of its reserved characters."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return False
    return 1 <= size <= _NAME_BYTES_MAX and not _FORBIDDEN.search(text)


def valid_id(text: str) -> bool:
    """Whether ``text`` may be an item's id and can be sent: it is not empty, and holds no control characters."""
    return text != "" and not _CONTROL.search(text)


def infer_artifact(outputs_prefix: str | None, rel_path: str, task_id: str) -> ArtifactName:
    """The names of ``rel_path``, a task's output. The task's id keeps two tasks' outputs apart on one domain."""
    prefix, rel = (outputs_prefix or "").strip("/"), rel_path.lstrip("/")
    logical_path = "/".join(part for part in (prefix, rel) if part)
    name = f"{_sanitised(logical_path)}_{task_id}"
    return ArtifactName(logical_path, name, _type_of(rel))


def _type_of(path: str) -> str:
    extension = PurePosixPath(path).suffix[1:].lower()
    if not extension:
        return "binary"
    if extension in _PLAIN_TYPES:
        return extension
    return "ply_draco" if extension == "drc" else f"{_sanitised(extension)}_data"


def _sanitised(text: str, instead: str = "artifact") -> str:
    return _UNSAFE.sub("_", text) or instead


def input_path(name: str, data_type: str) -> str:
    """Where a downloaded item goes below its download's root: ``datasets/<folder>/<name>.<data type>``.

    The folder is the time in the name where it has one (``2024-01-02_03-04-05``), else the name. Whatever the server
    calls its items, this is a relative path of three plain parts.
    """
    timed = _TIMED.search(name)
    folder = _file_name(timed[0] if timed else name)
    return f"datasets/{folder}/{_file_name(name)}.{_file_name(data_type)}"


def _file_name(text: str) -> str:
    plain = _sanitised(text, "part")[:_PATH_CHARS_MAX]
    return f"_{plain}" if _DEVICE.fullmatch(plain) else plain


# -- Input ids ----------------------------------------------------------------------------------


class ItemRef(NamedTuple):
    """Which items of which domain an input id means: these ids, or all of that name and type."""

    domain_id: str
    ids: tuple[str, ...] = ()
    name: str | None = None
    data_type: str | None = None


def parse_cid(cid: str, *, domain_server_url: str, domain_id: UUID | str) -> ItemRef:
    """What an entry of ``inputs_cids`` refers to: a bare id, a path on the domain server, or a URL there.

    Raises :class:`InvalidCid` for a URL of another server, which must never see the lease's token, and for
    one that would mean every item of the domain. Another domain of the same server is honoured.
    """
    text = cid.strip()
    if not text:
        _refuse_cid("it is empty")
    if _CONTROL.search(text):
        _refuse_cid("it holds control characters or no text")
    if "://" not in text and not text.startswith("/"):
        return ItemRef(str(domain_id), (text,))
    return _parse_url(text, domain_server_url, domain_id)


def bare_name(cid: str) -> str | None:
    """What may be an item's name and not its id: a bare text that is no UUID and that the server takes as a name."""
    text = cid.strip()
    return text if _json.parse_uuid(text) is None and valid_name(text) else None


def same_origin(url: str, other: str) -> bool:
    """Whether two absolute http(s) URLs lead to the same server, so that a token for the one may go to the other."""
    one, two = _url.origin_of(url), _url.origin_of(other)
    return one is not None and two is not None and one.key == two.key


def _parse_url(text: str, domain_server_url: str, domain_id: UUID | str) -> ItemRef:
    server = _url.origin_of(domain_server_url)
    url = urljoin(domain_server_url, text) if text.startswith("/") else text
    origin = _url.origin_of(url)
    if server is None or origin is None or origin.key != server.key:
        _refuse_cid("expected a URL of the lease's domain server")
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    found = _DATA_PATH.search(parts.path)
    domain, path_id = (unquote(part or "") for part in found.groups()) if found else (str(domain_id), "")
    if found and _json.parse_uuid(domain) is None:
        _refuse_cid("expected a UUID after /domains/")
    ids = (path_id,) if path_id else tuple(one for many in query.get("ids", ()) for one in many.split(",") if one)
    name, data_type = query.get("name", [None])[0], query.get("data_type", [None])[0]
    if not ids and name is None and data_type is None:
        _refuse_cid("the URL names no id, name or type, so it would mean every item of the domain")
    return ItemRef(domain, ids, name, data_type)


def _refuse_cid(why: str) -> NoReturn:
    raise InvalidCid(f"input id refused: {why}")


# -- Requests and answers -----------------------------------------------------------------------


def data_url(
    base: str,
    domain_id: UUID | str,
    *,
    ids: Sequence[str] = (),
    name: str | None = None,
    data_type: str | None = None,
) -> str:
    """``/data`` of a domain, for a query (GET) or, without filters, an upload (POST creates, PUT updates)."""
    filters = [("name", name), ("data_type", data_type)]
    query = [f"{key}={quote(value, safe='')}" for key, value in filters if value is not None]
    if ids:
        query.insert(0, "ids=" + ",".join(quote(one, safe="") for one in ids))
    path = _url.join(base, f"api/v1/domains/{quote(str(domain_id), safe='')}/data")
    return f"{path}?{'&'.join(query)}" if query else path


@dataclass(frozen=True, slots=True, kw_only=True)
class DataMetadata:
    """One item as the domain server lists it. ``size`` is in bytes."""

    id: str
    domain_id: str
    name: str
    data_type: str
    size: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _MetadataAnswer:
    data: list[DataMetadata]


def decode_metadata(body: bytes, *, limit: int = _json.BODY_BYTES_MAX) -> list[DataMetadata]:
    """The answer to a metadata query or an upload; :class:`posemesh.errors.WireError` if it is neither."""
    return _json.decode(_MetadataAnswer, body, "domain server's answer", limit=limit).data
