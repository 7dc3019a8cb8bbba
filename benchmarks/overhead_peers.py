"""The two other ends of ``overhead.py``: a task service that does as little as it can, and a client without a node."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import aiohttp

__all__ = ("bare", "serve")

CAPABILITY = "/posemesh/noop/v1"


class Plan:
    """Whose turn it is, by its User-Agent, and how many tasks are left to lease and to be completed."""

    def __init__(self) -> None:
        self.turn = ""
        self.leases = self.open = 0
        self.begun = 0.0
        self.done: asyncio.Future[float] | None = None

    def lease(self, mine: bool) -> bytes | None:
        if not mine or not self.leases:
            return None
        self.begun = self.begun or time.perf_counter()
        self.leases -= 1
        return LEASE.replace(b"@", str(uuid.uuid4()).encode())

    def complete(self) -> None:
        self.open -= 1
        if not self.open and self.done is not None:
            self.done.set_result(time.perf_counter() - self.begun)


def _body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


FAR = "2099-01-01T00:00:00Z"
LEASE = _body(
    access_token="domain-token",
    access_token_expires_at=FAR,
    lease_expires_at=FAR,
    cancel=False,
    status="leased",
    domain_id=str(uuid.UUID(int=2)),
    domain_server_url="http://127.0.0.1:9",
    task={"id": "@", "job_id": str(uuid.UUID(int=3)), "capability": CAPABILITY, "inputs_cids": [], "meta": {}},
)
HEARTBEAT = _body(lease_expires_at=FAR, access_token_expires_at=FAR)
TOKEN = _body(access_token="node-token", access_expires_at=FAR)
PLAN = Plan()


async def _answer(path: str, headers: bytes, host: str) -> tuple[int, bytes]:
    if path == "/v1/tasks":
        lease = PLAN.lease(f"user-agent: {PLAN.turn}".encode() in headers)
        return (204, b"") if lease is None else (200, lease)
    if path.endswith("/heartbeat"):
        return 200, HEARTBEAT
    if path.endswith("/complete"):
        PLAN.complete()
        return 200, b"{}"
    if path.startswith("/turn"):
        PLAN.turn = path.rpartition("=")[2]
        return 200, b"{}"
    if path.startswith("/measure"):
        PLAN.done = asyncio.get_running_loop().create_future()
        PLAN.leases = PLAN.open = int(path.rpartition("=")[2])
        PLAN.begun = 0.0
        return 200, _body(seconds=await PLAN.done)
    if path.endswith("/siwe/request"):
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        challenge = {"nonce": uuid.uuid4().hex, "domain": host, "uri": f"http://{host}", "version": "1"}
        return 200, _body(**challenge, chainId=8453, issuedAt=now)
    return 200, TOKEN if path.endswith("/siwe/verify") else b"{}"


async def _connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lowered = head.lower()
            if b"content-length:" in lowered:
                size = int(lowered.split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(size)
            path = head.split(b" ", 2)[1].decode()
            host = lowered.split(b"host:")[1].split(b"\r\n")[0].strip().decode()
            status, body = await _answer(path, lowered, host)
            kind = b"Content-Type: application/json\r\n" if body else b""
            writer.write(b"HTTP/1.1 %d OK\r\n%bContent-Length: %d\r\n\r\n%b" % (status, kind, len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve() -> None:
    """DDS and DMS on one port of this machine; its address is printed."""
    server = await asyncio.start_server(_connection, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def bare(base: str, slots: int) -> None:
    """What a node asks for its tasks, by nothing but aiohttp: ``slots`` loops of lease, heartbeat, complete."""
    headers = {"Authorization": "Bearer bare", "User-Agent": "bare"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as http:
        print("ready", flush=True)
        await asyncio.gather(*(_loop(http, f"{base}/v1/tasks") for _ in range(slots)))


async def _loop(http: aiohttp.ClientSession, tasks: str) -> None:
    while True:
        async with http.get(tasks) as reply:
            if reply.status != 200:
                await asyncio.sleep(0.1)
                continue
            lease = await reply.json()
        task, domain = lease["task"], lease["domain_id"]
        async with http.post(f"{tasks}/{task['id']}/heartbeat", json={"progress": {}, "events": []}) as reply:
            await reply.json()
        job = {"task_id": task["id"], "job_id": task["job_id"], "domain_id": domain, "capability": task["capability"]}
        done = {"output_cids": [], "meta": {"job": job, "artifacts": []}}
        async with http.post(f"{tasks}/{task['id']}/complete", json=done) as reply:
            await reply.read()
