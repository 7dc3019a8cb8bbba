"""Tokens at rest: opened by the wallet that sealed them, and by nobody else."""

from __future__ import annotations

import base64

import pytest

from posemesh.control.vault import Vault
from posemesh.secret import Secret

KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90"
TOKEN = Secret("very-secret-token-ü")


@pytest.mark.parametrize("form", [KEY, f"0x{KEY}", KEY.upper(), f" {KEY} "])
def test_a_wallet_opens_what_it_sealed(form: str) -> None:
    sealed = Vault(Secret(KEY)).seal(TOKEN)
    assert Vault(Secret(form)).open(sealed) == TOKEN
    assert "very-secret" not in sealed + repr(Vault(Secret(KEY)))
    assert b"very-secret" not in base64.b64decode(sealed)


def test_what_earlier_versions_sealed_is_opened() -> None:
    """They used another library. Nonce, tag and text come in this order."""
    sealed = "N12QMIqWE9Ag/zLCoUgoE8qVB6p++HgiKv5GIpgtQIgU+/5JzPXOXaKB"
    assert Vault(Secret(KEY)).open(sealed) == Secret("an earlier one")


def test_nothing_is_sealed_twice_the_same() -> None:
    vault = Vault(Secret(KEY))
    assert len({vault.seal(TOKEN) for _ in range(20)}) == 20


def test_another_wallet_and_what_was_changed_open_nothing() -> None:
    vault = Vault(Secret(KEY))
    sealed = vault.seal(TOKEN)
    assert Vault(Secret(KEY[::-1])).open(sealed) is None
    raw = base64.b64decode(sealed)
    for place in range(len(raw)):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        assert vault.open(base64.b64encode(changed).decode()) is None
    for text in ("", "x", "AAAA", sealed[:20], "ü"):
        assert vault.open(text) is None
