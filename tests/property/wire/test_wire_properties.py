"""The wire under Hypothesis: what was written is read back, and nothing that is sent can crash a reader."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posemesh.errors import BadInput, CallbackRefused, ChallengeRefused, InvalidCid, UndecodableLease, WireError
from posemesh.secret import Secret
from posemesh.terms import merge
from posemesh.types import HeartbeatAnswer, LeaseEnvelope, TaskSpec
from posemesh.wire import dds, dms, domain
from posemesh.wire.multipart import MultipartReader, Part, upload_frame
from posemesh.wire.siwe import Challenge, check, compose

# The first use of a library loads it, which on a busy machine is longer than one example may take.
UNTIMED = settings(deadline=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.datetimes(
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 1, 1),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TOKENS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40).map(Secret)
COUNTS = st.none() | st.integers(0, 2**64 - 1)
URLS = st.sampled_from(["http://127.0.0.1:8080", "https://domain.example/a/", "https://[::1]/x?y=1"])
OPTIONAL_TEXT = st.none() | TEXT


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


TASKS = st.builds(
    TaskSpec,
    id=st.uuids(),
    capability=TEXT,
    job_id=optional(st.uuids()),
    capability_filters=JSON,
    meta=JSON,
    inputs_cids=st.lists(TEXT, max_size=3),
    outputs_prefix=OPTIONAL_TEXT,
    label=OPTIONAL_TEXT,
    stage=OPTIONAL_TEXT,
    status=OPTIONAL_TEXT,
    mode=OPTIONAL_TEXT,
    organization_filter=OPTIONAL_TEXT,
    billing_units=OPTIONAL_TEXT,
    estimated_credit_cost=OPTIONAL_TEXT,
    debited_amount=OPTIONAL_TEXT,
    priority=optional(st.integers(-(2**63), 2**63 - 1)),
    attempts=COUNTS,
    max_attempts=COUNTS,
    deps_remaining=COUNTS,
    debited_at=optional(TIMES),
    lease_expires_at=optional(TIMES),
)
TERMS: dict[str, Any] = {
    "access_token": optional(TOKENS),
    "access_token_expires_at": optional(TIMES),
    "lease_expires_at": optional(TIMES),
    "status": OPTIONAL_TEXT,
    "domain_id": optional(st.uuids()),
    "domain_server_url": optional(URLS),
}
LEASES = st.builds(LeaseEnvelope, task=TASKS, cancel=st.booleans(), **TERMS)
ANSWERS = st.builds(
    HeartbeatAnswer,
    task=optional(TASKS),
    cancel=optional(st.booleans()),
    task_id=optional(st.uuids()),
    job_id=optional(st.uuids()),
    attempts=COUNTS,
    max_attempts=COUNTS,
    deps_remaining=COUNTS,
    **TERMS,
)


# -- Records ------------------------------------------------------------------------------------


@UNTIMED
@given(LEASES)
def test_both_readers_of_a_lease_agree(lease: LeaseEnvelope) -> None:
    text = lease.to_json()
    assert LeaseEnvelope.from_json(text) == lease
    assert dms.decode_lease(text.encode()) == lease


@UNTIMED
@given(ANSWERS)
def test_both_readers_of_a_heartbeats_answer_agree(answer: HeartbeatAnswer) -> None:
    text = answer.to_json()
    assert HeartbeatAnswer.from_json(text) == answer
    assert dms.decode_heartbeat(text.encode()) == answer


@UNTIMED
@given(LEASES, ANSWERS)
def test_a_merge_keeps_the_identity_and_forgets_nothing(lease: LeaseEnvelope, answer: HeartbeatAnswer) -> None:
    merged = merge(lease, answer)
    assert (merged.task.id, merged.task.capability) == (lease.task.id, lease.task.capability)
    for name in (*TERMS, "cancel"):
        told = getattr(answer, name)
        kept = told is None and not (name == "access_token_expires_at" and answer.access_token is not None)
        assert getattr(merged, name) == (getattr(lease, name) if kept else told)
    if answer.task is not None and answer.task.id != lease.task.id:
        assert merged.task == lease.task
    assert merge(merged, answer) == merged


# -- Hostile input ------------------------------------------------------------------------------

VALID = json.loads(
    LeaseEnvelope(task=TaskSpec(id="a84a36e5-312b-4f80-974a-06f5d19c1e16", capability="a")).to_json()  # type: ignore[arg-type]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A lease with one value replaced by any other, and then perhaps cut or with a byte changed."""
    lease: Any = json.loads(json.dumps(VALID))
    target = draw(st.sampled_from([lease, lease["task"]]))
    target[draw(st.sampled_from(sorted(target)))] = draw(JSON)
    body = json.dumps(lease, ensure_ascii=draw(st.booleans())).encode()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 2)) :]
    return body[: draw(st.integers(0, len(body)))] if draw(st.booleans()) else body


BODIES = st.binary(max_size=200) | damaged() | JSON.map(lambda value: json.dumps(value).encode())


@UNTIMED
@given(BODIES)
def test_a_lease_is_read_or_refused(body: bytes) -> None:
    try:
        assert isinstance(dms.decode_lease(body), LeaseEnvelope)
    except UndecodableLease as error:
        assert error.task_id is None or re.fullmatch(r"[0-9a-f-]{36}", error.task_id)


@UNTIMED
@given(BODIES)
def test_other_answers_are_read_or_refused(body: bytes) -> None:
    for decode in (dms.decode_heartbeat, dds.decode_challenge, dds.decode_token, domain.decode_metadata):
        try:
            decode(body)
        except WireError:
            pass


@UNTIMED
@given(st.sampled_from(["application/json", "text/plain", None]) | TEXT, BODIES)
def test_a_callback_is_read_or_refused(content_type: str | None, body: bytes) -> None:
    try:
        assert dds.decode_callback(content_type, body).id.strip()
    except CallbackRefused as error:
        assert error.status in (400, 403, 415, 422)


@UNTIMED
@given(st.text(max_size=60) | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d\d:\d\d:\d\d .*", fullmatch=True))
def test_headers_are_read_or_ignored(text: str) -> None:
    date = dms.parse_http_date(text)
    assert date is None or isinstance(date, float)
    wait = dms.parse_retry_after(text, service_now=0.0)
    assert wait is None or wait >= 0


@UNTIMED
@given(st.text(max_size=80) | st.from_regex(r"(https?://[^/]{0,20})?/domains/.{0,40}", fullmatch=True))
def test_an_input_id_is_read_or_refused(cid: str) -> None:
    try:
        ref = domain.parse_cid(cid, domain_server_url="https://d.example", domain_id="own")
    except InvalidCid:
        return
    assert ref.ids or ref.name is not None or ref.data_type is not None
    url = domain.data_url("https://d.example", ref.domain_id, ids=ref.ids, name=ref.name, data_type=ref.data_type)
    assert url.isascii() and url.startswith("https://d.example/api/v1/domains/") and url.count("?") == 1


@UNTIMED
@given(OPTIONAL_TEXT, TEXT)
def test_inferred_names_need_no_escaping(prefix: str | None, path: str) -> None:
    inferred = domain.infer_artifact(prefix, path, "t")
    assert domain.valid_name(inferred.data_type)
    assert domain.valid_name(inferred.name) or len(inferred.name) > 128


# -- Sign-in ------------------------------------------------------------------------------------

ADDRESS = "0x" + "ab" * 20
NOW = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
ODD = (
    st.sampled_from(["a\nb", "a\rb", " a", "", "a\u2028b", "a\x00", "https://evil.example", "dds.example:443"])
    | st.text()
)
CHALLENGES = st.builds(
    Challenge,
    nonce=st.just("abc12345") | ODD,
    domain=st.sampled_from(["dds.example", "DDS.example:443"]) | ODD,
    uri=st.sampled_from(["https://dds.example", "https://dds.example/login"]) | ODD,
    version=st.just("1") | ODD,
    chain_id=st.integers(1, 10) | st.integers(),
    issued_at=st.just("2026-01-01T00:00:00Z") | ODD,
)


@UNTIMED
@given(CHALLENGES)
def test_whatever_passes_the_check_is_eight_lines_of_ours(challenge: Challenge) -> None:
    try:
        check(challenge, dds_base_url="https://dds.example", address=ADDRESS, service_now=NOW)
    except ChallengeRefused:
        return
    lines = compose(challenge, ADDRESS).splitlines()
    first, address, blank, *rest = lines
    assert first.lower().removesuffix(" wants you to sign in with your ethereum account:") in (
        "dds.example",
        "dds.example:443",
    )
    assert (address, blank) == (ADDRESS, "")
    keys, values = zip(*(line.split(": ", 1) for line in rest), strict=True)
    assert keys == ("URI", "Version", "Chain ID", "Nonce", "Issued At")
    assert values == (
        challenge.uri,
        challenge.version,
        str(challenge.chain_id),
        challenge.nonce,
        challenge.issued_at,
    )
    assert values[0].lower().startswith("https://dds.example")


@UNTIMED
@given(st.floats(-1e6, 1e6))
def test_ten_minutes_either_way(offset: float) -> None:
    challenge = Challenge(
        nonce="a",
        domain="d.example",
        uri="https://d.example",
        version="1",
        chain_id=1,
        issued_at="2026-01-01T00:00:00Z",
    )
    if abs(offset) <= 600:
        check(challenge, dds_base_url="https://d.example", address=ADDRESS, service_now=NOW + offset)
    else:
        with pytest.raises(ChallengeRefused):
            check(challenge, dds_base_url="https://d.example", address=ADDRESS, service_now=NOW + offset)


@UNTIMED
@given(st.integers(0, 10**19))
def test_a_legacy_timestamp_is_its_instant(epoch_ns: int) -> None:
    text = dds.legacy_timestamp(epoch_ns)
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})Z", text)
    assert found
    seconds = int(
        (datetime.fromisoformat(found[1]).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    )
    assert seconds * 10**9 + int(found[2]) == epoch_ns


# -- Multipart ----------------------------------------------------------------------------------

BOUNDARY_CHARACTERS = "0123456789abcXYZ'()+_,-./:=?"
BOUNDARIES = st.text(BOUNDARY_CHARACTERS, min_size=1, max_size=70)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


def packed(items: list[tuple[str, bytes]], boundary: str, newline: bytes) -> bytes:
    """A download as the domain server writes it, by another hand than the reader's."""
    out = []
    for name, data in items:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        disposition = f'form-data; name="{escaped}"; data-type="t"; id="i"; size="{len(data)}"'
        out += [f"--{boundary}".encode(), f"Content-Disposition: {disposition}".encode(), b"", data]
    return newline.join([*out, f"--{boundary}--".encode(), b""])


def read(content_type: str, pieces: list[bytes]) -> list[tuple[str, bytes]]:
    """Names and contents of a body that arrives so; what the reader keeps stays bounded."""
    reader = MultipartReader(content_type, header_bytes_max=2048)
    found: list[tuple[str, bytes]] = []
    for piece in pieces:
        for event in reader.feed(piece):
            if isinstance(event, Part):
                found.append((event.name, b""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + event)
        assert len(reader._rest) <= 2048
    reader.close()
    return found


def chopped(data: st.DataObject, body: bytes) -> list[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    return [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]


@UNTIMED
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=60)), max_size=4),
    BOUNDARIES,
    st.sampled_from([b"\r\n", b"\n"]),
    st.sampled_from([b"", b"preamble", b"-" * 3000]),
    st.data(),
)
def test_any_content_survives_any_boundary_and_any_pieces(
    items: list[tuple[str, bytes]], boundary: str, newline: bytes, before: bytes, data: st.DataObject
) -> None:
    if items and data.draw(st.booleans()):
        items[0] = (items[0][0], newline + f"--{boundary}--".encode() + newline)
    body = (before and before + newline) + packed(items, boundary, newline)
    assert read(f'multipart/form-data; boundary="{boundary}"', chopped(data, body)) == items


@UNTIMED
@given(st.lists(st.tuples(NAMES, st.binary(max_size=30)), min_size=1, max_size=3), st.data())
def test_no_cut_download_passes(items: list[tuple[str, bytes]], data: st.DataObject) -> None:
    whole = packed(items, "B", b"\r\n")
    cut = whole[: data.draw(st.integers(0, len(whole) - len(b"--\r\n") - 1))]
    with pytest.raises(BadInput):
        read("multipart/form-data; boundary=B", chopped(data, cut))


@UNTIMED
@given(st.text(max_size=40), st.binary(max_size=200), st.data())
def test_a_download_is_read_or_refused_in_any_pieces_alike(parameters: str, body: bytes, data: st.DataObject) -> None:
    for content_type in (f"multipart/form-data; {parameters}", "multipart/form-data; boundary=B"):
        said = []
        for pieces in ([b"--B\r\n" + body], chopped(data, b"--B\r\n" + body)):
            try:
                said.append(read(content_type, pieces))
            except BadInput:
                said.append([])
        assert said[0] == said[1]


@UNTIMED
@given(NAMES, st.text("0aB_-", min_size=1, max_size=8))
def test_an_upload_is_framed_once(name: str, boundary: str) -> None:
    try:
        content_type, head, tail = upload_frame(boundary=boundary, name=name, data_type="t")
    except WireError:
        return
    assert content_type == f"multipart/form-data; boundary={boundary}"
    assert tail == f"\r\n--{boundary}--\r\n".encode()
    assert head.count(b"\r\n") == 4 and head.endswith(b"\r\n\r\n") and head.startswith(f"--{boundary}\r\n".encode())
