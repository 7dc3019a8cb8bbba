"""The node's own server: the contract of the registration callback to the letter, and who may look."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from posemesh.commands import AnswerCallback
from posemesh.events import CallbackArrived, HealthProbed
from posemesh.secret import Secret
from posemesh.shell import server as module
from posemesh.shell.server import Endpoints, Overview, Server, routes
from posemesh.telemetry import register_secret, scrub
from posemesh.testing import run_virtual

CALLBACK = "/internal/v1/registrations"
GOOD = {"id": "abc123", "secret": "my-very-secret"}


class Rig:
    """``answer`` is what the machine says to a callback, None for nothing."""

    def __init__(self, *, expose: bool = False, metrics: Callable[[], tuple[str, bytes]] | None = None) -> None:
        self.posted: list[Any] = []
        self.ready = False
        self.answer: tuple[int, str] | None = (200, "")
        self.shown: dict[str, Any] = {"node": {}}
        self._waiting: dict[int, asyncio.Future[AnswerCallback]] = {}
        self.endpoints = Endpoints(
            post=self._post,
            expect=self._expect,
            ready=lambda: self.ready,
            status=lambda: self.shown,
            expose_status=expose,
            metrics=metrics,
        )
        self.server = Server(routes(Endpoints, lambda request: self.endpoints))
        self.url = ""
        self.http: aiohttp.ClientSession

    def _expect(self, number: int) -> asyncio.Future[AnswerCallback]:
        return self._waiting.setdefault(number, asyncio.get_running_loop().create_future())

    def _post(self, event: Any) -> None:
        self.posted.append(event)
        if isinstance(event, CallbackArrived) and self.answer is not None:
            status, text = self.answer
            command = AnswerCallback(request=event.request, status=status, text=text)
            self._waiting[event.request].set_result(command)

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, bytes, str]:
        async with self.http.request(method, self.url + path, **options) as reply:
            return reply.status, await reply.read(), reply.content_type

    async def back(self, body: Any, content_type: str | None = "application/json") -> tuple[int, str]:
        headers = {} if content_type is None else {"Content-Type": content_type}
        skip = ["Content-Type"] if content_type is None else []
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        status, answer, kind = await self.call("POST", CALLBACK, data=data, headers=headers, skip_auto_headers=skip)
        assert kind == ("application/json" if status == 200 else "text/plain")
        return status, answer.decode()


def with_server(test: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        rig = Rig(**options)
        port = await rig.server.open("127.0.0.1", 0)
        rig.url = f"http://127.0.0.1:{port}"
        try:
            async with aiohttp.ClientSession() as rig.http:
                await test(rig)
        finally:
            await rig.server.close()

    run_virtual(main(), limit=3600)


# --- The registration callback ----------------------------------------------------------------------------------


def test_a_callback() -> None:
    async def test(rig: Rig) -> None:
        extra = {"organization_id": "org1", "lighthouses_in_domains": [], "domains": {}, "unheard_of": 1}
        assert await rig.back(GOOD | extra) == (200, '{"ok":true}')
        assert rig.posted == [CallbackArrived(request=1, node_id="abc123", secret=Secret("my-very-secret"))]
        assert await rig.back(GOOD) == (200, '{"ok":true}')
        assert rig.posted[1].request == 2
        assert scrub("my-very-secret") == "my-very-secret", "anybody can call, and would choose what logs leave out"

    with_server(test)


BIG = b'{"id": "a", "secret": "b", "x": "' + b"x" * 2 * 1024**2 + b'"}'


@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (GOOD, "text/plain", 415, None),
        (GOOD, None, 415, None),
        (GOOD, "application/jsonx", 415, None),
        (b"{", "text/plain", 415, None),
        (BIG, "text/plain", 415, None),
        (b"{", "application/json", 400, None),
        (b"", "application/json", 400, None),
        (b"\xff", "application/json", 400, None),
        (b'{"id": NaN}', "application/json", 400, None),
        ([], "application/json", 422, None),
        ({}, "application/json", 422, None),
        ({"id": "a"}, "application/json", 422, None),
        ({"secret": "a"}, "application/json", 422, None),
        ({"id": None, "secret": "a"}, "application/json", 422, None),
        ({"id": 5, "secret": "a"}, "application/json", 422, None),
        ({"id": "a", "secret": ["b"]}, "application/json", 422, None),
        (GOOD | {"organization_id": 5}, "application/json", 422, None),
        ({"id": " \t", "secret": "a"}, "application/json", 422, "missing id"),
        ({"id": "", "secret": ""}, "application/json", 422, "missing id"),
        ({"id": "a", "secret": " \n"}, "application/json", 422, "missing secret"),
        ({"id": "a", "secret": "x" * 4097}, "application/json", 403, "secret too large"),
        ({"id": "a", "secret": "é" * 2049}, "application/json", 403, "secret too large"),
        (BIG, "application/json", 413, None),
    ],
)
def test_a_callback_that_is_not_taken(body: Any, content_type: str | None, status: int, text: str | None) -> None:
    async def test(rig: Rig) -> None:
        answered, said = await rig.back(body, content_type)
        assert answered == status
        assert said == text if text is not None else said
        assert rig.posted == []

    with_server(test)


@pytest.mark.parametrize("content_type", ["application/json", "APPLICATION/JSON; charset=utf-8", "application/x+json"])
def test_spellings_of_json(content_type: str) -> None:
    async def test(rig: Rig) -> None:
        assert (await rig.back(GOOD, content_type))[0] == 200

    with_server(test)


def test_limits_are_inclusive() -> None:
    async def test(rig: Rig) -> None:
        assert (await rig.back({"id": "a", "secret": " " + "x" * 4095}))[0] == 200
        assert rig.posted[0].secret == Secret(" " + "x" * 4095)  # untrimmed
        assert (await rig.back(BIG.replace(b"x" * 35, b"")))[0] == 200

    with_server(test)


@pytest.mark.parametrize("text", ["persist failed", "persist verify failed", "already registered"])
def test_the_machine_refuses(text: str) -> None:
    async def test(rig: Rig) -> None:
        rig.answer = (409, text)
        assert await rig.back(GOOD) == (409, text)

    with_server(test)


def test_a_machine_that_does_not_answer() -> None:
    async def test(rig: Rig) -> None:
        rig.answer = None
        began = asyncio.get_running_loop().time()
        assert (await rig.back(GOOD))[0] == 503
        assert asyncio.get_running_loop().time() - began == pytest.approx(module.CALLBACK_SECS_MAX)

    with_server(test)


def test_other_methods_and_paths() -> None:
    async def test(rig: Rig) -> None:
        assert (await rig.call("GET", CALLBACK))[0] == 405
        assert (await rig.call("POST", "/health"))[0] == 405
        assert (await rig.call("GET", "/"))[0] == 404

    with_server(test)


def test_several_nodes_on_one_server() -> None:
    """Each below a prefix, found by its name at each request; what all of them share has no callback."""

    async def main() -> None:
        rigs = {"a": Rig(), "b": Rig()}
        overview = Overview(ready=lambda: True, status=lambda: {"nodes": {}}, expose_status=False)

        def find(request: web.Request) -> Endpoints:
            if request.match_info["name"] not in rigs:
                raise web.HTTPNotFound
            return rigs[request.match_info["name"]].endpoints

        below = routes(Endpoints, find, prefix="/nodes/{name}")
        server = Server([*routes(Overview, lambda request: overview), *below])
        port = await server.open("127.0.0.1", 0)
        async with aiohttp.ClientSession() as http:
            for rig in rigs.values():
                rig.http = http
            rigs["a"].url = f"http://127.0.0.1:{port}/nodes/a"
            rigs["b"].url = f"http://127.0.0.1:{port}/nodes/b"
            rigs["b"].ready = True
            assert await rigs["a"].back(GOOD) == (200, '{"ok":true}')
            assert (len(rigs["a"].posted), len(rigs["b"].posted)) == (1, 0)
            assert [(await rigs[name].call("GET", "/ready"))[0] for name in "ab"] == [503, 200]
            await rigs["b"].call("GET", "/health", headers={"User-Agent": "DDS v1"})
            assert rigs["b"].posted == [HealthProbed()]
            del rigs["b"]
            for method, path, status in (
                ("GET", "/ready", 200),
                ("HEAD", "/health", 200),
                ("GET", "/nodes/a/status", 200),
                ("GET", "/nodes/a/unheard_of", 404),
                ("GET", "/nodes/b/health", 404),
                ("POST", "/nodes/b/internal/v1/registrations", 404),
                ("POST", CALLBACK, 404),
            ):
                async with http.request(method, f"http://127.0.0.1:{port}{path}") as reply:
                    assert reply.status == status, path
        await server.close()

    run_virtual(main(), limit=60)


# --- Looking at the node ----------------------------------------------------------------------------------------


def test_health_is_always_well() -> None:
    async def test(rig: Rig) -> None:
        for agent in ("Go-http-client/1.1", "dds v1", "DDS", "xDDS v1", ""):
            status, body, _ = await rig.call("GET", "/health", headers={"User-Agent": agent})
            assert (status, body) == (200, b"")
        assert rig.posted == []
        for agent in ("DDS v1.2.3", "DDS v"):
            status, body, _ = await rig.call("GET", "/health", headers={"User-Agent": agent})
            assert (status, body) == (200, b"")
        assert rig.posted == [HealthProbed()] * 2

    with_server(test)


def test_ready_while_the_node_can_lease() -> None:
    async def test(rig: Rig) -> None:
        assert await rig.call("GET", "/ready") == (503, b'{"ready": false}', "application/json")
        rig.ready = True
        assert await rig.call("GET", "/ready") == (200, b'{"ready": true}', "application/json")

    with_server(test)


def test_status_shows_no_secrets() -> None:
    """A task's progress is the user's; a token in it is taken out."""

    async def test(rig: Rig) -> None:
        register_secret(Secret("known-token-77"))
        rig.shown = {"tasks": [{"progress": {"url": "https://x/?t=known-token-77", "header": "Bearer abc.def"}}]}
        status, body, kind = await rig.call("GET", "/status")
        assert (status, kind) == (200, "application/json")
        assert json.loads(body) == {"tasks": [{"progress": {"url": "https://x/?t=***", "header": "Bearer ***"}}]}

    with_server(test)


def test_metrics_as_their_backend_writes_them() -> None:
    async def test(rig: Rig) -> None:
        async with rig.http.get(rig.url + "/metrics") as reply:
            assert (reply.status, await reply.read()) == (200, b"tasks 1\n")
            assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"

    with_server(test, metrics=lambda: ("text/plain; version=0.0.4; charset=utf-8", b"tasks 1\n"))


def test_without_a_backend_the_answer_names_what_to_install() -> None:
    async def test(rig: Rig) -> None:
        status, body, _ = await rig.call("GET", "/metrics")
        assert status == 404
        assert b"pip install 'posemesh[prometheus]'" in body

    with_server(test)


@pytest.mark.parametrize("exposed", [False, True])
@pytest.mark.parametrize("path", ["/ready", "/status", "/metrics"])
def test_others_may_look_only_where_it_is_exposed(path: str, exposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(rig: Rig) -> None:
        monkeypatch.setattr(module, "is_loopback", lambda host: False)
        rig.ready = True
        status, body, _ = await rig.call("GET", path)
        assert status == (200 if exposed else 403)
        assert exposed or b"EXPOSE_STATUS" in body
        assert (await rig.call("GET", "/health"))[0] == 200

    with_server(test, expose=exposed, metrics=lambda: ("text/plain", b""))


def test_a_port_that_is_taken() -> None:
    async def test(rig: Rig) -> None:
        other = Rig()
        with pytest.raises(OSError):
            await other.server.open("127.0.0.1", int(rig.url.rpartition(":")[2]))
        await other.server.close()
        assert await other.server.open("127.0.0.1", 0) > 0
        await other.server.close()

    with_server(test)
