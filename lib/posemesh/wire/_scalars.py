"""The simple values of Protocol Buffers: integers, numbers, text and bytes, as each stands behind its key."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Any, Final, NoReturn, TypeAlias

from posemesh.errors import WireError

__all__ = (
    "BOOL",
    "BYTES",
    "DELIMITED",
    "DOUBLE",
    "FIXED32",
    "FIXED64",
    "GROUP",
    "GROUP_END",
    "INT32",
    "STRING",
    "UINT32",
    "UINT64",
    "VARINT",
    "Buffer",
    "Codec",
    "Cut",
    "GolemWireError",
    "delimited",
    "enum",
    "read_varint",
    "refuse",
    "write_varint",
)

Buffer: TypeAlias = bytes | bytearray | memoryview

VARINT, FIXED64, DELIMITED, GROUP, GROUP_END, FIXED32 = range(6)
_SMALL: Final = tuple(bytes((number,)) for number in range(128))
_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1
_DOUBLE: Final = Struct("<d")


class GolemWireError(WireError):
    """Bytes that are no message of a Golem runtime's protocol, or a value that its message cannot hold."""


class Cut(GolemWireError):
    """The bytes end before the value does."""


# -- Integers -------------------------------------------------------------------------------------------------------


def write_varint(value: int) -> bytes:
    if value < 128:
        return _SMALL[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: Buffer, at: int = 0) -> tuple[int, int]:
    """The integer that begins at ``at``, and where the next thing does. Raises Cut where the bytes end before it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Cut("the bytes end inside an integer")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value > _U64:
                break
            return value, at
    raise GolemWireError("an integer has more than 64 bits")


# -- Types ----------------------------------------------------------------------------------------------------------


class Codec:
    """One type of values. ``write`` gives what follows the key, its length included; ``read`` takes an integer for
    the wire type ``varint`` and bytes, without their length, for the others.
    """

    __slots__ = ("default", "read", "wire", "write")

    def __init__(self, wire: int, default: Any, write: Callable[[Any], bytes], read: Callable[[Any], Any]) -> None:
        self.wire, self.default, self.write, self.read = wire, default, write, read

    def merge(self, raw: Any, value: Any) -> Any:
        """``raw`` (None where there is nothing yet) after ``value`` came."""
        return self.read(value)

    def finish(self, raw: Any) -> Any:
        return raw


def refuse(value: object, wanted: str) -> NoReturn:
    raise GolemWireError(f"expected {wanted}, got {value!r:.100}")


def delimited(payload: bytes) -> bytes:
    return write_varint(len(payload)) + payload


def _integer(name: str, low: int, high: int, read: Callable[[int], int]) -> Codec:
    def write(value: Any) -> bytes:
        if not isinstance(value, int) or not low <= value <= high:
            refuse(value, name)
        return write_varint(int(value) & _U64)

    return Codec(VARINT, 0, write, read)


def _as_int32(value: int) -> int:
    value &= _U32
    return value - (1 << 32) if value >> 31 else value


def _write_double(value: Any) -> bytes:
    if not isinstance(value, int | float):
        refuse(value, "a number")
    try:
        return _DOUBLE.pack(float(value))
    except OverflowError:
        refuse(value, "a number of 64 bits")


def _write_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        refuse(value, "bytes")
    return delimited(bytes(value))


def _write_string(value: Any) -> bytes:
    if not isinstance(value, str):
        refuse(value, "text")
    try:
        return delimited(value.encode())
    except UnicodeEncodeError:
        refuse(value, "text that UTF-8 can write")


def _read_string(value: Buffer) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise GolemWireError("text is not in UTF-8") from None


UINT64: Final = _integer("an integer of 64 bits without sign", 0, _U64, lambda value: value)
UINT32: Final = _integer("an integer of 32 bits without sign", 0, _U32, lambda value: value & _U32)
INT32: Final = _integer("an integer of 32 bits", -(1 << 31), (1 << 31) - 1, _as_int32)
BOOL: Final = Codec(VARINT, False, lambda value: _SMALL[bool(value)], bool)
DOUBLE: Final = Codec(FIXED64, 0.0, _write_double, lambda value: _DOUBLE.unpack(value)[0])
STRING: Final = Codec(DELIMITED, "", _write_string, _read_string)
BYTES: Final = Codec(DELIMITED, b"", _write_bytes, bytes)


def enum(members: type[IntEnum]) -> Codec:
    """Numbers that ``members`` lacks stay plain integers."""
    by_number: dict[int, int] = {int(member): member for member in members}

    def read(value: int) -> int:
        number = _as_int32(value)
        return by_number.get(number, number)

    return Codec(VARINT, by_number[0], INT32.write, read)
