"""Connections that the clients of several nodes share."""

from __future__ import annotations

import aiohttp

from posemesh.shell.http import new_connector
from posemesh.shell.offload import Offload

__all__ = ("Pool",)


class Pool:
    """Those to the services, and others to domain servers, so that no transfer is in the way of a heartbeat; made at
    the first use, on the loop that uses them. Names are looked up through ``offload``.

    It has no limit of its own: each client has one, and what one node has under way is no other node's delay.
    """

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._made: dict[tuple[str, bool], aiohttp.BaseConnector] = {}

    def services(self) -> aiohttp.BaseConnector:
        """For DDS and DMS."""
        return self._of("services", wary=False)

    def domains(self, *, wary: bool) -> aiohttp.BaseConnector:
        """For domain servers. A wary one connects to no link-local and no metadata address."""
        return self._of("domains", wary=wary)

    async def close(self) -> None:
        """Hang up."""
        made, self._made = tuple(self._made.values()), {}
        for connector in made:
            await connector.close()

    def _of(self, what: str, *, wary: bool) -> aiohttp.BaseConnector:
        if (what, wary) not in self._made:
            self._made[what, wary] = new_connector(self._offload, wary=wary)
        return self._made[what, wary]
