"""The independent network's DDS: wallet registration, the callback flow, sign-in."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
from eth_hash.auto import keccak

from .checks import Bad, address_of, json_body, recovered, typed

if TYPE_CHECKING:
    from .network import Answer, Network, Request

__all__ = ("Dds", "NodeToken", "stamp")

SEMVER = re.compile(r"v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
NANOS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
KINDS = {
    "/internal/v1/auth/siwe/request": "challenge",
    "/internal/v1/auth/siwe/verify": "verify",
    "/internal/v1/nodes/register-wallet": "register",
    "/internal/v1/nodes/register": "register_url",
}


def stamp(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(slots=True)
class NodeToken:
    wallet: str
    expires: float
    revoked: bool = False


class Dds:
    """Attributes are the plan: what it demands of a node and how it treats one."""

    def __init__(self, net: Network) -> None:
        self.net = net
        node = str(uuid.uuid4())
        self.raw_secret = net.secret("regsecret" + secrets.token_hex(12))
        self.reg_secret = net.secret(base64.b64encode(f"{node}:{self.raw_secret}".encode()).decode())
        self.node_id = node
        self.token_ttl = 3600.0
        self.challenge: dict[str, Any] = {}
        """Overrides of the challenge's fields; a callable gets the true value."""
        self.callback: str | None = "before"
        """before, after (the register request is answered) or None."""
        self.probe_every: float | None = None
        self.callbacks: list[tuple[int, str]] = []
        self.probes: list[int] = []
        self.probed: list[float] = []
        """When each was sent."""
        self.registered: set[str] = set()
        self.capabilities: list[str] = []
        self.offers: dict[str, list[str]] = {}
        """By wallet, what each node last registered with."""
        self.max_concurrency = 1
        self.version = ""
        self.tokens: dict[str, NodeToken] = {}
        self.node_url = ""
        self._nonces: dict[str, tuple[str, str]] = {}
        self._settled: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def name(self, request: Request) -> None:
        request.kind = KINDS.get(request.path, "unknown")

    async def answer(self, request: Request) -> Answer:
        from .network import Answer

        handler = getattr(self, f"_{request.kind}")
        try:
            if request.headers.get("Authorization"):
                raise Bad(400, "a bearer token where none belongs")
            answer: Answer = await handler(request, json_body(self.net, request))
            return answer
        except Bad as bad:
            if not bad.fair:
                self.net.wrong(request, bad.text)
            return Answer(bad.status, bad.text)

    def revoke(self) -> None:
        for token in self.tokens.values():
            token.revoked = True

    def forget(self) -> None:
        """No wallet is registered any more, as after a loss of the service's data."""
        self.registered.clear()
        self._settled.clear()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _unknown(self, request: Request, body: dict[str, Any]) -> Answer:
        raise Bad(404, "no such path")

    async def _challenge(self, request: Request, body: dict[str, Any]) -> Answer:
        from .network import Answer

        typed(body, {"wallet": str})
        if not re.fullmatch(r"0x[0-9a-f]{40}", body["wallet"]):
            raise Bad(400, "wallet form")
        base = self.net.urls["dds"]
        challenge = {
            "nonce": secrets.token_hex(12),
            "domain": base.removeprefix("http://"),
            "uri": base,
            "version": "1",
            "chainId": 8453,
            "issuedAt": stamp(self.net.now()),
        }
        for name, value in self.challenge.items():
            challenge[name] = value(challenge[name]) if callable(value) else value
        lines = (
            f"{challenge['domain']} wants you to sign in with your Ethereum account:",
            body["wallet"],
            "",
            f"URI: {challenge['uri']}",
            f"Version: {challenge['version']}",
            f"Chain ID: {challenge['chainId']}",
            f"Nonce: {challenge['nonce']}",
            f"Issued At: {challenge['issuedAt']}",
        )
        self._nonces["\n".join(lines)] = (body["wallet"], challenge["nonce"])
        return Answer(body=challenge)

    def _signed(self, message: str, signature: str) -> str:
        """The wallet a challenge was signed by; the nonce is used up."""
        if message not in self._nonces:
            raise Bad(401, "invalid nonce: the message is no open challenge")
        wallet, _ = self._nonces.pop(message)
        if self.challenge:
            self.net.wrong(None, f"signed a challenge altered in {sorted(self.challenge)}")
        if not re.fullmatch(r"0x[0-9a-f]{130}", signature):
            raise Bad(401, "signature form")
        data = message.encode()
        digest = keccak(b"\x19Ethereum Signed Message:\n" + str(len(data)).encode() + data)
        if recovered(digest, bytes.fromhex(signature[2:]), 27) != wallet:
            raise Bad(401, "signature of another wallet")
        return wallet

    async def _register(self, request: Request, body: dict[str, Any]) -> Answer:
        from .network import Answer

        fields = {"message": str, "signature": str, "registration_credentials": str}
        typed(body, {**fields, "capabilities": list, "version": str}, {"max_concurrency": int})
        wallet = self._signed(body["message"], body["signature"])
        self._credentials(body)
        if wallet in self._settled:
            self.net.wrong(request, "registers although it stands registered")
        self.max_concurrency = body.get("max_concurrency", 1)
        if self.max_concurrency < 1:
            raise Bad(400, "max_concurrency below 1")
        self.registered.add(wallet)
        self.offers[wallet] = self.capabilities
        return Answer(200, b"", then=lambda: self._settled.add(wallet))

    def _credentials(self, body: dict[str, Any]) -> None:
        if body["registration_credentials"] != self.reg_secret:
            raise Bad(401, "invalid registration credentials", fair=True)
        if not SEMVER.fullmatch(body["version"]):
            raise Bad(400, f"version {body['version']!r}")
        names = body["capabilities"]
        if not 1 <= len(names) <= 100 or not all(isinstance(name, str) and name for name in names):
            raise Bad(400, "capabilities")
        if names != sorted(set(names)):
            self.net.wrong(None, "capabilities not sorted or not unique")
        self.capabilities, self.version = names, body["version"]

    async def _verify(self, request: Request, body: dict[str, Any]) -> Answer:
        from .network import Answer

        typed(body, {"address": str, "message": str, "signature": str})
        wallet = self._signed(body["message"], body["signature"])
        if body["address"] != wallet:
            raise Bad(403, "wallet does not match node")
        if wallet not in self.registered:
            raise Bad(403, "node not found", fair=True)
        text = self.net.secret("nodetoken" + secrets.token_hex(16))
        self.tokens[text] = NodeToken(wallet, self.net.now() + self.token_ttl)
        return Answer(
            body={
                "node_id": self.node_id,
                "wallet": wallet,
                "access_token": text,
                "access_expires_at": stamp(self.tokens[text].expires),
            }
        )

    async def _register_url(self, request: Request, body: dict[str, Any]) -> Answer:
        from .network import Answer

        fields = ("url", "version", "registration_credentials", "signature", "timestamp", "public_key")
        typed(body, {**dict.fromkeys(fields, str), "capabilities": list})
        self._credentials(body)
        if not NANOS.fullmatch(body["timestamp"]):
            raise Bad(400, f"timestamp {body['timestamp']!r}")
        age = self.net.now() - datetime.fromisoformat(body["timestamp"][:26]).replace(tzinfo=UTC).timestamp()
        if abs(age) > 60:
            raise Bad(400, f"timestamp off by {timedelta(seconds=age)}")
        if not re.fullmatch(r"04[0-9a-f]{128}", body["public_key"]):
            raise Bad(400, "public key form")
        if not re.fullmatch(r"[0-9a-f]{130}", body["signature"]):
            raise Bad(401, "signature form")
        wallet = address_of(bytes.fromhex(body["public_key"])[1:])
        digest = keccak((body["url"] + body["timestamp"]).encode())
        if recovered(digest, bytes.fromhex(body["signature"]), 0) != wallet:
            raise Bad(401, "signature of another wallet")
        self.node_url = body["url"]
        if self.callback == "before":
            await self._call_back(wallet)
        elif self.callback == "after":
            return Answer(200, b"", then=lambda: self._later(wallet))
        return Answer(200, b"")

    def _later(self, wallet: str) -> None:
        async def soon() -> None:
            await asyncio.sleep(0.1)
            await self._call_back(wallet)

        self._keep(soon())

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call_back(self, wallet: str) -> None:
        secret = self.net.secret("cbsecret" + secrets.token_hex(12))
        body = {"id": self.node_id, "secret": secret, "organization_id": "org-1", "domains": [], "more": 1}
        status, text = await self.post(body)
        if status == 200:
            self.registered.add(wallet)
        self.callbacks.append((status, text))
        if self.probe_every is not None and len(self.callbacks) == 1:
            self._keep(self._probe())
        self.net.changed()

    async def post(self, body: Any) -> tuple[int, str]:
        """One registration callback as DDS sends it."""
        async with aiohttp.ClientSession(headers={"User-Agent": "DDS v1.4.0"}) as http:
            async with http.post(self.node_url + "internal/v1/registrations", json=body) as response:
                return response.status, await response.text()

    async def _probe(self) -> None:
        assert self.probe_every is not None
        async with aiohttp.ClientSession(headers={"User-Agent": "DDS v1.4.0"}) as http:
            while True:
                await asyncio.sleep(self.probe_every)
                self.probed.append(time.monotonic())
                try:
                    async with http.get(self.node_url + "health") as response:
                        self.probes.append(response.status)
                except aiohttp.ClientError:
                    self.probes.append(0)
                self.net.changed()

    def bearer(self, request: Request) -> NodeToken:
        """The token of a request to DMS. Raises Bad where it does not serve."""
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            raise Bad(401, "no bearer token")
        token = self.tokens.get(request.token)
        if token is None:
            raise Bad(401, "a token never issued")
        if token.expires < self.net.now():
            late = self.net.now() - token.expires
            raise Bad(401, f"a token that expired {late:.2f} s ago", fair=late < 0.2)
        if token.revoked:
            raise Bad(401, "token revoked", fair=True)
        return token
