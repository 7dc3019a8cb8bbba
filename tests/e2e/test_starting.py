"""From nothing to the first ask: configuration, registration, sign-in; and what DDS may do later."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from .checks import further, wallet_of
from .conftest import NOOP, World, in_time
from .network import Fault, Request


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_six_wrong_settings_at_once(world: World) -> None:
    """Weakness 53: keys, ratios and timeouts were not checked at load."""
    bad_key = world.net.secret("zz" + world.key[2:])
    node = world.node(
        SECP256K1_PRIVHEX=bad_key,
        HEARTBEAT_MAX_RATIO="nan",
        POLL_BACKOFF_MS_MIN="fast",
        REGISTER_MAX_RETRY="-2",
        ENABLE_NOOP="yes",
        DMS_BASE_URL="ftp://dms.example",
    )
    assert node.wait(5) == 2
    for name in ("SECP256K1_PRIVHEX", "HEARTBEAT_MAX_RATIO", "POLL_BACKOFF_MS_MIN", "REGISTER_MAX_RETRY"):
        assert name in node.output
    assert "ENABLE_NOOP" in node.output and "DMS_BASE_URL" in node.output
    assert len(node.output.strip().splitlines()) <= 8
    assert not world.net.requests


@pytest.mark.parametrize(
    "key",
    ["abcdef", *further("", "0" * 64, "0x" + "f" * 64, "not-a-hex-key")],
    ids=["short", "none", "zero", "big", "text"],
)
def test_a_bad_key_ends_the_start(world: World, key: str) -> None:
    """Weakness 7: a bad key hung until Ctrl-C."""
    node = world.node(SECP256K1_PRIVHEX=key)
    assert node.wait(5) == 2
    assert "SECP256K1_PRIVHEX" in node.output
    assert len(key) < 10 or key not in node.output


@pytest.mark.parametrize("form", ["upper", *further("0x{}", " {}\n")])
def test_a_key_in_other_clothes_is_the_same_key(world: World, form: str) -> None:
    key = world.key.upper() if form == "upper" else form.format(world.key)
    world.node(SECP256K1_PRIVHEX=key, LOG_FORMAT="text", LOG_LEVEL="trace")
    world.signed_in()
    assert world.net.dds.registered == {world.wallet} == {wallet_of(world.key)}
    assert world.net.dds.capabilities == [NOOP]


def test_settings_of_an_env_file_and_above_it_the_environment(world: World) -> None:
    env = world.env(ENABLE_NOOP="true", REG_SECRET="wrong")
    (world.directory / ".env").write_text("".join(f"{name}={value}\n" for name, value in env.items()))
    from .conftest import NodeProcess

    node = NodeProcess(world.directory, {"REG_SECRET": world.net.dds.reg_secret})
    world.nodes.append(node)
    world.signed_in()
    node.stop()


def test_max_concurrency_is_told_to_dds(world: World) -> None:
    world.node(MAX_CONCURRENCY=5, NODE_VERSION="v1.2.3")
    world.signed_in()
    assert world.net.dds.max_concurrency == 5
    assert world.net.dds.version == "1.2.3"


@pytest.mark.parametrize("status", [403, *further(400)])
def test_registration_refused_three_times_ends_the_start(world: World, status: int) -> None:
    net = world.net
    net.fault = lambda request: (
        Fault("refused", status=status, body=b"registration credentials do not match")
        if request.kind == "register"
        else None
    )
    node = world.node(REGISTER_INTERVAL_SECS="0.3")
    assert node.wait(10) == 1
    assert len(net.of("register")) == 3
    last = [line for line in node.lines if not line.startswith("{")]
    assert len(last) == 1 and "registration" in last[0].lower() and str(status) in last[0], last


@pytest.mark.slow
def test_wrong_credentials_end_the_start_with_a_word_on_what_to_do(world: World) -> None:
    wrong = world.net.secret("d3Jvbmc6c2VjcmV0LW5vdC1vdXJz")
    node = world.node(REGISTER_INTERVAL_SECS=1, REG_SECRET=wrong)
    assert node.wait(10) == 1
    assert "REG_SECRET" in node.lines[-1]


def test_a_sign_in_that_is_refused_ends_the_start(world: World) -> None:
    """Weakness 7: a failed first login hung until Ctrl-C."""
    net = world.net
    net.fault = lambda request: Fault("refused", status=401, body=b"no") if request.kind == "verify" else None
    node = world.node(TOKEN_REAUTH_JITTER_MS=50)
    assert node.wait(10) == 1
    assert len(net.of("verify")) == 4
    assert "401" in node.lines[-1]


@pytest.mark.slow
def test_a_sign_in_in_trouble_goes_on_trying(world: World) -> None:
    net = world.net
    net.fault = lambda request: (
        Fault("500", status=500 if len(net.of("verify")) % 2 else 401)
        if request.kind == "verify" and len(net.of("verify")) <= 4
        else None
    )
    world.node(TOKEN_REAUTH_JITTER_MS=50)
    net.wait(lambda: len(net.of("verify")) == 4, 10, "a round")
    exhausted = time.monotonic()
    world.signed_in(20)
    assert time.monotonic() - exhausted >= 9.5, "rounds are at least 10 s apart"


ALTERED: tuple[tuple[str, Any], ...] = (
    ("domain", "login.bank.example"),
    ("uri", "https://login.bank.example"),
    ("nonce", "abc\nURI: https://other.example"),
    ("version", "1\nChain ID: 1"),
    ("issuedAt", "2020-01-01T00:00:00Z"),
    ("issuedAt", "yesterday"),
    ("nonce", ""),
    ("nonce", None),
    ("nonce", 12345678),
    ("domain", lambda own: own + "@login.bank.example"),
    ("uri", lambda own: own + "@login.bank.example/"),
    ("uri", lambda own: own + ".bank.example/"),
    ("domain", lambda own: "x" + own),
    ("domain", lambda own: own + " wants you to sign in with your Ethereum account:\n0x00"),
    ("chainId", "8453"),
)


def test_a_challenge_of_another_site_is_never_signed(world: World) -> None:
    """Weakness 46: the node signed whatever DDS sent. (The services note a signature that comes back.)"""
    net = world.net
    left = list(ALTERED)

    def next_challenge(request: Request) -> None:
        if request.kind == "challenge":
            net.dds.challenge = dict([left.pop(0)]) if left else {}

    net.fault = next_challenge
    node = world.node(REGISTER_INTERVAL_SECS="0.1", REGISTER_MAX_RETRY=0)
    world.signed_in(15)
    assert len(net.of("challenge")) == len(ALTERED) + 2
    assert len(net.of("register")) == len(net.of("verify")) == 1
    node.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("retries", "tries"), [(0, 5), (-1, 2)])
def test_register_max_retry(world: World, retries: int, tries: int) -> None:
    """With 0 every failure waits for the interval; with -1 the backoff of 2, 4 … s goes on."""
    net = world.net
    net.fault = lambda request: Fault("500", status=500) if request.kind == "register" else None
    world.node(REGISTER_MAX_RETRY=retries, REGISTER_INTERVAL_SECS=0.5 if retries == 0 else 60)
    net.wait(lambda: len(net.of("register")) >= tries, 8, f"{tries} tries")
    times = [request.at for request in net.of("register")]
    pauses = [b - a for a, b in zip(times, times[1:], strict=False)]
    low, high = (0.45, 0.8) if retries == 0 else (1.6, 2.6)
    assert all(low <= pause <= high for pause in pauses), pauses


@pytest.mark.slow
def test_a_conflict_waits_for_the_interval_and_goes_on(world: World) -> None:
    net = world.net
    net.fault = lambda request: (
        Fault("409", status=409, body=b"existing online node")
        if request.kind == "register" and len(net.of("register")) <= 5
        else None
    )
    node = world.node(REGISTER_INTERVAL_SECS=0.3)
    world.signed_in(10)
    assert len(net.of("register")) == 6
    assert len([line for line in node.lines if '"warning"' in line]) == 1, "warned once, not five times"
    node.stop()


def test_dds_is_not_there_yet(world: World) -> None:
    port = free_port()
    node = world.node(DDS_BASE_URL=f"http://127.0.0.1:{port}")
    node.wait_line("backing_off", within=5)
    assert node.get("/ready")[0] == 503
    assert node.get("/health")[0] == 200
    told = time.monotonic()
    node.signal()
    assert node.wait(2) == 0
    assert in_time(time.monotonic() - told, 1)


@pytest.mark.slow
def test_dds_comes_up_later(world: World) -> None:
    net = world.net
    net.fault = lambda request: Fault("cut") if request.service == "dds" and len(net.requests) < 2 else None
    node = world.node()
    world.signed_in(10)
    assert node.get("/ready")[0] == 200
    node.stop()


@pytest.mark.slow
def test_an_outage_of_dds_with_a_valid_token_stops_nothing(world: World) -> None:
    """Weaknesses 41 and 42: past its refresh time a valid token was not used, and DDS was hammered."""
    net = world.net
    net.dds.token_ttl = 12.0
    net.dms.add(NOOP, 400)
    world.node(NOOP_SLEEP_SECS="0.1", TOKEN_SAFETY_RATIO="0.1", TOKEN_REAUTH_JITTER_MS=10)
    world.signed_in()
    since = time.monotonic()
    net.do(lambda: setattr(net, "fault", lambda r: Fault("500", status=500) if r.service == "dds" else None))
    net.wait(lambda: len(net.of("challenge", since=since)) >= 4, 8, "a round of refreshes fails")
    done = len(net.dms.in_state("completed"))
    net.wait(lambda: len(net.dms.in_state("completed")) >= done + 20, 6, "tasks go on")
    assert len(net.of("challenge", since=since)) <= 4, "rounds are at least 10 s apart"


@pytest.mark.slow
def test_a_token_that_has_run_out_is_sent_nowhere(world: World) -> None:
    net = world.net
    net.dds.token_ttl = 4.0
    net.dms.judge_slots = False  # an outcome that waits for a token holds no slot, and that cannot be seen from here
    net.dms.add(NOOP, 10_000)
    node = world.node(NOOP_SLEEP_SECS="0.2")
    world.signed_in()
    since = time.monotonic()
    net.do(lambda: setattr(net, "fault", lambda r: Fault("500", status=500) if r.service == "dds" else None))
    net.quiet(8.0, lambda: net.of("ask", since=since + 5), "it asks without a valid token")
    assert node.get("/ready")[0] == 503
    net.do(lambda: setattr(net, "fault", lambda r: None))
    back = time.monotonic()
    net.wait(lambda: net.of("ask", since=back), 15, "it is back after the outage")
    assert {task.attempts for task in net.dms.in_state("completed")} == {1}
    node.stop()


@pytest.mark.slow
def test_tokens_are_refreshed_before_they_run_out(world: World) -> None:
    net = world.net
    net.dds.token_ttl = 1.5
    net.dms.add(NOOP, 10_000)
    node = world.node(NOOP_SLEEP_SECS="0.05", TOKEN_REAUTH_JITTER_MS=50)
    net.wait(lambda: len(net.of("verify")) >= 4, 10, "four tokens")
    assert not [request for request in net.requests if request.status == 401]
    times = [request.at for request in net.of("verify")]
    assert all(b - a > 0.9 and in_time(b - a, 1.5) for a, b in zip(times, times[1:], strict=False))
    assert len(net.of("register")) == 1
    node.stop()


def test_a_wallet_that_dds_has_forgotten_registers_again(world: World) -> None:
    """Weakness 49, and the re-arming of the protocol: 403 `node not found` at verify."""
    net = world.net
    net.dds.token_ttl = 1.0
    node = world.node(TOKEN_REAUTH_JITTER_MS=50)
    world.signed_in()
    net.do(net.dds.forget)
    net.wait(lambda: len(net.of("register")) == 2, 8, "registered again")
    since = time.monotonic()
    net.wait(lambda: net.of("ask", since=since), 15, "it asks again")
    assert node.running
    node.stop()


@pytest.mark.slow
def test_a_burst_of_401s_signs_in_once(world: World) -> None:
    """Weakness 45: concurrent 401s caused repeated logins."""
    net = world.net
    net.dms.ttl = 2.0
    net.dms.add(NOOP, 8)
    world.node(NOOP_SLEEP_SECS=60, MAX_CONCURRENCY=8)
    net.wait(lambda: sum(len(task.beats) > 1 for task in net.dms.tasks) == 8, 10, "eight tasks run")
    since = time.monotonic()
    net.do(net.dds.revoke)
    net.quiet(2.5, lambda: len(net.of("verify", since=since)) > 1, "one sign-in is enough")
    assert len(net.of("verify", since=since)) == 1
    assert all(task.state == "running" for task in net.dms.tasks)
