"""The discovery service: registers wallets and callback nodes, and signs them in (SIWE).

Strict where the real service is: a challenge serves once, the signed text is the challenge to the letter, and the
registration credentials are those of a provisioned node.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from posemesh.devnet import crypto
from posemesh.devnet.context import Context, Refused, read_json, stamp
from posemesh.devnet.records import Body

__all__ = ("CHAIN_ID", "Dds", "NodeRecord")

CHAIN_ID = 8453
_NONCE_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_NONCE = re.compile(r"^Nonce: (\S+)$", re.MULTILINE)
_SEMVER = re.compile(
    r"[vV]?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?",
    re.ASCII,
)
_CALLBACK_ATTEMPTS = 3
_CALLBACK_PAUSE_SECS = 1.0
_TO_NODE = aiohttp.ClientTimeout(total=10)

Wallet = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-fA-F]{40}\Z")]


class WalletBody(Body, kw_only=True, frozen=True):
    wallet: Wallet


class VerifyBody(Body, kw_only=True, frozen=True):
    message: str
    signature: str
    address: Wallet | None = None


class RegisterWalletBody(Body, kw_only=True, frozen=True):
    message: str
    signature: str
    registration_credentials: str
    capabilities: list[str]
    version: str
    max_concurrency: Annotated[int, msgspec.Meta(ge=1)] | None = None


class RegisterUrlBody(Body, kw_only=True, frozen=True):
    url: str
    version: str
    registration_credentials: str
    signature: str
    timestamp: str
    public_key: str
    capabilities: list[str]


@dataclass(slots=True, kw_only=True)
class NodeRecord:
    """A provisioned node; ``wallet`` is None until it registered. ``max_concurrency`` None counts as 1."""

    id: str
    secret: str
    organization_id: str
    wallet: str | None = None
    capabilities: list[str] = field(default_factory=list)
    version: str = ""
    max_concurrency: int | None = None
    url: str | None = None

    @property
    def reg_secret(self) -> str:
        """What the node's ``REG_SECRET`` must be."""
        return base64.b64encode(f"{self.id}:{self.secret}".encode()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Challenge:
    wallet: str
    url: URL
    nonce: str
    issued_at: str
    expires_at: float

    def fields(self) -> dict[str, object]:
        return {
            "nonce": self.nonce,
            "domain": self.url.authority,
            "uri": str(self.url.origin()),
            "version": "1",
            "chainId": CHAIN_ID,
            "issuedAt": self.issued_at,
        }

    def message(self, address: str) -> str:
        return (
            f"{self.url.authority} wants you to sign in with your Ethereum account:\n{address}\n\n"
            f"URI: {self.url.origin()}\nVersion: 1\nChain ID: {CHAIN_ID}\nNonce: {self.nonce}\n"
            f"Issued At: {self.issued_at}"
        )


class Dds:
    """The service and what it knows of nodes. ``conflict`` True answers 409 to every registration."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.conflict = False
        self.nodes = {node.id: node for node in context.store.load("node", NodeRecord)}
        #: Every callback: the node's id and the status it answered with, 0 for none.
        self.callbacks: deque[tuple[str, int]] = deque(maxlen=1000)
        #: Every health probe, likewise.
        self.probes: deque[tuple[str, int]] = deque(maxlen=1000)
        self._challenges: dict[str, _Challenge] = {}
        self._http: aiohttp.ClientSession | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/internal/v1/auth/siwe/request", self._request),
            web.post("/internal/v1/auth/siwe/verify", self._verify),
            web.post("/internal/v1/nodes/register-wallet", self._register_wallet),
            web.post("/internal/v1/nodes/register", self._register_url),
        ]

    def start(self) -> None:
        if self.context.config.health_probe_interval is not None:
            self._spawn(self._probe_forever(self.context.config.health_probe_interval))

    async def stop(self) -> None:
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def provision(self, organization_id: str) -> NodeRecord:
        """Make room for one more node; its ``reg_secret`` lets it register."""
        node = NodeRecord(
            id=self.context.new_id(), secret=self.context.new_secret()[:32], organization_id=organization_id
        )
        self._save(node)
        return node

    def forget_wallets(self) -> None:
        """Unregister every node, so that the next sign-in is answered ``node not found``."""
        for node in self.nodes.values():
            node.wallet = None
            self._save(node)

    # Sign-in.

    async def _request(self, request: web.Request) -> web.Response:
        body = await read_json(request, WalletBody)
        now = self.context.now()
        self._challenges = {n: c for n, c in self._challenges.items() if c.expires_at > now}
        challenge = _Challenge(
            wallet=body.wallet.lower(),
            url=URL(self.context.url),
            nonce="".join(self.context.rng.choices(_NONCE_ALPHABET, k=17)),
            issued_at=stamp(now),
            expires_at=now + self.context.config.nonce_ttl,
        )
        self._challenges[challenge.nonce] = challenge
        return web.json_response(challenge.fields())

    async def _verify(self, request: web.Request) -> web.Response:
        body = await read_json(request, VerifyBody)
        wallet = self._signer(body.message, body.signature)
        if body.address is not None and body.address.lower() != wallet:
            raise Refused(401, "address does not match the message", violation=True)
        node = next((node for node in self.nodes.values() if node.wallet == wallet), None)
        if node is None:
            raise Refused(403, "node not found")
        token = self.context.issue("node", node.id, self.context.config.node_token_ttl)
        return web.json_response(
            {
                "node_id": node.id,
                "wallet": wallet,
                "access_token": token.value,
                "access_expires_at": stamp(token.expires_at),
            }
        )

    def _signer(self, message: str, signature: str) -> str:
        """The wallet that signed one of our challenges. The challenge is spent, whatever comes out."""
        found = _NONCE.search(message)
        challenge = self._challenges.pop(found[1], None) if found else None
        if challenge is None:
            raise Refused(401, "invalid nonce", violation=True)
        if self.context.now() >= challenge.expires_at:
            raise Refused(401, "invalid nonce")
        # Some clients write the address with upper-case letters or end with a line feed; DDS takes both.
        text = message.removesuffix("\n")
        address = text.split("\n")[1] if "\n" in text else ""
        if address.lower() != challenge.wallet or text != challenge.message(address):
            raise Refused(401, "message does not match the challenge", violation=True)
        try:
            signer = crypto.recover_siwe(message, signature)
        except crypto.BadSignature as exc:
            raise Refused(401, f"bad signature: {exc}", violation=True) from None
        if signer != challenge.wallet:
            raise Refused(401, "bad signature", violation=True)
        return signer

    # Registration.

    async def _register_wallet(self, request: web.Request) -> web.Response:
        body = await read_json(request, RegisterWalletBody)
        wallet = self._signer(body.message, body.signature)
        node = self._admit(body.registration_credentials, wallet, body.capabilities, body.version)
        node.max_concurrency, node.url = body.max_concurrency, None
        self._save(node)
        return web.Response()

    async def _register_url(self, request: web.Request) -> web.Response:
        body = await read_json(request, RegisterUrlBody)
        self._check_timestamp(body.timestamp)
        try:
            key = crypto.recover_legacy(body.url + body.timestamp, body.signature)
        except crypto.BadSignature as exc:
            raise Refused(401, f"bad signature: {exc}", violation=True) from None
        if key.hex() != body.public_key:
            raise Refused(401, "signature was not made with public_key", violation=True)
        base = _node_url(body.url)
        node = self._admit(body.registration_credentials, crypto.address_of(key), body.capabilities, body.version)
        node.url = str(base)
        self._save(node)
        if self.context.config.callback_inside:
            await self._call_back(node)
        else:
            self._spawn(self._call_back(node))
        return web.Response()

    def _check_timestamp(self, text: str) -> None:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise Refused(400, "timestamp is not RFC 3339", violation=True) from None
        if when.tzinfo is None or not text.endswith("Z"):
            raise Refused(400, "timestamp is not in UTC", violation=True)
        if abs(when.timestamp() - self.context.now()) > self.context.config.timestamp_tolerance:
            raise Refused(401, "timestamp is too far off")

    def _admit(self, credentials: str, wallet: str, capabilities: list[str], version: str) -> NodeRecord:
        """The provisioned node these credentials belong to, with what it offers filled in."""
        node = self.nodes.get(_credentials(credentials)[0])
        if node is None or node.reg_secret != credentials:
            raise Refused(401, "invalid registration credentials", violation=True)
        if not 1 <= len(capabilities) <= 100:
            raise Refused(400, "expected 1 to 100 capabilities", violation=True)
        if not all(name.strip() and len(name.encode()) <= 256 for name in capabilities):
            raise Refused(400, "a capability is 1 to 256 bytes and not blank", violation=True)
        if not _SEMVER.fullmatch(version):
            raise Refused(400, "version is not a semantic version", violation=True)
        owner = next((other for other in self.nodes.values() if other.wallet == wallet), node)
        if node.wallet not in (None, wallet) or owner is not node:
            raise Refused(403, "wallet does not match node")
        if self.conflict:
            raise Refused(409, "existing online node")
        node.wallet, node.capabilities, node.version = wallet, capabilities, version
        return node

    def _save(self, node: NodeRecord) -> None:
        self.nodes[node.id] = node
        self.context.store.put("node", node.id, node)

    # Calls to nodes.

    async def _call_back(self, node: NodeRecord) -> None:
        body = {
            "id": node.id,
            "secret": self.context.new_secret(),
            "organization_id": node.organization_id,
            "lighthouses_in_domains": [],
            "domains": [],
        }
        for attempt in range(_CALLBACK_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_CALLBACK_PAUSE_SECS)
            status = await self._call(node, "POST", "internal/v1/registrations", json=body)
            self.callbacks.append((node.id, status))
            if status == 200:
                return

    async def _probe_forever(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            for node in [node for node in self.nodes.values() if node.url is not None and node.wallet is not None]:
                self.probes.append((node.id, await self._call(node, "GET", "health")))

    async def _call(self, node: NodeRecord, method: str, path: str, json: object = None) -> int:
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=_TO_NODE, headers={"User-Agent": "DDS v1.0.0"})
        try:
            async with self._http.request(method, f"{node.url}{path}", json=json, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        job = asyncio.get_running_loop().create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)


def _credentials(text: str) -> tuple[str, str]:
    """Node id and secret from ``REG_SECRET``: padded Base64 of both with exactly one colon between."""
    try:
        node_id, secret = base64.b64decode(text, validate=True).decode().split(":")
    except (binascii.Error, ValueError):
        raise Refused(400, "registration_credentials is not Base64 of id:secret", violation=True) from None
    return node_id, secret


def _node_url(text: str) -> URL:
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise Refused(400, "url is not an http URL", violation=True)
    return url if url.path.endswith("/") else url.with_path(url.path + "/")
