"""Runtimes of the SDK as programs: what they print, and what they say over their pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posemesh.wire import golem as wire

from .conftest import in_time
from .golem_pipes import ROOT, Runtime, is_alive, serving, until

EXAMPLES = ROOT / "examples" / "golem"
EXAMPLE, ENVIRONMENT, COMMAND = (EXAMPLES / f"{name}.py" for name in ("example_runtime", "environment", "command_mode"))
ODD = Path(__file__).with_name("golem_odd.py")
END_SECS = 4.0
"""Within this a runtime is gone when nobody needs it any more."""

Shot = subprocess.CompletedProcess[bytes]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runtimes look for their configurations, and run."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shoot(program: Path, *args: str, stdin: bytes | None = None) -> Shot:
    return subprocess.run([sys.executable, str(program), *args], capture_output=True, timeout=60, input=stdin)


def said(shot: Shot) -> tuple[int, bytes, bytes]:
    return shot.returncode, shot.stdout, shot.stderr


def does(home: Path, what: str) -> None:
    path = home / "data" / "odd" / "odd.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"does": what}))


def child_is_gone(home: Path) -> None:
    child = int((home / "child").read_text())
    until(lambda: not is_alive(child), "end of the child")


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Runtime]:
    with serving(ODD, tmp_path) as runtime:
        yield runtime


# --- What subcommands print -----------------------------------------------------------------------------------------

SERVER = b'{"startMode":"blocking","valid":{"Ok":""},"vols":[]}'
SHOT = b'{"startMode":"empty","valid":{"Ok":""},"vols":[]}'
OFFER = b'{"constraints":"","properties":{}}'
PROPERTY = b'{"exampleProperty":"running"}'
NO_COMMAND = b"Error: Command mode is not supported (code: 1)\n"
NO_WORKDIR = b"Error: Workdir argument not provided (code: 1)\n"
NOTHING = b"Error: not enough arguments\n"
CAPTURE = "Some(Output { r#type: Some(AtEnd(40960)) })"


def debug(bin: str, args: str, work_dir: str = "", capture: str = "None") -> bytes:
    streams = f"stdout: {capture}, stderr: {capture}"
    return f'[RunProcess {{ bin: "{bin}", args: [{args}], work_dir: "{work_dir}", {streams} }}] stdout'.encode()


@pytest.mark.parametrize(
    ("program", "line", "code", "stdout", "stderr"),
    [
        (EXAMPLE, "deploy", 0, SERVER, b""),
        (EXAMPLE, "--workdir /W a/path deploy", 0, SERVER, b""),
        (EXAMPLE, "test", 0, b"", b""),
        (EXAMPLE, "offer-template", 0, OFFER, b""),
        (EXAMPLE, "run -- ls", 1, b"", NO_COMMAND),
        (EXAMPLE, "run", 1, b"", NOTHING),
        (EXAMPLE, "--version", 0, b"example-runtime 1.2.3\n", b""),
        (ENVIRONMENT, "deploy", 0, SERVER, b""),
        (ENVIRONMENT, "other deploy", 0, SERVER, b""),
        (ENVIRONMENT, "offer-template", 0, OFFER, b""),
        (ENVIRONMENT, "test", 0, b"", b""),
        (ENVIRONMENT, "run -- ls", 0, debug("ls", "", capture=CAPTURE) + b"0", b""),
        (ENVIRONMENT, "-w W run ls a", 0, debug("ls", '"a"', "W", CAPTURE) + b"0", b""),
        (COMMAND, "-w . deploy", 0, SHOT, b""),
        (COMMAND, "deploy", 1, b"", NO_WORKDIR),
        (COMMAND, "start", 0, PROPERTY, b""),
        (COMMAND, "start -- --foo", 0, PROPERTY, b""),
        (COMMAND, "test", 0, b"", b""),
        (COMMAND, "offer-template", 0, OFFER, b""),
        (COMMAND, "run -- ls -la", 0, b"stdout: ls -la\nstderr: \n", b""),
        (COMMAND, "--task-package P run --entrypoint ls -- -la", 0, b"stdout: ls -la\nstderr: \n", b""),
        (COMMAND, "run", 1, b"", NOTHING),
    ],
)
def test_the_examples_print_to_the_byte(program: Path, line: str, code: int, stdout: bytes, stderr: bytes) -> None:
    assert said(shoot(program, *line.split())) == (code, stdout, stderr)


def test_what_handlers_return_is_compact_and_sorted_with_the_floats_of_serde(home: Path) -> None:
    deployed = (
        '{"floats":[1.0,1e16,0.00001,1e-6],"name":"żółw","startMode":"blocking","valid":{"Ok":"fine"},'
        '"vols":[{"name":"in","path":"/in"}]}'
    )
    assert said(shoot(ODD, "deploy")) == (0, deployed.encode(), b"")
    offer = b'{"constraints":"(a=b)","properties":{"golem.a":["x"],"golem.b":1.0}}'
    assert said(shoot(ODD, "offer-template")) == (0, offer, b"")


@pytest.mark.parametrize("command", ["deploy", "test", "offer-template", "start"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fail", "it is odd (code: 7)"),
        ("open", "No such file or directory (os error 2) (code: 2)"),
        ("crash", "'x' (code: 1)"),
    ],
)
def test_a_handler_that_fails_prints_nothing_and_tells_stderr(
    home: Path, command: str, what: str, message: str
) -> None:
    does(home, what)
    code, stdout, stderr = said(shoot(ODD, command, stdin=wire.frame(wire.Request(2, wire.Hello()))))
    before = "Failed to start the runtime: " if command == "start" else ""
    assert (code, stdout) == (1, b"")
    assert stderr.decode().splitlines()[-1] == f"Error: {before}{message}"
    assert (b"Traceback" in stderr) is (what == "crash")


def test_a_wrong_answer_and_a_test_that_says_no_are_errors(home: Path) -> None:
    does(home, "list")
    assert said(shoot(ODD, "deploy"))[:2] == (1, b"")
    does(home, "false")
    assert said(shoot(ODD, "test"))[:2] == (1, b"")


@pytest.mark.parametrize("command", ["deploy", "test", "offer-template"])
def test_what_a_handler_prints_is_not_printed_with_the_answer(home: Path, command: str) -> None:
    quiet = shoot(ODD, command)
    does(home, "print")
    loud = shoot(ODD, command, stdin=b"in")
    assert (loud.returncode, loud.stdout) == (0, quiet.stdout)
    assert sorted(loud.stderr.splitlines()) == [b"by a child", b"by number", b"printed", b"read b'in'", b"written"]


@pytest.mark.parametrize(
    ("word", "code", "stdout"),
    [
        ("a", 0, b"ls a0"),
        ("exit", 3, b"0"),
        ("fail", 1, b"0"),
        ("end", 0, b"ls end0"),  # there is nothing to end
        ("print", 0, b"printed\nwritten\nby number\nby a child\nread b''\nls print0"),
    ],
)
def test_a_command_of_its_own_is_awaited_and_its_code_is_the_programs(word: str, code: int, stdout: bytes) -> None:
    shot = shoot(ODD, "run", "ls", word, stdin=b"")
    assert (shot.returncode, shot.stdout) == (code, stdout)


@pytest.mark.parametrize("arguments", [(), ("--",), ("what",), ("-l", "deploy"), ("deploy", "-l"), ("run", "-l")])
def test_a_wrong_line_is_told_to_stderr_only(arguments: tuple[str, ...]) -> None:
    code, stdout, stderr = said(shoot(COMMAND, *arguments))
    assert (code, stdout) == (1, b"")
    assert b"USAGE:" in stderr


@pytest.mark.parametrize("command", ["deploy", "start", "test", "offer-template", "run ls"])
def test_a_broken_configuration_fails_every_subcommand(home: Path, command: str) -> None:
    path = home / "data" / "example-runtime" / "example-runtime.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("value: -1")
    code, stdout, stderr = said(shoot(EXAMPLE, *command.split()))
    assert (code, stdout) == (1, b"")
    assert stderr.startswith(f"Error: Unable to read the configuration file: {path}\n\nCaused by:\n".encode())


def test_the_name_on_the_command_line_names_the_configuration(home: Path) -> None:
    path = home / "data" / "other" / "Other.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert said(shoot(ENVIRONMENT, "test"))[0] == 0
    assert str(path).encode() in shoot(ENVIRONMENT, "Other", "test").stderr


def test_a_runtime_is_one_executable_file_from_any_folder_and_through_links(home: Path) -> None:
    link = home / "ya-runtime-example"
    link.symlink_to(EXAMPLE)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([str(link), "-w", "W", "--task-package", "P", "deploy"], capture_output=True, env=env)
    assert said(done) == (0, SERVER, b"")
    done = subprocess.run([str(link), "start"], capture_output=True, env=env, input=b"\x04\x08\x05\x62\x00")
    assert (done.returncode, done.stdout[-5:].hex()) == (0, "0410056200")


@pytest.mark.parametrize("command", ["deploy", "run x child"])
def test_a_signal_ends_one_subcommand_and_its_children(home: Path, command: str) -> None:
    does(home, "child")
    argv = [sys.executable, str(ODD), *command.split()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until((home / "child").exists, "a child")
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert process.stdout is not None and process.stdout.read() == b""
    child_is_gone(home)


# --- What servers say -----------------------------------------------------------------------------------------------


def test_a_session_of_the_example_runtime_to_the_byte(tmp_path: Path) -> None:
    requests = "0b080212070a05302e312e30 15080352110a072f62696e2f6c7312026c7312022d6c 0408056200"
    shot = shoot(EXAMPLE, "start", stdin=bytes.fromhex(requests.replace(" ", "")))
    assert (shot.returncode, shot.stderr) == (0, b"")
    frames = [wire.decode_response(payload) for payload in wire.Frames().feed(shot.stdout)]
    raw = [wire.frame(each).hex() for each in frames]
    assert b"".join(map(bytes.fromhex, raw)) == shot.stdout
    assert raw[0] == "260801a201211001221d" + PROPERTY.hex()
    replies = {each.id: frame for each, frame in zip(frames, raw, strict=True) if not each.event}
    assert replies == {2: "0b100222070a05312e322e33", 3: "06100352020801", 5: "0410056200"}
    events = [frame for each, frame in zip(frames[1:], raw[1:], strict=True) if each.event]
    assert events == [
        "090801a2010408011001",
        "190801a2011408011001220e" + b"/bin/ls ls -l\n".hex(),
        "090801a2010408011001",
        "070801a201020801",
    ]


def test_the_environment_runtime_begins_at_zero_and_shows_its_request(tmp_path: Path) -> None:
    with serving(ENVIRONMENT, tmp_path) as runtime:
        assert runtime.ask(wire.Hello("0.1.0")) == wire.HelloReply("0.1.0")
        assert runtime.run("echo", 'h"i\n', "\x1bżo\u0301") == 0
        assert runtime.exit(0) == 0
        assert runtime.stdout(0) == debug("echo", '"echo", "h\\"i\\n", "\\u{1b}żo\\u{301}"')
        assert len(runtime.events(0)) == 3
        for command in (wire.KillProcess(0, 9), wire.CreateNetwork()):
            assert runtime.ask(command) == wire.Error(1, "Not supported")
        runtime.end_input()
        assert runtime.exit_code() == 0


def test_a_program_that_cannot_be_started_is_the_reply(tmp_path: Path) -> None:
    with serving(EXAMPLE, tmp_path) as runtime:
        # An argument that is too long for the system.
        error = runtime.ask(wire.RunProcess("x", ("x" * (1 << 18),)))
        assert error == wire.Error(7, "Argument list too long (os error 7)")
        assert runtime.run("ls") == 2
        assert runtime.exit(2) == 0
        assert runtime.events(1) == []


def test_nothing_that_is_printed_reaches_the_stream_and_nobody_else_reads_it(odd: Runtime) -> None:
    pid = odd.run("print", "print")
    assert odd.exit(pid) == 0
    assert odd.stdout(pid) == b"print print print"
    assert odd.ask(wire.Hello()) == wire.HelloReply("0.0.7")
    odd.end_input()
    assert odd.exit_code() == 0
    assert len(odd.said) == 5


def ends_input(runtime: Runtime) -> None:
    runtime.end_input()


def terminates(runtime: Runtime) -> None:
    runtime.process.terminate()


def shuts_down(runtime: Runtime) -> None:
    assert runtime.ask(wire.Shutdown()) == wire.ShutdownReply()


@pytest.mark.parametrize("end", [ends_input, terminates])
def test_whichever_way_it_ends_it_is_stopped_and_no_child_is_left(
    odd: Runtime, home: Path, end: Callable[[Runtime], None]
) -> None:
    pid = odd.run("child", "child")
    until((home / "child").exists, "a child")
    began = time.monotonic()
    end(odd)
    assert odd.exit_code() == 0
    assert in_time(time.monotonic() - began, END_SECS)
    assert odd.exit(pid) == 1
    assert (home / "stopped").exists()
    child_is_gone(home)


def test_after_the_reply_to_a_shutdown_no_child_is_left_and_it_serves_on(odd: Runtime, home: Path) -> None:
    pid = odd.run("child", "child")
    until((home / "child").exists, "a child")
    shuts_down(odd)
    child_is_gone(home)
    assert odd.exit(pid) == 1
    assert odd.exit(odd.run("x", "y")) == 0
    shuts_down(odd)
    assert odd.process.poll() is None
    odd.end_input()
    assert odd.exit_code() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "end"),
    [("thread", ends_input), ("thread", terminates), ("deaf", ends_input), ("deaf", terminates), ("block", terminates)],
)
def test_nothing_keeps_it_from_its_end_for_long(
    odd: Runtime, home: Path, what: str, end: Callable[[Runtime], None]
) -> None:
    pid = odd.run(what, what)
    if what == "thread":
        odd.exit(pid)
    else:
        until((home / "child").exists, "a command that does not listen")
    began = time.monotonic()
    end(odd)
    assert odd.exit_code() == (1 if what == "block" else 0)  # 0 would be taken for the command's own
    assert in_time(time.monotonic() - began, END_SECS)
    if what == "deaf":
        assert odd.exit(pid) == 1


def test_a_runtime_that_ends_itself_loses_nothing_that_it_had_to_say(odd: Runtime, home: Path) -> None:
    pid = odd.run("x", "end")
    assert odd.exit_code() == 0
    assert odd.exit(pid) == 0
    assert odd.stdout(pid) == b"x x end"
    assert (home / "stopped").exists()


def test_a_signal_during_the_start_is_a_start_that_failed(home: Path) -> None:
    does(home, "child")
    with serving(ODD, home) as runtime:
        until((home / "child").exists, "a child")
        runtime.process.terminate()
        assert runtime.exit_code() == 1
        assert runtime.said == []
    child_is_gone(home)


@pytest.mark.parametrize("garbage", ["ff" * 12, "07080212030a01ff", "0b0802"])
def test_garbage_ends_it_with_an_error_and_no_traceback(home: Path, garbage: str) -> None:
    hello = wire.frame(wire.Request(7, wire.Hello()))
    code, stdout, stderr = said(shoot(ODD, "start", stdin=hello + bytes.fromhex(garbage)))
    assert code == 1
    assert stdout == wire.frame(wire.Response(False, 7, wire.HelloReply("0.0.7")))
    assert b"Undecodable input" in stderr and b"Traceback" not in stderr
    assert (home / "stopped").exists()


def test_its_streams_may_be_files_or_nothing(home: Path) -> None:
    (home / "in").write_bytes(wire.frame(wire.Request(7, wire.Hello())) * 10_000)
    argv = [sys.executable, str(ODD), "start"]
    with open(home / "in", "rb") as stdin, open(home / "out", "wb") as stdout:
        assert subprocess.run(argv, stdin=stdin, stdout=stdout, timeout=60).returncode == 0
    assert (home / "out").read_bytes() == wire.frame(wire.Response(False, 7, wire.HelloReply("0.0.7"))) * 10_000
    with open(os.devnull, "r+b") as nothing:
        assert subprocess.run(argv, stdin=nothing, stdout=nothing, stderr=nothing, timeout=60).returncode == 0
    closed = "exec <&- 2>&-; exec " + " ".join(argv)
    assert subprocess.run(["/bin/sh", "-c", closed], stdout=subprocess.PIPE, timeout=60).returncode == 0


LOADED = """
import json, sys
from asyncio import *
bare = {*sys.modules}
sys.argv = ["x", "start"]
from posemesh import golem
try:
    golem.run(golem.Runtime)
finally:
    print(json.dumps(sorted({*sys.modules} - bare)), file=sys.stderr)
"""


def test_a_start_loads_little_beside_asyncio() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], input=b"\x04\x08\x05\x62\x00", capture_output=True, timeout=60
    )
    loaded = set(json.loads(done.stderr))
    known = {name for name in loaded if name.split(".")[0] == "posemesh"}
    assert loaded - known - {"__future__", "json.encoder"} == set()
    assert not {name for name in known if name.startswith(("posemesh.events", "posemesh.machines", "posemesh.node"))}
