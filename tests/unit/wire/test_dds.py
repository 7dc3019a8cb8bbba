"""DDS: what is sent to it, what it answers, and what it may call the node with."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from posemesh.conformance import Vector, load_vectors
from posemesh.errors import CallbackRefused, WireError
from posemesh.secret import Secret
from posemesh.wire import dds

CHALLENGE: dict[str, Any] = {
    "nonce": "abc12345",
    "domain": "dds.example.com",
    "uri": "https://dds.example.com",
    "version": "1",
    "chainId": 8453,
    "issuedAt": "2026-01-01T00:00:00Z",
}


def vectors(action: str) -> list[Vector]:
    return [vector for name in ("dds", "legacy") for vector in load_vectors(name) if vector.action == action]


def body(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("base", ["https://dds.example.com", "https://dds.example.com/", "https://dds.example.com//"])
def test_urls(base: str) -> None:
    assert dds.siwe_request_url(base) == "https://dds.example.com/internal/v1/auth/siwe/request"
    assert dds.verify_url(base) == "https://dds.example.com/internal/v1/auth/siwe/verify"
    assert dds.register_wallet_url(base) == "https://dds.example.com/internal/v1/nodes/register-wallet"
    assert dds.register_url(base) == "https://dds.example.com/internal/v1/nodes/register"


def test_a_challenge_is_asked_for() -> None:
    assert json.loads(dds.challenge_request_body("0xabc")) == {"wallet": "0xabc"}


@pytest.mark.parametrize("vector", vectors("decode_challenge"))
def test_challenges(vector: Vector) -> None:
    challenge = dds.decode_challenge(body(vector.given["body"]))
    assert {name: getattr(challenge, name) for name in vector.expect} == vector.expect


@pytest.mark.parametrize("field", list(CHALLENGE))
@pytest.mark.parametrize("absent", [True, False])
def test_a_missing_field_is_named(field: str, absent: bool) -> None:
    answer = {**CHALLENGE, field: None}
    if absent:
        del answer[field]
    with pytest.raises(WireError, match=f"expected the field `{field}`"):
        dds.decode_challenge(body(answer))


def test_an_empty_nonce_is_missing() -> None:
    with pytest.raises(WireError, match="nonce"):
        dds.decode_challenge(body({**CHALLENGE, "nonce": ""}))


@pytest.mark.parametrize(
    ("field", "value"), [("chainId", "1"), ("chainId", 1.0), ("chainId", True), ("nonce", 5), ("uri", [])]
)
def test_a_wrong_type_is_named(field: str, value: object) -> None:
    with pytest.raises(WireError, match=rf"\$\.{field}"):
        dds.decode_challenge(body({**CHALLENGE, field: value}))


@pytest.mark.parametrize("answer", [b"", b"null", b"[]", b"{", b'"x"', b"\xff", b"[" * 100_000])
def test_a_challenge_is_an_object(answer: bytes) -> None:
    with pytest.raises(WireError, match="sign-in challenge"):
        dds.decode_challenge(answer)


def test_unknown_fields_are_ignored() -> None:
    assert dds.decode_challenge(body({**CHALLENGE, "statement": "hello", "x": [1]})).nonce == "abc12345"


@pytest.mark.parametrize("vector", vectors("decode_token"))
def test_tokens(vector: Vector) -> None:
    token, expires_at = dds.decode_token(body(vector.given["body"]))
    assert token.reveal() == vector.expect["access_token"]
    assert expires_at is not None and expires_at.isoformat() == vector.expect["expires_at"]


def test_the_later_spelling_of_the_expiry_is_preferred() -> None:
    first, second = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    answer = {"access_token": "t", "access_expires_at": first.isoformat(), "expires_at": second.isoformat()}
    assert dds.decode_token(body(answer))[1] == first
    assert dds.decode_token(body({**answer, "access_expires_at": None}))[1] == second
    assert dds.decode_token(body({**answer, "access_expires_at": None, "expires_at": None}))[1] is None
    assert dds.decode_token(body({"access_token": "t", "node_id": 5}))[1] is None


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ({}, "access_token"),
        ({"access_token": ""}, "access_token"),
        ({"access_token": None}, "access_token"),
        ({"access_token": 5}, "access_token"),
        ({"access_token": "hush\r\nX-Evil: 1"}, "access_token"),
        ({"access_token": "hush", "access_expires_at": "tomorrow"}, "access_expires_at"),
        ({"access_token": "hush", "access_expires_at": 1767225600}, "access_expires_at"),
        ({"access_token": "hush", "access_expires_at": "2026-01-01T00:00:00"}, "access_expires_at"),
        ({"access_token": "hush", "expires_at": ""}, "expires_at"),
    ],
)
def test_a_malformed_token_answer(answer: object, field: str) -> None:
    with pytest.raises(WireError, match=field) as caught:
        dds.decode_token(body(answer))
    assert "hush" not in str(caught.value)


def test_sign_in() -> None:
    assert json.loads(dds.verify_body("0xabc", "line\nline", "0xdef")) == {
        "address": "0xabc",
        "message": "line\nline",
        "signature": "0xdef",
    }


def registration(max_concurrency: int) -> Any:
    sent = dds.register_wallet_body(
        message="m",
        signature="0xdef",
        registration_credentials=Secret("bm9kZTpzZWNyZXQ="),
        capabilities=["/a/v1", "/b/v1"],
        version="1.2.3",
        max_concurrency=max_concurrency,
    )
    return json.loads(sent)


def test_wallet_registration() -> None:
    assert registration(1) == {
        "message": "m",
        "signature": "0xdef",
        "registration_credentials": "bm9kZTpzZWNyZXQ=",
        "capabilities": ["/a/v1", "/b/v1"],
        "version": "1.2.3",
    }


def test_concurrency_is_told_only_above_one() -> None:
    assert registration(2)["max_concurrency"] == 2


def test_legacy_registration() -> None:
    sent = dds.register_body(
        url="https://node.example/",
        version="1.2.3",
        registration_credentials=Secret("bm9kZTpzZWNyZXQ="),
        signature="ab",
        timestamp="2024-01-02T03:04:05.000000000Z",
        public_key="04",
        capabilities=["/a/v1"],
    )
    assert json.loads(sent) == {
        "url": "https://node.example/",
        "version": "1.2.3",
        "registration_credentials": "bm9kZTpzZWNyZXQ=",
        "signature": "ab",
        "timestamp": "2024-01-02T03:04:05.000000000Z",
        "public_key": "04",
        "capabilities": ["/a/v1"],
    }


@pytest.mark.parametrize("vector", vectors("legacy_timestamp"))
def test_timestamps(vector: Vector) -> None:
    assert dds.legacy_timestamp(vector.given["epoch_ns"]) == vector.expect["timestamp"]


def test_a_timestamp_always_has_nine_digits() -> None:
    assert dds.legacy_timestamp(0) == "1970-01-01T00:00:00.000000000Z"
    assert dds.legacy_timestamp(1) == "1970-01-01T00:00:00.000000001Z"
    assert dds.legacy_timestamp(-1) == "1969-12-31T23:59:59.999999999Z"


def test_the_signature_covers_both_fields_as_sent() -> None:
    assert dds.legacy_signing_input("https://n/", "T") == b"https://n/T"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://node.example", "https://node.example/"),
        ("https://node.example/", "https://node.example/"),
        ("HTTPS://Node.Example:443", "https://node.example/"),
        ("http://node.example:80/a", "http://node.example/a"),
        ("http://node.example:8080", "http://node.example:8080/"),
        ("http://[::1]:8080", "http://[::1]:8080/"),
        ("https://node.example?x=1", "https://node.example/?x=1"),
    ],
)
def test_the_registered_url(given: str, sent: str) -> None:
    assert dds.registered_url(given) == sent


@pytest.mark.parametrize("url", ["", "node.example", "ftp://node.example", "https://u:p@node.example", "https://a b"])
def test_a_node_url_is_absolute(url: str) -> None:
    with pytest.raises(WireError, match="absolute http or https URL"):
        dds.registered_url(url)


@pytest.mark.parametrize("vector", vectors("decode_callback"))
def test_callbacks(vector: Vector) -> None:
    callback = dds.decode_callback("application/json", body(vector.given["body"]))
    assert (callback.id, callback.secret.reveal()) == (vector.expect["id"], vector.expect["secret"])
    assert callback.organization_id == vector.expect["organization_id"]


GOOD = body({"id": "a", "secret": "hush"})


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        " application/json ;x",
        "application/a+json",
    ],
)
def test_what_is_json(content_type: str) -> None:
    assert dds.decode_callback(content_type, GOOD).id == "a"


def refused(content_type: str | None, sent: bytes) -> tuple[int, str]:
    with pytest.raises(CallbackRefused) as caught:
        dds.decode_callback(content_type, sent)
    return caught.value.status, caught.value.text


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/jsonp", "text/json", "application/json5"]
)
def test_what_is_not_json(content_type: str | None) -> None:
    assert refused(content_type, GOOD)[0] == 415


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"\xff", 400, None),
        (b'{"id":"\xff"}', 400, None),
        (b'{"id":NaN}', 400, None),
        (b"{} {}", 400, None),
        (b"[" * 100_000, 400, None),
        (b"[]", 422, None),
        (b"null", 422, None),
        (b"{}", 422, None),
        (b'{"id":"a"}', 422, None),
        (b'{"secret":"hush"}', 422, None),
        (b'{"id":null,"secret":"hush"}', 422, None),
        (b'{"id":"a","secret":null}', 422, None),
        (b'{"id":1,"secret":"hush"}', 422, None),
        (b'{"id":"a","secret":["hush"]}', 422, None),
        (b'{"id":"","secret":"","organization_id":5}', 422, None),
        (b'{"id":" \\t","secret":"hush"}', 422, "missing id"),
        (b'{"id":"","secret":""}', 422, "missing id"),
        (b'{"id":"a","secret":" "}', 422, "missing secret"),
        (body({"id": "a", "secret": "x" * 4097}), 403, "secret too large"),
        (body({"id": "a", "secret": "é" * 2049}), 403, "secret too large"),
        (body({"id": " ", "secret": "x" * 4097}), 422, "missing id"),
    ],
)
def test_a_refused_callback(sent: bytes, status: int, text: str | None) -> None:
    answer = refused("application/json", sent)
    assert answer[0] == status
    assert text is None or answer[1] == text
    assert "hush" not in answer[1]


def test_the_order_of_the_checks() -> None:
    """Type before size, size before form: the contract's table from the top."""
    assert refused("text/plain", b"x" * (dds.CALLBACK_BYTES_MAX + 1))[0] == 415
    assert refused("application/json", b"x" * (dds.CALLBACK_BYTES_MAX + 1))[0] == 413


def test_limits_are_inclusive() -> None:
    padded = GOOD + b" " * (dds.CALLBACK_BYTES_MAX - len(GOOD))
    assert dds.decode_callback("application/json", padded).id == "a"
    assert dds.decode_callback("application/json", body({"id": "a", "secret": "x" * 4096})).id == "a"
    assert dds.decode_callback("application/json", body({"id": "a", "secret": "é" * 2048})).id == "a"


def test_a_secret_is_kept_untrimmed_and_hidden() -> None:
    callback = dds.decode_callback("application/json", body({"id": "a", "secret": " hush\n", "domains": 5, "new": {}}))
    assert callback.secret.reveal() == " hush\n"
    assert "hush" not in repr(callback)
    assert callback.organization_id is None


@pytest.mark.parametrize(
    ("agent", "probe"),
    [
        ("DDS v1.2", True),
        ("DDS v", True),
        ("dds v1", False),
        (" DDS v1", False),
        ("Go-http-client/1.1", False),
        (None, False),
    ],
)
def test_health_probes(agent: str | None, probe: bool) -> None:
    assert dds.is_health_probe(agent) is probe
