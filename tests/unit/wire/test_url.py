"""Origins, as far as the wire must know them."""

from __future__ import annotations

import pytest

from posemesh.wire._url import Origin, authority_of, join, origin_of, same_host


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://A.example", Origin("https", "a.example", None)),
        ("HTTP://a.example:80/x?y#z", Origin("http", "a.example", 80)),
        ("http://[0:0::1]:8080", Origin("http", "::1", 8080)),
        ("http://127.0.0.1", Origin("http", "127.0.0.1", None)),
    ],
)
def test_origins(url: str, origin: Origin) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a",
        "/a",
        "//a",
        "http:",
        "http:/a",
        "http://",
        "http://:80",
        "http://a:b",
        "http://a:65536",
        "http://u@a",
        "ws://a",
    ]
    + [f"http://a{character}b" for character in "\t\n\r \x00\x7f\xa0\\\u2028"],
)
def test_what_has_no_origin(url: str) -> None:
    assert origin_of(url) is None


def test_the_same_origin_with_and_without_its_port() -> None:
    one, other = origin_of("https://a.example/x"), origin_of("https://A.example:443")
    assert one is not None and other is not None
    assert one.key == other.key == ("https", "a.example", 443)
    assert one.effective_port == 443


@pytest.mark.parametrize(
    ("text", "host", "port"), [("A.example", "a.example", None), ("a:1", "a", 1), ("[::1]:80", "::1", 80)]
)
def test_authorities(text: str, host: str, port: int | None) -> None:
    assert authority_of(text) == Origin("", host, port)


@pytest.mark.parametrize("text", ["", "a/b", "a?b", "a#b", "u@a", "a b", "a\n", "http://a", ":80", "a:b"])
def test_what_is_no_authority(text: str) -> None:
    assert authority_of(text) is None


def test_hosts() -> None:
    assert same_host("a.example", "a.example") and not same_host("a.example", "b.example")
    assert same_host("localhost", "::1") and not same_host("localhost", "a.example")


def test_join() -> None:
    assert join("http://a", "b") == join("http://a//", "b") == "http://a/b"
