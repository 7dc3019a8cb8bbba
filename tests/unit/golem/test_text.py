"""JSON text: byte for byte what supervisors are used to read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posemesh.golem.text import compact, number, pretty


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None], "A": "x"}, '{"A":"x","a":[true,null],"b":1}'),
        ({"\U0001f600": 1, "\uffff": 2}, '{"\uffff":2,"\U0001f600":1}'),  # code points, not UTF-16
        ({}, "{}"),
        ([], "[]"),
        ([[], {}, ()], "[[],{},[]]"),
        ("żółw / \x7f", '"żółw / \x7f"'),
        ('\b\f\n\r\t"\\', '"\\b\\f\\n\\r\\t\\"\\\\"'),
        ("\x00\x1f", '"\\u0000\\u001f"'),
        ({1: "one"}, '{"1":"one"}'),
        (float("nan"), "null"),
        (float("-inf"), "null"),
        (1 << 64, "18446744073709551616"),
    ],
)
def test_keys_are_sorted_and_nothing_is_escaped_but_what_must_be(value: Any, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (0.1, "0.1"),
        (1e15, "1000000000000000.0"),
        (1e16, "1e16"),
        (1.5e300, "1.5e300"),
        (1.2345678901234567e20, "1.2345678901234567e20"),
        (0.0001, "0.0001"),
        (0.00001, "0.00001"),
        (-0.000012345, "-0.000012345"),
        (1e-6, "1e-6"),
        (1.5e-7, "1.5e-7"),
        (5e-324, "5e-324"),
    ],
)
def test_floats_have_the_exponents_of_serde_json(value: float, text: str) -> None:
    assert number(value) == text
    assert compact([value]) == f"[{text}]"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_again(value: float) -> None:
    assert float(number(value)) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(JSON)
def test_both_forms_hold_the_value_and_are_those_of_the_standard_library_where_there_are_no_floats(value: Any) -> None:
    assert compact(value) == json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert pretty(value) == json.dumps(value, ensure_ascii=False, indent=2)


def test_the_long_form_keeps_the_order() -> None:
    assert (
        pretty({"b": [1, {"c": 1e16}], "a": {}})
        == '{\n  "b": [\n    1,\n    {\n      "c": 1e16\n    }\n  ],\n  "a": {}\n}'
    )


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, {None: 1}, {True: 1}, [object()]])
def test_what_json_cannot_hold_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="JSON"):
        compact(value)


def test_half_a_surrogate_pair_is_an_error_before_anything_is_written() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        compact("\ud800")
