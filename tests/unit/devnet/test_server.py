from __future__ import annotations

import asyncio
import random
import sqlite3

import aiohttp
import pytest
from aiohttp import web

from posemesh.devnet import Devnet, DevnetConfig, cut

from .client import CAPABILITY, KEY_B, Client, ManualClock, with_net


def test_settings_say_where_everything_is():
    async def test(client, clock):
        net = client.net
        node, app = net.node_settings(), net.app_settings()
        assert sorted(node) == ["DDS_BASE_URL", "DMS_BASE_URL", "REG_SECRET", "SECP256K1_PRIVHEX"]
        assert (node["DDS_BASE_URL"], node["DMS_BASE_URL"], node["REG_SECRET"]) == (
            net.url,
            net.dms_url,
            net.reg_secret,
        )
        assert len(bytes.fromhex(node["SECP256K1_PRIVHEX"])) == 32
        assert net.node_settings(KEY_B)["SECP256K1_PRIVHEX"] == KEY_B
        assert sorted(app) == ["APP_JWT", "DMS_BASE_URL", "DOMAIN_ID", "DOMAIN_SERVER_URL"]
        assert (await client.call("GET", "/v1/jobs", token=app["APP_JWT"]))[0] == 200
        assert await client.call("GET", "/health") == (200, {"ok": True})

    with_net(test)


def test_a_fault_answers_in_place_of_the_service():
    async def test(client, clock):
        async def busy(request):
            return web.Response(status=503) if request.path == "/v1/tasks" else None

        client.net.submit(CAPABILITY)
        client.net.faults = busy
        assert (await client.call("GET", "/v1/tasks"))[0] == 503
        client.net.faults = None
        assert (await client.lease())["task"]["attempts"] == 1
        assert [seen.status for seen in client.net.requests if seen.path == "/v1/tasks"] == [503, 200]

    with_net(test, joined=True)


def test_a_fault_can_hang_up_before_anything_happens():
    async def test(client, clock):
        async def dead(request):
            return cut(request)

        client.net.submit(CAPABILITY)
        client.net.faults = dead
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.call("GET", "/v1/tasks")
        client.net.faults = None
        assert (await client.lease())["task"]["attempts"] == 1

    with_net(test, joined=True)


def test_a_lost_reply_is_not_held_against_the_node():
    async def test(client, clock):
        async def lose(request, answer):
            return None if request.path.endswith("/complete") else answer

        job_id = client.net.submit(CAPABILITY)
        task_id = (await client.lease())["task"]["id"]
        client.net.replies = lose
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.report(task_id, "complete")
        client.net.replies = None
        assert client.net.jobs.job(job_id).state == "completed"
        clock.advance(10.0)
        assert (await client.report(task_id, "complete"))[0] == 409
        assert (await client.report(task_id, "heartbeat"))[0] == 409
        assert client.net.violations == []

    with_net(test, joined=True)


def test_a_reply_can_be_another_one():
    async def test(client, clock):
        async def garble(request, answer):
            return web.Response(text="{", content_type="text/html")

        client.net.replies = garble
        assert await client.call("GET", "/v1/tasks") == (200, "{")

    with_net(test, joined=True)


def test_violations_are_told_at_once():
    async def run():
        told = []
        async with Devnet(on_violation=told.append) as net, aiohttp.ClientSession() as http:
            await Client(net, http).call("GET", "/v1/tasks")
            assert told == net.violations == ["GET /v1/tasks: 401 missing or unknown bearer token"]

    asyncio.run(run())


def test_a_restart_goes_on_where_the_network_was(tmp_path):
    clock = ManualClock()
    config = DevnetConfig(data_dir=tmp_path / "net", sweep_interval=3600.0)

    async def first():
        async with Devnet(config, clock=clock) as net, aiohttp.ClientSession() as http:
            client = Client(net, http)
            await client.join(max_concurrency=2)
            key = net.put_data("a", "t", b"bytes")
            job_id = net.submit(CAPABILITY, count=2)
            lease = await client.lease()
            (net.domain.context.blobs.directory / "half").write_bytes(b"an upload that was cut short")
            return client.token, net.app_token(), net.domain_id, net.reg_secret, key, job_id, lease["task"]["id"]

    async def second(token, app, domain_id, reg_secret, key, job_id, task_id):
        async with Devnet(config, clock=clock) as net, aiohttp.ClientSession() as http:
            client = Client(net, http)
            client.token = token
            assert (net.domain_id, net.reg_secret, net.get_data(key)) == (domain_id, reg_secret, b"bytes")
            assert [path.name for path in net.domain.context.blobs.directory.iterdir()] == [net.domain.items[key].blob]
            assert (await client.report(task_id, "complete"))[0] == 200
            assert (await client.lease())["task"]["id"] != task_id
            status, job = await client.call("GET", f"/v1/jobs/{job_id}", token=app)
            assert (status, job["tasks_summary"]["completed"], job["tasks_summary"]["leased"]) == (200, 1, 1)
            assert net.violations == []

    asyncio.run(second(*asyncio.run(first())))
    assert (tmp_path / "net").stat().st_mode & 0o777 == 0o700
    with sqlite3.connect(tmp_path / "net" / "devnet.sqlite") as db:
        kinds = {kind for (kind,) in db.execute("SELECT DISTINCT kind FROM records")}
    db.close()
    assert kinds == {"identity", "item", "job", "node", "receipt", "task", "token"}


def test_without_a_directory_nothing_is_left():
    async def run():
        async with Devnet() as net:
            net.put_data("a", "t", b"x")
            directory = net.domain.context.blobs.directory
            assert directory.exists()
        assert not directory.exists()

    asyncio.run(run())


def test_leases_that_ran_out_are_swept_by_themselves():
    async def run():
        config = DevnetConfig(lease_ttl=0.01, sweep_interval=0.01, health_probe_interval=None)
        async with Devnet(config) as net, aiohttp.ClientSession() as http:
            client = Client(net, http)
            await client.join()
            net.submit(CAPABILITY, max_attempts=2)
            for attempt in (1, 2):
                while (found := await client.call("GET", "/v1/tasks"))[0] != 200:
                    pass
                assert found[1]["task"]["attempts"] == attempt

    asyncio.run(run())


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing():
    async def run():
        async with Devnet() as net:
            port = int(net.url.rpartition(":")[2])
            with pytest.raises(OSError):
                async with Devnet(DevnetConfig(port=port)):
                    pass

    asyncio.run(run())


def test_the_same_seed_gives_the_same_ids_and_tokens():
    async def run():
        async with Devnet(clock=ManualClock(), rng=random.Random(7)) as net:
            return net.domain_id, net.reg_secret, net.submit(CAPABILITY), net.app_token(), net.node_settings()

    first, second = asyncio.run(run()), asyncio.run(run())
    assert first[:4] == second[:4]
    assert first[4]["SECP256K1_PRIVHEX"] == second[4]["SECP256K1_PRIVHEX"]


def test_two_networks_share_nothing():
    async def run():
        async with Devnet() as one, Devnet() as two, aiohttp.ClientSession() as http:
            assert one.url != two.url
            client = Client(one, http)
            await client.join()
            client.net = two
            assert (await client.call("GET", "/v1/tasks"))[0] == 401
            assert one.violations == []

    asyncio.run(run())
