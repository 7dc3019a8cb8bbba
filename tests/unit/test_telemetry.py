"""posemesh.telemetry: what a line looks like, and that no secret is on it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from uuid import UUID

import pytest

from posemesh import telemetry
from posemesh.secret import Secret
from posemesh.types import LeaseEnvelope, TaskSpec

KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
TASK = UUID(int=1)
JOB = UUID(int=2)
DOMAIN = UUID(int=3)
LEASE = LeaseEnvelope(task=TaskSpec(id=TASK, capability="/c/v1", job_id=JOB), domain_id=DOMAIN)


@pytest.fixture(autouse=True)
def telemetry_as_at_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(telemetry, "_lasting", {})
    monkeypatch.setattr(telemetry, "_passing", type(telemetry._passing)())
    monkeypatch.setattr(telemetry, "_known", type(telemetry._known)(set))
    yield
    if telemetry._installed is not None:
        telemetry.logger().remove(telemetry._installed[0])
    telemetry.logger().disable("posemesh")
    telemetry._installed = None


def log():  # type: ignore[no-untyped-def]
    """The logger as a module of posemesh has it: loguru goes by the name of the caller's module."""
    return telemetry.logger().patch(lambda record: record.update(name="posemesh.shell.test"))


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def one(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    (line,) = lines(capsys)
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_a_json_line_holds_the_time_the_level_the_message_and_the_extras(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.init()
    log().bind(task_id=TASK, attempt=2, ok=True).info("leased {}", "it")
    line = one(capsys)
    assert str(line.pop("ts")).endswith("Z")
    assert line == {"level": "info", "msg": "leased it", "task_id": str(TASK), "attempt": 2, "ok": True}


def test_an_extra_does_not_replace_what_each_line_has(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.init()
    log().bind(msg="other", level="other").info("the message")
    line = one(capsys)
    assert (line["msg"], line["level"]) == ("the message", "info")


def test_a_text_line_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.init(format="text")
    log().bind(task_id="t").warning("slow")
    (line,) = lines(capsys)
    assert line.split("Z ")[1] == "WARNING  slow  task_id=t"


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.init(level="warning")
    log().info("no")
    log().error("yes")
    assert one(capsys)["msg"] == "yes"


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ({}, ("json", "info")),
        ({"LOG_FORMAT": "Text", "LOG_LEVEL": "DEBUG"}, ("text", "debug")),
        ({"LOG_FORMAT": "xml", "LOG_LEVEL": "loud"}, ("json", "info")),
        ({"RUST_LOG": "debug"}, ("json", "info")),
    ],
)
def test_the_environment_says_how(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], settings: tuple[str, str]
) -> None:
    for name in ("LOG_FORMAT", "LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    telemetry.init_from_env()
    assert telemetry._installed is not None
    assert telemetry._installed[1:] == settings


def test_a_second_call_writes_no_line_twice(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.init_from_env()
    telemetry.init_from_env()
    telemetry.init(level="debug")
    log().info("once")
    assert len(lines(capsys)) == 1


def test_the_sinks_of_a_host_stay(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    mine = telemetry.logger().add(lambda message: seen.append(message.record["message"]), format="{message}")
    telemetry.init()
    log().info("to both")
    telemetry.logger().remove(mine)
    assert (len(lines(capsys)), seen) == (1, ["to both"])


def test_debug_is_heard_where_any_sink_takes_it_also_one_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry.init(level="info")
    assert not telemetry.hears_debug()
    sink = telemetry.logger().add(lambda _: None, level="DEBUG")
    assert telemetry.hears_debug()
    telemetry.logger().remove(sink)
    assert not telemetry.hears_debug()
    with monkeypatch.context() as patch:
        patch.setattr(telemetry, "logger", lambda: object())  # a loguru that keeps its levels elsewhere
        assert telemetry.hears_debug()


def test_a_registered_secret_is_taken_out_of_message_extras_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.register_secret(Secret("hunter2hunter2"))
    telemetry.init()
    log().bind(token="hunter2hunter2", deep={"hunter2hunter2": ["hunter2hunter2"]}).info("it is hunter2hunter2")
    (line,) = lines(capsys)
    assert "hunter2" not in line
    assert json.loads(line)["msg"] == "it is ***"


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_secret_inside_an_exception_does_not_reach_the_line(capsys: pytest.CaptureFixture[str], form: str) -> None:
    telemetry.register_secret(Secret("hunter2hunter2"))
    telemetry.init(format=form)

    def sign_in(password: str) -> None:
        raise ValueError(f"refused {password} with Bearer abc.def-ghi and 0x{KEY}")

    try:
        sign_in("hunter2hunter2")
    except ValueError:
        log().exception("sign-in failed")
    written = capsys.readouterr().err
    assert "refused *** with Bearer *** and ***" in written
    for secret in ("hunter2", "abc.def", KEY):
        assert secret not in written


def test_a_secret_that_json_writes_differently_is_found_too(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.register_secret(Secret('quo"te\\päss'))
    telemetry.init()
    log().info('it is quo"te\\päss')
    assert one(capsys)["msg"] == "it is ***"


def test_a_secret_that_is_part_of_another_leaves_nothing_behind() -> None:
    telemetry.register_secret(Secret("abcdef"))
    telemetry.register_secret(Secret("abcdefghijkl"))
    assert telemetry.scrub("<abcdefghijkl>") == "<***>"


def test_a_very_short_secret_does_not_eat_the_log() -> None:
    telemetry.register_secret(Secret("a"))
    telemetry.register_secret(Secret(""))
    assert telemetry.scrub("a task") == "a task"


def test_passing_secrets_are_bounded_and_lasting_ones_stay() -> None:
    telemetry.register_secret(Secret("lasting-secret"), lasting=True)
    for n in range(2000):
        telemetry.register_secret(Secret(f"token-number-{n}"))
    assert telemetry.scrub("lasting-secret token-number-1999") == "*** ***"
    assert len(telemetry._passing) == telemetry._PASSING_SECRETS_MAX


def test_of_secrets_that_begin_alike_those_that_stay_are_known() -> None:
    """They are looked for by how they begin, which one that goes must not take along."""
    telemetry.register_secret(Secret("eyJhbG-lasting"), lasting=True)
    telemetry.register_secret(Secret("eyJhbG-lasting"))
    telemetry.register_secret(Secret("eyJhbG-first"))
    for n in range(telemetry._PASSING_SECRETS_MAX - 1):
        telemetry.register_secret(Secret(f"opaque-{n}" if n % 2 else f"{n:06}-opaque"))
    telemetry.register_secret(Secret("eyJhbG-last"))
    assert telemetry.scrub("eyJhbG-lasting eyJhbG-first eyJhbG-last opaque-253") == "*** eyJhbG-first *** ***"
    for n in range(telemetry._PASSING_SECRETS_MAX):
        telemetry.register_secret(Secret(f"later-{n}"))
    assert telemetry.scrub("eyJhbG-lasting eyJhbG-last 000252-opaque") == "*** eyJhbG-last 000252-opaque"
    assert sum(map(len, telemetry._known.values())) == 1 + telemetry._PASSING_SECRETS_MAX


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ('{"Authorization":"Bearer abc.DEF-123"}', '{"Authorization":"Bearer ***"}'),
        ("authorization: bearer abc", "authorization: Bearer ***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.sig-_", "***"),
        (f"key {KEY}", "key ***"),
        (f"key 0x{KEY.upper()}.", "key ***."),
        (f"longer {KEY}ab", f"longer {KEY}ab"),
        ("task 00000000-0000-0000-0000-000000000001", "task 00000000-0000-0000-0000-000000000001"),
    ],
)
def test_secrets_are_known_by_their_form(text: str, scrubbed: str) -> None:
    assert telemetry.scrub(text) == scrubbed


def test_a_record_that_cannot_be_written_stops_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    telemetry.init()
    log().bind(extra=Broken()).info("a")
    log().bind(extra=float("nan")).info("b")
    circular: list[object] = []
    circular.append(circular)
    log().bind(extra=circular).info("c")
    first, second, third = map(json.loads, lines(capsys))
    assert "could not be written" in first["msg"]
    assert (second["extra"], third["extra"]) == ("nan", "[[...]]")
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=lambda text: 1 / 0))
    log().info("nowhere to go")


def test_a_span_binds_the_task_also_across_tasks_of_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.init()

    async def work(lease: LeaseEnvelope) -> None:
        with telemetry.task_span(lease):
            await asyncio.sleep(0)
            log().info("working")

    async def both() -> None:
        await asyncio.gather(work(LEASE), work(LeaseEnvelope(task=TaskSpec(id=JOB, capability="/d/v1"))))
        log().info("after")

    asyncio.run(both())
    first, second, after = map(json.loads, lines(capsys))
    names = ("task_id", "job_id", "capability", "domain_id")
    assert [first[name] for name in names] == [str(TASK), str(JOB), "/c/v1", str(DOMAIN)]
    assert (second["task_id"], second["capability"]) == (str(JOB), "/d/v1")
    assert not {"job_id", "domain_id"} & second.keys()
    assert "task_id" not in after


def test_the_library_alone_is_silent_and_leaves_the_host_its_log() -> None:
    program = (
        "from posemesh import telemetry\n"
        "log = telemetry.logger()\n"
        "log.patch(lambda r: None)\n"
        "exec(compile('log.error(\"ours\")', 'x', 'exec'), {'log': log, '__name__': 'posemesh.shell.x'})\n"
        "log.error('of the host')\n"
        "telemetry.init()\n"
        "exec(compile('log.error(\"turned on\")', 'x', 'exec'), {'log': log, '__name__': 'posemesh.shell.x'})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "ours" not in done.stderr
    assert "of the host" in done.stderr
    assert done.stderr.count("turned on") == 1
