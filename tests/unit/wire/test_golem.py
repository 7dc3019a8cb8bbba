"""Golem's messages to the byte, against frames that another implementation wrote, and how a stream is taken apart."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from posemesh.errors import WireError
from posemesh.wire import golem as wire

from ...golem_protobuf import golden, golden_messages, google_bytes, google_class, to_google, unhex

WRITTEN = {(type(message).__name__, name): (data, message) for name, data, message in golden_messages()}
GOOGLE_DIFFERS = set(golden()["google_differs"])


def read(kind: str, payload: bytes) -> wire.Request | wire.Response:
    return wire.decode_request(payload) if kind == "Request" else wire.decode_response(payload)


def only_frame(data: bytes) -> bytes:
    frames = wire.Frames()
    (payload,) = frames.feed(data)
    assert frames.waiting == 0
    return payload


# -- Golden frames --------------------------------------------------------------------------------------------------


def test_every_golden_frame_is_there() -> None:
    said = golden()
    assert sum(len(said[kind]) for kind in ("requests", "responses", "decode_only", "reject")) == 84
    assert len(WRITTEN) == len(said["requests"]) + len(said["responses"])


@pytest.mark.parametrize("name", WRITTEN, ids=" ".join)
def test_a_golden_frame_is_written_and_read_to_the_byte(name: tuple[str, str]) -> None:
    data, message = WRITTEN[name]
    assert wire.frame(message) == data
    payload = only_frame(data)
    again = read(name[0], payload)
    assert wire.encode(again) == payload
    if name[1] == "counter nan":
        assert repr(again) == repr(message)
    elif "omitted by" not in name[1]:
        assert again == message


@pytest.mark.parametrize("name", WRITTEN, ids=" ".join)
def test_google_reads_each_golden_frame_and_writes_the_same_but_for_the_few_that_are_named(
    name: tuple[str, str],
) -> None:
    data, message = WRITTEN[name]
    payload, theirs = only_frame(data), google_class(name[0])
    assert (google_bytes(to_google(message)) == payload) == (name[1] not in GOOGLE_DIFFERS - {"counter nan"})
    if name[1] not in GOOGLE_DIFFERS:
        assert theirs.FromString(payload) == to_google(message)
    assert google_bytes(to_google(read(name[0], payload))) == google_bytes(theirs.FromString(payload))


@pytest.mark.parametrize("one", golden()["decode_only"], ids=lambda one: one["name"])
def test_what_is_written_in_another_legal_way_means_the_same(one: dict[str, str]) -> None:
    request = wire.decode_request(only_frame(unhex(one["hex"])))
    assert wire.frame(request) == unhex(one["canonical_hex"])


@pytest.mark.parametrize("one", golden()["reject"], ids=lambda one: one["name"])
def test_what_is_no_message_is_refused(one: dict[str, str]) -> None:
    with pytest.raises(wire.GolemWireError):
        wire.decode_request(only_frame(unhex(one["hex"])))


# -- What is particular to one message ------------------------------------------------------------------------------


def test_a_code_that_is_in_no_list_is_kept() -> None:
    known, errno = wire.decode_response(b"\x1a\x02\x08\x01"), wire.decode_response(b"\x1a\x02\x08\x0d")
    assert known.command == wire.Error(wire.ErrorCode.NOT_FOUND)
    assert isinstance(known.command, wire.Error) and known.command.code is wire.ErrorCode.NOT_FOUND
    assert isinstance(errno.command, wire.Error) and errno.command.code == 13
    assert wire.encode(errno) == b"\x1a\x02\x08\x0d"


def test_an_unknown_command_is_as_good_as_none() -> None:
    assert wire.decode_request(unhex("0809 9a0600")) == wire.Request(id=9)


def test_a_command_that_comes_in_pieces_is_put_together_unless_another_came_between() -> None:
    pieces = "5203 0a0161", "5203 120162"
    assert wire.decode_request(unhex("".join(pieces))).command == wire.RunProcess("a", ("b",))
    assert wire.decode_request(unhex("6200".join(pieces))).command == wire.RunProcess("", ("b",))
    # Prost and Google refuse the whole where a part is wrong, though another part holds.
    with pytest.raises(wire.GolemWireError):
        wire.decode_request(unhex("5203 0a01ff 6200"))


def test_the_last_of_equal_keys_holds() -> None:
    hosts = "1206 0a0161 120162", "1206 0a0161 120163", "1200", "1203 120164"
    body = unhex("".join(hosts))
    request = wire.decode_request(unhex("f201") + bytes((len(body),)) + body)
    assert request.command == wire.CreateNetwork(hosts={"a": "c", "": "d"})


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (wire.Request(id=-1), "Request.id"),
        (wire.Request(id=2**64), "Request.id"),
        (wire.Request(command=wire.KillProcess(signal=2**31)), "Request.command: KillProcess.signal"),
        (wire.RunProcess(stdout=wire.Output(2**32)), "RunProcess.stdout: Output.at_end"),
        (wire.RunProcess(args=("\ud800",)), "RunProcess.args"),
        (wire.Hello(version=b"1"), "Hello.version"),  # type: ignore[arg-type]
        (wire.ProcessStatus(stdout="text"), "ProcessStatus.stdout"),  # type: ignore[arg-type]
        (wire.ProcessStatus(stdout=3), "ProcessStatus.stdout"),  # type: ignore[arg-type]
        (wire.Counter(value="much"), "Counter.value"),  # type: ignore[arg-type]
        (wire.Counter(value=10**400), "Counter.value"),
        (wire.Request(command=wire.KillReply()), "Request.command"),  # type: ignore[arg-type]
        (wire.RunProcess(stdout=wire.Hello()), "RunProcess.stdout"),  # type: ignore[arg-type]
        (wire.NetworkReply(wire.Endpoint("carrier_pigeon", "")), "NetworkReply.endpoint"),
        (wire.NetworkReply("udp"), "NetworkReply.endpoint"),  # type: ignore[arg-type]
        (wire.CreateNetwork(hosts={"a": 1}), "CreateNetwork.hosts"),  # type: ignore[dict-item]
    ],
    ids=lambda value: value.split(".")[-1] if isinstance(value, str) else type(value).__name__,
)
def test_what_a_field_cannot_hold_is_refused_by_its_name(message: wire.Message, field: str) -> None:
    with pytest.raises(wire.GolemWireError, match=f"^{field}: "):
        wire.encode(message)


def test_any_bytes_are_output() -> None:
    for output in (bytearray(b"\xff"), memoryview(b"\xff")):
        assert wire.encode(wire.ProcessStatus(stdout=output)) == unhex("2201ff")
    assert wire.decode_response(memoryview(unhex("a201032201ff"))).command == wire.ProcessStatus(stdout=b"\xff")


# -- Messages as values ---------------------------------------------------------------------------------------------


def test_the_error_is_one_of_the_wires() -> None:
    assert issubclass(wire.GolemWireError, WireError)


def test_a_program_that_only_speaks_the_protocol_does_not_load_what_a_node_needs() -> None:
    """A runtime is started for each task: what it imports is what everybody waits for."""
    program = (
        "import asyncio, sys; seen = set(sys.modules); import posemesh.wire.golem; print(*set(sys.modules) - seen)"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded} <= {"posemesh", "__future__"}


# -- Frames ---------------------------------------------------------------------------------------------------------


def messages(frames: wire.Frames, data: bytes) -> list[bytes]:
    return list(frames.feed(data))


STREAM = b"".join(data for data, _ in WRITTEN.values())
PAYLOADS = [only_frame(data) for data, _ in WRITTEN.values()]


def test_a_stream_of_every_golden_frame_comes_apart_at_once_and_byte_by_byte() -> None:
    frames = wire.Frames()
    assert messages(frames, STREAM) == PAYLOADS
    assert [payload for byte in STREAM for payload in frames.feed(bytes((byte,)))] == PAYLOADS
    assert frames.waiting == 0


def test_a_frame_of_three_bytes_does_not_wait_for_more() -> None:
    assert wire.decode_request(only_frame(unhex("026200"))) == wire.Request(command=wire.Shutdown())


def test_what_is_not_complete_is_counted() -> None:
    frames = wire.Frames()
    assert (messages(frames, unhex("80")), frames.waiting) == ([], 1)
    assert (messages(frames, unhex("01") + bytes(127)), frames.waiting) == ([], 129)
    assert (messages(frames, bytes(1)), frames.waiting) == ([bytes(128)], 0)


@pytest.mark.parametrize("wrong", [b"\xff" * 12, b"\xff" * 9 + b"\x02", unhex("8180808008")], ids=bytes.hex)
def test_what_came_before_a_wrong_length_is_had_however_the_stream_was_cut(wrong: bytes) -> None:
    good = unhex("0408056200")
    for size in (1, 5, len(good + wrong)):
        frames, had = wire.Frames(), []
        data = good + wrong
        with pytest.raises(wire.GolemWireError):
            for at in range(0, len(data), size):
                had.extend(frames.feed(data[at : at + size]))
        assert had == [good[1:]]


def test_the_limit_is_of_the_message_and_can_be_chosen() -> None:
    exact = unhex("0408056200")
    assert messages(wire.Frames(limit=4), exact) == [exact[1:]]
    with pytest.raises(wire.GolemWireError, match="a frame of 4 bytes; the longest that is taken has 3"):
        messages(wire.Frames(limit=3), exact[:1])


def test_output_of_the_size_that_is_sent_fits_into_what_readers_take_at_once() -> None:
    event = wire.Response(event=True, command=wire.ProcessStatus(2**64 - 1, True, stdout=bytes(wire.OUTPUT_MAX)))
    assert 32 * 1024 <= len(wire.frame(event)) <= 64 * 1024


def test_frames_that_are_left_unread_are_had_with_the_next() -> None:
    frames = wire.Frames()
    two: Any = frames.feed(unhex("0101 0102"))
    assert next(two) == b"\x01"
    assert messages(frames, unhex("0103")) == [b"\x02", b"\x03"]
