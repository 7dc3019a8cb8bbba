"""The codecs of a node and the local network, which share no code for it, understand each other."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime

import aiohttp
import pytest
from aiohttp import web

from posemesh.devnet import Devnet, DevnetConfig
from posemesh.secret import Secret
from posemesh.shell.signer import Signer
from posemesh.types import Artifact, TaskIdentity
from posemesh.wire import dds, dms, siwe
from posemesh.wire.domain import data_url, decode_metadata, parse_cid
from posemesh.wire.multipart import MultipartReader, upload_frame

CAPABILITY = "/examples/hello/v1"


class Talk:
    """One node's requests, by its own codecs."""

    def __init__(self, net, http, backend):
        self.net, self.http = net, http
        settings = net.node_settings()
        self.reg_secret = Secret(settings["REG_SECRET"])
        self.signer = Signer(Secret(settings["SECP256K1_PRIVHEX"]), backend=backend)

    async def send(self, method, url, body=None, *, token=None, headers=None):
        headers = {"Content-Type": "application/json"} | (headers or {})
        if token is not None:
            headers["Authorization"] = f"Bearer {token.reveal()}"
        async with self.http.request(method, url, data=body, headers=headers) as answer:
            content = await answer.read()
            assert answer.status == 200, (url, answer.status, content)
            return answer.headers.get("Content-Type"), content

    async def challenge(self):
        base, address = self.net.url, self.signer.address
        _, body = await self.send("POST", dds.siwe_request_url(base), dds.challenge_request_body(address))
        challenge = dds.decode_challenge(body)
        siwe.check(challenge, dds_base_url=base, address=address, service_now=time.time())
        message = siwe.compose(challenge, address)
        return message, self.signer.sign_eip191(message)

    async def register_wallet(self):
        message, signature = await self.challenge()
        body = dds.register_wallet_body(
            message=message,
            signature=signature,
            registration_credentials=self.reg_secret,
            capabilities=[CAPABILITY],
            version="1.0.0",
            max_concurrency=2,
        )
        await self.send("POST", dds.register_wallet_url(self.net.url), body)

    async def register_url(self, url):
        url, timestamp = dds.registered_url(url), dds.legacy_timestamp(time.time_ns())
        body = dds.register_body(
            url=url,
            version="1.0.0",
            registration_credentials=self.reg_secret,
            signature=self.signer.sign_legacy(dds.legacy_signing_input(url, timestamp)),
            timestamp=timestamp,
            public_key=self.signer.public_key_hex,
            capabilities=[CAPABILITY],
        )
        await self.send("POST", dds.register_url(self.net.url), body)

    async def sign_in(self):
        message, signature = await self.challenge()
        body = dds.verify_body(self.signer.address, message, signature)
        token, expires_at = dds.decode_token((await self.send("POST", dds.verify_url(self.net.url), body))[1])
        assert expires_at > datetime.now(UTC)
        return token

    async def run_task(self, token):
        """One task: its input in upper case is its artifact."""
        lease = dms.decode_lease((await self.send("GET", dms.tasks_url(self.net.dms_url), token=token))[1])
        task_id = str(lease.task.id)
        beat = dms.heartbeat_body({"pct": 50}, ["half"])
        _, body = await self.send("POST", dms.heartbeat_url(self.net.dms_url, task_id), beat, token=token)
        answer = dms.decode_heartbeat(body)
        assert (answer.attempts, answer.cancel, answer.status) == (1, False, "running")
        assert (answer.task_id, answer.job_id) == (lease.task.id, lease.task.job_id)
        assert answer.lease_expires_at >= lease.lease_expires_at
        artifact = await self.store(lease, (await self.fetch(lease)).upper())
        identity = TaskIdentity(
            task_id=task_id,
            job_id=str(lease.task.job_id),
            domain_id=str(lease.domain_id),
            capability=lease.task.capability,
        )
        done = dms.complete_body(identity, [artifact])
        await self.send("POST", dms.complete_url(self.net.dms_url, task_id), done, token=token)

    async def fetch(self, lease):
        ref = parse_cid(lease.task.inputs_cids[0], domain_server_url=lease.domain_server_url, domain_id=lease.domain_id)
        url = data_url(lease.domain_server_url, ref.domain_id, ids=ref.ids)
        accept = {"Accept": "multipart/form-data"}
        kind, body = await self.send("GET", url, token=lease.access_token, headers=accept)
        reader = MultipartReader(kind)
        _, *pieces = reader.feed(body)
        reader.close()
        return b"".join(pieces)

    async def store(self, lease, data):
        kind, head, tail = upload_frame(boundary="b0undary", name="out_txt", data_type="txt_data")
        url = data_url(lease.domain_server_url, lease.domain_id)
        _, answer = await self.send(
            "POST", url, head + data + tail, token=lease.access_token, headers={"Content-Type": kind}
        )
        (item,) = decode_metadata(answer)
        return Artifact(logical_path="out.txt", name=item.name, data_type=item.data_type, id=item.id)


def talk(test, backend="coincurve", **settings):
    async def run():
        async with Devnet(DevnetConfig(**settings), rng=random.Random(3)) as net, aiohttp.ClientSession() as http:
            await test(Talk(net, http, backend))
            assert net.violations == []

    asyncio.run(run())


@pytest.mark.parametrize("backend", ["coincurve", "ecdsa"])
def test_a_task_from_registration_to_receipt(backend):
    async def test(node):
        key = node.net.put_data("in", "t", b"hello \r\n\x00")
        bare = node.net.submit(CAPABILITY, inputs_cids=[key])
        whole = node.net.submit(
            CAPABILITY, inputs_cids=[f"{node.net.url}/api/v1/domains/{node.net.domain_id}/data/{key}"]
        )
        await node.register_wallet()
        token = await node.sign_in()
        for job_id in (bare, whole):
            await node.run_task(token)
            (receipt,) = node.net.jobs.receipts[job_id]
            assert node.net.get_data(receipt.outputs[0]) == b"HELLO \r\n\x00"
            assert receipt.meta["artifacts"][0]["id"] == receipt.outputs[0]
            node.net.domain.items.pop(receipt.outputs[0])

    talk(test, backend)


@pytest.mark.parametrize("backend", ["coincurve", "ecdsa"])
def test_a_node_with_a_url_is_called_back(backend):
    async def test(node):
        called = []

        async def callback(request):
            called.append(dds.decode_callback(request.headers["Content-Type"], await request.read()))
            return web.json_response({"ok": True})

        app = web.Application()
        app.router.add_post("/internal/v1/registrations", callback)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            await node.register_url(f"http://127.0.0.1:{runner.addresses[0][1]}")
            assert [found.id for found in called] == list(node.net.dds.nodes)
            await node.sign_in()
        finally:
            await runner.cleanup()

    talk(test, backend, callback_inside=True)
