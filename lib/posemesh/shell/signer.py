"""The node's wallet: its address, and the two signatures DDS knows.

Both are recoverable ECDSA over secp256k1 with the nonce of RFC 6979 and low s, so the same key and text
always give the same bytes, whichever library signs. coincurve signs in constant time; python-ecdsa leaks
timing (CVE-2024-23342) and serves only where coincurve cannot be installed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal

from posemesh.errors import ConfigError
from posemesh.secret import Secret

__all__ = ("Backend", "Signer")

Backend = Literal["coincurve", "ecdsa"]

_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")

# The order of the group of secp256k1 (SEC 2, section 2.4.1).
_ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


class Signer:
    """One private key. ``backend`` names the library that signs; by default coincurve where it is installed.

    Raises :class:`ConfigError` for a text that is no private key: 64 hex digits, after one optional ``0x``.
    """

    __slots__ = ("_sign", "address", "backend", "public_key_hex")

    def __init__(self, private_key: Secret, *, backend: Backend | None = None) -> None:
        key = _parse_key(private_key)
        self.backend: Final[Backend] = backend or _installed_backend()
        self._sign, public_key = (_coincurve if self.backend == "coincurve" else _ecdsa)(key)
        self.public_key_hex: Final = public_key.hex()
        self.address: Final = "0x" + _keccak()(public_key[1:])[-20:].hex()

    def __repr__(self) -> str:
        return f"<Signer {self.address} {self.backend}>"

    def sign_eip191(self, message: str) -> str:
        """A personal message's signature (EIP-191 version 0x45), ``0x`` and 130 hex digits, v 27 or 28."""
        text = message.encode()
        prefix = b"\x19Ethereum Signed Message:\n" + str(len(text)).encode()
        signature = self._sign(_keccak()(prefix + text))
        return "0x" + signature[:64].hex() + f"{27 + signature[64]:02x}"

    def sign_legacy(self, data: bytes) -> str:
        """The signature of a registration with a URL: no prefix, 130 hex digits without ``0x``, v 0 or 1."""
        return self._sign(_keccak()(data)).hex()


_Sign = Callable[[bytes], bytes]


def _parse_key(private_key: Secret) -> bytes:
    text = private_key.reveal().strip().removeprefix("0x")
    if not _KEY.fullmatch(text) or not 0 < int(text, 16) < _ORDER:
        expected = "expected a secp256k1 private key, 64 hex digits, other than zero and below the group's order"
        raise ConfigError([f"SECP256K1_PRIVHEX: {expected}"])
    return bytes.fromhex(text)


@cache
def _installed_backend() -> Backend:
    try:
        import coincurve  # noqa: F401
    except (ImportError, OSError):  # a wheel for another platform fails with OSError
        return "ecdsa"
    return "coincurve"


@cache
def _keccak() -> Callable[[bytes], bytes]:
    from eth_hash.backends.pycryptodome import CryptodomeBackend
    from eth_hash.main import Keccak256

    return Keccak256(CryptodomeBackend())


def _coincurve(key: bytes) -> tuple[_Sign, bytes]:
    from coincurve import PrivateKey

    private = PrivateKey(key)

    def sign(digest: bytes) -> bytes:
        return private.sign_recoverable(digest, hasher=None)

    return sign, private.public_key.format(compressed=False)


def _ecdsa(key: bytes) -> tuple[_Sign, bytes]:
    from ecdsa import SECP256k1
    from ecdsa.rfc6979 import generate_k

    scalar = int.from_bytes(key)
    generator: Any = SECP256k1.generator

    def sign(digest: bytes) -> bytes:
        nonce: int = generate_k(_ORDER, scalar, hashlib.sha256, digest)
        point = generator * nonce
        r: int = point.x() % _ORDER
        s = pow(nonce, -1, _ORDER) * (int.from_bytes(digest) + r * scalar) % _ORDER
        # Which of the points with this r it was; the low s below stands for the point's mirror image.
        v: int = point.y() & 1 | (point.x() >= _ORDER) << 1
        if s > _ORDER // 2:
            s, v = _ORDER - s, v ^ 1
        return r.to_bytes(32) + s.to_bytes(32) + bytes([v])

    point = generator * scalar
    return sign, b"\x04" + point.x().to_bytes(32) + point.y().to_bytes(32)
