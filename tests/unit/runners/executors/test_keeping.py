"""Programs and their keepers: how they end, and that nothing they started is left, whoever ends first and how."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from posemesh.runners.executors.keeping import Exit, Kept, keep, signal_name
from posemesh.telemetry import logger

from .processes import children, finished, is_alive, living, python, wait_until

LONG_SECS = 1000.0


class Program:
    """A program, what it wrote, and a mark that all it starts bears."""

    def __init__(self, mark: str) -> None:
        self.env = {"MARK": mark, "PATH": os.environ["PATH"]}
        self.wrote = {"stdout": b"", "stderr": b""}
        self._news = asyncio.Event()

    async def start(self, source: str, **options: Any) -> Kept:
        return await keep(python(source), env=self.env, output=self._take, **options)

    def _take(self, name: str, data: bytes) -> None:
        self.wrote[name] += data
        self._news.set()

    async def said(self, lines: int = 1) -> list[str]:
        """The first lines of its output, when they are there."""
        while self.wrote["stdout"].count(b"\n") < lines:
            self._news.clear()
            await self._news.wait()
        return self.wrote["stdout"].decode().splitlines()


@pytest.fixture
def mark() -> Iterator[str]:
    """Whoever bears it must be gone when the test ends, and so must its keeper."""
    before = set(children())
    text = f"mark-{uuid4()}"
    yield text
    try:
        wait_until(lambda: not living(text) and set(children()) <= before)
    finally:
        for pid in living(text):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("source", "exit"),
    [
        ("", Exit(0, None)),
        ("raise SystemExit(3)", Exit(3, None)),
        ("import os; os._exit(255)", Exit(255, None)),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", Exit(None, signal.SIGKILL)),
        ("import ctypes; ctypes.string_at(0)", Exit(None, signal.SIGSEGV)),
        ("import os, signal; os.killpg(0, signal.SIGTERM)", Exit(None, signal.SIGTERM)),
        ("import os, signal; os.kill(os.getppid(), signal.SIGTERM); raise SystemExit(4)", Exit(4, None)),
        ("import os; os.closerange(0, 1000); os._exit(5)", Exit(5, None)),
    ],
)
def test_a_program_ends_and_what_it_left_ends_with_it(mark: str, source: str, exit: Exit) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start(f"print(daemon()); import sys; sys.stdout.flush()\n{source}")
        assert await kept.wait() == exit
        assert kept.ended
        (daemon,) = await program.said()
        assert not is_alive(int(daemon))

    finished(test)


@pytest.mark.parametrize(
    ("argv", "options", "error"),
    [
        (["no-such-program-anywhere"], {}, FileNotFoundError),
        (["/etc/passwd"], {}, PermissionError),
        (["sh", "-c", "true"], {"cwd": Path("/no/such/directory")}, FileNotFoundError),
        (["sh\0"], {}, OSError),
    ],
)
def test_what_cannot_be_started_is_an_error(
    mark: str, argv: list[str], options: dict[str, Any], error: type[OSError]
) -> None:
    async def test() -> None:
        before = set(children())
        with pytest.raises(error) as raised:
            await keep(argv, env={"PATH": os.environ["PATH"]}, output=lambda *_: None, **options)
        assert set(children()) <= before
        assert str(options.get("cwd", argv[0])).rstrip("\0") in str(raised.value)

    finished(test)


def test_a_keeper_that_ends_at_once_is_an_error(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posemesh.runners.executors.keeping._KEEPER", Path(os.devnull))

    async def test() -> None:
        with pytest.raises(OSError, match="the keeper of the program ended before it had started it"):
            await Program(mark).start("")

    finished(test)


def test_a_program_may_be_given_its_streams(mark: str) -> None:
    """They end with it, though its keeper had them too: who reads sees an end, who writes is told."""

    async def test() -> None:
        program = Program(mark)
        theirs, ours = os.pipe()
        answer, answers = os.pipe()
        source = "import sys; sys.stdout.write(sys.stdin.readline()); sys.stdout.flush(); print(2, file=sys.stderr)"
        kept = await program.start(source, stdio={"stdin": theirs, "stdout": answers})
        os.close(theirs)
        os.close(answers)
        os.write(ours, b"one\n")
        assert await kept.wait() == Exit(0, None)
        assert os.read(answer, 100) == b"one\n" and os.read(answer, 100) == b""
        with pytest.raises(BrokenPipeError):
            os.write(ours, b"more")
        assert program.wrote == {"stdout": b"", "stderr": b"2\n"}
        os.close(ours)
        os.close(answer)

    finished(test)


def test_a_program_finds_its_environment_and_nothing_of_the_node(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_SECRET", "hush")

    async def test() -> None:
        program = Program(mark)
        program.env["TEXT"] = "ü\udcff"
        kept = await program.start(
            """
            import os, signal, stat, sys
            os.environb.pop(b"LC_CTYPE", None)  # Python's own doing
            print(sorted(os.environb.items()) == sorted(%r.items()), os.getsid(0) == os.getpid())
            print(sorted(map(int, os.listdir("/dev/fd")))[:4], os.stat(0) .st_rdev == os.stat("/dev/null").st_rdev)
            print([n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN], os.getcwd())
            import resource; print(resource.getrlimit(resource.RLIMIT_CORE))
            print(b"hush" in open(f"/proc/{os.getppid()}/environ", "rb").read())
            """
            % {os.fsencode(name): os.fsencode(value) for name, value in program.env.items()},
            cwd=Path("/usr"),
        )
        assert await kept.wait() == (0, None)
        assert await program.said(5) == [
            "True True",
            "[0, 1, 2, 3] True",  # and the listing itself
            f"[{signal.SIGPIPE!r}, {signal.SIGXFSZ!r}] /usr",  # Python's own doing
            "(0, 0)",
            "False",
        ]

    finished(test)


def test_a_keeper_finds_what_its_interpreter_is_loaded_with(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/no/such/directory")

    async def test() -> None:
        program = Program(mark)
        kept = await program.start("import os; print(open(f'/proc/{os.getppid()}/environ').read().rstrip(chr(0)))")
        assert await kept.wait() == (0, None)
        assert await program.said() == ["LD_LIBRARY_PATH=/no/such/directory"]

    finished(test)


def test_no_descriptor_stays_open(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        for _ in range(2):  # the first opens what the loop keeps
            before = len(os.listdir("/dev/fd"))
            kept = await Program(mark).start("import time; time.sleep(1000)")
            assert kept.is_alone()
            await kept.kill()
        assert len(os.listdir("/dev/fd")) == before
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        with pytest.raises(FileNotFoundError):
            await keep(["true"], env={}, output=lambda *_: None)
        assert len(os.listdir("/dev/fd")) == before

    finished(test)


def test_a_program_tells_its_state(mark: str) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start("import os, time; print(os.getppid()); time.sleep(1000)")
        (keeper,) = await program.said()
        kept.on_end(lambda: ends.append(kept.ended))
        assert (kept.ended, kept.is_over(), repr(kept)) == (False, False, f"<Kept {kept.pid} running>")
        os.kill(int(keeper), signal.SIGSTOP)  # it shall not see the end yet
        os.kill(kept.pid, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: not is_alive(kept.pid))
        assert (kept.ended, kept.is_over(), ends) == (False, True, [])
        os.kill(int(keeper), signal.SIGCONT)
        await kept.wait()
        assert ends == [True]
        assert (kept.ended, kept.is_over()) == (True, True)
        assert repr(kept) == f"<Kept {kept.pid} Exit(code=None, signal=9)>"

    ends: list[bool] = []
    finished(test)


def test_a_keeper_that_does_not_listen_holds_up_nobody(mark: str) -> None:
    """Nor does one that is gone leave anybody waiting for its answer."""

    async def test() -> None:
        program = Program(mark)
        kept = await program.start("import os, time; print(os.getppid()); time.sleep(1000)")
        (keeper,) = await program.said()
        os.kill(int(keeper), signal.SIGSTOP)
        answer = asyncio.ensure_future(kept.sweep())
        await asyncio.sleep(0)
        for _ in range(5000):  # more than its socket takes
            kept.stop(LONG_SECS)
        assert not answer.done()
        os.kill(int(keeper), signal.SIGKILL)
        await answer
        assert await kept.wait() == (None, signal.SIGKILL)

    finished(test)


def test_an_end_after_that_of_the_loop_is_nobodys(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        (await Program(mark).start("import time; time.sleep(1000)"))._let_go()

    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    before = set(threading.enumerate())
    finished(test)
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert not failed


def test_what_could_not_be_ended_is_told(mark: str) -> None:
    async def test() -> None:
        kept = await Program(mark).start("import time; time.sleep(1000)")
        kept._take({"code": 0, "signal": None, "left": []})
        assert not told
        kept._take({"code": 0, "signal": None, "left": [1, 2]})
        assert [each.record["message"] for each in told] == [
            "processes [1, 2] of a program run as somebody else and could not be ended"
        ]
        await kept.wait()

    told: list[Any] = []
    log = logger()
    log.enable("posemesh")
    sink = log.add(told.append, level="WARNING")
    try:
        finished(test)
    finally:
        log.remove(sink)
        log.disable("posemesh")


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (40, "signal 40"), (None, "signal None")])
def test_a_signal_has_a_name(number: int | None, name: str) -> None:
    assert signal_name(number) == name


def test_all_output_is_delivered(mark: str) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start(
            "import os; os.write(2, b'e' * 60000)\nfor n in range(50): os.write(1, b'o' * 65536)"
        )
        assert await kept.wait() == (0, None)
        assert program.wrote == {"stdout": b"o" * 50 * 65536, "stderr": b"e" * 60000}

    finished(test)


def test_a_pipe_that_a_stranger_holds_does_not_delay_the_end(mark: str) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start("import time; print('ready'); time.sleep(1000)")
        await program.said()
        held = os.open(f"/proc/{kept.pid}/fd/1", os.O_WRONLY)
        try:
            await kept.kill()
        finally:
            os.close(held)

    finished(test)


def test_a_descriptor_is_handed_on_and_belongs_to_the_program_alone(mark: str) -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            number = theirs.fileno()
            kept = await Program(mark).start(f"import os; os.write({number}, b'hello')", fds=[number])
            theirs.close()
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(ours, 10) == b"hello"
            assert await loop.sock_recv(ours, 10) == b""
            await kept.wait()

    finished(test)


def test_memory_has_a_limit(mark: str) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start("x = bytearray(1 << 30)", memory_bytes=256 * 1024**2)
        assert await kept.wait() == (1, None)
        assert b"MemoryError" in program.wrote["stderr"]

    finished(test)


def test_a_stop_lets_the_program_tidy_up(mark: str) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start(
            """
            import signal, sys, time
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
            print(daemon())
            time.sleep(1000)
            """
        )
        await program.said()
        for _ in range(3):
            kept.stop(LONG_SECS)
        assert await kept.wait() == (7, None)
        kept.stop(0)  # after the end it does nothing

    finished(test)


def test_a_stop_reaches_what_the_program_started(mark: str) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start(
            """
            import os, signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                os.setsid()
                signal.signal(signal.SIGTERM, lambda *_: (print("told"), os._exit(0)))
                print("ready")
                time.sleep(1000)
            os.wait()
            """
        )
        await program.said()
        kept.stop(LONG_SECS)
        assert await kept.wait() == (0, None)
        assert await program.said(2) == ["ready", "told"]

    finished(test)


@pytest.mark.parametrize("later", [False, True])
def test_whoever_does_not_stop_is_killed(mark: str, later: bool) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start(
            """
            import signal, time
            for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
                signal.signal(number, signal.SIG_IGN)
            print(daemon())
            while True:
                time.sleep(1000)
            """
        )
        await program.said()
        kept.stop(LONG_SECS if later else 0.05)
        if later:
            kept.stop(0.05)  # the shorter grace counts
        assert await kept.wait() == (None, signal.SIGKILL)

    finished(test)


HOPPING = """
import os, time
if os.fork():
    time.sleep(1000)
for _ in range(3000):  # ends by itself, should it never be caught
    if os.fork():
        os._exit(0)
    os.setsid()
    time.sleep(0.0005)
"""
SPAWNING = """
import os, time
for _ in range(40):
    if os.fork() == 0:
        os.setsid()
        time.sleep(100)
    time.sleep(0.002)
time.sleep(1000)
"""


# Never more than some processes at once: a fork bomb in a test takes the whole machine with it.
@pytest.mark.parametrize("source", [HOPPING, SPAWNING])
def test_what_starts_others_while_it_is_killed_does_not_get_away(mark: str, source: str) -> None:
    async def test() -> None:
        kept = await Program(mark).start(source)
        await asyncio.to_thread(wait_until, lambda: len(living(mark)) > 1)
        await kept.kill()
        assert not living(mark)

    finished(test)


def test_nothing_is_left_when_the_node_is_killed() -> None:
    node = f"""
import asyncio, os, sys, time
from posemesh.runners.executors.keeping import keep

async def main():
    argv = {python("import time; print(daemon()); time.sleep(1000)")!r}
    await keep(argv, env=dict(os.environ), output=lambda name, data: os.write(1, data))
    copy = os.fork()  # it has the socket to the keeper as well
    if copy == 0:
        time.sleep(1000)
    print("copy", copy, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", node], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        copy = daemon = 0
        while not (copy and daemon):
            words = process.stdout.readline().split()
            copy, daemon = (int(words[1]), daemon) if len(words) == 2 else (copy, int(words[0]))
        assert is_alive(daemon)
        process.kill()
        try:
            wait_until(lambda: not is_alive(daemon))
        finally:
            os.kill(copy, signal.SIGKILL)


def test_nothing_of_the_program_itself_is_left_when_its_keeper_is_killed(mark: str) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start("import os, time; print(os.getppid()); time.sleep(1000)")
        (keeper,) = await program.said()
        os.kill(int(keeper), signal.SIGKILL)
        assert await kept.wait() == (None, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: not is_alive(kept.pid))

    finished(test)


def test_a_sweep_takes_what_came_since_the_mark(mark: str) -> None:
    async def test() -> None:
        program = Program(mark)
        ours, theirs = socket.socketpair()
        with ours:
            kept = await program.start(
                f"""
                import os, subprocess, sys
                print(daemon())
                os.read({theirs.fileno()}, 1)
                print(daemon())
                for _ in range(3):
                    if os.fork() == 0:
                        os.setsid()
                        os.read(0 if os.fork() else {theirs.fileno()}, 1)
                        import time; time.sleep(1000)
                os.read({theirs.fileno()}, 1)
                """,
                fds=[theirs.fileno()],
            )
            theirs.close()
            (before,) = await program.said()
            await kept.mark()
            await kept.sweep()
            ours.send(b"x")
            _, after = await program.said(2)
            await asyncio.to_thread(wait_until, lambda: len(living(mark)) == 9)
            assert not kept.is_alone()
            await kept.sweep()
            assert sorted(living(mark)) == sorted([kept.pid, int(before)])
            assert not is_alive(int(after))
            await kept.sweep()
            await kept.kill()
            await kept.sweep()  # after the end it does nothing

    finished(test)


def test_a_program_that_started_nothing_is_alone(mark: str) -> None:
    async def test() -> None:
        program = Program(mark)
        kept = await program.start("import time; print(1); time.sleep(1000)")
        await program.said()
        assert kept.is_alone()
        await kept.kill()
        assert not kept.is_alone()

    finished(test)


def test_a_start_that_is_cancelled_leaves_nothing(mark: str) -> None:
    async def test() -> None:
        for turns in range(8):
            start = asyncio.ensure_future(Program(mark).start("import time; print(daemon()); time.sleep(1000)"))
            for _ in range(turns):
                await asyncio.sleep(0.01 if turns > 3 else 0)
            start.cancel()
            with suppress(asyncio.CancelledError):
                await (await start).kill()  # it may have been quicker
            assert not living(mark)  # also what had started and nobody knew of yet

    finished(test)


def test_an_end_that_crosses_a_stop_is_heard(mark: str) -> None:
    """Where the keeper was gone before it had read all, its socket was broken, of which not every loop tells."""

    async def test() -> None:
        program = Program(mark)
        kept = await program.start("import time; print('begun', flush=True); time.sleep(1000)")
        await program.said()
        ended = asyncio.ensure_future(kept.wait())
        while not ended.done():
            kept.stop(LONG_SECS)
            await asyncio.sleep(0)
        assert ended.result() == Exit(None, signal.SIGTERM)

    finished(test)


def test_it_works_on_a_loop_of_any_thread(mark: str) -> None:
    async def test() -> None:
        assert await (await Program(mark).start("raise SystemExit(6)")).wait() == (6, None)

    failed: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(test())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
