"""What a Golem runtime and whoever runs it say to each other: requests, responses and the frames they travel in.

A frame is the length of a message, as an integer of Protocol Buffers, and the message: there is no sign where one
begins, so after a wrong length nothing that follows can be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from posemesh.wire import _protobuf
from posemesh.wire._protobuf import Message, encode, mapping, named, oneof, optional, repeated, scalar
from posemesh.wire._scalars import (
    BOOL,
    BYTES,
    DOUBLE,
    INT32,
    STRING,
    UINT32,
    UINT64,
    Cut,
    GolemWireError,
    enum,
    read_varint,
    write_varint,
)

__all__ = (
    "FRAME_MAX",
    "OUTPUT_MAX",
    "Command",
    "Counter",
    "CreateNetwork",
    "Endpoint",
    "Error",
    "ErrorCode",
    "Frames",
    "GolemWireError",
    "Hello",
    "HelloReply",
    "KillProcess",
    "KillReply",
    "Message",
    "Network",
    "NetworkInterface",
    "NetworkReply",
    "Output",
    "ProcessStatus",
    "Reply",
    "Request",
    "Response",
    "RunProcess",
    "RunReply",
    "RuntimeStatus",
    "Shutdown",
    "ShutdownReply",
    "State",
    "decode_request",
    "decode_response",
    "encode",
    "frame",
)

FRAME_MAX: Final = 64 * 1024 * 1024
"""The longest message that is taken unless a reader says otherwise, in bytes. The protocol itself has no limit."""

OUTPUT_MAX: Final = 48 * 1024
"""How much output is put into one message, in bytes: some readers take time by the square of a frame's size."""


class ErrorCode(IntEnum):
    INTERNAL = 0
    NOT_FOUND = 1
    BAD_REQUEST = 2


class NetworkInterface(IntEnum):
    VPN = 0
    INET = 1


# -- Requests -------------------------------------------------------------------------------------------------------


class Hello(Message):
    """The first request, with the version of the protocol: "0.1.0" until now."""

    version: str = scalar(1, STRING)


class Output(Message):
    """What becomes of a command's output: its last ``at_end`` bytes are kept, none where that is None."""

    at_end: int | None = optional(2, UINT32)


class RunProcess(Message):
    """Run ``bin`` with ``args``, the name it is called by among them."""

    bin: str = scalar(1, STRING)
    args: tuple[str, ...] = repeated(2, STRING)
    work_dir: str = scalar(3, STRING)
    stdout: Output | None = optional(4, Output)
    stderr: Output | None = optional(5, Output)


class KillProcess(Message):
    pid: int = scalar(1, UINT64)
    signal: int = scalar(2, INT32)


class Shutdown(Message):
    pass


class Network(Message):
    addr: str = scalar(1, STRING)
    gateway: str = scalar(2, STRING)
    mask: str = scalar(3, STRING)
    if_addr: str = scalar(4, STRING)


class CreateNetwork(Message):
    """``hosts`` are addresses by name."""

    networks: tuple[Network, ...] = repeated(1, Network)
    hosts: Mapping[str, str] = mapping(2)
    interface: int = scalar(3, enum(NetworkInterface))


Command: TypeAlias = Hello | RunProcess | KillProcess | Shutdown | CreateNetwork


class Request(Message):
    """``id`` comes back in the reply. ``command`` is None where there is none, or one that is unknown."""

    id: int = scalar(1, UINT64)
    command: Command | None = oneof({2: Hello, 10: RunProcess, 11: KillProcess, 12: Shutdown, 30: CreateNetwork})


# -- Replies and events ---------------------------------------------------------------------------------------------


class Error(Message):
    """``code`` is an ErrorCode or, from some runtimes, the number of an error of the operating system."""

    code: int = scalar(1, enum(ErrorCode))
    message: str = scalar(2, STRING)
    context: Mapping[str, str] = mapping(3)


class HelloReply(Message):
    """The version of the runtime itself, not of the protocol."""

    version: str = scalar(1, STRING)


class RunReply(Message):
    """``pid`` is the runtime's own number of the command: no process need have it."""

    pid: int = scalar(1, UINT64)


class KillReply(Message):
    pass


class ShutdownReply(Message):
    pass


class ProcessStatus(Message):
    """Event: command ``pid`` started, wrote something or, with ``running`` false, ended."""

    pid: int = scalar(1, UINT64)
    running: bool = scalar(2, BOOL)
    return_code: int = scalar(3, INT32)
    stdout: bytes = scalar(4, BYTES)
    stderr: bytes = scalar(5, BYTES)


class State(Message):
    """``value`` is JSON text."""

    name: str = scalar(1, STRING)
    value: bytes = scalar(2, BYTES)


class Counter(Message):
    """``value`` is absolute, and may fall."""

    name: str = scalar(1, STRING)
    value: float = scalar(2, DOUBLE)


class RuntimeStatus(Message):
    """Event: something about the runtime as a whole."""

    kind: State | Counter | None = oneof({1: State, 2: Counter})


class Endpoint(NamedTuple):
    """Where a network's packets go: ``kind`` is unix_stream, unix_datagram, udp_datagram, tcp_listener or
    tcp_stream.
    """

    kind: str
    address: str


_ENDPOINTS: Final = {1: "unix_stream", 2: "unix_datagram", 3: "udp_datagram", 4: "tcp_listener", 5: "tcp_stream"}


class NetworkReply(Message):
    endpoint: Endpoint | None = named(_ENDPOINTS, STRING, Endpoint)


Reply: TypeAlias = (
    Error | HelloReply | RunReply | KillReply | ShutdownReply | ProcessStatus | RuntimeStatus | NetworkReply
)


class Response(Message):
    """The reply to the request of ``id`` or, with ``event``, what nobody asked for; its ``id`` then says nothing."""

    event: bool = scalar(1, BOOL)
    id: int = scalar(2, UINT64)
    command: Reply | None = oneof(
        {
            3: Error,
            4: HelloReply,
            10: RunReply,
            11: KillReply,
            12: ShutdownReply,
            20: ProcessStatus,
            21: RuntimeStatus,
            30: NetworkReply,
        }
    )


def decode_request(data: bytes | bytearray | memoryview) -> Request:
    """Raises GolemWireError where ``data`` is no request."""
    return _protobuf.decode(Request, data)


def decode_response(data: bytes | bytearray | memoryview) -> Response:
    """Raises GolemWireError where ``data`` is no response."""
    return _protobuf.decode(Response, data)


# -- Frames ---------------------------------------------------------------------------------------------------------


def frame(message: Message) -> bytes:
    """``message`` as it travels. Raises GolemWireError for a value that its field cannot hold."""
    payload = encode(message)
    return write_varint(len(payload)) + payload


class Frames:
    """Takes a stream apart into the messages' bytes, wherever it was cut. ``limit`` is the longest one, in bytes.

    A stream of whom it raised GolemWireError cannot be read any further.
    """

    def __init__(self, limit: int = FRAME_MAX) -> None:
        self._limit = limit
        self._buffer = bytearray()

    @property
    def waiting(self) -> int:
        """How many bytes there are of a frame that is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """The messages that ``data`` completes, to be gone through before it is called again.

        It is an iterator so that what came before a wrong length is had, however the stream was cut; at that length
        it raises GolemWireError.
        """
        buffer = self._buffer
        buffer += data
        while buffer:
            try:
                size, start = read_varint(buffer)
            except Cut:
                return
            if size > self._limit:
                raise GolemWireError(f"a frame of {size} bytes; the longest that is taken has {self._limit}")
            end = start + size
            if end > len(buffer):
                return
            with memoryview(buffer) as view:
                payload = bytes(view[start:end])
            del buffer[:end]
            yield payload
