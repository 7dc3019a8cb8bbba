"""A runtime's two streams, with pipes and files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from posemesh.golem.pipes import HIGH_BYTES, LOW_BYTES, READ_BYTES, Inbox, Outbox, unblocked

from .serving import PATIENCE_SECS, play, turns


def broken(error: OSError) -> None:
    raise AssertionError(error)


def read_all(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


def test_what_is_written_in_one_turn_goes_out_together_and_in_order() -> None:
    async def scenario() -> None:
        reader, writer = os.pipe()
        outbox = Outbox(writer, broken)
        for number in range(200):
            outbox.write(b"%d " % number)
        await outbox.drained(PATIENCE_SECS)
        assert os.read(reader, 4096) == b"".join(b"%d " % number for number in range(200))

    play(scenario())


def test_who_writes_waits_for_who_reads_and_little_is_kept() -> None:
    chunk, chunks, most = b"x" * 50_000, 100, 0

    async def write(outbox: Outbox) -> None:
        nonlocal most
        for _ in range(chunks):
            await outbox.room()
            outbox.write(chunk)
            most = max(most, outbox._size)

    async def scenario() -> None:
        reader, writer = os.pipe()
        outbox, roomy = Outbox(writer, broken), []
        outbox.on_room = lambda: roomy.append(outbox._size)
        writing = asyncio.create_task(write(outbox))
        await turns(10)
        assert outbox.full and not writing.done()
        got = await asyncio.to_thread(read_all, reader, len(chunk) * chunks)
        await writing
        assert got == chunk * chunks
        assert most <= HIGH_BYTES + len(chunk)
        assert roomy and max(roomy) <= LOW_BYTES

    play(scenario())


def test_output_that_nobody_reads_any_more_is_told_once_and_never_waited_for() -> None:
    told: list[OSError] = []

    async def scenario() -> None:
        reader, writer = os.pipe()
        outbox = Outbox(writer, told.append)
        outbox.write(b"x" * (HIGH_BYTES + 1))
        waiting = asyncio.create_task(outbox.room())
        await turns(10)
        assert not waiting.done()
        os.close(reader)
        await waiting
        for _ in range(3):
            outbox.write(b"x")
            assert outbox.full
            await outbox.room()
        await outbox.drained(PATIENCE_SECS)

    play(scenario())
    assert [type(error) for error in told] == [BrokenPipeError]


def test_writing_to_a_pipe_leaves_it_as_it_is_for_whoever_else_has_it() -> None:
    reader, writer = os.pipe()
    shared = os.dup(writer)
    own = unblocked(writer)
    assert not os.get_blocking(own)
    if os.path.exists("/proc/self/fd"):
        assert os.get_blocking(shared)
    os.close(shared)
    os.write(own, b"x")
    os.close(own)
    assert os.read(reader, 10) == b"x"
    assert os.read(reader, 10) == b""


def test_a_file_is_written_where_it_is_and_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before ")
    got: list[bytes] = []

    async def scenario() -> None:
        outbox = Outbox(os.open(path, os.O_WRONLY | os.O_APPEND), broken)
        outbox.write(b"y" * READ_BYTES)
        await outbox.drained(PATIENCE_SECS)
        over = asyncio.Event()
        inbox = Inbox(os.open(path, os.O_RDONLY), lambda data: got.append(data) or data or over.set())  # type: ignore[func-returns-value]
        inbox.open()
        await over.wait()
        inbox.open()

    play(scenario())
    assert b"".join(got) == b"before " + b"y" * READ_BYTES
    assert got.count(b"") == 1


@pytest.mark.parametrize("through", ["pipe", "file"])
def test_reading_can_be_held_up(through: str, tmp_path: Path) -> None:
    got: list[bytes] = []
    news = asyncio.Event()

    def received(data: bytes) -> None:
        got.append(data)
        news.set()
        if data:
            inbox.close()

    async def scenario() -> None:
        nonlocal inbox
        if through == "pipe":
            reader, writer = os.pipe()
        else:
            path = tmp_path / "file"
            writer = os.open(path, os.O_WRONLY | os.O_CREAT)
            reader = os.open(path, os.O_RDONLY)
        os.write(writer, b"a" * READ_BYTES)
        inbox = Inbox(reader, received)
        inbox.open()
        await news.wait()
        os.write(writer, b"b")
        os.close(writer)
        await turns(10)
        assert got == [b"a" * READ_BYTES]
        for _ in range(2):
            news.clear()
            inbox.open()
            await news.wait()
        assert got[1:] == [b"b", b""]

    inbox: Inbox
    play(scenario())
