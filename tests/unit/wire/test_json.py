"""What the strict JSON of the wire refuses and how it says so, beyond what the modules' own tests show."""

from __future__ import annotations

import pytest

from posemesh.errors import WireError
from posemesh.secret import Secret
from posemesh.types import HeartbeatAnswer
from posemesh.wire import _json


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01T00:00:00Z",
        "2026-01-01t00:00:00z",
        "2026-01-01T00:00:00.5+05:30",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
    ],
)
def test_times(text: str) -> None:
    assert _json.parse_time(text, "x").tzinfo is not None


@pytest.mark.parametrize(
    "text", ["", "now", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00Z", "2026-02-30T00:00:00Z"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(WireError, match="x: expected an RFC 3339 time with an offset"):
        _json.parse_time(text, "x")


def test_plain_json() -> None:
    assert _json.parse_json(b'{"a":[1,2.5,null,true,"x"]}', "x") == {"a": [1, 2.5, None, True, "x"]}


@pytest.mark.parametrize(
    "body", [b"NaN", b"[Infinity]", b"1e999", b"{'a':1}", b"[1,]", b"\xef\xbb\xbf{}", b"01", b"//"]
)
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(WireError, match="^x: "):
        _json.parse_json(body, "x")


def test_the_limit_is_inclusive() -> None:
    assert _json.decode(HeartbeatAnswer, b"{}", "x", limit=2) == HeartbeatAnswer()
    with pytest.raises(WireError, match="x: expected at most 2 bytes, got 3"):
        _json.decode(HeartbeatAnswer, b"{} ", "x", limit=2)


def test_a_token_becomes_a_secret() -> None:
    assert _json.decode(HeartbeatAnswer, b'{"access_token":""}', "x").access_token == Secret("")


def test_only_a_secret_is_made_by_the_hook() -> None:
    with pytest.raises(NotImplementedError):
        _json._decode_secret(bytes, "x")


def test_encoding_is_compact_utf8() -> None:
    assert _json.encode({"ä": [1, None]}, "x") == '{"ä":[1,null]}'.encode()


def test_encoding_does_not_crash_on_depth() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(WireError, match="x has no JSON form"):
        _json.encode(deep, "x")


def test_an_error_has_no_body_behind_it() -> None:
    """A traceback shows an exception's cause, and a cause can hold the whole body with its tokens."""
    with pytest.raises(WireError) as caught:
        _json.decode(HeartbeatAnswer, b'{"access_token":"hush","status":"\xff"}', "x")
    assert caught.value.__suppress_context__
    assert "hush" not in str(caught.value)
