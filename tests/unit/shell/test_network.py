"""The services as the engine sees them: every answer, and none, becomes exactly one event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web

from posemesh import NodeConfig
from posemesh.commands import Ask, OfferOutcome, SendHeartbeat
from posemesh.devnet.crypto import recover_siwe
from posemesh.events import (
    AskFailed,
    HeartbeatAccepted,
    HeartbeatFailed,
    LeaseOffered,
    LeaseUnreadable,
    NoWork,
    OutcomeAccepted,
    OutcomeRejected,
    RegistrationAccepted,
    RegistrationRejected,
    SignedIn,
    SignInFailed,
)
from posemesh.runners.registry import Route
from posemesh.secret import Secret
from posemesh.shell.http import Http
from posemesh.shell.network import Network
from posemesh.shell.offload import InlineOffload
from posemesh.shell.signer import Signer
from posemesh.telemetry import scrub
from posemesh.testing import EPOCH, LoopClock, run_virtual
from posemesh.types import Artifact, Outcome, OutcomeKind, TaskIdentity, TaskSpec

from .server_double import served

KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90"
ADDRESS = "0xfdbb6caf01414300c16ea14859fec7736d95355f"
TASK = str(UUID(int=7))
TOKEN = Secret("node-token")
GARBAGE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"<html>",
    b"\xff",
    b'{"access_token": 5}',
    b"[" * 100_000,
    b'{"task": {"id": 5}}',
]


class Service:
    """Both services. ``answers`` are by path, used up but for the last; ``seen`` is what came."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {path.replace("_", "/"): answer for path, answer in answers.items()}
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.path, dict(request.headers), json.loads(body) if body else None))
        answer = self.answers.get(request.path.rsplit("/", 1)[1])
        if callable(answer):
            answer = answer(self)
        match answer:
            case None:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case int():
                return web.Response(status=answer)
            case bytes():
                return web.Response(body=answer, content_type="application/json")
            case web.Response():
                return answer
            case _:
                return web.json_response(answer)

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.seen]


def challenge(**changes: Any) -> Callable[[Service], dict[str, Any]]:
    def make(service: Service) -> dict[str, Any]:
        good = {
            "nonce": "abc12345",
            "domain": service.url.removeprefix("http://"),
            "uri": service.url,
            "version": "1",
            "chainId": 8453,
            "issuedAt": datetime.fromtimestamp(EPOCH, UTC).isoformat(),
        }
        return good | changes

    return make


def routed(spec: TaskSpec) -> Route:
    return Route("fast", "") if spec.capability == "/examples/hello/v1" else Route("", "no runner for it")


def with_network(
    service: Service, test: Callable[[Network], Awaitable[Any]], *, skew: float = 0.0, **settings: str
) -> Any:
    async def main() -> Any:
        async with served(service.handle) as url:
            service.url = url
            env = {"DMS_BASE_URL": f"{url}/v1/", "DDS_BASE_URL": url, "REG_SECRET": "aWQ6c2VjcmV0"}
            config = NodeConfig.from_env(env | {"SECP256K1_PRIVHEX": KEY} | settings)
            clock = LoopClock(skew=skew)
            http = Http(clock, InlineOffload(), user_agent="posemesh/1")
            network = Network(
                http, config, Signer(config.secp256k1_privhex), ["/b/v1", "/a/v1"], clock, routed, {"fast": 5.0}
            )
            try:
                return await test(network)
            finally:
                await http.close()

    return run_virtual(main(), limit=3600)


def ask(service: Service) -> Any:
    return with_network(service, lambda network: network.ask(Ask(token=TOKEN, generation=3)))


def heartbeat(service: Service, timeout: float = 5.0) -> Any:
    command = SendHeartbeat(
        lease=4, task_id=TASK, progress={"pct": 1}, events=("a", "b"), timeout=timeout, token=TOKEN, generation=3
    )
    return with_network(service, lambda network: network.heartbeat(command))


def offer(service: Service, kind: OutcomeKind = OutcomeKind.COMPLETED, **fields: Any) -> Any:
    task = TaskIdentity(task_id=TASK, job_id=str(UUID(int=8)), domain_id=str(UUID(int=9)), capability="/a/v1")
    command = OfferOutcome(lease=4, outcome=Outcome(kind=kind, task=task, **fields), token=TOKEN, generation=3)
    return with_network(service, lambda network: network.offer(command))


# --- Registration and sign-in -----------------------------------------------------------------------------------


def test_the_wallet_flow() -> None:
    service = Service(request=challenge(), register_wallet=b"")
    service.answers["register-wallet"] = b""
    assert with_network(service, Network.register, MAX_CONCURRENCY="4") == RegistrationAccepted()
    (asked, _, wallet), (registered, headers, body) = service.seen
    assert (asked, wallet) == ("/internal/v1/auth/siwe/request", {"wallet": ADDRESS})
    assert registered == "/internal/v1/nodes/register-wallet"
    assert "Authorization" not in headers
    assert recover_siwe(body["message"], body["signature"]) == ADDRESS
    assert body["capabilities"] == ["/a/v1", "/b/v1"]
    assert (body["registration_credentials"], body["max_concurrency"]) == ("aWQ6c2VjcmV0", 4)


def test_the_callback_flow() -> None:
    service = Service(register=b"")
    node = {"NODE_URL": "https://node.example"}
    assert with_network(service, Network.register, **node) == RegistrationAccepted()
    ((path, _, body),) = service.seen
    assert (path, body["url"]) == ("/internal/v1/nodes/register", "https://node.example/")
    assert body["timestamp"] == "2026-01-01T00:00:00.000000000Z"


def test_a_timestamp_too_far_off_is_put_right() -> None:
    """The node's clock is wrong by an hour; DDS says its own time when it refuses."""
    service = Service(register=401)

    async def test(network: Network) -> None:
        refused = await network.register()
        assert isinstance(refused, RegistrationRejected) and refused.failure.status == 401
        service.answers["register"] = b""
        assert await network.register() == RegistrationAccepted()

    with_network(service, test, skew=3600.0, NODE_URL="https://node.example")
    first, second = (datetime.fromisoformat(body["timestamp"][:-4]).replace(tzinfo=UTC) for *_, body in service.seen)
    assert first.timestamp() == EPOCH + 3600
    assert abs(second.timestamp() - EPOCH) <= 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 503])
@pytest.mark.parametrize("which", ["request", "register-wallet"])
def test_a_refused_registration_says_with_what(status: int, which: str) -> None:
    service = Service(request=challenge())
    service.answers[which] = web.Response(status=status, text="node\nnot found")
    event = with_network(service, Network.register)
    assert isinstance(event, RegistrationRejected)
    assert (event.failure.status, event.failure.sent, event.lasting) == (status, True, None)
    assert str(status) in event.failure.message and "node not found" in event.failure.message


def test_no_answer_is_no_refusal() -> None:
    event = with_network(Service(), Network.register)
    assert isinstance(event, RegistrationRejected)
    assert (event.failure.status, event.failure.sent, event.lasting) == (None, True, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"domain": "dds.evil.example"},
        {"uri": "https://dds.evil.example"},
        {"uri": "http://127.0.0.1:1/"},
        {"nonce": "a\nResources:"},
        {"version": "1\nChain ID: 1"},
        {"chainId": 0},
        {"issuedAt": "2020-01-01T00:00:00Z"},
        {"issuedAt": "yesterday"},
    ],
)
@pytest.mark.parametrize("flow", [Network.register, Network.sign_in])
def test_a_challenge_that_is_not_ours_is_never_signed(wrong: dict[str, Any], flow: Callable[..., Any]) -> None:
    """Reference: it signed whatever it was sent, a signing oracle for a staked wallet."""
    service = Service(request=challenge(**wrong))
    event = with_network(service, flow)
    assert isinstance(event, RegistrationRejected | SignInFailed)
    assert "not signed" in event.failure.message
    assert service.paths() == ["/internal/v1/auth/siwe/request"]
    if isinstance(event, RegistrationRejected):
        assert event.lasting


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("flow", [Network.register, Network.sign_in])
def test_a_challenge_that_cannot_be_read(garbage: bytes, flow: Callable[..., Any]) -> None:
    service = Service(request=garbage)
    event = with_network(service, flow)
    assert isinstance(event, RegistrationRejected | SignInFailed)
    assert event.failure.status is None
    assert getattr(event, "lasting", False) is False
    assert len(service.seen) == 1


@pytest.mark.parametrize("skew", [0.0, -3600.0, 3600.0])
def test_a_sign_in_brings_a_token_and_its_lifetime(skew: float) -> None:
    expires = datetime.fromtimestamp(EPOCH + 600, UTC).isoformat()
    service = Service(
        request=challenge(), verify={"access_token": "secret-node-token", "access_expires_at": expires, "node_id": "x"}
    )
    event = with_network(service, Network.sign_in, skew=skew)
    assert isinstance(event, SignedIn)
    assert event.token == Secret("secret-node-token")
    assert event.ttl == pytest.approx(600, abs=1)
    assert scrub("it is secret-node-token") == "it is ***"
    assert service.seen[1][2]["address"] == ADDRESS


def test_a_token_without_an_expiry() -> None:
    event = with_network(Service(request=challenge(), verify={"access_token": "t0ken-x"}), Network.sign_in)
    assert event == SignedIn(token=Secret("t0ken-x"), ttl=None)


@pytest.mark.parametrize("answer", [401, 403, 404, 500, None, *GARBAGE, {"access_token": ""}])
def test_a_failed_sign_in(answer: Any) -> None:
    event = with_network(Service(request=challenge(), verify=answer), Network.sign_in)
    assert isinstance(event, SignInFailed)
    assert event.at_verify
    assert event.failure.status == (answer if isinstance(answer, int) else None)
    assert not with_network(Service(request=503), Network.sign_in).at_verify


# --- Asking -----------------------------------------------------------------------------------------------------


def lease(**changes: Any) -> dict[str, Any]:
    return {
        "task": {"id": TASK, "capability": "/a/v1"},
        "access_token": "domain-token-1",
        "lease_expires_at": datetime.fromtimestamp(EPOCH + 30, UTC).isoformat(),
        "domain_id": str(UUID(int=9)),
        "domain_server_url": "https://domain.example",
    } | changes


def test_a_lease() -> None:
    service = Service(tasks=lease())
    event = ask(service)
    assert isinstance(event, LeaseOffered)
    assert event.envelope.task.id == UUID(int=7)
    assert event.ttl == pytest.approx(30, abs=1)
    ((path, headers, body),) = service.seen
    assert (path, headers["Authorization"], body) == ("/v1/tasks", "Bearer node-token", None)
    assert scrub("domain-token-1") == "***"
    assert (event.runner, event.timeout, event.problem) == ("", None, "no runner for it")


def test_a_lease_comes_with_the_runner_chosen_for_it() -> None:
    event = ask(Service(tasks=lease(task={"id": TASK, "capability": "/examples/hello/v1"})))
    assert (event.runner, event.timeout, event.problem) == ("fast", 5.0, "")


@pytest.mark.parametrize("expires", [None, datetime.fromtimestamp(EPOCH - 3600, UTC).isoformat()])
def test_an_expiry_that_says_nothing(expires: str | None) -> None:
    assert ask(Service(tasks=lease(lease_expires_at=expires))).ttl is None


@pytest.mark.parametrize("status", [204, 409])
def test_no_work(status: int) -> None:
    assert ask(Service(tasks=status)) == NoWork()
    busy = web.Response(status=status, headers={"Retry-After": "9"})
    assert ask(Service(tasks=busy)) == NoWork(retry_after=9.0)


@pytest.mark.parametrize("capability", ["/a/v1", "a b+c&d=e%2F#é/v1", None])
def test_an_ask_for_one_capability(capability: str | None) -> None:
    """The service compares it exactly."""
    asked: list[dict[str, str]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        return web.Response(status=204)

    service = Service()
    service.handle = handle  # type: ignore[method-assign]
    command = Ask(token=TOKEN, generation=3, capability=capability)
    assert with_network(service, lambda network: network.ask(command)) == NoWork()
    assert asked == [{} if capability is None else {"capability": capability}]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 429, 500, 503])
def test_a_failed_ask(status: int) -> None:
    event = ask(Service(tasks=web.Response(status=status, headers={"Retry-After": "7"})))
    assert isinstance(event, AskFailed)
    assert (event.failure.status, event.failure.retry_after, event.failure.generation) == (status, 7.0, 3)
    assert isinstance(ask(Service()), AskFailed)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_lease_that_cannot_be_read_at_all(garbage: bytes) -> None:
    event = ask(Service(tasks=garbage))
    assert isinstance(event, AskFailed)
    assert event.failure.status is None


@pytest.mark.parametrize("wrong", [{"cancel": "no"}, {"domain_id": 5}, {"task": {"id": TASK}}, {"access_token": []}])
def test_a_lease_that_names_its_task_can_be_given_back(wrong: dict[str, Any]) -> None:
    """Reference: neither run nor failed, then 409 until it expired."""
    event = ask(Service(tasks=lease(**wrong)))
    assert isinstance(event, LeaseUnreadable)
    assert event.task_id == TASK
    assert event.problem and "domain-token" not in event.problem


# --- Heartbeats -------------------------------------------------------------------------------------------------


def test_a_heartbeat_and_its_answer() -> None:
    expires = datetime.fromtimestamp(EPOCH + 12, UTC).isoformat()
    service = Service(heartbeat={"lease_expires_at": expires, "cancel": True, "access_token": "domain-token-2"})
    event = heartbeat(service)
    assert isinstance(event, HeartbeatAccepted)
    assert (event.lease, event.answer.cancel) == (4, True)
    assert event.ttl == pytest.approx(12, abs=1)
    ((path, headers, body),) = service.seen
    assert path == f"/v1/tasks/{TASK}/heartbeat"
    assert headers["Authorization"] == "Bearer node-token"
    assert body == {"progress": {"pct": 1}, "events": ["a", "b"]}
    assert scrub("domain-token-2") == "***"


@pytest.mark.parametrize("answer", [204, b"", {}])
def test_an_answer_that_says_nothing_accepts(answer: Any) -> None:
    event = heartbeat(Service(heartbeat=answer))
    assert isinstance(event, HeartbeatAccepted)
    assert event.ttl is None


@pytest.mark.parametrize("answer", [401, 404, 409, 500, None, *filter(None, GARBAGE)])
def test_a_failed_heartbeat(answer: Any) -> None:
    event = heartbeat(Service(heartbeat=answer))
    assert isinstance(event, HeartbeatFailed)
    status = answer if isinstance(answer, int) else None
    assert (event.lease, event.failure.status) == (4, status)
    assert event.failure.generation == (3 if status or answer is None else 0)


def test_a_heartbeat_has_its_own_timeout() -> None:
    class Slow(Service):
        async def handle(self, request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(100)
            return web.Response()

    event = heartbeat(Slow(), timeout=0.7)
    assert isinstance(event, HeartbeatFailed)
    assert "0.7 s" in event.failure.message and event.failure.reply_lost


# --- Outcomes ---------------------------------------------------------------------------------------------------


def test_a_completion() -> None:
    artifact = Artifact(logical_path="out/a.bin", name="n", data_type="t", id="d1")
    service = Service(complete=b"")
    assert offer(service, artifacts=(artifact,)) == OutcomeAccepted(lease=4)
    ((path, headers, body),) = service.seen
    assert (path, headers["Authorization"]) == (f"/v1/tasks/{TASK}/complete", "Bearer node-token")
    assert body["output_cids"] == ["d1"]
    assert body["meta"]["job"]["capability"] == "/a/v1"


def test_a_failure_tells_its_reason_without_secrets() -> None:
    service = Service(fail={"status": "queued"})
    event = offer(
        service, OutcomeKind.FAILED, code="runner_error", message="Bearer abc.def failed", details={"chain": ["x"]}
    )
    assert event == OutcomeAccepted(lease=4)
    ((path, _, body),) = service.seen
    assert path == f"/v1/tasks/{TASK}/fail"
    assert body["reason"] == "runner_error: Bearer *** failed"
    assert body["details"]["chain"] == ["x"]
    assert body["details"]["job"]["task_id"] == TASK


def test_a_report_that_cannot_be_written_is_as_one_that_is_rejected() -> None:
    service = Service(complete=b"")
    event = offer(service, artifacts=(Artifact(logical_path="a\udcff", name="n", data_type="t", id="d1"),))
    assert isinstance(event, OutcomeRejected)
    assert (event.failure.status, event.failure.reply_lost, service.seen) == (422, False, [])


@pytest.mark.parametrize("answer", [400, 401, 409, 422, 503, None])
def test_an_outcome_that_was_not_taken(answer: int | None) -> None:
    event = offer(Service(complete=answer))
    assert isinstance(event, OutcomeRejected)
    assert (event.failure.status, event.failure.reply_lost) == (answer, answer is None)
