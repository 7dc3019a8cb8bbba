from __future__ import annotations

import pytest

from posemesh.conformance import load_vectors
from posemesh.devnet.crypto import BadSignature, address_of, recover_legacy, recover_siwe

from .client import KEY_A, KEY_B, Wallet

PUBLIC = {
    vector.given["private_key"]: vector.expect["public_key"]
    for vector in load_vectors("keys")
    if "public_key" in vector.expect
}
SIWE = [vector for vector in load_vectors("siwe") if vector.action == "sign_eip191"]
LEGACY = [vector for vector in load_vectors("legacy") if vector.action == "sign_legacy"]


@pytest.mark.parametrize("vector", SIWE, ids=lambda vector: vector.id)
def test_a_sign_in_signature_names_its_signer(vector):
    signer = recover_siwe(vector.given["message"], vector.expect["signature"])
    assert signer == address_of(bytes.fromhex(PUBLIC[vector.given["private_key"]]))


@pytest.mark.parametrize("vector", LEGACY, ids=lambda vector: vector.id)
def test_a_legacy_signature_names_its_key(vector):
    signed = vector.given["url"] + vector.given["timestamp"]
    assert recover_legacy(signed, vector.expect["signature"]).hex() == PUBLIC[vector.given["private_key"]]


@pytest.mark.parametrize("key", [KEY_A, KEY_B])
@pytest.mark.parametrize("v", [0, 27])
def test_many_messages_and_both_forms_of_v(key, v):
    wallet = Wallet(key)
    for message in ("", "ä", *(f"message {number}" for number in range(8))):
        assert recover_siwe(message, wallet.siwe(message, v)) == wallet.address


def test_another_message_names_another_signer():
    wallet = Wallet(KEY_A)
    assert recover_siwe("hullo", wallet.siwe("hello")) != wallet.address


GOOD = Wallet(KEY_A).siwe("hello")
HIGH_S = f"{SIWE[0].expect['signature'][:66]}{2**256 - 2**200:064x}1b"


@pytest.mark.parametrize(
    "signature",
    ["", "0x", GOOD[:-2], GOOD + "00", GOOD[:-2] + "1d", "0x" + "zz" * 65, "0x" + "00" * 64 + "1b", HIGH_S],
)
def test_what_is_no_signature_is_refused(signature):
    with pytest.raises(BadSignature):
        recover_siwe("hello", signature)


def test_an_r_off_the_curve_is_refused():
    # 5 is no x of secp256k1: 5^3 + 7 has no square root modulo p.
    with pytest.raises(BadSignature, match="no point"):
        recover_siwe("hello", f"{5:064x}{1:064x}1b")
