"""``posemesh-node submit`` against a local network, with a worker played by hand."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner

from posemesh.cli._client import AppSettings, JobView, printable
from posemesh.cli._progress import describe, percent
from posemesh.cli.submit import safe_path, submit
from posemesh.devnet import Devnet
from posemesh.errors import ConfigError

from ..devnet.client import CAPABILITY, Client
from ..devnet.test_domain import form, part


class Network:
    """A local network on a thread of its own, as the command runs a loop itself. ``work`` plays the node."""

    def __init__(self, work=None):
        self._work = work
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *exc):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _run(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with Devnet() as net, aiohttp.ClientSession() as http:
            self.net, self.client = net, Client(net, http)
            self.env = net.app_settings()
            await self.client.join()
            working = asyncio.create_task(self._work(self.client)) if self._work else None
            self._up.set()
            await self._end.wait()
            if working is not None:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)


def run(arguments, env):
    return CliRunner().invoke(submit, [str(one) for one in arguments], env=env)


async def heard(client, method, path):
    """Return once a request like that has been answered."""
    answered = asyncio.Event()

    async def note(request, answer):
        if request.method == method and request.path.startswith(path):
            answered.set()
        return answer

    client.net.replies = note
    await answered.wait()
    client.net.replies = None


async def next_lease(client):
    """The next task; before the first one, wait until it is submitted."""
    if not client.net.jobs.jobs:
        await heard(client, "POST", "/v1/jobs")
    return await client.lease()


async def hand_in(client, lease, artifacts):
    """Store artifacts (logical path, bytes) and complete."""
    data = f"/api/v1/domains/{lease['domain_id']}/data"
    told = []
    for number, (logical_path, content) in enumerate(artifacts):
        body = form(part(content, name=f"{number}_{lease['task']['id']}", data_type="t"))
        headers = {"Content-Type": "multipart/form-data; boundary=boundary"}
        _, answer = await client.call("POST", data, data=body, headers=headers, token=lease["access_token"])
        told.append({"logical_path": logical_path, "name": "n", "data_type": "t", "id": answer["data"][0]["id"]})
    outputs = [one["id"] for one in told]
    await client.report(lease["task"]["id"], "complete", {"output_cids": outputs, "meta": {"artifacts": told}})


def test_a_task_goes_there_and_its_results_come_back(tmp_path):
    source = tmp_path / "my scan (1).ply"
    source.write_bytes(bytes(range(256)) * 8192)
    seen = {}

    async def work(client):
        lease = await next_lease(client)
        seen.update(lease["task"], data=[client.net.get_data(key) for key in lease["task"]["inputs_cids"]])
        seen["items"] = list(client.net.domain.items.values())
        await client.report(
            lease["task"]["id"], "heartbeat", {"progress": {"pct": 50}, "events": ["half \x1b[31m way"]}
        )
        await heard(client, "GET", "/v1/jobs/")
        await hand_in(client, lease, [("stats.json", b"{}"), ("a/cloud.ply", b"ply" * 100_000), ("a/cloud.ply", b"2")])

    with Network(work) as network:
        out = tmp_path / "results"
        result = run(
            [CAPABILITY, "--input", source, "--input", source, "--meta", '{"voxel": 1}', "--out", out], network.env
        )
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0].startswith("job ")
        assert lines[1] == f"{lines[0]} completed"
        assert lines[2:] == [str(out / name) for name in ("stats.json", "a/cloud.ply", "a/cloud-2.ply")]
        assert [Path(line).read_bytes() for line in lines[2:]] == [b"{}", b"ply" * 100_000, b"2"]
        assert "running · pct 50" in result.stderr
        assert "half  [31m way" in result.stderr
        assert "\x1b" not in result.output
        assert "\r" not in result.output
        assert network.net.violations == []
    assert (seen["meta"], seen["capability"], seen["mode"]) == ({"voxel": 1}, CAPABILITY, "public")
    assert seen["data"] == [source.read_bytes()] * 2
    names = [item.name for item in seen["items"]]
    assert len(set(names)) == 2
    assert all(name.startswith("my_scan__1__ply_") for name in names)
    assert {item.data_type for item in seen["items"]} == {"ply"}
    assert not list(tmp_path.rglob("*.part"))


def test_without_wait_it_only_submits():
    with Network() as network:
        result = run([CAPABILITY], network.env)
        assert (result.exit_code, result.stderr) == (0, "")
        (job_id,) = network.net.jobs.jobs
        assert result.stdout == f"job {job_id}\n"


def test_a_failure_says_why_the_worker_failed():
    async def work(client):
        for _ in range(3):
            lease = await next_lease(client)
            await client.report(lease["task"]["id"], "fail", {"reason": "runner failed: no points", "details": {}})

    with Network(work) as network:
        result = run([CAPABILITY, "--wait"], network.env)
        assert result.exit_code == 1
        assert result.stderr.rstrip().endswith("failed: runner failed: no points")


def test_a_canceled_job_is_a_failure():
    async def work(client):
        await heard(client, "POST", "/v1/jobs")
        client.net.jobs.cancel(next(iter(client.net.jobs.jobs)), client.net.clock.wall())

    with Network(work) as network:
        result = run([CAPABILITY, "--wait"], network.env)
        assert (result.exit_code, "canceled" in result.stderr) == (1, True)


def test_a_service_that_is_away_for_a_while_is_waited_for():
    async def work(client):
        left = [503, 503]

        async def away(request):
            return web.Response(status=left.pop()) if left and request.path.startswith("/v1/jobs/") else None

        client.net.faults = away
        await hand_in(client, await next_lease(client), [])

    with Network(work) as network:
        result = run([CAPABILITY, "--wait"], network.env)
        assert result.exit_code == 0, result.output
        assert "waiting for the service" in result.stderr


def test_a_download_that_is_cut_short_leaves_no_file(tmp_path):
    async def work(client):
        async def lie(request):
            if request.method != "GET" or "/data" not in request.path:
                return None
            body = b'--b\r\nContent-Disposition: form-data; name="n"; size="9"\r\n\r\nshort\r\n--b--\r\n'
            return web.Response(body=body, headers={"Content-Type": "multipart/form-data; boundary=b"})

        client.net.faults = lie
        await hand_in(client, await next_lease(client), [("x", b"123456789")])

    with Network(work) as network:
        result = run([CAPABILITY, "--out", tmp_path / "out"], network.env)
        assert (result.exit_code, "expected 9 bytes, got 5" in str(result.exception)) == (1, True)
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_server_that_knows_only_the_item_itself_will_do(tmp_path):
    async def work(client):
        async def narrow(request):
            listed = request.method == "GET" and request.path.endswith("/data")
            return web.Response(status=405) if listed else None

        client.net.faults = narrow
        await hand_in(client, await next_lease(client), [("../../x", b"123")])

    with Network(work) as network:
        result = run([CAPABILITY, "--out", tmp_path / "out"], network.env)
        assert result.exit_code == 0, result.output
        assert (tmp_path / "out" / "x").read_bytes() == b"123"


GOOD = {
    "DMS_BASE_URL": "http://127.0.0.1:9/v1",
    "DOMAIN_SERVER_URL": "http://127.0.0.1:9",
    "DOMAIN_ID": "00000000-0000-4000-8000-000000000001",
    "APP_JWT": "token",
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*GOOD, "ALLOW_INSECURE_HTTP"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "arguments",
    [[], [" "], ["c", "--input", "nowhere"], ["c", "--out", __file__], ["c", "--mode", "x"]],
)
def test_wrong_usage(elsewhere, arguments):
    assert run(arguments, GOOD).exit_code == 2


@pytest.mark.parametrize("capability", ["bad cap", "/x/\udcff", "c" * 257])
def test_a_capability_that_no_node_can_offer(elsewhere, capability):
    """Its job was taken and waited for ever."""
    result = run([capability], GOOD)
    assert (result.exit_code, "expected a capability" in result.stderr) == (2, True)


def test_where_results_cannot_go_is_told_before_anything_is_sent(elsewhere):
    """It was told once the job was done."""
    Path("file").touch()
    result = run(["c", "--out", Path("file", "below")], GOOD)
    assert (result.exit_code, "--out" in result.stderr and "Not a directory" in result.stderr) == (2, True)


@pytest.mark.parametrize("meta", ["", "{", "[]", "1", '{"a": NaN}', "[" * 100_000])
def test_meta_that_is_no_object(elsewhere, meta):
    result = run(["c", "--meta", meta], GOOD)
    assert (result.exit_code, "--meta" in result.stderr) == (2, True)


def test_every_missing_setting_is_named(elsewhere):
    result = run(["c"], {})
    assert isinstance(result.exception, ConfigError)
    assert [line.split(":")[0] for line in result.exception.problems] == list(GOOD)


@pytest.mark.parametrize(
    "name, value",
    [
        ("DMS_BASE_URL", "dms"),
        ("DMS_BASE_URL", "http://example.com/v1"),
        ("DOMAIN_SERVER_URL", "ftp://127.0.0.1"),
        ("DOMAIN_SERVER_URL", "http://127.0.0.1:x"),
        # A failed request showed the password.
        ("DOMAIN_SERVER_URL", "http://a:two words@127.0.0.1:8870"),
        ("DOMAIN_SERVER_URL", "http://a:hunter2@127.0.0.1:8870"),
        ("DMS_BASE_URL", "ftp://a:hunter2@h"),
        # The path of each request went into these.
        ("DMS_BASE_URL", "http://127.0.0.1:9/v1?hunter2=1"),
        ("DMS_BASE_URL", "http://127.0.0.1:9/v1#hunter2"),
        ("DMS_BASE_URL", "http://127.0.0.1:9/v1?"),
        ("DOMAIN_ID", "mine"),
        ("APP_JWT", "two words"),
        ("APP_JWT", " "),
    ],
)
def test_wrong_settings_are_named_but_not_shown(elsewhere, name, value):
    error = run(["c"], GOOD | {name: value}).exception
    assert isinstance(error, ConfigError)
    (problem,) = error.problems
    assert problem.startswith(f"{name}: ")
    assert "two words" not in problem and "hunter2" not in problem


def test_the_environment_goes_before_the_file(elsewhere, monkeypatch):
    Path("my.env").write_text("".join(f"{name}={value}\n" for name, value in (GOOD | {"APP_JWT": "a$b"}).items()))
    monkeypatch.setenv("DMS_BASE_URL", "https://dms.example/v1/")
    settings = AppSettings.from_env("my.env")
    assert (settings.dms_base_url, settings.app_jwt.reveal()) == ("https://dms.example/v1", "a$b")
    with pytest.raises(ConfigError, match="APP_JWT: not set"):
        AppSettings.from_env(None)
    Path("my.env").rename(".env")
    assert AppSettings.from_env(None) == settings
    with pytest.raises(ConfigError, match=r"nothing\.env: cannot be read"):
        AppSettings.from_env("nothing.env")


def test_a_service_that_is_not_there_is_one_sentence(elsewhere):
    result = run(["c"], GOOD)
    assert result.exit_code == 1
    assert str(result.exception).startswith("POST http://127.0.0.1:9/v1/jobs: ")
    assert "\n" not in str(result.exception)


def test_a_token_that_is_not_accepted_is_a_wrong_setting():
    with Network() as network:
        error = run(["c"], network.env | {"APP_JWT": "other"}).exception
        assert isinstance(error, ConfigError)
        assert str(error.problems[0]).startswith("APP_JWT: not accepted")


@pytest.mark.parametrize(
    "logical, expected",
    [
        ("stats.json", "stats.json"),
        ("/a/b.ply", "a/b.ply"),
        ("../../etc/passwd", "etc/passwd"),
        ("a/./../b", "a/b"),
        ("", "artifact"),
        ("..", "artifact"),
        (".bashrc", "bashrc"),
        ("a\x00b\n\x1b[1m", "a_b___1m"),
        ("C:\\x", "C__x"),
        ("größe.txt", "größe.txt"),
        ("x" * 300 + ".ply", "x" * 76 + ".ply"),
    ],
)
def test_paths_stay_where_they_are_put(logical, expected):
    assert safe_path(logical) == Path(expected)


def test_what_other_services_may_call_things():
    view = JobView(
        job={"status": "cancelled"},
        tasks=[{"status": "failed", "meta": {"error": "why"}, "output_cids": ["b"]}],
        receipts=[{"outputs": ["a", "https://d/api/v1/domains/x/data/c", 5], "meta": None}],
    )
    assert (view.status, view.ended, view.reason()) == ("canceled", True, "why")
    assert view.artifacts() == {"a": None, "c": None, "b": None}
    assert JobView(job={}).ended is False
    assert JobView(job={"status": "failed"}).reason() is None


def test_how_progress_reads():
    task = {"status": "running", "attempts": 2, "meta": {"progress": {"stage": "voxel", "pct": 40}}}
    view = JobView(job={"status": "running"}, tasks=[task])
    assert describe(view) == "running · attempt 2 · stage voxel pct 40"
    assert percent(view) == 40.0
    two = JobView(job={"status": "running"}, tasks=[{"status": "completed"}, {"status": "leased", "meta": 3}])
    assert (describe(two), percent(two)) == ("running · 1/2 tasks · leased", None)
    assert json.loads('"\\u001b"') not in printable("a\x1bb")
