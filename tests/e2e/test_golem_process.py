"""The runtime of the examples whose commands are processes, with real ones, over its pipes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from posemesh.wire import golem as wire

from .conftest import in_time
from .golem_pipes import ROOT, Runtime, is_alive, serving, until

PROGRAM = ROOT / "examples" / "golem" / "process_runtime.py"
END_SECS = 4.0
"""Within this, nothing is left of a runtime whose input has ended."""
KILLED, TERMINATED = 128 + signal.SIGKILL, 128 + signal.SIGTERM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="whatever programs start is found on Linux only")

DAEMON = """
import os, signal, sys, time
told, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(tell, str(os.getpid()).encode())
        time.sleep(1000)
    os._exit(0)
print(os.read(told, 20).decode(), flush=True)
"""
"""Leaves a process that nobody waits for behind, in a session of its own and deaf to SIGTERM, and says its number."""


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with serving(PROGRAM, deployed(tmp_path / "work")) as runtime:
        yield runtime


def deployed(workdir: Path) -> Path:
    """As a deployment leaves it."""
    for name in ("input", "output", "work"):
        (workdir / name).mkdir(parents=True)
    return workdir


def one_shot(workdir: Path, *argv: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, PROGRAM, "--workdir", workdir, *argv]
    return subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)


def started(runtime: Runtime, script: str, *, trap: str = ":") -> tuple[int, int]:
    """A command that sets a trap, says its process's number and goes on; both numbers."""
    pid = runtime.shell(f"{trap}; echo $$; {script}")
    runtime.until_stdout(pid, b"\n")
    return pid, int(runtime.stdout(pid).split()[0])


# --- One program ------------------------------------------------------------------------------------------------------


def test_a_program_runs(runtime: Runtime) -> None:
    pid = runtime.shell("echo out; echo err >&2")
    assert runtime.exit(pid) == 0
    assert (runtime.stdout(pid), runtime.stderr(pid)) == (b"out\n", b"err\n")


def test_it_gets_its_arguments_as_they_are(runtime: Runtime) -> None:
    pid = runtime.run(sys.executable, "-c", "import sys; print(sys.argv[1:])", "", "a b", "*", "-x", "ä")
    assert runtime.exit(pid) == 0
    assert runtime.stdout(pid).decode() == "['', 'a b', '*', '-x', 'ä']\n"


def test_without_arguments_it_is_called_by_its_path(runtime: Runtime) -> None:
    reply = runtime.ask(wire.RunProcess("/bin/echo"))
    assert runtime.exit(reply.pid) == 0
    assert runtime.stdout(reply.pid) == b"\n"


def test_it_reads_nothing(runtime: Runtime) -> None:
    """Not the runtime's own input, which is the protocol."""
    assert runtime.exit(runtime.run("/bin/cat")) == 0


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_its_exit_code_is_the_commands(runtime: Runtime, code: int) -> None:
    assert runtime.exit(runtime.shell(f"exit {code}")) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_death_by_a_signal_is_told_as_shells_do(runtime: Runtime, number: signal.Signals) -> None:
    assert runtime.exit(runtime.shell(f"kill -{int(number)} $$; sleep 1000")) == 128 + number


def test_output_comes_as_it_is_written(runtime: Runtime) -> None:
    os.mkfifo(runtime.workdir / "gate")
    pid = runtime.shell("echo first; cat gate; echo last")
    runtime.until_stdout(pid, b"first\n")
    assert b"last" not in runtime.stdout(pid)
    (runtime.workdir / "gate").write_text("go\n")
    assert runtime.exit(pid) == 0
    assert runtime.stdout(pid) == b"first\ngo\nlast\n"


def test_one_that_closes_its_output_goes_on(runtime: Runtime) -> None:
    os.mkfifo(runtime.workdir / "gate")
    pid = runtime.shell("echo said; exec >&- 2>&-; read line < gate; exit 7")
    runtime.until_stdout(pid, b"said\n")
    assert isinstance(runtime.ask(wire.Hello("0.1.0")), wire.HelloReply)
    assert all(each.running for each in runtime.events(pid))
    (runtime.workdir / "gate").write_text("go\n")
    assert runtime.exit(pid) == 7


def test_it_is_in_the_runtimes_process_group(runtime: Runtime) -> None:
    """What leaves it is not billed."""
    pid = runtime.run(sys.executable, "-c", "import os; print(os.getpgid(0))")
    assert runtime.exit(pid) == 0
    assert int(runtime.stdout(pid)) == os.getpgid(runtime.process.pid)


# --- Where it runs and what it sees -----------------------------------------------------------------------------------


def test_its_work_dir_is_that_of_the_request_or_the_runtimes(runtime: Runtime) -> None:
    (runtime.workdir / "input" / "inner").mkdir()
    seen = []
    for work_dir in ("", str(runtime.workdir / "input"), "/golem/input/inner"):
        assert runtime.exit(pid := runtime.run("/bin/pwd", work_dir=work_dir)) == 0
        seen.append(Path(runtime.stdout(pid).decode().strip()))
    assert seen == [runtime.workdir, runtime.workdir / "input", runtime.workdir / "input" / "inner"]


def test_volumes_are_told_at_the_deployment(tmp_path: Path) -> None:
    done = one_shot(tmp_path, "deploy")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["startMode"], answer["valid"]) == ("blocking", {"Ok": ""})
    assert {each["path"]: each["name"] for each in answer["vols"]} == {
        "/golem/input": "input",
        "/golem/output": "output",
        "/golem/work": "work",
    }
    assert all((tmp_path / each["name"]).is_dir() for each in answer["vols"])


def test_a_volume_has_its_path_in_the_arguments(runtime: Runtime) -> None:
    (runtime.workdir / "input" / "text").write_text("data")
    assert runtime.exit(runtime.run("/bin/cp", "/golem/input/text", "/golem/output")) == 0
    assert runtime.exit(runtime.shell("cat </golem/input/text >'/golem/output/again'; : /golem/inputs")) == 0
    assert {each.name: each.read_text() for each in (runtime.workdir / "output").iterdir()} == {
        "text": "data",
        "again": "data",
    }


def test_a_program_may_come_in_a_volume(runtime: Runtime) -> None:
    script = runtime.workdir / "input" / "script"
    script.write_text("#!/bin/sh\necho $# arguments\n")
    script.chmod(0o755)
    assert runtime.exit(pid := runtime.run("/golem/input/script", "one", "two")) == 0
    assert runtime.stdout(pid) == b"2 arguments\n"


def test_what_is_no_volume_stays_as_it_is(runtime: Runtime) -> None:
    words = ["/golem/inputs", "/golem/input-2", "/golem", "x/golem/input", "/golem/input.txt"]
    assert runtime.exit(pid := runtime.run("/bin/echo", *words)) == 0
    assert runtime.stdout(pid).decode().split() == words


# --- Captures ---------------------------------------------------------------------------------------------------------


def test_of_a_stream_the_end_alone_may_be_wanted(runtime: Runtime) -> None:
    pid = runtime.shell("seq 10000; echo err >&2", stdout=wire.Output(at_end=12))
    assert runtime.exit(pid) == 0
    assert (runtime.stdout(pid), runtime.stderr(pid)) == (b"9998\n9999\n10000\n"[-12:], b"err\n")


@pytest.mark.parametrize("nothing", [wire.Output(), wire.Output(at_end=0)])
def test_a_stream_may_be_unwanted(runtime: Runtime, nothing: wire.Output) -> None:
    pid = runtime.shell("seq 100000 >&2; echo out", stderr=nothing)
    assert runtime.exit(pid) == 0
    assert (runtime.stdout(pid), runtime.stderr(pid)) == (b"out\n", b"")


def test_an_end_larger_than_the_output_is_all_of_it(runtime: Runtime) -> None:
    pid = runtime.shell("seq 100000", stdout=wire.Output(at_end=1 << 30))
    assert runtime.exit(pid) == 0
    assert runtime.stdout(pid) == b"".join(b"%d\n" % number for number in range(1, 100001))


# --- What cannot be started -------------------------------------------------------------------------------------------


def refused(runtime: Runtime, number: int, *argv: str, **fields: str) -> None:
    before = len(runtime.said)
    answer = runtime.ask(wire.RunProcess(argv[0], argv, **fields))
    assert isinstance(answer, wire.Error), answer
    assert answer.code == number
    assert f"{os.strerror(number)} (os error {number})" in answer.message
    assert not [one for one in runtime.said[before:] if one.event]
    assert runtime.exit(runtime.shell("exit 0")) == 0  # and it goes on


def test_a_missing_program_is_an_error(runtime: Runtime) -> None:
    refused(runtime, errno.ENOENT, "/no/such/program")
    refused(runtime, errno.ENOENT, "no-such-program")


def test_a_program_that_must_not_run_is_an_error(runtime: Runtime) -> None:
    (runtime.workdir / "input" / "text").write_text("data")
    refused(runtime, errno.EACCES, "/golem/input/text")
    refused(runtime, errno.EACCES, "/golem/input")


def test_a_program_that_is_none_is_an_error(runtime: Runtime) -> None:
    (runtime.workdir / "input" / "text").write_text("data")
    (runtime.workdir / "input" / "text").chmod(0o755)
    refused(runtime, errno.ENOEXEC, "/golem/input/text")


def test_a_missing_work_dir_is_an_error(runtime: Runtime) -> None:
    refused(runtime, errno.ENOENT, "/bin/true", work_dir="/no/such/folder")


@pytest.mark.parametrize("argv", [("",), ("/bin/echo", "a\0b")])
def test_what_no_system_can_start_is_an_error(runtime: Runtime, argv: tuple[str, ...]) -> None:
    assert isinstance(runtime.ask(wire.RunProcess(argv[0], argv)), wire.Error)
    assert runtime.exit(runtime.shell("exit 0")) == 0


# --- Much of it -------------------------------------------------------------------------------------------------------


def test_much_output_waits_for_a_slow_reader(runtime: Runtime) -> None:
    """And takes no memory meanwhile."""
    size = 64 << 20
    runtime.reading.clear()
    request = runtime.send(wire.RunProcess("/bin/sh", ("sh", "-c", f"head -c {size} /dev/zero; exit 5")))
    cpu = 0.0
    while (now := used(runtime.process.pid)) > cpu:  # until it does not get on
        cpu = now
        time.sleep(0.2)
    runtime.reading.set()
    assert runtime.exit(runtime.reply(request).pid) == 5
    assert len(runtime.stdout(0)) == size
    assert peak_mib(runtime.process.pid) < 60


def used(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) + 1


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def test_two_hundred_programs_run_at_a_time(runtime: Runtime) -> None:
    """Each waits for the last."""
    os.mkfifo(runtime.workdir / "gate")
    requests = [
        runtime.send(wire.RunProcess("/bin/sh", ("sh", "-c", f"echo {n}; cat gate; echo {-n} >&2; exit {n % 7}")))
        for n in range(200)
    ]
    pids = [runtime.reply(request).pid for request in requests]
    assert len(set(pids)) == 200
    for pid, n in zip(pids, range(200), strict=True):
        runtime.until_stdout(pid, b"%d\n" % n)
    with open(runtime.workdir / "gate", "w"):  # all that wait to read are woken, and have its end
        codes = [runtime.process.poll()]
    codes = [runtime.exit(pid) for pid in pids]
    assert codes == [n % 7 for n in range(200)]
    assert [runtime.stderr(pid) for pid in pids] == [b"%d\n" % -n for n in range(200)]


# --- Kill -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_program(runtime: Runtime, number: signal.Signals) -> None:
    pid, _ = started(runtime, "exec sleep 1000")
    assert runtime.ask(wire.KillProcess(pid, number)) == wire.KillReply()
    assert runtime.exit(pid) == 128 + number


def test_a_program_may_heed_a_signal_as_it_likes(runtime: Runtime) -> None:
    pid, _ = started(runtime, "while :; do sleep 0.05; done", trap="trap 'echo heard; exit 4' TERM")
    assert runtime.ask(wire.KillProcess(pid, signal.SIGTERM)) == wire.KillReply()
    assert runtime.exit(pid) == 4
    assert runtime.stdout(pid).endswith(b"heard\n")


def test_one_that_is_deaf_to_a_signal_is_killed_by_another(runtime: Runtime) -> None:
    pid, _ = started(runtime, "while :; do sleep 0.05; done", trap="trap '' TERM")
    assert runtime.ask(wire.KillProcess(pid, signal.SIGTERM)) == wire.KillReply()
    assert isinstance(runtime.ask(wire.Hello()), wire.HelloReply)
    assert all(each.running for each in runtime.events(pid))
    assert runtime.ask(wire.KillProcess(pid, signal.SIGKILL)) == wire.KillReply()
    assert runtime.exit(pid) == KILLED


def test_a_signal_for_nobody_is_an_error(runtime: Runtime) -> None:
    assert runtime.exit(pid := runtime.shell("exit 0")) == 0
    for wanted in (pid, 4242):
        answer = runtime.ask(wire.KillProcess(wanted, signal.SIGTERM))
        assert isinstance(answer, wire.Error) and answer.code == errno.ESRCH, answer


def test_a_signal_that_there_is_none_of_is_an_error(runtime: Runtime) -> None:
    pid, _ = started(runtime, "exec sleep 1000")
    for number in (-9, 4711):
        answer = runtime.ask(wire.KillProcess(pid, number))
        assert isinstance(answer, wire.Error) and answer.code == errno.EINVAL, answer
    assert runtime.ask(wire.KillProcess(pid, 0)) == wire.KillReply()
    assert all(each.running for each in runtime.events(pid))


# --- Counters ---------------------------------------------------------------------------------------------------------


def test_processor_time_and_memory_are_counted(runtime: Runtime) -> None:
    """Of one that has ended and one that runs; of short ones too."""
    code = (
        "held = bytearray(200 << 20); import time; began = time.process_time()\nwhile time.process_time() < 0.3: pass"
    )
    assert runtime.exit(runtime.run(sys.executable, "-c", code)) == 0
    counters = runtime.counters()
    assert counters["process.cpu_sec"] >= 0.3
    assert 0.19 <= counters["process.memory_gib"] < 0.5
    spent = counters["process.cpu_sec"]
    pid, _ = started(runtime, "while :; do :; done")
    runtime.wait(lambda: runtime.counters()["process.cpu_sec"] > spent + 0.5, "growing counter")
    runtime.ask(wire.KillProcess(pid, signal.SIGKILL))
    assert runtime.exit(pid) == KILLED


# --- Nothing is left --------------------------------------------------------------------------------------------------


def test_what_a_program_leaves_behind_runs_on_unheard(runtime: Runtime) -> None:
    """It may go on writing: a service that one command starts is there for the next."""
    pid = runtime.shell("(while echo again >>beats; do echo again; sleep 0.01; done; touch failed) & echo $!")
    assert runtime.exit(pid) == 0
    left = first_number(runtime.stdout(pid))
    said, beats = runtime.events(pid), runtime.workdir / "beats"
    until(lambda: beats.exists() and beats.stat().st_size > 600, "a hundred lines")
    assert runtime.exit(runtime.shell("exit 0")) == 0
    assert is_alive(left) and runtime.events(pid) == said
    assert runtime.ask(wire.Shutdown()) == wire.ShutdownReply()
    assert not is_alive(left) and not (runtime.workdir / "failed").exists()


def first_number(text: bytes) -> int:
    return next(int(word) for word in text.split() if word.isdigit())


@pytest.fixture
def crowd(runtime: Runtime) -> list[int]:
    """All kinds of processes that may be left, by their numbers."""
    sleeps = started(runtime, "exec sleep 1000")[1]
    deaf = started(runtime, "while :; do sleep 1; done", trap="trap '' TERM")[1]
    stopped = started(runtime, "exec sleep 1000")[1]
    os.kill(stopped, signal.SIGSTOP)
    parent = runtime.shell("sleep 1000 & echo $!; wait")
    runtime.until_stdout(parent, b"\n")
    left = runtime.run(sys.executable, "-c", DAEMON)
    assert runtime.exit(left) == 0
    return [sleeps, deaf, stopped, first_number(runtime.stdout(parent)), first_number(runtime.stdout(left))]


def gone(pids: list[int]) -> bool:
    return not any(map(is_alive, pids))


def test_a_shutdown_is_answered_when_nothing_is_left(runtime: Runtime, crowd: list[int]) -> None:
    assert all(map(is_alive, crowd))
    began = time.monotonic()
    assert runtime.ask(wire.Shutdown()) == wire.ShutdownReply()
    assert gone(crowd)
    assert in_time(time.monotonic() - began, END_SECS)
    assert [runtime.exit(pid) for pid in (0, 1, 2)] == [TERMINATED, KILLED, KILLED]
    assert runtime.ask(wire.Hello()) == runtime.ask(wire.Hello())


def test_a_shutdown_tells_how_all_of_many_ended(runtime: Runtime) -> None:
    """They end at once, and the runtime may not cut short what it has to say of them."""
    pids = [runtime.run("/bin/sleep", "1000") for _ in range(100)]
    assert runtime.ask(wire.Shutdown()) == wire.ShutdownReply()
    codes = {runtime.exit(pid) for pid in pids}
    assert codes <= {TERMINATED, KILLED}


def test_programs_run_after_a_shutdown_too(runtime: Runtime) -> None:
    """The protocol lets them, and the next shutdown ends them."""
    assert runtime.ask(wire.Shutdown()) == wire.ShutdownReply()
    _, process = started(runtime, "exec sleep 1000")
    assert runtime.ask(wire.Shutdown()) == wire.ShutdownReply()
    assert not is_alive(process)


def test_the_end_of_its_input_ends_all(runtime: Runtime, crowd: list[int]) -> None:
    began = time.monotonic()
    runtime.end_input()
    assert runtime.exit_code() == 0
    assert gone(crowd)
    assert in_time(time.monotonic() - began, END_SECS)


def test_sigterm_ends_all(runtime: Runtime, crowd: list[int]) -> None:
    began = time.monotonic()
    runtime.process.terminate()
    runtime.exit_code()
    assert gone(crowd)
    assert in_time(time.monotonic() - began, END_SECS)


def test_input_that_is_no_request_ends_all(runtime: Runtime, crowd: list[int]) -> None:
    assert runtime.process.stdin is not None
    runtime.process.stdin.write(b"\xff" * 12)
    runtime.end_input()
    assert runtime.exit_code() != 0
    assert gone(crowd)


def test_when_nobody_reads_any_more_all_end(runtime: Runtime, crowd: list[int]) -> None:
    """The supervisor is gone: its end of both pipes is."""
    pid = runtime.shell("exec yes")
    runtime.until_stdout(pid, b"y\n")
    runtime.reading.clear()
    runtime.end_input()
    code = runtime.process.wait(60)
    assert code is not None and gone(crowd)


def test_if_the_runtime_is_killed_its_programs_are(runtime: Runtime) -> None:
    """The programs themselves: who is to kill what they have started is gone."""
    _, sleeps = started(runtime, "exec sleep 1000")
    _, deaf = started(runtime, "while :; do sleep 0.1; done", trap="trap '' TERM")
    runtime.process.kill()
    until(lambda: gone([sleeps, deaf]), "the end of both")


def test_orphans_do_not_pile_up(runtime: Runtime) -> None:
    """Whatever loses its parent is the runtime's, also once it has ended."""
    for _ in range(5):
        assert runtime.exit(runtime.shell("for n in 1 2 3; do (sleep 0.01 &) ; done")) == 0

    def children() -> list[str]:
        at = Path(f"/proc/{runtime.process.pid}/task/{runtime.process.pid}/children")
        return at.read_text().split()

    until(lambda: not children(), "the end of all orphans")


# --- From the command line --------------------------------------------------------------------------------------------


def test_one_command_without_a_server(tmp_path: Path) -> None:
    """The command's number follows its output, as with any runtime that can serve."""
    deployed(work := tmp_path / "work")
    (work / "input" / "text").write_text("data")
    done = one_shot(work, "run", "--", "/bin/sh", "-c", "cat /golem/input/text; exit 3")
    assert (done.returncode, done.stdout) == (3, b"data0")
    done = one_shot(work, "run", "--entrypoint", "/bin/echo", "--", "-n", "x")
    assert (done.returncode, done.stdout) == (0, b"x0")
    done = one_shot(work, "run", "--", "/bin/sh", "-c", "kill -9 $$")
    assert done.returncode == KILLED
    done = one_shot(work, "run", "--", "/no/such/program")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Error: No such file or directory (os error 2) (code: 2)" in done.stderr


def test_a_command_without_a_server_leaves_nothing_behind(tmp_path: Path) -> None:
    done = one_shot(deployed(tmp_path / "work"), "run", "--", sys.executable, "-c", DAEMON)
    assert done.returncode == 0
    assert not is_alive(first_number(done.stdout))


@pytest.mark.parametrize("step", ["test", "offer-template"])
def test_its_other_steps_need_nothing(step: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, PROGRAM, step], capture_output=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_it_is_one_executable_file(tmp_path: Path) -> None:
    assert os.access(PROGRAM, os.X_OK)
    assert PROGRAM.read_text().startswith("#!/usr/bin/env python3\n")
