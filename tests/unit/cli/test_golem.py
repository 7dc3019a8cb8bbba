"""posemesh-node golem: a runtime in one's hands, over pipes and on a terminal, and what providers are told of one."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from posemesh import cli

from ..golem.supervising import executable
from ..runners.executors.processes import living, wait_until

ROOT = Path(__file__).parents[3]
PROGRAM = [str(ROOT / "bin" / "posemesh-node"), "golem"]
LIMIT_SECS = 60.0
START = '{"exampleProperty":"running"}'


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Path]:
    """The stub's file. Nothing of it may be left."""
    yield executable(tmp_path)
    wait_until(lambda: not living(str(tmp_path)))


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "MARK": str(directory)}


def debug(stub: Path, lines: str, *options: str, be: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [*PROGRAM, "debug", *options, "--", str(stub), *(["--be", be] if be else [])],
        input=lines,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECS,
        env=environment(stub.parent),
        cwd=stub.parent,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_lines_of_a_pipe_are_commands(stub: Path) -> None:
    lines = "echo one 'two three'\n\nfail\nrefuse\n'open\nusage\n"
    code, out, err = debug(stub, lines, "--exec-mode", "exec")
    assert (code, out) == (0, f"{START}one two three")
    assert err.splitlines() == [
        "deployed 'ready'; volumes: /in, /out",
        "started; C-d stops it",
        "no",
        "command failed with code 3",
        "run: the runtime refused: Not supported (code: 1)",
        "No closing quotation",
        "golem.usage.c = 2.5",
        'st = {"a": [true, null], "b": 1}',
        "stopped",
    ]


def test_a_shell_of_the_runtime_runs_each_line(stub: Path) -> None:
    code, out, err = debug(stub, "echo $((1+1)); exit 4\npwd", "-w", "here", "--exec-shell", "sh", be="command")
    assert code == 0 and "command failed with code 4" in err
    assert out == f"{{}}2\n{stub.parent / 'here'}\n"


def test_a_deploy_may_be_left_out_and_arguments_given(stub: Path) -> None:
    options = ("--exec-mode", "exec", "--no-deploy", "--start-arg=-s", "--task-package", "/p")
    code, out, err = debug(stub, "echo x", *options, "-w", str(stub.parent))
    assert (code, out) == (0, f"{START}x") and "deployed" not in err


@pytest.mark.parametrize(
    ("lines", "be", "text"),
    [
        ("", "deploy fails", "posemesh-node: deploy: the runtime ended with exit code 1; its stderr: it does not work"),
        ("", "die", "posemesh-node: start: the runtime ended with exit code 1 before it had answered"),
        ("die\n", "", "posemesh-node: run: the runtime ended with exit code 7 before it had answered"),
        ("crash\necho\n", "", "posemesh-node: run: the runtime was killed by SIGKILL while it served"),
        ("echo x", "unstoppable", "posemesh-node: stop: the runtime refused: cannot stop (code: 1)"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(stub: Path, lines: str, be: str, text: str) -> None:
    code, _, err = debug(stub, lines, "--exec-mode", "exec", be=be)
    assert code == 1 and text in err


def test_a_file_that_is_here_needs_a_path(stub: Path) -> None:
    """It said that there is no such file, which there is."""
    command = [*PROGRAM, "debug", "--", stub.name]
    done = subprocess.run(command, cwd=stub.parent, capture_output=True, text=True, timeout=LIMIT_SECS)
    assert done.returncode == 2 and f"for the file that is here give ./{stub.name}" in done.stderr


def test_a_runtime_that_ends_at_the_prompt_is_not_waited_for(stub: Path) -> None:
    arguments = ["debug", "--", str(stub), "--be", "brief"]
    with subprocess.Popen(
        [*PROGRAM, *arguments], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(stub.parent)
    ) as program:
        assert program.wait(LIMIT_SECS) == 1  # its input is open still
        assert program.stderr is not None
        assert b"the runtime was killed by SIGALRM while it served" in program.stderr.read()


@contextmanager
def on_a_terminal(stub: Path, *args: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The terminal of the program, and the program."""
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [*PROGRAM, "debug", "--exec-mode", "exec", "--", str(stub), *args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment(stub.parent), "TERM": "dumb"},
        start_new_session=True,
        preexec_fn=lambda: take_terminal(theirs),
    )
    os.close(theirs)
    try:
        yield ours, program
    finally:
        program.kill()
        program.wait()
        os.close(ours)


def test_on_a_terminal_there_is_a_prompt_a_kill_and_an_end(stub: Path) -> None:
    with on_a_terminal(stub) as (terminal, program):
        assert b"started; C-d stops it" in read_until(terminal, b"> ")
        os.write(terminal, b"echo some words\n")
        read_until(terminal, b"some words\r\n> ")
        os.write(terminal, b"nap\n")
        read_until(terminal, b"zzz")
        os.write(terminal, b"\x03")
        assert b"command failed with code 1" in read_until(terminal, b"\n> ")
        os.write(terminal, b"\x04")
        read_until(terminal, b"stopped")
        assert program.wait(LIMIT_SECS) == 0


def test_a_command_that_cannot_be_killed_is_ended_with_its_runtime(stub: Path) -> None:
    with on_a_terminal(stub, "--be", "unkillable") as (terminal, program):
        read_until(terminal, b"> ")
        os.write(terminal, b"nap\n")
        read_until(terminal, b"zzz")
        os.write(terminal, b"\x03")
        read_until(terminal, b"C-c again stops the runtime")
        os.write(terminal, b"\x03")
        read_until(terminal, b"stopped")
        assert program.wait(LIMIT_SECS) == 0


def take_terminal(number: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(number, termios.TIOCSCTTY, 0)


def read_until(terminal: int, text: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + LIMIT_SECS
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, f"{text!r} does not come: {seen!r}"
        seen += os.read(terminal, 65536)
    return seen


# --- Descriptors ----------------------------------------------------------------------------------------------------


def described(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, Any, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["golem", "describe", *args])
    done = capsys.readouterr()
    return int(str(left.value.code)), json.loads(done.out) if done.out else None, done.err


@pytest.fixture
def versioned(tmp_path: Path) -> str:
    path = tmp_path / "ya-runtime-thing"
    path.write_text('#!/bin/sh\n[ "$*" = --version ] && echo "my thing 1.2.3-rc.1"\n')
    path.chmod(0o755)
    return str(path)


def test_a_descriptor_says_what_providers_need(capsys: pytest.CaptureFixture[str], versioned: str) -> None:
    code, shown, err = described(capsys, versioned)
    assert (code, err) == (0, "")
    assert shown == [
        {
            "name": "my thing",
            "version": "1.2.3-rc.1",
            "supervisor-path": "exe-unit",
            "runtime-path": versioned,
            "extra-args": ["--runtime-managed-image"],
        }
    ]


def test_a_descriptor_with_all_there_is(
    capsys: pytest.CaptureFixture[str], versioned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(versioned).parent)
    options = "--name n --version 1.0.0 --supervisor-path ../exe-unit --runtime-arg=-x --property gpu=true"
    code, shown, _ = described(
        capsys, *options.split(), "--property", "a.b=text", "--counter", "n.frames=Frames",
        "--description", "A thing", Path(versioned).name,
    )  # fmt: skip
    (entry,) = shown
    assert code == 0 and entry["description"] == "A thing"
    assert (entry["name"], entry["version"], entry["supervisor-path"]) == ("n", "1.0.0", "../exe-unit")
    assert entry["runtime-path"] == versioned
    assert entry["extra-args"] == ["--runtime-managed-image", "--runtime-arg", "-x"]
    assert entry["properties"] == {"gpu": True, "a.b": "text"}
    counters = entry["config"]["counters"]
    assert counters["n.frames"] == {"name": "Frames", "description": "Frames", "price": True}
    assert {key: each["price"] for key, each in counters.items()} == {
        "golem.usage.duration_sec": True,
        "golem.usage.cpu_sec": True,
        "golem.usage.storage_gib": False,
        "n.frames": True,
    }


def test_a_preset_prices_what_is_counted(capsys: pytest.CaptureFixture[str], versioned: str) -> None:
    code, shown, _ = described(capsys, "--preset", "--counter", "a.b=c", "--price", "a.b=0.5", versioned)
    assert (code, shown) == (
        0,
        {
            "name": "my thing",
            "exeunit-name": "my thing",
            "pricing-model": "linear",
            "initial-price": 0.0,
            "usage-coeffs": {"golem.usage.duration_sec": 0.0, "golem.usage.cpu_sec": 0.0, "a.b": 0.5},
        },
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--version", "one"], "expected a version as 1.2.3"),
        (["--version", "1.02.3"], "expected a version as 1.2.3"),  # no reader of such versions takes it
        (["--property", "a.b=NaN"], "expected numbers that JSON can hold"),
        (["--preset", "--price", "golem.usage.cpu_sec=inf"], "expected numbers that JSON can hold"),
        (["--property", "x"], "expected KEY=VALUE"),
        (["--preset", "--price", "a.b=1"], "no counter a.b"),
        (["--preset", "--price", "golem.usage.cpu_sec=x"], "expected a number"),
    ],
)
def test_what_does_not_fit_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], versioned: str, options: list[str], text: str
) -> None:
    code, shown, err = described(capsys, *options, versioned)
    assert (code, shown) == (2, None) and text in err


def test_a_program_that_does_not_say_who_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = described(capsys, "/bin/false")
    assert code == 2 and "give --name and --version" in err
    path = tmp_path / "broken"
    path.write_text("#!/bin/sh\necho Traceback >&2\necho 'no posemesh' >&2\nexit 1\n")
    path.chmod(0o755)
    assert "its stderr: no posemesh; give" in described(capsys, str(path))[2]  # why was not told
    code, shown, _ = described(capsys, "/bin/false", "--name", "n", "--version", "0.1.0")
    assert (code, shown[0]["name"]) == (0, "n")
