"""The domain server: input ids, names, query URLs and metadata."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from posemesh.errors import InvalidCid, WireError
from posemesh.wire.domain import (
    DataMetadata,
    ItemRef,
    data_url,
    decode_metadata,
    infer_artifact,
    parse_cid,
    valid_name,
)

OWN = "a84a36e5-312b-4f80-974a-06f5d19c1e16"
OTHER = "b84a36e5-312b-4f80-974a-06f5d19c1e16"
SERVER = "https://domain.example/prefix"


def ref(cid: str, server: str = SERVER) -> ItemRef:
    return parse_cid(cid, domain_server_url=server, domain_id=UUID(OWN))


# -- Input ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cid", ["abc", " abc\n", OTHER, "scan_1?x", "a b"])
def test_a_bare_id(cid: str) -> None:
    assert ref(cid) == ItemRef(OWN, (cid.strip(),))


@pytest.mark.parametrize(
    "start", ["", "https://domain.example", "https://DOMAIN.example:443", "HTTPS://domain.example/deep"]
)
def test_the_forms_of_a_url(start: str) -> None:
    assert ref(f"{start}/api/v1/domains/{OTHER}/data/x1") == ItemRef(OTHER, ("x1",))
    assert ref(f"{start}/api/v1/domains/{OTHER}/data/x1?raw=true&ids=y") == ItemRef(OTHER, ("x1",))
    assert ref(f"{start}/api/v1/domains/{OTHER}/data/x%2F1") == ItemRef(OTHER, ("x/1",))
    assert ref(f"{start}/domains/{OTHER}/data?ids=a,b&ids=c") == ItemRef(OTHER, ("a", "b", "c"))
    assert ref(f"{start}/domains/{OTHER}/data?name=n%20m&name=o") == ItemRef(OTHER, (), "n m")
    assert ref(f"{start}/domains/{OTHER}/data/?data_type=t") == ItemRef(OTHER, (), None, "t")
    assert ref(f"{start}/elsewhere?ids=a&name=n&data_type=t") == ItemRef(OWN, ("a",), "n", "t")


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example",
        "https://domain.example.evil.example",
        "http://domain.example",
        "https://domain.example:444",
        "https://domain.example@evil.example",
        "https://u:p@domain.example",
        "//evil.example",
        "https://evil.example\\@domain.example",
        "ftp://domain.example",
        "x?y=://domain.example",
        "file://",
        "https://[::1",
    ],
)
def test_the_token_goes_to_the_leases_server_only(url: str) -> None:
    """Weakness 36 of the reference: the host of an input's URL is ignored."""
    with pytest.raises(InvalidCid):
        ref(f"{url}/api/v1/domains/{OTHER}/data/x1")


@pytest.mark.parametrize(
    "cid",
    [
        f"/api/v1/domains/{OTHER}/data",
        f"https://domain.example/api/v1/domains/{OTHER}/data",
        f"/api/v1/domains/{OTHER}/data?ids=",
        f"/api/v1/domains/{OTHER}/data?ids=,,&name=",
        "https://domain.example",
        "/",
        "https://domain.example/?other=1",
    ],
)
def test_never_the_whole_domain(cid: str) -> None:
    """Weakness 36 of the reference: a URL without a filter downloads every item of the domain."""
    with pytest.raises(InvalidCid, match="every item"):
        ref(cid)


@pytest.mark.parametrize(
    "cid", ["", "  ", "\n", "a\nb", "a\x00", "\ud800", "/domains/../data/x", "/domains/x/data/y", "/a b"]
)
def test_other_ids_that_are_none(cid: str) -> None:
    with pytest.raises(InvalidCid, match="input id refused"):
        ref(cid)


def test_loopback_with_a_port() -> None:
    assert ref("http://127.0.0.1:8080/x?ids=a", "http://127.0.0.1:8080") == ItemRef(OWN, ("a",))
    with pytest.raises(InvalidCid):
        ref("http://127.0.0.1:8081/x?ids=a", "http://127.0.0.1:8080")


# -- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "path", "logical", "name", "data_type"),
    [
        ("out", "job_manifest.json", "out/job_manifest.json", "out_job_manifest_json_task-456", "json"),
        (
            "out",
            "refined/local/scan_a/RefinedScan.zip",
            "out/refined/local/scan_a/RefinedScan.zip",
            "out_refined_local_scan_a_RefinedScan_zip_task-456",
            "zip_data",
        ),
        ("/out/", "/a.PLY", "out/a.PLY", "out_a_PLY_task-456", "ply"),
        ("", "a.drc", "a.drc", "a_drc_task-456", "ply_draco"),
        (None, "a", "a", "a_task-456", "binary"),
        ("out", "", "out", "out_task-456", "binary"),
        ("", "", "", "artifact_task-456", "binary"),
        ("o/p", "ä ö.b+c", "o/p/ä ö.b+c", "o_p_____b_c_task-456", "b_c_data"),
        ("o", ".hidden", "o/.hidden", "o__hidden_task-456", "binary"),
    ],
)
def test_names(prefix: str | None, path: str, logical: str, name: str, data_type: str) -> None:
    assert infer_artifact(prefix, path, "task-456") == (logical, name, data_type)


@pytest.mark.parametrize("extension", ["json", "ply", "glb", "obj", "csv", "mp4"])
def test_plain_types(extension: str) -> None:
    assert infer_artifact(None, f"x.{extension.upper()}", "t").data_type == extension


@pytest.mark.parametrize("text", ["a", "a b", "ä" * 64, "out_a-b.c:d,e'f", "x" * 128])
def test_good_names(text: str) -> None:
    assert valid_name(text)


@pytest.mark.parametrize(
    "text", ["", "x" * 129, "ä" * 65, "a\n", "a\x00b", "a\x85b", "\ud800", *';!?<>[]{}()/\\"$#@*^&|~%=+']
)
def test_bad_names(text: str) -> None:
    assert not valid_name(text)


# -- Requests and answers -----------------------------------------------------------------------


def test_data_urls() -> None:
    start = f"{SERVER}/api/v1/domains/{OWN}/data"
    assert data_url(SERVER, UUID(OWN)) == start
    assert data_url(SERVER + "/", OWN) == start
    assert data_url(SERVER, OWN, ids=["a", "b"]) == f"{start}?ids=a,b"


def test_ids_and_filters_are_one_query() -> None:
    """Weakness 27 of the reference: with a name, the ids end up in the path."""
    url = urlsplit(data_url(SERVER, OWN, ids=["a&x=1", "b/c"], name="n & m", data_type="t=+"))
    assert url.path == f"/prefix/api/v1/domains/{OWN}/data"
    assert parse_qs(url.query) == {"ids": ["a&x=1,b/c"], "name": ["n & m"], "data_type": ["t=+"]}


ITEM = {
    "id": "x",
    "domain_id": OWN,
    "name": "n",
    "data_type": "t",
    "size": 5,
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
}


def test_metadata() -> None:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    item = DataMetadata(id="x", domain_id=OWN, name="n", data_type="t", size=5, created_at=time, updated_at=time)
    assert decode_metadata(json.dumps({"data": [ITEM, ITEM], "more": 1}).encode()) == [item, item]
    assert decode_metadata(b'{"data":[]}') == []


@pytest.mark.parametrize("field", list(ITEM))
def test_all_of_it_is_required(field: str) -> None:
    """Weakness 11 of the reference: a malformed answer to an upload is a panic."""
    for broken in ({**ITEM, field: None}, {name: value for name, value in ITEM.items() if name != field}):
        with pytest.raises(WireError, match=field):
            decode_metadata(json.dumps({"data": [ITEM, broken]}).encode())


@pytest.mark.parametrize(
    ("field", "value"), [("size", -1), ("size", 2**64), ("size", 1.5), ("created_at", "2026-01-01T00:00:00"), ("id", 5)]
)
def test_wrong_metadata_is_located(field: str, value: object) -> None:
    with pytest.raises(WireError, match=rf"\$\.data\[[0.]*\]\.{field}"):
        decode_metadata(json.dumps({"data": [{**ITEM, field: value}]}).encode())


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data":null}', b'{"data":{}}'])
def test_what_is_no_metadata(body: bytes) -> None:
    with pytest.raises(WireError, match="domain server's answer"):
        decode_metadata(body)
