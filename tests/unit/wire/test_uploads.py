"""Uploads in parts, and what the server says of uploads."""

from __future__ import annotations

import json

import pytest

from posemesh.errors import WireError
from posemesh.wire.uploads import (
    UploadInfo,
    decode_etag,
    decode_finished,
    decode_info,
    decode_initiated,
    decode_stored,
    finish_body,
    info_url,
    initiate_body,
    initiate_url,
    part_url,
    session_url,
)

BASE = "https://d.example/prefix/"
ITEM = {"id": "d", "domain_id": "D", "name": "n", "data_type": "t", "size": 1} | dict.fromkeys(
    ("created_at", "updated_at"), "2026-01-01T00:00:00Z"
)
DATA = "https://d.example/prefix/api/v1/domains/D/data/multipart"


def test_urls() -> None:
    assert info_url(BASE) == "https://d.example/prefix/api/v1/info"
    assert initiate_url(BASE, "D") == f"{DATA}?uploads"
    assert session_url(BASE, "D", "a&b=c") == f"{DATA}?uploadId=a%26b%3Dc"
    assert part_url(BASE, "D", "u", 3) == f"{DATA}?uploadId=u&partNumber=3"


def test_bodies() -> None:
    assert json.loads(initiate_body("n", "t", None, "e")) == {
        "name": "n",
        "data_type": "t",
        "size": None,
        "content_type": "application/octet-stream",
        "existing_id": "e",
    }
    parts = [{"part_number": 1, "etag": "a"}, {"part_number": 2, "etag": "b"}]
    assert json.loads(finish_body({2: "b", 1: "a"})) == {"parts": parts}


@pytest.mark.parametrize(
    ("body", "info"),
    [
        (b'{"upload": {"request_max_bytes": 5, "multipart": {"enabled": true}}}', (5, True)),
        (b'{"upload": {"request_max_bytes": 0, "multipart": {"enabled": false, "part_size": 1}}, "x": 1}', (0, False)),
        (b'{"upload": {"request_max_bytes": -1, "multipart": {"enabled": true}}}', None),
        (b'{"upload": {"request_max_bytes": true, "multipart": {"enabled": true}}}', None),
        (b'{"upload": {"request_max_bytes": 5, "multipart": {"enabled": 1}}}', None),
        (b'{"upload": {"request_max_bytes": 5}}', None),
        (b'{"upload": 5}', None),
        (b"[]", None),
        (b"<html>", None),
        (b"", None),
    ],
)  # fmt: skip
def test_info(body: bytes, info: tuple[int, bool] | None) -> None:
    told = info and UploadInfo(request_max_bytes=info[0], multipart=info[1])
    assert decode_info(body) == told


def test_answers() -> None:
    assert decode_initiated(b'{"upload_id": "u", "part_size": 5, "data_id": "d"}') == ("u", 5)
    assert decode_etag(b'{"etag": "e"}') == "e"
    assert decode_finished(b'{"id": "d", "name": 7}') == "d"
    assert decode_etag(b'{"etag": ""}') == ""
    assert decode_stored(json.dumps({"data": [ITEM, ITEM | {"id": "e"}]}).encode()) == "d"


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b'{"upload_id": "", "part_size": 1, "id": "", "etag": 5}'])
def test_answers_that_are_none(body: bytes) -> None:
    for decode in (decode_initiated, decode_etag, decode_finished, decode_stored):
        with pytest.raises(WireError):
            decode(body)


@pytest.mark.parametrize("size", [0, 1025])
def test_names_without_bounds_are_refused(size: int) -> None:
    """Ten thousand etags of some megabytes each were kept until the session's end."""
    name = "x" * size
    answers = [
        (decode_initiated, {"upload_id": name, "part_size": 1}),
        (decode_finished, {"id": name}),
        (decode_stored, {"data": [ITEM | {"id": name}]}),
        (decode_stored, {"data": []}),
        (decode_etag, {"etag": name or None}),
    ]
    for decode, answer in answers:
        with pytest.raises(WireError):
            decode(json.dumps(answer).encode())
