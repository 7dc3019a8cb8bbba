"""Where a node meets the world: asyncio, sockets, clocks, files, logs. It decides nothing; it sends events."""

from __future__ import annotations

__all__ = ()
