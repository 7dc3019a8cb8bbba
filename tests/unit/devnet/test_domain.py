from __future__ import annotations

import io
import re
import uuid

import aiohttp
import pytest

from .client import CAPABILITY, with_net

FORM = {"Content-Type": "multipart/form-data; boundary=boundary"}


def part(data, **about):
    given = "; ".join(f'{key.replace("_", "-")}="{value}"' for key, value in about.items())
    head = f"--boundary\r\nContent-Type: application/octet-stream\r\nContent-Disposition: form-data; {given}\r\n\r\n"
    return head.encode() + data + b"\r\n"


def form(*parts):
    return b"".join(parts) + b"--boundary--\r\n"


def path(client, rest=""):
    return f"/api/v1/domains/{client.net.domain_id}/data{rest}"


async def send(client, method, *parts):
    return await client.call(method, path(client), data=io.BytesIO(form(*parts)), headers=FORM)


def with_app(test, **settings):
    async def signed(client, clock):
        client.token = client.net.app_token()
        await test(client, clock)

    with_net(signed, **settings)


def test_bytes_come_back_as_they_were_stored():
    async def test(client, clock):
        data = bytes(range(256)) * 5000 + b"\r\n--boundar\r\n"
        status, body = await send(client, "POST", part(data, name="cloud.v1", data_type="ply"))
        (item,) = body["data"]
        assert (status, item["name"], item["data_type"], item["size"]) == (200, "cloud.v1", "ply", len(data))
        assert (item["domain_id"], item["created_at"]) == (client.net.domain_id, "2026-01-01T00:00:00.000000Z")
        async with client.http.get(
            client.net.url + path(client, f"/{item['id']}?raw=true"),
            headers={"Authorization": f"Bearer {client.token}"},
        ) as raw:
            assert (raw.status, await raw.read()) == (200, data)
        assert await client.call("GET", path(client, f"/{item['id']}")) == (200, item)
        assert client.net.get_data(item["id"]) == data
        assert client.net.violations == []

    with_app(test)


def test_several_items_in_one_request_both_ways():
    async def test(client, clock):
        status, body = await send(
            client, "POST", part(b"one", name="1", data_type="t"), part(b"", name="2", data_type="t")
        )
        ids = [item["id"] for item in body["data"]]
        headers = {"Authorization": f"Bearer {client.token}", "Accept": "multipart/form-data"}
        url = client.net.url + path(client, f"?ids={ids[1]},{ids[0]}&ids={uuid.uuid4()}")
        async with client.http.get(url, headers=headers) as answer:
            assert answer.headers["Content-Type"].startswith("multipart/form-data; boundary=")
            reader = aiohttp.MultipartReader.from_response(answer)
            found = []
            while (piece := await reader.next()) is not None:
                found.append((piece.headers["Content-Disposition"], await piece.read()))
        assert [data for _, data in found] == [b"", b"one"]
        about = dict(re.findall(r'([a-z-]+)="([^"]*)"', found[1][0]))
        assert about == {
            "name": "1",
            "data-type": "t",
            "id": ids[0],
            "domain-id": client.net.domain_id,
            "size": "3",
            "created-at": "2026-01-01T00:00:00.000000Z",
            "updated-at": "2026-01-01T00:00:00.000000Z",
        }

    with_app(test)


def test_items_are_found_by_id_name_and_type():
    async def test(client, clock):
        ids = [client.net.put_data(name, kind, b"x") for name, kind in (("a", "t"), ("b", "t"), ("c", "u"))]

        async def find(query):
            status, body = await client.call("GET", path(client, query), headers={"Accept": "application/json"})
            return [item["id"] for item in body["data"]] if status == 200 else status

        assert await find("") == ids
        assert await find("?data_type=t") == ids[:2]
        assert await find("?name=b&data_type=t") == [ids[1]]
        assert await find("?name=b&data_type=u") == []
        assert await find(f"?ids={ids[2]},{ids[0]}") == [ids[2], ids[0]]
        assert await find(f"?ids={uuid.uuid4()}") == 404
        assert await find("?ids=what") == 400

    with_app(test)


def test_an_update_keeps_the_id_and_the_name():
    async def test(client, clock):
        key = client.net.put_data("a", "t", b"old")
        clock.advance(5.0)
        status, body = await send(client, "PUT", part(b"newer", id=key))
        (item,) = body["data"]
        assert (status, item["id"], item["name"], item["size"]) == (200, key, "a", 5)
        assert item["updated_at"] == "2026-01-01T00:00:05.000000Z"
        assert client.net.get_data(key) == b"newer"
        assert (await send(client, "PUT", part(b"x", id=str(uuid.uuid4()))))[0] == 404
        assert (await send(client, "PUT", part(b"x", name="a", data_type="t")))[0] == 404
        assert len(list(client.net.domain.context.blobs.directory.iterdir())) == 1

    with_app(test)


def test_a_name_that_exists_is_not_created_again():
    async def test(client, clock):
        key = client.net.put_data("a", "t", b"old")
        assert (await send(client, "POST", part(b"x", name="a", data_type="t")))[0] == 409
        assert (await send(client, "POST", part(b"x", name="a", data_type="u")))[0] == 409
        twice = [part(b"x", name="b", data_type="t"), part(b"y", name="b", data_type="t")]
        assert (await send(client, "POST", *twice))[0] == 409
        assert client.net.get_data(key) == b"old"
        assert client.net.violations == []

    with_app(test)


@pytest.mark.parametrize("name", ["", "x" * 129, "ü" * 65, "a/b", "a;b", "a b\x01", "a+b", "a%b", "{a}", "a\x7f"])
def test_names_that_are_not_allowed(name):
    async def test(client, clock):
        assert (await send(client, "POST", part(b"x", name=name, data_type="t")))[0] == 400
        assert (await send(client, "POST", part(b"x", name="n", data_type=name)))[0] == 400
        assert client.net.domain.items == {}
        assert len(client.net.violations) == 2

    with_app(test)


@pytest.mark.parametrize("name", ["x", "x" * 128, "ü" * 64, "a b.c-d_e,f:g'h"])
def test_names_that_are_allowed(name):
    async def test(client, clock):
        assert (await send(client, "POST", part(b"x", name=name, data_type="t")))[0] == 200

    with_app(test)


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (form(), FORM, 400),
        (b"", FORM, 400),
        (b"garbage", FORM, 400),
        (part(b"no end", name="n", data_type="t"), FORM, 400),
        (form(part(b"x", name="n", data_type="t"))[:-20], FORM, 400),
        (form(part(b"x", name="n", data_type="t")), {"Content-Type": "multipart/form-data"}, 400),
        (form(part(b"x", name="n", data_type="t")), {"Content-Type": "application/json"}, 415),
        (form(part(b"x", name="n", data_type="t")).replace(b"form-data; name", b"attachment; name"), FORM, 400),
        (form(part(b"x", data_type="t")), FORM, 400),
    ],
)
def test_bodies_that_are_no_form_leave_nothing_behind(body, kind, status):
    async def test(client, clock):
        assert (await client.call("POST", path(client), data=body, headers=kind))[0] == status
        assert client.net.domain.items == {}
        assert list(client.net.domain.context.blobs.directory.iterdir()) == []

    with_app(test)


def test_a_request_over_the_limit_is_refused():
    async def test(client, clock):
        assert (await client.call("GET", "/api/v1/info", token=""))[1]["upload"]["request_max_bytes"] == 1000
        assert (await send(client, "POST", part(b"x" * 1000, name="n", data_type="t")))[0] == 413
        assert (await send(client, "POST", part(b"x" * 800, name="n", data_type="t")))[0] == 200

    with_app(test, request_max_bytes=1000)


def test_data_can_be_deleted():
    async def test(client, clock):
        key = client.net.put_data("a", "t", b"x")
        assert (await client.call("DELETE", path(client, f"/{key}")))[0] == 204
        assert (await client.call("DELETE", path(client, f"/{key}")))[0] == 404
        assert (await client.call("GET", path(client, f"/{key}?raw=true")))[0] == 404
        assert list(client.net.domain.context.blobs.directory.iterdir()) == []

    with_app(test)


def test_a_lease_opens_its_domain_while_it_stands():
    async def test(client, clock):
        client.net.submit(CAPABILITY, count=2)
        await client.join(max_concurrency=2)
        first, second = await client.lease(), await client.lease()

        async def fetch(lease, domain=client.net.domain_id):
            headers = {"posemesh-client-id": "me"}
            url = f"/api/v1/domains/{domain}/data"
            return (await client.call("GET", url, token=lease["access_token"], headers=headers))[0]

        assert await fetch(first) == 200
        assert await fetch(first, domain=uuid.uuid4()) == 404
        assert client.net.domain.client_ids == {"me"}
        await client.report(first["task"]["id"], "complete")
        assert await fetch(first) == 401
        clock.advance(30.0)
        assert await fetch(second) == 401
        assert client.net.violations == []
        clock.advance(1.0)
        assert await fetch(second) == 401
        assert len(client.net.violations) == 1
        assert await fetch({"access_token": client.token}) == 401, "a node token is for DMS"
        assert await fetch({"access_token": ""}) == 401

    with_net(test)


def test_a_domain_token_expires_by_itself():
    async def test(client, clock):
        client.net.submit(CAPABILITY)
        lease = await client.lease()
        clock.advance(20.0)
        assert (await client.call("GET", path(client), token=lease["access_token"])) == (401, "token expired")
        assert len(client.net.violations) == 1

    with_net(test, joined=True, domain_token_ttl=10.0)


# Sessions of parts.


async def begin(client, **wish):
    return await client.post(path(client, "/multipart?uploads"), {"name": "big", "data_type": "t"} | wish)


async def put_part(client, upload, number, data):
    query = f"/multipart?uploadId={upload}&partNumber={number}"
    return await client.call("PUT", path(client, query), data=data)


async def finish(client, upload, *parts):
    body = {"parts": [{"part_number": number, "etag": etag} for number, etag in parts]}
    return await client.post(path(client, f"/multipart?uploadId={upload}"), body)


def test_a_session_joins_its_parts():
    async def test(client, clock):
        assert (await client.call("GET", "/api/v1/info"))[1]["upload"]["multipart"] == {
            "enabled": True,
            "part_size_bytes": 4,
        }
        status, answer = await begin(client, size=6, content_type="application/octet-stream", existing_id=None)
        assert (status, answer["part_size"]) == (200, 4)
        upload = answer["upload_id"]
        _, second = await put_part(client, upload, 2, b"ef")
        await put_part(client, upload, 1, b"zzzz")
        _, first = await put_part(client, upload, 1, b"abcd")
        status, item = await finish(client, upload, (1, first["etag"]), (2, second["etag"]))
        assert (status, item["name"], item["size"]) == (200, "big", 6)
        assert client.net.get_data(item["id"]) == b"abcdef"
        assert (await finish(client, upload, (1, "x")))[0] == 404
        assert len(list(client.net.domain.context.blobs.directory.iterdir())) == 1

    with_app(test, part_size_bytes=4)


@pytest.mark.parametrize("by", ["id", "name"])
def test_a_session_replaces_what_exists(by):
    async def test(client, clock):
        key = client.net.put_data("big", "t", b"old")
        wish = {"existing_id": key, "name": "", "data_type": ""} if by == "id" else {}
        _, answer = await begin(client, **wish)
        _, only = await put_part(client, answer["upload_id"], 1, b"new")
        _, item = await finish(client, answer["upload_id"], (1, only["etag"]))
        assert (item["id"], client.net.get_data(key)) == (key, b"new")

    with_app(test)


def test_a_session_that_does_not_add_up_is_refused():
    async def test(client, clock):
        _, answer = await begin(client, size=3)
        upload = answer["upload_id"]
        _, one = await put_part(client, upload, 1, b"abcd")
        for parts in ([(1, "wrong")], [(2, one["etag"])], [(1, one["etag"]), (2, "x")], [(1, one["etag"])]):
            assert (await finish(client, upload, *parts))[0] == 400
        assert (await finish(client, upload))[0] == 422
        for number in (0, -1, "x", 10_001):
            assert (await put_part(client, upload, number, b"a"))[0] == 400
        assert (await put_part(client, upload, 2, b"abcde"))[0] == 413
        assert (await put_part(client, "nothing", 1, b"a"))[0] == 404
        assert (await client.call("DELETE", path(client, f"/multipart?uploadId={upload}")))[0] == 204
        assert (await put_part(client, upload, 1, b"a"))[0] == 404
        assert list(client.net.domain.context.blobs.directory.iterdir()) == []
        assert client.net.domain.items == {}

    with_app(test, part_size_bytes=4)


def test_what_a_session_must_say():
    async def test(client, clock):
        assert (await begin(client, name="a/b"))[0] == 400
        assert (await begin(client, name=None))[0] == 422
        assert (await begin(client, size=-1))[0] == 422
        assert (await begin(client, existing_id=str(uuid.uuid4())))[0] == 404

    with_app(test)


def test_sessions_can_be_switched_off():
    async def test(client, clock):
        assert (await begin(client))[0] == 404

    with_app(test, multipart_enabled=False)
