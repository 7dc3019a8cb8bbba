"""The yardstick of ``golem.py``: a runtime that gives the same answers, byte for byte, with asyncio and nothing else.

It reads requests from its standard input: hello, and runs whose arguments are those of ``golem_runtime.py``.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.streams import FlowControlMixin

CHUNK = b"x" * (48 * 1024)


def varint(number: int) -> bytes:
    said = bytearray()
    while number > 0x7F:
        said.append(number & 0x7F | 0x80)
        number >>= 7
    said.append(number)
    return bytes(said)


def number_at(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The varint at this place and the place after it. Raises IndexError where it is not all there."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """Numbers and texts of a message; requests have no others."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = number_at(data, at)
        value, at = number_at(data, at)
        if tag & 7:
            found.append((tag >> 3, data[at : at + value]))
            at += value
        else:
            found.append((tag >> 3, value))
    return found


def member(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def framed(body: bytes) -> bytes:
    return varint(len(body)) + body


def reply(request: int, command: bytes) -> bytes:
    return framed(b"\x10" + varint(request) + command)


class Bare(asyncio.Protocol):
    """The end of the standard input."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.ended = asyncio.Event()
        self._writer = writer
        self._buffer = bytearray()
        self._commands: set[asyncio.Task[None]] = set()
        self._pid = 0
        self._all_here = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        try:
            while buffer:
                size, at = number_at(buffer, 0)
                if len(buffer) < at + size:
                    return
                payload = bytes(buffer[at : at + size])
                del buffer[: at + size]
                self._answer(payload)
        except IndexError:
            return

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()

    def _answer(self, payload: bytes) -> None:
        request, command, body = 0, 0, b""
        for number, value in fields(payload):
            if isinstance(value, int):
                request = value
            else:
                command, body = number, value
        if command == 2:
            self._writer.write(reply(request, member(4, member(1, b"0.1.0"))))
        elif command == 10:
            args = [value.decode() for number, value in fields(body) if number == 2 and isinstance(value, bytes)]
            pid, self._pid = self._pid, self._pid + 1
            name = b"\x08" + varint(pid) if pid else b""
            self._writer.write(reply(request, member(10, name)))
            self._commands.add(task := asyncio.create_task(self._command(name, args)))
            task.add_done_callback(self._commands.discard)

    def _status(self, body: bytes) -> None:
        self._writer.write(framed(b"\x08\x01" + member(20, body)))

    async def _command(self, name: bytes, args: list[str]) -> None:
        self._status(name + b"\x10\x01")
        if args[1] == "flood":
            left = int(args[2])
            while left:
                chunk = CHUNK if left >= len(CHUNK) else CHUNK[:left]
                left -= len(chunk)
                self._status(name + b"\x10\x01" + member(4, chunk))
                await self._writer.drain()
        else:
            if len(self._commands) == int(args[2]):
                self._all_here.set()
            await self._all_here.wait()
            self._status(name + b"\x10\x01" + member(4, args[1].encode()))
        self._status(name)


async def main() -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(FlowControlMixin, sys.stdout)
    bare = Bare(asyncio.StreamWriter(transport, protocol, None, loop))
    await loop.connect_read_pipe(lambda: bare, sys.stdin)
    await bare.ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
