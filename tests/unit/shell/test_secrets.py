from __future__ import annotations

import asyncio

from posemesh.secret import Secret
from posemesh.shell.secrets import MemorySecretStore


def test_what_was_written_last_is_read() -> None:
    async def main() -> None:
        store = MemorySecretStore()
        assert await store.read() is None
        await store.write("node", Secret(" untrimmed "))
        assert await store.read() == Secret(" untrimmed ")
        await store.write("node", Secret("next"))
        assert await store.read() == Secret("next")
        assert await MemorySecretStore().read() is None

    asyncio.run(main())
