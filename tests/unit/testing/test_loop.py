"""The loop of virtual time: it jumps over waits, never over what has arrived, and says when nothing can happen."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from email.utils import parsedate_to_datetime

import aiohttp
import pytest
from aiohttp import connector, web, web_response

from posemesh.testing import EPOCH, Deadlock, LoopClock, VirtualLoop, run_virtual


def test_a_day_passes_at_once() -> None:
    async def main() -> float:
        woken: list[float] = []

        async def beat(every: float) -> None:
            while True:
                await asyncio.sleep(every)
                woken.append(every)

        beats = [asyncio.create_task(beat(every)) for every in (60.0, 3600.0)]
        await asyncio.sleep(86_400.5)
        for task in beats:
            task.cancel()
        assert (woken.count(60.0), woken.count(3600.0)) == (1440, 24)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run_virtual(main()) == pytest.approx(86_400.5)
    assert time.monotonic() - began < 5


def test_timeouts_are_in_virtual_time() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        assert asyncio.get_running_loop().time() == pytest.approx(3600)

    run_virtual(main())


def test_nothing_that_can_happen_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="nothing can happen"):
        run_virtual(main())


def test_a_program_that_does_not_end_is_an_error() -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(1)

    with pytest.raises(TimeoutError, match="60 virtual seconds"):
        run_virtual(main(), limit=60)


def test_what_is_left_is_cancelled_and_may_take_its_time() -> None:
    ended: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(5)
            ended.append("tidy")

    async def main() -> None:
        task = asyncio.create_task(linger())
        await asyncio.sleep(1)
        assert not task.done()

    run_virtual(main(), limit=2)
    assert ended == ["tidy"]


def test_no_virtual_time_passes_while_a_thread_works() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        go = threading.Event()
        assert isinstance(loop, VirtualLoop)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(1)
                ticks += 1

        ticker = asyncio.create_task(tick())
        waiting = asyncio.create_task(asyncio.to_thread(go.wait, 5))
        threading.Timer(0.05, go.set).start()
        assert await waiting
        assert (ticks, loop.time()) == (0, 0.0)
        assert not loop.waits_for_threads
        ticker.cancel()
        await asyncio.sleep(1)
        assert loop.time() == 1.0

    run_virtual(main())


def test_real_sockets_and_aiohttp_keep_virtual_time() -> None:
    async def main() -> None:
        peers = []

        async def answer(request: web.Request) -> web.Response:
            assert request.transport is not None
            peers.append(request.transport.get_extra_info("peername"))
            await asyncio.sleep(30)
            return web.Response(text="late")

        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        clock = LoopClock()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            for pause in (0, 5, 100):
                await asyncio.sleep(pause)
                async with http.get(url) as reply:
                    assert await reply.text() == "late"
                    date = parsedate_to_datetime(reply.headers["Date"]).timestamp()
                    assert abs(date - clock.wall()) <= 1
        # The second request found its connection kept, the third did not.
        assert peers[0] == peers[1] != peers[2]
        assert clock.wall() == pytest.approx(EPOCH + 195)
        await runner.cleanup()

    before = connector.monotonic, web_response.rfc822_formatted_time  # type: ignore[attr-defined]
    run_virtual(main())
    assert before == (connector.monotonic, web_response.rfc822_formatted_time)  # type: ignore[attr-defined]


def test_a_result_and_an_error_come_back() -> None:
    async def good() -> int:
        return 7

    async def bad() -> None:
        raise LookupError("no")

    assert run_virtual(good()) == 7
    with pytest.raises(LookupError):
        run_virtual(bad())


def test_the_package_needs_no_development_tools() -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(("hypothesis", "pytest", "freezegun")))
import posemesh.testing
"""
    subprocess.run([sys.executable, "-c", program], check=True)
