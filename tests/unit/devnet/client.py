"""What tests of the local network need: a wallet, a clock moved by hand, and the requests a node makes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from ecdsa import SECP256k1, SigningKey
from ecdsa.util import sigencode_string_canonize
from eth_hash.auto import keccak

from posemesh.devnet import Devnet, DevnetConfig

CAPABILITY = "/examples/hello/v1"
KEY_A = "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90"
KEY_B = "e331b6d69882b4ed5bb7f55b585d7d0f7dc3aeca4a3deee8d16bde3eca51aace"


class ManualClock:
    def __init__(self, wall: float = 1_767_225_600.0) -> None:
        self.time = wall

    def monotonic(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


class Wallet:
    """Signs with python-ecdsa, as slowly and plainly as it can be written down."""

    def __init__(self, private_key: str) -> None:
        self._key = SigningKey.from_string(bytes.fromhex(private_key), SECP256k1)
        self.public_key: str = self._key.verifying_key.to_string("uncompressed").hex()
        self.address = "0x" + keccak(bytes.fromhex(self.public_key)[1:])[-20:].hex()

    def siwe(self, message: str, v: int = 27) -> str:
        raw = message.encode()
        return "0x" + self._sign(keccak(b"\x19Ethereum Signed Message:\n%d" % len(raw) + raw), v)

    def legacy(self, message: str) -> str:
        return self._sign(keccak(message.encode()), 0)

    def _sign(self, digest: bytes, v: int) -> str:
        signature = self._key.sign_digest_deterministic(digest, sigencode=sigencode_string_canonize)
        candidates = self._key.verifying_key.from_public_key_recovery_with_digest(signature, digest, SECP256k1)
        parity = [key.to_string().hex() for key in candidates].index(self.public_key[2:])
        return signature.hex() + f"{v + parity:02x}"


def message_for(challenge: dict[str, Any], address: str) -> str:
    return (
        f"{challenge['domain']} wants you to sign in with your Ethereum account:\n{address}\n\n"
        f"URI: {challenge['uri']}\nVersion: {challenge['version']}\nChain ID: {challenge['chainId']}\n"
        f"Nonce: {challenge['nonce']}\nIssued At: {challenge['issuedAt']}"
    )


class Client:
    """One HTTP client with a wallet. ``call`` returns the status and the body, decoded where it is JSON."""

    def __init__(self, net: Devnet, http: aiohttp.ClientSession, key: str = KEY_A) -> None:
        self.net = net
        self.http = http
        self.wallet = Wallet(key)
        self.token = ""

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        token = options.pop("token", self.token)
        headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        async with self.http.request(method, self.net.url + path, headers=headers, **options) as answer:
            body = await (answer.json() if answer.content_type == "application/json" else answer.read())
            return answer.status, body.decode() if isinstance(body, bytes) else body

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, Any]:
        return await self.call("POST", path, json=body, **options)

    async def signed(self) -> dict[str, Any]:
        """A fresh challenge, answered."""
        _, challenge = await self.post("/internal/v1/auth/siwe/request", {"wallet": self.wallet.address})
        message = message_for(challenge, self.wallet.address)
        return {"message": message, "signature": self.wallet.siwe(message)}

    async def registration(self, **changes: Any) -> dict[str, Any]:
        return (
            await self.signed()
            | {"registration_credentials": self.net.reg_secret, "capabilities": [CAPABILITY], "version": "1.2.3"}
            | changes
        )

    async def register(self, **changes: Any) -> tuple[int, Any]:
        return await self.post("/internal/v1/nodes/register-wallet", await self.registration(**changes))

    async def sign_in(self) -> tuple[int, Any]:
        body = await self.signed() | {"address": self.wallet.address}
        status, answer = await self.post("/internal/v1/auth/siwe/verify", body)
        if status == 200:
            self.token = answer["access_token"]
        return status, answer

    async def join(self, **changes: Any) -> None:
        """Register and sign in."""
        assert (await self.register(**changes))[0] == 200
        assert (await self.sign_in())[0] == 200

    async def lease(self) -> dict[str, Any]:
        status, body = await self.call("GET", "/v1/tasks")
        assert status == 200, (status, body)
        return body  # type: ignore[no-any-return]

    async def report(self, task_id: str, what: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        usual = {
            "heartbeat": {"progress": {}, "events": []},
            "complete": {"output_cids": [], "meta": {}},
            "fail": {"reason": "no reason", "details": {}},
        }
        return await self.post(f"/v1/tasks/{task_id}/{what}", usual[what] if body is None else body, **options)


def with_net(test: Callable[[Client, ManualClock], Awaitable[None]], *, joined: bool = False, **settings: Any) -> None:
    """Run ``test`` against a network whose time stands still unless the test moves it."""

    async def run() -> None:
        clock = ManualClock()
        config = DevnetConfig(**({"sweep_interval": 3600.0, "health_probe_interval": None} | settings))
        async with Devnet(config, clock=clock, rng=random.Random(1)) as net, aiohttp.ClientSession() as http:
            client = Client(net, http)
            if joined:
                await client.join()
            await test(client, clock)

    asyncio.run(run())
