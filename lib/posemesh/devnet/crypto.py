"""Who signed this: the address behind a signature, worked out from the bytes alone.

Only recovery and checks; nothing here holds a private key. The arithmetic is python-ecdsa's, so that it is
independent of the library a node signs with.
"""

from __future__ import annotations

import re

from ecdsa import SECP256k1
from ecdsa.ellipticcurve import INFINITY, PointJacobi
from eth_hash.auto import keccak

__all__ = ("BadSignature", "address_of", "recover_legacy", "recover_siwe")

_P = SECP256k1.curve.p()
_N = SECP256k1.order
_G = SECP256k1.generator
_HEX_SIGNATURE = re.compile(r"[0-9a-fA-F]{130}")


class BadSignature(ValueError):
    """Not 65 bytes of hex, out of range, or a signature no key can have made."""


def address_of(public_key: bytes) -> str:
    """The wallet address of an uncompressed point: 64 bytes X and Y, with or without the leading 04."""
    return "0x" + keccak(public_key[-64:])[-20:].hex()


def recover_siwe(message: str, signature: str) -> str:
    """The address that signed ``message`` as EIP-191 text. v is 27 or 28; 0 and 1 are taken as well."""
    raw = message.encode()
    digest = keccak(b"\x19Ethereum Signed Message:\n%d" % len(raw) + raw)
    return address_of(_recover(digest, signature.removeprefix("0x")))


def recover_legacy(message: str, signature: str) -> bytes:
    """The public key (65 bytes, leading 04) that signed the plain Keccak digest of ``message``."""
    return _recover(keccak(message.encode()), signature)


def _recover(digest: bytes, signature: str) -> bytes:
    if not _HEX_SIGNATURE.fullmatch(signature):
        raise BadSignature("signature is not 65 bytes of hex")
    raw = bytes.fromhex(signature)
    r, s, v = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:64], "big"), raw[64]
    parity = v - 27 if v in (27, 28) else v
    if parity not in (0, 1):
        raise BadSignature(f"signature has v = {v}, expected 27, 28, 0 or 1")
    # A high s is the same signature mirrored; Ethereum allows only the low one.
    if not (0 < r < _N and 0 < s <= _N // 2):
        raise BadSignature("signature has r or s out of range")
    square = (pow(r, 3, _P) + 7) % _P
    y = pow(square, (_P + 1) // 4, _P)
    if y * y % _P != square:
        raise BadSignature("signature has an r that is no point of the curve")
    point = PointJacobi(SECP256k1.curve, r, y if y % 2 == parity else _P - y, 1, _N)
    inverse = pow(r, -1, _N)
    key = _G.mul_add(-int.from_bytes(digest, "big") * inverse % _N, point, s * inverse % _N)
    if key == INFINITY:
        raise BadSignature("signature has no key")
    return bytes(key.to_bytes("uncompressed"))
