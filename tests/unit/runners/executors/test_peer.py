"""What goes to a child: in order, however little of it the socket takes at a time."""

from __future__ import annotations

import asyncio
import socket

from posemesh.runners.executors.peer import Peer

LONG = b"x" * 3_000_000


def test_a_short_frame_waits_for_a_long_one_that_is_still_on_its_way() -> None:
    """Also where the socket has room for it, as the child has read and the loop has not gone on to write."""

    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        with ours, theirs:
            peer = Peer(ours, None)
            peer._send(LONG)
            came = theirs.recv(len(LONG))
            assert came and len(came) < len(LONG)
            peer._send(b"end")
            while len(came) < len(LONG) + 3:
                came += await loop.sock_recv(theirs, 1 << 20)
        return came

    assert asyncio.run(main()) == LONG + b"end"
