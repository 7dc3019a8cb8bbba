"""TOML is written in the form of the Rust SDK's, and read again by the standard library."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posemesh.golem.toml import write

WRITTEN = """name = 'a "b"'
value = 7
ratio = 1.0
words = [
    'a',
    'b',
]
none = []

[inner]
on = true

[inner.deeper]
"a key" = 'ż'

[[many]]
n = 1

[[many]]
n = 2
"""


def test_text_is_literal_lists_are_long_and_tables_come_last() -> None:
    value = {
        "name": 'a "b"',
        "inner": {"deeper": {"a key": "ż"}, "on": True},
        "value": 7,
        "nothing": None,
        "many": [{"n": 1}, {"n": 2}],
        "ratio": 1.0,
        "words": ["a", "b"],
        "none": [],
    }
    assert write(value) == WRITTEN


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALAR = st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | TEXT
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


@given(st.dictionaries(TEXT, VALUE, max_size=4))
def test_whatever_is_written_is_read_again(value: dict[str, Any]) -> None:
    assert tomllib.loads(write(value)) == value


def test_what_toml_cannot_hold_is_an_error() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        write({"list": [None]})
