"""JSON in and out, strictly. The one importer of msgspec for what the network sends.

msgspec checks the types a record declares; what its types cannot say (a time's offset, the width of an
integer, an absolute URL) is checked here by field, so that the public records stay plain dataclasses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cache, partial
from typing import Any, Final, NoReturn, TypeAlias, TypeVar, cast, get_args, get_type_hints
from uuid import UUID

import msgspec

from posemesh.errors import WireError
from posemesh.secret import Secret
from posemesh.wire import _url

__all__ = ("BODY_BYTES_MAX", "decode", "encode", "parse_json", "parse_time", "parse_uuid")

T = TypeVar("T")
_Check: TypeAlias = Callable[[Any, str, str], None]
"""Given a value, what it is a part of and its path there, raises :class:`WireError` where it does not fit."""

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


def _check(record: object, what: str, path: str) -> None:
    """What msgspec's types cannot say, field by field, also in records within the record."""
    for name, check in _checks(cast(Any, type(record))):
        value = getattr(record, name)
        if value is not None:
            check(value, what, f"{path}.{name}")


@cache
def _checks(kind: Any) -> tuple[tuple[str, _Check], ...]:
    """The fields of a record of that class that are looked at, each with what looks at it."""
    hints = get_type_hints(kind)
    found = ((field.name, _check_of(field.name, hints[field.name])) for field in fields(kind))
    return tuple((name, check) for name, check in found if check is not None)


def _check_of(name: str, hint: Any) -> _Check | None:
    if name in _RANGES:
        return partial(_check_number, _RANGES[name])
    if name == "domain_server_url":
        return _check_url
    kinds = set(_kinds(hint))
    if datetime in kinds:
        return _check_time
    return _check_within if any(map(is_dataclass, kinds)) else None


def _kinds(hint: Any) -> Iterator[Any]:
    """The classes that a type consists of."""
    yield hint
    for part in get_args(hint):
        yield from _kinds(part)


def _check_number(numbers: range, value: object, what: str, path: str) -> None:
    if value not in numbers:
        _refuse(what, f"an integer from {numbers.start} to {numbers.stop - 1}", path)


def _check_url(value: str, what: str, path: str) -> None:
    if _url.origin_of(value) is None:
        _refuse(what, "an absolute http or https URL", path)


def _check_time(value: datetime, what: str, path: str) -> None:
    if value.tzinfo is None:
        _refuse(what, "an RFC 3339 time with an offset", path)


def _check_within(value: object, what: str, path: str) -> None:
    if not isinstance(value, list):
        return _check(value, what, path)
    for index, item in enumerate(value):
        _check(item, what, f"{path}[{index}]")


def _refuse(what: str, expected: str, place: str) -> NoReturn:
    raise WireError(f"{what}: expected {expected} - at `{place}`")
