"""Sign-in messages: composed to the byte, and only of a challenge that is this DDS's own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from posemesh.conformance import Vector, load_vectors
from posemesh.errors import ChallengeRefused
from posemesh.wire.dds import decode_challenge
from posemesh.wire.siwe import Challenge, check, compose

ADDRESS = "0xfdbb6caf01414300c16ea14859fec7736d95355f"
NOW = 1767225600.0  # 2026-01-01T00:00:00Z
GOOD = Challenge(
    nonce="abc12345",
    domain="dds.example.com",
    uri="https://dds.example.com",
    version="1",
    chain_id=8453,
    issued_at="2026-01-01T00:00:00Z",
)
DDS = "https://dds.example.com"


def checked(dds: str = DDS, now: float = NOW, address: str = ADDRESS, **fields: Any) -> None:
    check(replace(GOOD, **fields), dds_base_url=dds, address=address, service_now=now)


def refusal(dds: str = DDS, now: float = NOW, address: str = ADDRESS, **fields: Any) -> str:
    with pytest.raises(ChallengeRefused) as caught:
        checked(dds, now, address, **fields)
    return str(caught.value)


@pytest.mark.parametrize("vector", [vector for vector in load_vectors("siwe") if vector.action == "compose"])
def test_messages(vector: Vector) -> None:
    given = vector.given
    challenge = Challenge(
        nonce=given["challenge"]["nonce"],
        domain=given["challenge"]["domain"],
        uri=given["challenge"]["uri"],
        version=given["challenge"]["version"],
        chain_id=given["challenge"]["chainId"],
        issued_at=given["challenge"]["issuedAt"],
    )
    message = compose(challenge, given["address"], given["resources"])
    assert message == vector.expect["message"]
    assert len(message.encode()) == vector.expect["bytes"]


def test_the_vectors_of_the_protocol_pass_the_check() -> None:
    for vector in (vector for vector in load_vectors("dds") if vector.action == "decode_challenge"):
        challenge = decode_challenge(json.dumps(vector.given["body"]).encode())
        check(challenge, dds_base_url=f"https://{challenge.domain}", address=ADDRESS, service_now=NOW)


def test_a_good_challenge_passes() -> None:
    checked()


@pytest.mark.parametrize(
    "fields",
    [
        {"domain": "DDS.Example.COM"},
        {"domain": "dds.example.com:443"},
        {"domain": "dds.example.com:"},
        {"uri": "https://DDS.example.com/login"},
        {"uri": "https://dds.example.com:443/a/b?c=d"},
        {"nonce": "x"},
        {"nonce": "a-b_c" * 51},
        {"version": "2"},
        {"issued_at": "2026-01-01T00:10:00Z"},
        {"issued_at": "2025-12-31T23:50:00Z"},
        {"issued_at": "2026-01-01T02:00:00.123456789+02:00"},
    ],
)
def test_what_belongs_to_the_dds_passes(fields: dict[str, Any]) -> None:
    checked(**fields)


@pytest.mark.parametrize("own", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST", "[0:0:0:0:0:0:0:1]"])
@pytest.mark.parametrize("told", ["localhost", "127.0.0.1", "[::1]"])
def test_loopback_has_many_names(own: str, told: str) -> None:
    checked(dds=f"http://{own}:8701/x", domain=f"{told}:8701", uri=f"http://{told}:8701/login")
    checked(dds=f"http://{own}:8701", domain=told, uri=f"http://{told}")
    assert "domain" in refusal(dds=f"http://{own}:8701", domain=f"{told}:8702", uri=f"http://{told}:8701")
    assert "uri" in refusal(dds=f"http://{own}:8701", domain=told, uri=f"http://{told}:8702")


@pytest.mark.parametrize(
    "domain",
    [
        "evil.example",
        "dds.example.com.evil.example",
        "evil.dds.example.com",
        "dds.example.com.",
        "dds.example.com:444",
        "dds.example.com:x",
        "dds.example.com:99999",
        "dds.example.com/",
        "dds.example.com?",
        "dds.example.com#",
        "user@dds.example.com",
        "evil.example\\@dds.example.com",
        "https://dds.example.com",
        "localhost",
        "[::1",
    ],
)
def test_another_domain_is_not_signed(domain: str) -> None:
    """Weakness 46 of the reference: it signs whatever domain it is told, with a wallet that may hold a stake."""
    assert "domain: expected the configured DDS, dds.example.com:443" in refusal(domain=domain)


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example",
        "https://dds.example.com.evil.example/",
        "https://dds.example.com:444/",
        "https://dds.example.com@evil.example/",
        "https://user:pass@dds.example.com/",
        "https://@dds.example.com/",
        "https://evil.example\\@dds.example.com/",
        "//dds.example.com/",
        "/login",
        "dds.example.com",
        "ftp://dds.example.com/",
        "javascript:alert(1)",
        "urn:uuid:a84a36e5-312b-4f80-974a-06f5d19c1e16",
        "https://",
        "https://[::1",
        "https://dds.example.com:99999",
    ],
)
def test_another_uri_is_not_signed(uri: str) -> None:
    assert "uri: expected" in refusal(uri=uri)


def test_https_is_not_given_up() -> None:
    assert "https" in refusal(uri="http://dds.example.com")
    checked(dds="http://dds.example.com", uri="https://dds.example.com")


@pytest.mark.parametrize("field", ["nonce", "domain", "uri", "version", "issued_at"])
@pytest.mark.parametrize(
    "text", ["", " ", "\n", "a\nb", "a\rb", "a\x00b", "a b", "a\x85b", "a\u2028b", "é", "a" * 3000]
)
def test_nothing_in_a_field_can_start_another_line(field: str, text: str) -> None:
    assert f"{field}: expected" in refusal(**{field: text})


def test_a_line_break_after_good_text_is_seen() -> None:
    assert "nonce" in refusal(nonce=GOOD.nonce + "\n")
    assert "issued_at" in refusal(issued_at=GOOD.issued_at + "\nResources:\n- urn:evil")
    assert "version" in refusal(version="1\n")


def test_a_nonce_has_a_length() -> None:
    assert "nonce" in refusal(nonce="a" * 257)


@pytest.mark.parametrize("chain_id", [0, -1, 2**63])
def test_a_chain_is_a_positive_number(chain_id: int) -> None:
    assert "chain_id: expected a positive integer" in refusal(chain_id=chain_id)


@pytest.mark.parametrize(
    "issued_at", ["2026-01-01", "2026-01-01T00:00:00", "yesterday", "1767225600", "2026-13-01T00:00:00Z"]
)
def test_a_time_is_rfc_3339(issued_at: str) -> None:
    assert "issued_at: expected an RFC 3339 time" in refusal(issued_at=issued_at)


@pytest.mark.parametrize("offset", [-601.0, 601.0, 1e9, float("nan")])
def test_a_challenge_is_fresh(offset: float) -> None:
    assert "issued_at: expected a time within 600 s" in refusal(now=NOW + offset)


@pytest.mark.parametrize("offset", [-600.0, -1.0, 599.5, 600.0])
def test_ten_minutes_are_fresh(offset: float) -> None:
    checked(now=NOW + offset)


@pytest.mark.parametrize("address", ["", "fdbb", ADDRESS + "\n", ADDRESS[:-1], "0x" + "g" * 40])
def test_the_address_is_one(address: str) -> None:
    assert "address" in refusal(address=address)


def test_the_configured_dds_is_a_url() -> None:
    assert "dds_base_url" in refusal(dds="dds.example.com")


def test_what_is_refused_is_not_repeated() -> None:
    assert "evil" not in refusal(domain="evil.example")
