"""Where the secret of a registration callback is kept."""

from __future__ import annotations

from typing import Protocol

from posemesh.secret import Secret

__all__ = ("MemorySecretStore", "SecretStore")


class SecretStore(Protocol):
    """Both may raise; what ``read`` returns is compared with what was written."""

    async def write(self, node_id: str, secret: Secret) -> None: ...

    async def read(self) -> Secret | None: ...


class MemorySecretStore:
    """It lasts as long as the process."""

    def __init__(self) -> None:
        self._secret: Secret | None = None

    async def write(self, node_id: str, secret: Secret) -> None:
        self._secret = secret

    async def read(self) -> Secret | None:
        return self._secret
