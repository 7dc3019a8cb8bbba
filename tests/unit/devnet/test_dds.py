from __future__ import annotations

import asyncio
import base64
import io

import aiohttp
import pytest
from aiohttp import web

from posemesh.devnet import Devnet, DevnetConfig
from posemesh.devnet.context import stamp

from .client import CAPABILITY, KEY_A, KEY_B, Client, Wallet, message_for, with_net

REQUEST = "/internal/v1/auth/siwe/request"
VERIFY = "/internal/v1/auth/siwe/verify"
REGISTER = "/internal/v1/nodes/register-wallet"
LEGACY = "/internal/v1/nodes/register"


def test_a_wallet_registers_and_signs_in():
    async def test(client, clock):
        status, body = await client.post(REQUEST, {"wallet": client.wallet.address})
        assert (status, body["version"], body["chainId"]) == (200, "1", 8453)
        assert (body["uri"], body["domain"]) == (client.net.url, client.net.url.removeprefix("http://"))
        assert body["issuedAt"] == "2026-01-01T00:00:00.000000Z"
        assert await client.register() == (200, "")
        status, body = await client.sign_in()
        assert (status, body["wallet"]) == (200, client.wallet.address)
        assert body["access_expires_at"] == "2026-01-01T01:00:00.000000Z"
        assert body["node_id"] in client.net.dds.nodes
        assert (await client.call("GET", "/v1/tasks"))[0] == 204
        assert client.net.violations == []

    with_net(test)


def test_an_unregistered_wallet_is_not_found():
    async def test(client, clock):
        assert await client.sign_in() == (403, "node not found")
        await client.join()
        client.net.dds.forget_wallets()
        assert await client.sign_in() == (403, "node not found")
        assert (await client.register())[0] == 200
        assert client.net.violations == []

    with_net(test)


def test_a_challenge_serves_once_and_not_for_ever():
    async def test(client, clock):
        await client.register()
        body = await client.signed()
        assert (await client.post(VERIFY, body))[0] == 200
        assert await client.post(VERIFY, body) == (401, "invalid nonce")
        assert len(client.net.violations) == 1
        body = await client.signed()
        clock.advance(300.0)
        assert await client.post(VERIFY, body) == (401, "invalid nonce")
        assert len(client.net.violations) == 1

    with_net(test)


def test_forms_of_the_message_that_are_taken():
    async def test(client, clock):
        await client.register()
        for address, end, v in ((client.wallet.address, "\n", 0), ("0x" + client.wallet.address[2:].upper(), "", 27)):
            _, challenge = await client.post(REQUEST, {"wallet": address})
            message = message_for(challenge, address) + end
            status, _ = await client.post(VERIFY, {"message": message, "signature": client.wallet.siwe(message, v)})
            assert status == 200

    with_net(test)


@pytest.mark.parametrize(
    "old, new",
    [
        ("Chain ID: 8453", "Chain ID: 1"),
        ("Issued At: 2026", "Issued At: 2027"),
        ("sign in", "sign  in"),
        ("Version: 1", "Version: 1\nExtra: 1"),
        ("0xfd", "0xfe"),
        ("URI: http://", "URI: https://"),
        ("Nonce: ", "Nonce: x"),
        ("\n\n", "\n"),
    ],
)
def test_a_message_that_is_not_the_challenge_is_refused(old, new):
    async def test(client, clock):
        await client.register()
        message = (await client.signed())["message"]
        assert old in message
        message = message.replace(old, new)
        status, _ = await client.post(VERIFY, {"message": message, "signature": client.wallet.siwe(message)})
        assert status == 401
        assert len(client.net.violations) == 1

    with_net(test)


@pytest.mark.parametrize("signature", ["", "0x00", "0x" + "00" * 65, "0x" + "11" * 65])
def test_a_bad_signature_is_refused(signature):
    async def test(client, clock):
        status, body = await client.post(VERIFY, await client.signed() | {"signature": signature})
        assert (status, body.startswith("bad signature")) == (401, True)

    with_net(test)


def test_another_wallet_cannot_answer_a_challenge():
    async def test(client, clock):
        body = await client.signed()
        body["signature"] = Wallet(KEY_B).siwe(body["message"])
        assert await client.post(VERIFY, body) == (401, "bad signature")
        status, _ = await client.post(VERIFY, await client.signed() | {"address": Wallet(KEY_B).address})
        assert status == 401

    with_net(test)


@pytest.mark.parametrize(
    "path, body, status",
    [
        (REQUEST, {}, 422),
        (REQUEST, {"wallet": 1}, 422),
        (REQUEST, {"wallet": "0x12"}, 422),
        (REQUEST, {"wallet": "0x" + "a" * 40 + "\n"}, 422),
        (REQUEST, {"wallet": "0x" + "a" * 40, "more": 1}, 422),
        (REQUEST, [], 422),
        (VERIFY, {"message": None, "signature": ""}, 422),
        (VERIFY, {"message": "", "signature": ""}, 401),
        (VERIFY, {"message": "Nonce: x", "signature": ""}, 401),
        (REGISTER, {}, 422),
        (LEGACY, {}, 422),
    ],
)
def test_bodies_of_the_wrong_form_are_refused(path, body, status):
    async def test(client, clock):
        assert (await client.post(path, body))[0] == status
        assert len(client.net.violations) == 1

    with_net(test)


def test_what_is_no_json_is_refused():
    async def test(client, clock):
        kind = {"Content-Type": "application/json"}
        for data in (b"", b"{", b'{"wallet": NaN}', b"\xff", b'"\xed\xa0\x80"', b"[" * 100_000):
            status, _ = await client.call("POST", REQUEST, data=data, headers=kind)
            assert status in (400, 422), data[:20]
        assert (await client.call("POST", REQUEST, data=b"{}", headers={"Content-Type": "text/plain"}))[0] == 415
        assert (await client.call("POST", REQUEST, data=io.BytesIO(b" " * 3_000_000), headers=kind))[0] == 413
        assert (await client.call("GET", REQUEST))[0] == 405
        assert (await client.call("GET", "/internal/v1/nothing"))[0] == 404

    with_net(test)


def encoded(text):
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "changes, status",
    [
        ({"registration_credentials": "not base64!"}, 400),
        ({"registration_credentials": encoded("no colon")}, 400),
        ({"registration_credentials": encoded("two:colons:here")}, 400),
        ({"registration_credentials": encoded("00000000-0000-4000-8000-000000000000:secret")}, 401),
        ({"capabilities": []}, 400),
        ({"capabilities": ["/c/v1"] * 101}, 400),
        ({"capabilities": ["x" * 257]}, 400),
        ({"capabilities": [" "]}, 400),
        ({"capabilities": [1]}, 422),
        ({"version": "dev"}, 400),
        ({"version": "v1.2.3.4"}, 400),
        ({"version": " 1.2.3"}, 400),
        ({"version": ""}, 400),
        ({"max_concurrency": 0}, 422),
        ({"max_concurrency": True}, 422),
        ({"message": "Nonce: unknown"}, 401),
    ],
)
def test_registrations_that_are_refused(changes, status):
    async def test(client, clock):
        assert (await client.register(**changes))[0] == status
        assert client.net.dds.nodes.popitem()[1].wallet is None
        assert len(client.net.violations) == 1

    with_net(test)


@pytest.mark.parametrize("version", ["1.2.3", "v1.2.3", "1.2.3-rc.1+build.5"])
def test_versions_that_are_taken(version):
    async def test(client, clock):
        assert (await client.register(version=version, max_concurrency=4))[0] == 200

    with_net(test)


def test_a_wrong_secret_of_a_known_node_is_refused():
    async def test(client, clock):
        node_id = base64.b64decode(client.net.reg_secret).decode().split(":")[0]
        assert (await client.register(registration_credentials=encoded(f"{node_id}:guess")))[0] == 401

    with_net(test)


def test_one_wallet_is_one_node():
    async def test(client, clock):
        other = Client(client.net, client.http, KEY_B)
        await client.join()
        assert await other.register() == (403, "wallet does not match node")
        second = client.net.provision()
        assert await client.register(registration_credentials=second) == (403, "wallet does not match node")
        await other.join(registration_credentials=second)
        assert client.net.violations == []

    with_net(test)


def test_a_conflict_is_answered_409_while_it_lasts():
    async def test(client, clock):
        client.net.dds.conflict = True
        assert await client.register() == (409, "existing online node")
        client.net.dds.conflict = False
        assert await client.register() == (200, "")

    with_net(test)


# Registration by callback.


class Node:
    """A node's own server: keeps what DDS tells it."""

    def __init__(self, statuses=()):
        self.statuses = list(statuses)
        self.callbacks = []
        self.agents = []
        self.called = asyncio.Event()
        self.probed = asyncio.Event()

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/internal/v1/registrations", self._callback)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/"
        return self

    async def __aexit__(self, *exc):
        await self._runner.cleanup()

    async def _callback(self, request):
        self.callbacks.append(await request.json())
        self.called.set()
        return web.json_response({"ok": True}, status=self.statuses.pop(0) if self.statuses else 200)

    async def _health(self, request):
        self.agents.append(request.headers["User-Agent"])
        self.probed.set()
        return web.Response()


def legacy(client, url, timestamp="2026-01-01T00:00:00.000000001Z", **changes):
    return {
        "url": url,
        "version": "1.2.3",
        "registration_credentials": client.net.reg_secret,
        "signature": client.wallet.legacy(url + timestamp),
        "timestamp": timestamp,
        "public_key": client.wallet.public_key,
        "capabilities": [CAPABILITY],
    } | changes


def test_a_node_with_a_url_is_called_back_and_may_sign_in():
    async def test(client, clock):
        async with Node() as node:
            assert await client.post(LEGACY, legacy(client, node.url)) == (200, "")
            await asyncio.wait_for(node.called.wait(), 5)
            (body,) = node.callbacks
            assert sorted(body) == ["domains", "id", "lighthouses_in_domains", "organization_id", "secret"]
            assert body["id"] in client.net.dds.nodes
            assert body["secret"].strip()
            assert (await client.sign_in())[0] == 200
            assert client.net.violations == []

    with_net(test)


def test_the_callback_may_come_inside_the_request():
    async def test(client, clock):
        async with Node() as node:
            await client.post(LEGACY, legacy(client, node.url))
            assert node.called.is_set()
            assert [status for _, status in client.net.dds.callbacks] == [200]

    with_net(test, callback_inside=True)


def test_registered_nodes_are_probed():
    async def run():
        async with (
            Devnet(DevnetConfig(health_probe_interval=0.01)) as net,
            aiohttp.ClientSession() as http,
            Node() as node,
        ):
            client = Client(net, http)
            assert (await client.post(LEGACY, legacy(client, node.url, stamp(net.clock.wall()))))[0] == 200
            await asyncio.wait_for(node.probed.wait(), 5)
            assert node.agents[0] == "DDS v1.0.0"

    asyncio.run(run())


@pytest.mark.parametrize(
    "changes, status",
    [
        ({"url": "ftp://node/"}, 401),
        ({"signature": "zz"}, 401),
        ({"signature": "0x" + "00" * 65}, 401),
        ({"public_key": Wallet(KEY_B).public_key}, 401),
        ({"timestamp": "yesterday"}, 400),
        ({"timestamp": "2026-01-01T00:00:00"}, 400),
        ({"timestamp": "2026-01-01T00:00:00+00:00"}, 400),
        ({"timestamp": "2026-01-01T00:05:01Z"}, 401),
        ({"timestamp": "2025-12-31T23:54:59Z"}, 401),
        ({"timestamp": "2026-01-01T00:00:01Z"}, 401),
        ({"registration_credentials": "guess"}, 400),
        ({"capabilities": []}, 400),
        ({"version": "dev"}, 400),
        ({"public_key": 4}, 422),
    ],
)
def test_registrations_with_a_url_that_are_refused(changes, status):
    async def test(client, clock):
        body = legacy(client, "http://127.0.0.1:9/") | changes
        assert (await client.post(LEGACY, body))[0] == status
        assert client.net.dds.nodes.popitem()[1].wallet is None

    with_net(test)


@pytest.mark.parametrize("url", ["ftp://node/", "node", "", "http://"])
def test_a_url_no_callback_can_reach_is_refused(url):
    async def test(client, clock):
        assert (await client.post(LEGACY, legacy(client, url)))[0] == 400

    with_net(test)


def test_keys_of_the_vectors_are_those_of_the_wallet():
    assert Wallet(KEY_A).address == "0xfdbb6caf01414300c16ea14859fec7736d95355f"
