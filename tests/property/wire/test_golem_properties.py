"""Golem's messages under Hypothesis, with Google's library as the other reader and writer."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from posemesh.wire import golem as wire

from ...golem_protobuf import golden_messages, google_bytes, google_class, to_google

# The first use of a library loads it, which on a busy machine is longer than one example may take.
UNTIMED = settings(deadline=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
U64 = st.integers(0, 2**64 - 1) | st.integers(0, 300)
I32 = st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 2)
BYTES = st.binary(max_size=200)
MAPS = st.dictionaries(TEXT, TEXT, max_size=3)
OUTPUTS = st.none() | st.builds(wire.Output, st.none() | st.integers(0, 2**32 - 1))
NETWORKS = st.builds(wire.Network, TEXT, TEXT, TEXT, TEXT)
KINDS = ("unix_stream", "unix_datagram", "udp_datagram", "tcp_listener", "tcp_stream")

COMMANDS = st.one_of(
    st.none(),
    st.builds(wire.Hello, TEXT),
    st.builds(wire.RunProcess, TEXT, st.lists(TEXT, max_size=3), TEXT, OUTPUTS, OUTPUTS),
    st.builds(wire.KillProcess, U64, I32),
    st.just(wire.Shutdown()),
    st.builds(wire.CreateNetwork, st.lists(NETWORKS, max_size=2), MAPS, I32),
)
STATUSES = st.one_of(
    st.none(),
    st.builds(wire.State, TEXT, BYTES),
    st.builds(wire.Counter, TEXT, st.floats(allow_nan=False)),
)
REPLIES = st.one_of(
    st.none(),
    st.builds(wire.Error, I32, TEXT, MAPS),
    st.builds(wire.HelloReply, TEXT),
    st.builds(wire.RunReply, U64),
    st.just(wire.KillReply()),
    st.just(wire.ShutdownReply()),
    st.builds(wire.ProcessStatus, U64, st.booleans(), I32, BYTES, BYTES),
    st.builds(wire.RuntimeStatus, STATUSES),
    st.builds(wire.NetworkReply, st.none() | st.builds(wire.Endpoint, st.sampled_from(KINDS), TEXT)),
)
MESSAGES = st.builds(wire.Request, U64, COMMANDS) | st.builds(wire.Response, st.booleans(), U64, REPLIES)
READERS = {"Request": wire.decode_request, "Response": wire.decode_response}
PAYLOADS = [(type(message).__name__, wire.encode(message)) for _, _, message in golden_messages()]


def kind_of(message: wire.Message) -> str:
    return type(message).__name__


def ours_is_theirs(message: Any) -> bool:
    """Whether Google's library writes the same bytes: it writes what is empty in a map, and the sign of a zero."""
    command = message.command
    if isinstance(command, wire.RuntimeStatus) and isinstance(command.kind, wire.Counter):
        return not (command.kind.value == 0 and math.copysign(1, command.kind.value) < 0)
    entries = getattr(command, "hosts", {}) or getattr(command, "context", {})
    return len(entries) < 2 and all(key and value for key, value in entries.items())


@UNTIMED
@given(MESSAGES)
def test_each_reads_what_the_other_wrote(message: Any) -> None:
    theirs, ours = to_google(message), wire.encode(message)
    read = READERS[kind_of(message)]
    assert read(ours) == message
    assert read(google_bytes(theirs)) == message
    if ours_is_theirs(message):
        assert ours == google_bytes(theirs)
    elif not isinstance(message.command, wire.RuntimeStatus):
        assert google_class(kind_of(message)).FromString(ours) == theirs


@UNTIMED
@given(st.lists(MESSAGES, max_size=8), st.data())
def test_any_split_of_any_sequence_gives_the_same_messages(messages: list[Any], data: st.DataObject) -> None:
    stream = b"".join(map(wire.frame, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12), label="cuts"))
    frames, had = wire.Frames(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        had.extend(frames.feed(stream[begin:end]))
    assert had == list(map(wire.encode, messages))
    assert frames.waiting == 0


@UNTIMED
@given(st.lists(MESSAGES, min_size=1, max_size=4), st.data())
def test_a_stream_that_ends_within_a_frame_gives_what_was_whole(messages: list[Any], data: st.DataObject) -> None:
    last = wire.frame(messages.pop())
    end = data.draw(st.integers(0, len(last) - 1), label="end")
    frames = wire.Frames()
    assert list(frames.feed(b"".join(map(wire.frame, messages)) + last[:end])) == list(map(wire.encode, messages))
    assert frames.waiting == end


@st.composite
def odd(draw: st.DrawFn) -> tuple[str, bytes]:
    """Messages joined, cut, with bytes exchanged and with fields between them that nobody knows."""
    kind, data = draw(st.sampled_from(PAYLOADS).filter(lambda one: len(one[1]) < 200))
    same = [payload for other, payload in PAYLOADS if other == kind and len(payload) < 200]
    parts = [data, *draw(st.lists(st.sampled_from(same) | st.sampled_from([b"\x9b\x06\x9c\x06", b"\x9d\x06abcd"])))]
    joined = bytearray(b"".join(draw(st.permutations(parts))))
    for at, byte in draw(
        st.dictionaries(st.integers(0, max(0, len(joined) - 1)), st.integers(0, 255), max_size=3)
    ).items():
        joined[at : at + 1] = bytes((byte,))
    return kind, bytes(joined[: draw(st.integers(0, len(joined))) or None])


@UNTIMED
@given(odd() | st.tuples(st.sampled_from(["Request", "Response"]), st.binary(max_size=64)))
def test_what_both_read_means_the_same_and_the_rest_is_refused_in_one_way(one: tuple[str, bytes]) -> None:
    kind, data = one
    try:
        ours = READERS[kind](data)
    except wire.GolemWireError:
        return
    try:
        theirs = google_class(kind).FromString(data)
    except Exception:
        return
    theirs.DiscardUnknownFields()
    assert google_bytes(to_google(ours)) == google_bytes(theirs)


@UNTIMED
@given(st.data())
def test_pieces_of_one_message_are_put_together_as_google_does(data: st.DataObject) -> None:
    for kind, commands in ((wire.Request, COMMANDS), (wire.Response, REPLIES)):
        parts: Any = data.draw(st.lists(st.builds(kind, command=commands), min_size=2, max_size=4), label=kind.__name__)
        joined = b"".join(map(wire.encode, parts))
        theirs = google_class(kind.__name__).FromString(joined)
        assert google_bytes(to_google(READERS[kind.__name__](joined))) == google_bytes(theirs)


@UNTIMED
@given(st.lists(st.binary(max_size=40)))
def test_garbage_ends_in_one_error(chunks: list[bytes]) -> None:
    frames = wire.Frames(limit=100)
    try:
        for chunk in chunks:
            for payload in frames.feed(chunk):
                wire.decode_request(payload)
    except wire.GolemWireError:
        return
    assert frames.waiting <= 102
