"""The wallet: the protocol's vectors byte for byte with both libraries, which also agree on random keys."""

from __future__ import annotations

import builtins
import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from posemesh.conformance import Vector, load_vectors
from posemesh.errors import ConfigError
from posemesh.secret import Secret
from posemesh.shell import signer as module
from posemesh.shell.signer import Backend, Signer
from posemesh.wire import dds

KEY_A = "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def cases(*actions: str) -> list[Any]:
    chosen = [
        vector for name in ("keys", "siwe", "legacy") for vector in load_vectors(name) if vector.action in actions
    ]
    return [pytest.param(vector, id=f"{vector.id}-{index}") for index, vector in enumerate(chosen)]


@pytest.fixture(params=["coincurve", "ecdsa"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("vector", cases("derive"))
def test_keys(vector: Vector, backend: Backend) -> None:
    key = Secret(vector.given["private_key"])
    if vector.expect.get("error"):
        with pytest.raises(ConfigError):
            Signer(key, backend=backend)
        return
    signer = Signer(key, backend=backend)
    assert signer.address == vector.expect["address"]
    assert signer.public_key_hex == vector.expect.get("public_key", signer.public_key_hex)
    assert len(signer.public_key_hex) == 130 and signer.public_key_hex.startswith("04")


@pytest.mark.parametrize("vector", cases("sign_eip191", "sign_legacy"))
def test_signatures(vector: Vector, backend: Backend) -> None:
    signer = Signer(Secret(vector.given["private_key"]), backend=backend)
    if vector.action == "sign_eip191":
        assert signer.sign_eip191(vector.given["message"]) == vector.expect["signature"]
    else:
        data = dds.legacy_signing_input(vector.given["url"], vector.given["timestamp"])
        assert signer.sign_legacy(data) == vector.expect["signature"]


def test_both_libraries_sign_the_same_bytes() -> None:
    """RFC 6979 leaves no choice but the parity of v, which ecdsa does not give: 500 keys would find a wrong one."""
    for number in range(500):
        key = Secret(hashlib.sha256(b"key %d" % number).hexdigest())
        data = hashlib.sha256(b"text %d" % number).digest()
        one, other = Signer(key, backend="coincurve"), Signer(key, backend="ecdsa")
        assert one.address == other.address
        assert one.sign_legacy(data) == other.sign_legacy(data)
        if number < 50:
            assert one.sign_eip191(data.hex()) == other.sign_eip191(data.hex())


@pytest.mark.parametrize("number", [1, 2, ORDER - 1, ORDER // 2, ORDER // 2 + 1])
def test_extreme_keys(number: int) -> None:
    key = Secret(f"{number:064x}")
    one, other = Signer(key, backend="coincurve"), Signer(key, backend="ecdsa")
    assert (one.address, one.public_key_hex) == (other.address, other.public_key_hex)
    assert one.sign_legacy(b"") == other.sign_legacy(b"")


def test_s_is_low(backend: Backend) -> None:
    signer = Signer(Secret(KEY_A), backend=backend)
    for number in range(20):
        signature = signer.sign_legacy(b"%d" % number)
        assert int(signature[64:128], 16) <= ORDER // 2
        assert signature[128:] in ("00", "01")
        assert signature == signature.lower()


def test_the_length_of_a_personal_message_counts_bytes(backend: Backend) -> None:
    signer = Signer(Secret(KEY_A), backend=backend)
    raw = b"\x19Ethereum Signed Message:\n5" + "né€"[:2].encode() + b"ab"
    assert signer.sign_eip191("néab")[2:130] == signer.sign_legacy(raw)[:128]


@pytest.mark.parametrize("text", [KEY_A, KEY_A.upper(), f"0x{KEY_A}", f"  0x{KEY_A}\n", f"\t{KEY_A} "])
def test_spellings_of_a_key(text: str) -> None:
    assert Signer(Secret(text)).address == "0xfdbb6caf01414300c16ea14859fec7736d95355f"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        f"0x0x{KEY_A}",
        KEY_A[:-1],
        KEY_A + "0",
        KEY_A[:-1] + "g",
        KEY_A[:30] + "  " + KEY_A[32:],
        "0" * 64,
        f"{ORDER:064x}",
        "f" * 64,
        "٠" * 64,
    ],
)
def test_a_bad_key_is_named_and_not_shown(text: str, backend: Backend) -> None:
    with pytest.raises(ConfigError) as caught:
        Signer(Secret(text), backend=backend)
    assert "SECP256K1_PRIVHEX" in str(caught.value)
    assert "64 hex digits" in str(caught.value)
    if len(text) > 2:
        assert text not in str(caught.value)


def test_the_key_is_not_in_the_repr(backend: Backend) -> None:
    text = repr(Signer(Secret(KEY_A), backend=backend))
    assert KEY_A not in text
    assert backend in text


@pytest.fixture
def no_cached_backend() -> Iterator[None]:
    module._installed_backend.cache_clear()
    yield
    module._installed_backend.cache_clear()


def test_coincurve_is_preferred(no_cached_backend: None) -> None:
    assert Signer(Secret(KEY_A)).backend == "coincurve"


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_without_coincurve_ecdsa_signs(
    no_cached_backend: None, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    original = builtins.__import__

    def without_coincurve(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "coincurve":
            raise error(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_coincurve)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the node logs the one warning, not this module
        signer = Signer(Secret(KEY_A))
    assert signer.backend == "ecdsa"
    assert signer.sign_eip191("hello") == load_vectors("siwe")[2].expect["signature"]
