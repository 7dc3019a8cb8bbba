"""JSON in and out, strictly. The one importer of msgspec for what the network sends.

msgspec checks the types a record declares; what its types cannot say (a time's offset, the width of an
integer, an absolute URL) is checked here by field, so that the public records stay plain dataclasses.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, NoReturn, TypeVar, cast
from uuid import UUID

import msgspec

from posemesh.errors import WireError
from posemesh.secret import Secret
from posemesh.wire import _url

__all__ = ("BODY_BYTES_MAX", "decode", "encode", "parse_json", "parse_time", "parse_uuid")

T = TypeVar("T")

_ENCODER: Final = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))

BODY_BYTES_MAX: Final = 8 * 1024 * 1024
"""The longest answer that is read at all; a lease with all its inputs is a few kilobytes."""

# A token travels in a header, where anything else would break the request or end the header.
_TOKEN: Final = re.compile(r"[\x21-\x7e]*")

_U64: Final = range(2**64)
_RANGES: Final = {
    "priority": range(-(2**63), 2**63),
    "attempts": _U64,
    "max_attempts": _U64,
    "deps_remaining": _U64,
    "size": _U64,
}


def decode(kind: type[T], body: bytes, what: str, *, limit: int = BODY_BYTES_MAX) -> T:
    """``body`` as a record of class ``kind``; ``what`` names it in errors, ``limit`` is in bytes.

    Unknown fields are ignored. Everything else that does not fit raises :class:`WireError` with the path
    of the field: a wrong type, null where only absence is allowed, a time without offset, NaN.
    """
    record: T = _parse(_decoder(cast(Any, kind)), body, what, limit)
    _check(record, what, "$")
    return record


def parse_json(body: bytes, what: str, *, limit: int = BODY_BYTES_MAX) -> Any:
    """``body`` as plain JSON values, under the same rules of syntax as :func:`decode`."""
    return _parse(_decoder(Any), body, what, limit)


def encode(value: object, what: str) -> bytes:
    """``value`` as a JSON body. Raises :class:`WireError` for NaN, cycles, lone surrogates and what JSON cannot say."""
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        raise WireError(f"{what} has no JSON form: a lone surrogate is no text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"{what} has no JSON form: {error}") from None


def parse_time(text: str, what: str) -> datetime:
    """An RFC 3339 time with its offset, else :class:`WireError`."""
    try:
        time = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        time = None
    if time is None or time.tzinfo is None:
        raise WireError(f"{what}: expected an RFC 3339 time with an offset, such as 2026-01-01T00:00:00Z")
    return time


def parse_uuid(value: object) -> UUID | None:
    """The UUID that a JSON value spells, or None."""
    try:
        return msgspec.convert(value, UUID)
    except msgspec.ValidationError:
        return None


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_decode_secret)


def _decode_secret(kind: type, value: object) -> object:
    if kind is not Secret:
        raise NotImplementedError(kind)
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError("Expected a token of visible ASCII characters")
    return Secret(value)


def _parse(decoder: msgspec.json.Decoder[T], body: bytes, what: str, limit: int) -> T:
    if len(body) > limit:
        raise WireError(f"{what}: expected at most {limit} bytes, got {len(body)}")
    try:
        return decoder.decode(body)
    except UnicodeDecodeError:
        raise WireError(f"{what}: expected UTF-8 text") from None
    except RecursionError:
        raise WireError(f"{what}: JSON is nested too deeply") from None
    except msgspec.MsgspecError as error:
        raise WireError(f"{what}: {error}") from None


@cache
def _names(kind: Any) -> tuple[str, ...]:
    """The fields of a record of that class; of nothing else."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def _check(record: object, what: str, path: str) -> None:
    """What msgspec's types cannot say, field by field, also in records within the record."""
    if isinstance(record, list):
        for index, item in enumerate(record):
            _check(item, what, f"{path}[{index}]")
    for name in _names(cast(Any, type(record))):
        value = getattr(record, name)
        if value is None:
            continue
        if isinstance(value, datetime):
            if value.tzinfo is None:
                _refuse(what, "an RFC 3339 time with an offset", f"{path}.{name}")
        elif name in _RANGES:
            if value not in (numbers := _RANGES[name]):
                _refuse(what, f"an integer from {numbers.start} to {numbers.stop - 1}", f"{path}.{name}")
        elif name == "domain_server_url":
            if _url.origin_of(value) is None:
                _refuse(what, "an absolute http or https URL", f"{path}.{name}")
        elif isinstance(value, list) or _names(cast(Any, type(value))):
            _check(value, what, f"{path}.{name}")


def _refuse(what: str, expected: str, place: str) -> NoReturn:
    raise WireError(f"{what}: expected {expected} - at `{place}`")
