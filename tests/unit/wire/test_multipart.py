"""Downloads in parts, read strictly; uploads, written so that they cannot be misread."""

from __future__ import annotations

import pytest

from posemesh.errors import BadInput, WireError
from posemesh.wire.multipart import (
    ALL_HEADERS_BYTES_MAX,
    PARTS_MAX,
    SKIPPED_BYTES_MAX,
    MultipartReader,
    Part,
    upload_frame,
)

ID = "a84a36e5-312b-4f80-974a-06f5d19c1e16"
TYPE = "multipart/form-data; boundary=B"
SAMPLE_BOUNDARY = "0f336dec6f61e466706eb557cda40d8caa86c28df397bd7348766b5b5eda"
SAMPLE = (
    f"--{SAMPLE_BOUNDARY}\r\n"
    'Content-Disposition: form-data; name="test"; data-type="test"; id="a84a36e5-312b-4f80-974a-06f5d19c1e16"; '
    'domain-id="23d60e61-6978-4f6b-a59d-9ffa027755fc"; size="24"; created-at="2025-08-05T10:29:56.448595Z"; '
    'updated-at="2025-09-25T02:54:26.154224Z"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
    '{"test": "test updated"}\r\n'
    f"--{SAMPLE_BOUNDARY}--\r\n"
).encode()


def read(content_type: str | None, body: bytes, step: int = 0, **options: int) -> list[tuple[Part, bytes]]:
    """The parts and their content, of a body that arrives in pieces of ``step`` bytes."""
    reader = MultipartReader(content_type, **options)
    found: list[tuple[Part, bytes]] = []
    for at in range(0, len(body), step or len(body) or 1):
        for event in reader.feed(body[at : at + (step or len(body))]):
            if isinstance(event, Part):
                found.append((event, b""))
            else:
                assert event
                found[-1] = (found[-1][0], found[-1][1] + event)
    reader.close()
    assert all(part.size == len(data) for part, data in found)
    return found


def part(data: bytes, *, size: int | str | None = None, end: bytes = b"\r\n", name: str = '"n"') -> bytes:
    length = len(data) if size is None else size
    headers = [
        b"Content-Type: application/octet-stream",
        f'content-disposition: form-data; size="{length}"; id="{ID}"; name={name}; data-type="t"'.encode(),
    ]
    return b"--B" + end + end.join(headers) + end + end + data + end


def test_the_servers_own_sample() -> None:
    for content_type in (
        f"multipart/form-data; boundary={SAMPLE_BOUNDARY}",
        f'Multipart/Form-Data;Boundary="{SAMPLE_BOUNDARY}"',
    ):
        ((item, data),) = read(content_type, SAMPLE)
        assert item == Part(ID, "test", "test", 24, "23d60e61-6978-4f6b-a59d-9ffa027755fc")
        assert data == b'{"test": "test updated"}'


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("data", [b"", b"x", b"\r\n", b"\r\n--B\r\n", b"--B--", b"\x00\xff" * 500, b"\r\n\r\n"])
def test_content_is_never_searched_for_the_boundary(data: bytes, end: bytes) -> None:
    body = part(data, end=end) + part(b"second", end=end) + b"--B--" + end
    assert [data for _, data in read(TYPE, body)] == [data, b"second"]


def test_leading_and_trailing_bytes_are_skipped() -> None:
    body = b"preamble --B\r\n--Bx\r\n\r\n" + part(b"a") + b"--B--\r\nepilogue\r\n--B\r\n"
    assert [data for _, data in read(TYPE, body)] == [b"a"]


@pytest.mark.parametrize("body", [b"--B--", b"--B--\r\n", b"\r\n--B--\r\n"])
def test_no_parts(body: bytes) -> None:
    assert read(TYPE, body) == []


def test_the_end_needs_no_line_break() -> None:
    assert len(read(TYPE, part(b"a") + b"--B--")) == 1


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ('"a;b"', "a;b"),
        ('"a\\"b"', 'a"b'),
        ('"a\\"b\\"\\"c"', 'a"b""c'),
        ('"a\\\\b"', "a\\b"),
        ("bare", "bare"),
        ('""', ""),
        ('"ä\u2028ö"', "ä\u2028ö"),
        ('"a=b"', "a=b"),
    ],
)
def test_names_are_unquoted(written: str, name: str) -> None:
    """Weakness 31 of the reference: `;` and quotes in a name break the header."""
    assert read(TYPE, part(b"x", name=written) + b"--B--")[0][0].name == name


@pytest.mark.parametrize(
    "content_type",
    [
        f"{TYPE}; charset=utf-8",
        f"{TYPE};",
        "multipart/form-data; charset=x; boundary=B",
        ' multipart/form-data ; boundary="B" ',
    ],
)
def test_other_parameters_are_no_part_of_the_boundary(content_type: str) -> None:
    """Weakness 31 of the reference: everything after `boundary=` is taken for it."""
    assert len(read(content_type, part(b"x") + b"--B--")) == 1


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "multipart/mixed; boundary=B",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        'multipart/form-data; boundary="B',
        "multipart/form-data; boundary=B; boundary=C",
        "multipart/form-data; boundary=" + "x" * 71,
        'multipart/form-data; boundary="B "',
        'multipart/form-data; boundary="ä"',
        'multipart/form-data; boundary="a\nb"',
    ],
)
def test_a_content_type_that_is_none(content_type: str | None) -> None:
    with pytest.raises(BadInput):
        read(content_type, part(b"x") + b"--B--")


WHOLE = part(b"some bytes") + part(b"more") + b"--B--"


@pytest.mark.parametrize("step", [0, 1])
def test_a_cut_body_is_an_error(step: int) -> None:
    """Weakness 28 of the reference: a truncated download ends silently as success."""
    for length in range(len(WHOLE)):
        with pytest.raises(BadInput, match="cannot be read"):
            read(TYPE, WHOLE[:length], step)


@pytest.mark.parametrize("size", [0, 1, 2, 4, 100, "", "-3", "3.0", "+3", "x", "9" * 30, "٣"])
def test_a_size_that_is_wrong(size: int | str) -> None:
    with pytest.raises(BadInput):
        read(TYPE, part(b"abc", size=size) + b"--B--")


def test_a_size_one_too_large_does_not_pass_behind_another_line_end() -> None:
    """The carriage return of the next delimiter would be taken for the last byte."""
    first, second = part(b"a"), part(b"x").replace(b"--B\r\n", b"--B\n", 1)
    assert [data for _, data in read(TYPE, first + second + b"--B--\r\n")] == [b"a", b"x"]
    with pytest.raises(BadInput, match="does not end after its 2 bytes"):
        read(TYPE, first + second.replace(b'size="1"', b'size="2"') + b"--B--\r\n")


@pytest.mark.parametrize("missing", ["id", "name", "data-type", "size"])
def test_a_missing_parameter_is_named(missing: str) -> None:
    named = {"id": ID, "name": "n", "data-type": "t", "size": "1"}
    del named[missing]
    parameters = "; ".join(f'{key}="{value}"' for key, value in named.items())
    with pytest.raises(BadInput, match=f"no {missing}"):
        read(TYPE, f"--B\r\nContent-Disposition: form-data; {parameters}\r\n\r\nx\r\n--B--".encode())


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Type: a/b",
        b"",
        b"Content-Disposition: attachment; id=i; name=n; data-type=t; size=1",
        b"Content-Disposition: form-data",
        b"Content-Disposition: form-data; id",
        b'Content-Disposition: form-data; id="i; name=n; data-type=t; size=1',
        b"Content-Disposition: form-data; id=i; name=n; data-type=t; size=1; size=2",
        b"Content-Disposition: form-data; id=i; name=n; data-type=t; size=1\r\nContent-Disposition: form-data",
        b"Content-Disposition: form-data; id=i; name=\xff; data-type=t; size=1",
        b"X: " + b"x" * 20_000,
    ],
)
def test_headers_that_cannot_be_read(headers: bytes) -> None:
    with pytest.raises(BadInput):
        read(TYPE, b"--B\r\n" + headers + b"\r\n\r\nx\r\n--B--")


@pytest.mark.parametrize("step", range(1, 9))
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_body_may_arrive_in_any_pieces(step: int, end: bytes) -> None:
    body = b"pre" + end + part(b"some", end=end) + part(b"", end=end) + part(b"more", end=end) + b"--B--" + end
    assert read(TYPE, body, step) == read(TYPE, body)


@pytest.mark.parametrize("step", [0, 1, 100])
def test_headers_have_a_limit(step: int) -> None:
    body = part(b"x") + b"--B--"
    length = body.index(b"\r\n\r\n") + 4 - len(b"--B\r\n")
    assert read(TYPE, body, step, header_bytes_max=length)
    with pytest.raises(BadInput, match=f"headers exceed {length - 1} bytes"):
        read(TYPE, body, step, header_bytes_max=length - 1)


def test_the_number_of_parts_has_a_limit() -> None:
    body = part(b"") * (PARTS_MAX + 1) + b"--B--"
    with pytest.raises(BadInput, match="more than 10000 parts"):
        read(TYPE, body, 65_536)
    assert len(read(TYPE, part(b"") * PARTS_MAX + b"--B--", 65_536)) == PARTS_MAX


@pytest.mark.parametrize("step", [0, 1_000_000])
def test_the_headers_of_all_parts_together_have_a_limit(step: int) -> None:
    """Ten thousand names of 16 KiB were 160 MB of memory."""
    large = part(b"", name='"' + "n" * 15_000 + '"')
    count = ALL_HEADERS_BYTES_MAX // len(large)
    assert len(read(TYPE, large * count + b"--B--", step)) == count
    with pytest.raises(BadInput, match="headers exceed 8388608 bytes"):
        read(TYPE, large * (count + 2) + b"--B--", step)


def test_what_comes_before_the_first_part_is_not_kept() -> None:
    reader = MultipartReader(TYPE)
    for _ in range(60):
        assert reader.feed(b"x" * 1024) == []
        assert len(reader._rest) <= 1024
    assert reader.feed(b"\n" + part(b"abc")[:-2])[1] == b"abc"


LINES = [b"x" * (SKIPPED_BYTES_MAX - 2) + b"\r\n", b"\n" * SKIPPED_BYTES_MAX, b"--Bx\r\n" * (SKIPPED_BYTES_MAX // 6)]


@pytest.mark.parametrize("step", [0, 1, 1000])
@pytest.mark.parametrize("skipped", LINES)
def test_what_is_around_the_parts_has_a_limit(skipped: bytes, step: int) -> None:
    """Both were skipped however long they were, so that a download need never end."""
    assert len(read(TYPE, skipped + part(b"a") + b"--B--\r\n" + skipped, step)) == 1
    for body in (b"longer\n" + skipped + part(b"a") + b"--B--\r\n", part(b"a") + b"--B--\r\nlonger\n" + skipped):
        with pytest.raises(BadInput, match="more than 65536 bytes are around its parts"):
            read(TYPE, body, step)


def test_what_comes_after_a_part_is_not_kept_where_it_is_no_boundary() -> None:
    reader = MultipartReader(TYPE)
    reader.feed(part(b"abc"))
    with pytest.raises(BadInput, match="does not end"):
        for _ in range(4):
            reader.feed(b"--B" + b" " * 1000)


# -- Uploads ------------------------------------------------------------------------------------


def test_create() -> None:
    content_type, head, tail = upload_frame(boundary="B1", name="n", data_type="t")
    assert content_type == "multipart/form-data; boundary=B1"
    assert head == (
        b"--B1\r\nContent-Type: application/octet-stream\r\n"
        b'Content-Disposition: form-data; name="n"; data-type="t"\r\n\r\n'
    )
    assert tail == b"\r\n--B1--\r\n"


def test_update() -> None:
    _, head, _ = upload_frame(boundary="B1", name="ignored", data_type="t", data_id=ID)
    assert head.endswith(f'form-data; id="{ID}"\r\n\r\n'.encode())
    assert b"ignored" not in head


def test_names_are_escaped() -> None:
    """Weakness 32 of the reference: a name can add headers, and the boundary is always the same word."""
    _, head, _ = upload_frame(boundary="B1", name='a"; x="\\', data_type="t")
    assert b'name="a\\"; x=\\"\\\\"; data-type="t"' in head


@pytest.mark.parametrize("name", ["", None, "a\r\nX: y", "a\nb", "a\x00", "a\x7f", "\ud800", "a\u2028b"])
def test_names_that_cannot_be_sent(name: str | None) -> None:
    with pytest.raises(WireError, match="expected a name"):
        upload_frame(boundary="B1", name=name, data_type="t")
    with pytest.raises(WireError, match="expected a data-type"):
        upload_frame(boundary="B1", name="n", data_type=name)


@pytest.mark.parametrize("boundary", ["", "a b", 'a"', "x" * 71, "a\n"])
def test_boundaries_that_do_not_serve(boundary: str) -> None:
    with pytest.raises(WireError, match="boundary"):
        upload_frame(boundary=boundary, name="n", data_type="t")
