"""A lease's token at rest: a node that is killed can go on with its lease only with it, and nobody else should.

It is sealed with a key made of the wallet's, which is never in the node's directory: who has a copy of the ledger has
no token. One that does not open, as the wallet is another, is taken for absent.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from os import urandom
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from posemesh.secret import Secret

__all__ = ("Vault",)

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16


class Vault:
    """Of the wallet with that private key, in any of the forms the configuration takes."""

    def __init__(self, key: Secret) -> None:
        text = key.reveal().strip().lower().removeprefix("0x")
        own = hashlib.blake2b(text.encode(), digest_size=32, person=b"posemesh vault").digest()
        self._cipher = ChaCha20Poly1305(own)

    def __repr__(self) -> str:
        return "<Vault>"

    def seal(self, token: Secret) -> str:
        """As ASCII text; never twice the same."""
        nonce = urandom(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, token.reveal().encode(), None)
        return b64encode(nonce + sealed[-TAG_BYTES:] + sealed[:-TAG_BYTES]).decode()

    def open(self, text: str) -> Secret | None:
        """What was sealed; None for what this wallet did not seal."""
        try:
            raw = b64decode(text, validate=True)
            nonce, tag, sealed = raw[:NONCE_BYTES], raw[NONCE_BYTES:][:TAG_BYTES], raw[NONCE_BYTES + TAG_BYTES :]
            return Secret(self._cipher.decrypt(nonce, sealed + tag, None).decode())
        except (InvalidTag, ValueError):
            return None
