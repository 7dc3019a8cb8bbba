"""JSON text, byte for byte as runtimes of the Rust SDK write it (serde_json through a sorted map)."""

from __future__ import annotations

from collections.abc import Mapping
from json.encoder import encode_basestring
from math import isfinite
from typing import Any

__all__ = ("compact", "number", "pretty")


def compact(value: Any) -> str:
    """``value`` without blanks, keys in the order of their code points. Raises TypeError or ValueError for what JSON
    cannot hold; a float that is no number becomes ``null``.
    """
    return _whole(value, None)


def pretty(value: Any) -> str:
    """``value`` indented by two blanks, keys as they come, and no end of line after it. Raises as :func:`compact`."""
    return _whole(value, "\n")


def number(value: float) -> str:
    """The shortest digits that give ``value`` again: as Python writes them, but for the exponent."""
    text = float.__repr__(value)
    digits, mark, exponent = text.partition("e")
    if not mark:
        return text
    power = int(exponent)
    if power == -5:  # Python goes over to an exponent one digit earlier
        sign = "-" * digits.startswith("-")
        return f"{sign}0.0000{digits.removeprefix('-').replace('.', '')}"
    return f"{digits}e{power}"


def _whole(value: Any, line: str | None) -> str:
    parts: list[str] = []
    _write(parts, value, line)
    text = "".join(parts)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("JSON cannot hold half a surrogate pair, as UTF-8 cannot") from None
    return text


def _write(parts: list[str], value: Any, line: str | None) -> None:
    """``line`` is the end of line and the indentation of what holds ``value``; None for no blanks at all."""
    if isinstance(value, Mapping):
        colon = ":" if line is None else ": "
        keys = {_key(key): item for key, item in value.items()}
        items = [(encode_basestring(key) + colon, keys[key]) for key in (sorted(keys) if line is None else keys)]
        opening, closing = "{}"
    elif isinstance(value, list | tuple):
        items = [("", item) for item in value]
        opening, closing = "[]"
    else:
        parts.append(_scalar(value))
        return
    deeper = None if line is None else f"{line}  "
    mark = opening
    for head, item in items:
        parts += (mark, deeper or "", head)
        _write(parts, item, deeper)
        mark = ","
    parts.append((line or "") + closing if items else opening + closing)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return int.__repr__(key)
    raise TypeError(f"a key in JSON is text, got {key!r:.100}")


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return encode_basestring(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return number(value) if isfinite(value) else "null"
    raise TypeError(f"JSON holds objects, lists, text, numbers, booleans and null, got {type(value).__name__}")
