"""TOML as runtimes of the Rust SDK write it: literal text, one item of a list a line, tables last."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from posemesh.golem.text import number

__all__ = ("write",)

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED: Final = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def write(value: Mapping[str, Any]) -> str:
    """``value`` as a document. What is None is left out. Raises TypeError for what TOML cannot hold."""
    text = "\n\n".join(block for block in _tables(value, "", "") if block)
    return f"{text}\n" if text else ""


def _tables(table: Mapping[str, Any], path: str, head: str) -> Iterator[str]:
    """The table ``path`` under its ``head``, then those below it, one block each."""
    plain: list[str] = [head] if head else []
    below: list[tuple[str, Any]] = []
    for key, value in table.items():
        if _is_table(value):
            below.append((key, value))
        elif value is not None:
            plain.append(f"{_key(key)} = {_value(value)}")
    if len(plain) > bool(head) or not below or head.startswith("[["):
        yield "\n".join(plain)
    for key, value in below:
        name = f"{path}.{_key(key)}" if path else _key(key)
        if isinstance(value, Mapping):
            yield from _tables(value, name, f"[{name}]")
        else:
            for item in value:
                yield from _tables(item, name, f"[[{name}]]")


def _is_table(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _quoted(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return _array(value)
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }" if value else "{}"
        )
    raise TypeError(f"TOML holds tables, lists, text, numbers and booleans, got {type(value).__name__}")


def _array(value: list[Any] | tuple[Any, ...]) -> str:
    if not value:
        return "[]"
    return "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"


def _float(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    return number(value)


def _text(value: str) -> str:
    if "'" in value or not all(char.isprintable() or char == "\t" for char in value):
        return _quoted(value)
    return f"'{value}'"


def _quoted(value: str) -> str:
    return (
        '"'
        + "".join(
            _ESCAPED.get(char) or (char if ord(char) >= 32 and char != "\x7f" else f"\\u{ord(char):04x}")
            for char in value
        )
        + '"'
    )
