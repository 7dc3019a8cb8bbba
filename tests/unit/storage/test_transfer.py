"""Content in pieces, and how far transfers are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from posemesh.errors import TaskStopped, UploadFailed
from posemesh.storage.transfer import PIECE_BYTES, BytesContent, FileContent, Meter, Outgoing
from posemesh.testing import run_virtual


async def whole(pieces: AsyncIterator[bytes | memoryview]) -> bytes:
    found = [bytes(piece) async for piece in pieces]
    assert all(0 < len(piece) <= PIECE_BYTES for piece in found)
    return b"".join(found)


def nothing() -> None: ...


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_a_body_can_be_read_again(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(data)

    async def main() -> None:
        moves: list[Any] = []
        with FileContent(tmp_path / "file", "upload") as file:
            for content in (BytesContent(data), file):
                meter = Meter(lambda *move: moves.append(move), "n", "out", size)
                body = Outgoing(content, meter, head=b"head", tail=b"tail")
                assert body.size == size + 8
                for _ in range(3):
                    assert await whole(body.pieces(nothing)) == b"head" + data + b"tail"
                assert meter.done == size
                part = Outgoing(content, at=size // 2, count=size - size // 2)
                assert await whole(part.pieces(nothing)) == data[size // 2 :]
                meter.end()
        assert moves == [("n", "out", size, size)] * 2

    run_virtual(main())


def test_the_loop_has_its_turn_between_two_pieces(tmp_path: Path) -> None:
    """A socket takes some MB at once: that much was read in one go, however slow the disk was."""
    (tmp_path / "file").write_bytes(bytes(10 * PIECE_BYTES))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        turns = [0]

        def turn() -> None:
            turns.append(0)
            loop.call_soon(turn)

        turn()
        with FileContent(tmp_path / "file", "upload") as file:
            seen = [len(turns) async for _ in Outgoing(file).pieces(nothing)]
        assert len(set(seen)) == 10

    run_virtual(main())


def test_moves_are_told_once_a_second() -> None:
    async def main() -> None:
        moves: list[Any] = []
        meter = Meter(lambda *move: moves.append(move), "n", "in")
        for _ in range(100):
            await asyncio.sleep(0.1)
            meter.moved(10)
        assert 9 <= len(moves) <= 10 and moves[-1][3] is None
        meter.end()
        assert moves[-1] == ("n", "in", 1000, 1000)
        meter.restart()
        assert meter.done == 0

    run_virtual(main())


def test_what_fails_at_this_end_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")

    def stopped() -> None:
        raise TaskStopped("stop")

    async def main() -> None:
        with FileContent(tmp_path / "file", "upload") as file:
            body = Outgoing(file)
            with pytest.raises(UploadFailed, match="cannot be read"):
                closed = FileContent(tmp_path / "file", "upload")
                closed.close()
                closed.close()
                closed.read(0, 1)
            with pytest.raises(TaskStopped):
                await whole(body.pieces(stopped))
            assert isinstance(body.failure, TaskStopped)
            (tmp_path / "file").write_bytes(b"")
            with pytest.raises(UploadFailed, match="shorter"):
                await whole(body.pieces(nothing))

    asyncio.run(main())
