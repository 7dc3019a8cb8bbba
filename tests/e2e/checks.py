"""What the independent services check of a request, and the arithmetic of wallets they check it with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from ecdsa import SECP256k1, SigningKey, VerifyingKey
from ecdsa.util import sigdecode_string
from eth_hash.auto import keccak

if TYPE_CHECKING:
    from .network import Network, Request

__all__ = ("UUID", "Bad", "address_of", "json_body", "lag", "recovered", "typed", "wallet_of")

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
HALF_ORDER = SECP256k1.order // 2


def further(*cases: Any) -> list[Any]:
    """Cases that go the way another one shows already: for the slow run."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def lag() -> float:
    """How much longer things may take now than on an idle machine, in seconds: ten starts of an interpreter.

    What has to happen within a time is given this much more before it counts as late: a busy machine is no fault.
    """
    began = time.monotonic()
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
    return 10 * (time.monotonic() - began)


class Bad(Exception):
    """A request that is refused with this status; it is a violation unless ``fair``."""

    def __init__(self, status: int, text: str, *, fair: bool = False) -> None:
        self.status, self.text, self.fair = status, text, fair
        super().__init__(text)


def json_body(net: Network, request: Request) -> dict[str, Any]:
    """The JSON object of a POST. Raises Bad where there is none."""
    if request.method != "POST":
        raise Bad(405, "POST expected")
    if request.headers.get("Content-Type") != "application/json":
        raise Bad(415, f"content type {request.headers.get('Content-Type')!r}")
    try:
        body = json.loads(request.body)
    except ValueError:
        raise Bad(400, "no JSON") from None
    if not isinstance(body, dict):
        raise Bad(422, "no object")
    return body


def typed(body: Mapping[str, Any], wanted: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> None:
    """Exactly these fields, of these types. Raises Bad."""
    optional = optional or {}
    unknown = body.keys() - wanted.keys() - optional.keys()
    if unknown:
        raise Bad(422, f"unknown fields {sorted(unknown)}")
    for name, kind in {**wanted, **optional}.items():
        if name not in body:
            if name in wanted:
                raise Bad(422, f"field {name} is missing")
            continue
        value = body[name]
        if kind is int and isinstance(value, bool) or not isinstance(value, kind):
            raise Bad(422, f"field {name} is a {type(value).__name__}")


def address_of(point: bytes) -> str:
    """The wallet address of an uncompressed public key without its first byte."""
    return "0x" + keccak(point)[-20:].hex()


def wallet_of(key: str) -> str:
    signing = SigningKey.from_string(bytes.fromhex(key.removeprefix("0x")), curve=SECP256k1)
    return address_of(signing.get_verifying_key().to_string())


def recovered(digest: bytes, signature: bytes, offset: int) -> str:
    """The address that signed ``digest`` with r, s, v, where v counts from ``offset``. Raises Bad."""
    if len(signature) != 65 or signature[64] - offset not in (0, 1):
        raise Bad(401, "signature form")
    if int.from_bytes(signature[32:64], "big") > HALF_ORDER:
        raise Bad(401, "signature with a high s")
    keys = VerifyingKey.from_public_key_recovery_with_digest(
        signature[:64], digest, SECP256k1, sigdecode=sigdecode_string
    )
    found = keys[signature[64] - offset]
    return address_of(found.to_string())
