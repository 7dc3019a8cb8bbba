"""Integers of every length, and what each simple type takes, refuses and makes of what it reads."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import pytest

from posemesh.wire._scalars import (
    BOOL,
    BYTES,
    DOUBLE,
    INT32,
    STRING,
    UINT32,
    UINT64,
    Codec,
    Cut,
    GolemWireError,
    enum,
    read_varint,
    write_varint,
)


class Colour(IntEnum):
    RED = 0
    BLUE = 1


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (16383, "ff7f"),
        (16384, "808001"),
        (2**32, "8080808010"),
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)
def test_an_integer_takes_seven_bits_a_byte(value: int, data: str) -> None:
    written = bytes.fromhex(data)
    assert write_varint(value) == written
    assert read_varint(b"\xff" + written + b"\xff", 1) == (value, 1 + len(written))
    for end in range(len(written)):
        with pytest.raises(Cut):
            read_varint(written[:end])


def test_an_integer_may_be_longer_than_it_need_be_up_to_ten_bytes() -> None:
    assert read_varint(bytes.fromhex("84808080808080808000")) == (4, 10)
    for wrong in ("8480808080808080808000", "ffffffffffffffffff02", "80808080808080808080"):
        with pytest.raises(GolemWireError) as raised:
            read_varint(bytes.fromhex(wrong))
        assert not isinstance(raised.value, Cut)


@pytest.mark.parametrize(
    ("codec", "value", "data"),
    [
        (UINT64, 2**64 - 1, "ffffffffffffffffff01"),
        (UINT32, 2**32 - 1, "ffffffff0f"),
        (INT32, -1, "ffffffffffffffffff01"),
        (INT32, -(2**31), "80808080f8ffffffff01"),
        (INT32, 2**31 - 1, "ffffffff07"),
        (BOOL, True, "01"),
        (enum(Colour), Colour.BLUE, "01"),
        (enum(Colour), 13, "0d"),
        (enum(Colour), -1, "ffffffffffffffffff01"),
    ],
)
def test_integers_of_every_type(codec: Codec, value: int, data: str) -> None:
    assert codec.write(value).hex() == data
    read = codec.read(read_varint(bytes.fromhex(data))[0])
    assert read == value and type(read) is type(value)


def test_what_is_too_long_for_32_bits_loses_what_is_above() -> None:
    assert UINT32.read(2**32 + 5) == 5
    assert INT32.read(2**32 - 1) == -1 and INT32.read(2**33 + 5) == 5
    assert BOOL.read(2**40) is True


@pytest.mark.parametrize(("codec", "value", "data"), [(STRING, "żó", "04c5bcc3b3"), (BYTES, b"\xff", "01ff")])
def test_text_and_bytes_come_with_their_length(codec: Codec, value: Any, data: str) -> None:
    written = codec.write(value)
    assert written.hex() == data
    assert codec.read(written[1:]) == codec.read(memoryview(written)[1:]) == value


@pytest.mark.parametrize("value", [0.0, 2.5, -0.0, math.inf, 5e-324, 3])
def test_numbers_have_eight_bytes(value: float) -> None:
    written = DOUBLE.write(value)
    assert len(written) == 8 and str(DOUBLE.read(written)) == str(float(value))


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (UINT64, -1),
        (UINT64, 2**64),
        (UINT64, 1.0),
        (UINT32, 2**32),
        (INT32, 2**31),
        (INT32, -(2**31) - 1),
        (enum(Colour), 2**31),
        (DOUBLE, "1"),
        (DOUBLE, 10**400),
        (STRING, b""),
        (STRING, "\udc80"),
        (BYTES, ""),
        (BYTES, 5),
    ],
    ids=lambda value: "" if isinstance(value, Codec) else f"{value!r:.20}",
)
def test_what_a_type_cannot_hold_is_refused(codec: Codec, value: object) -> None:
    with pytest.raises(GolemWireError, match="^expected .*, got "):
        codec.write(value)


@pytest.mark.parametrize("data", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3"])
def test_text_is_in_utf_8(data: bytes) -> None:
    with pytest.raises(GolemWireError, match="UTF-8"):
        STRING.read(data)
