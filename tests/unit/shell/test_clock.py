from __future__ import annotations

import asyncio
import time

from freezegun import freeze_time

from posemesh.shell.clock import SystemClock


def test_wall_time_is_the_machine_s() -> None:
    with freeze_time("2026-01-01T00:00:00Z", real_asyncio=True):
        assert SystemClock().wall() == 1_767_225_600.0


def test_monotonic_time_is_the_loop_s() -> None:
    async def main() -> None:
        loop, clock = asyncio.get_running_loop(), SystemClock()
        before, read, after = loop.time(), clock.monotonic(), loop.time()
        assert before <= read <= after

    asyncio.run(main())
    assert SystemClock().monotonic() <= time.monotonic()
