"""The other end of a runtime's pipes: a runtime in a process of its own, and all that it says."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posemesh.wire import golem as wire

__all__ = ("ROOT", "Runtime", "is_alive", "serving", "until")

ROOT = Path(__file__).parents[2]
PATIENCE_SECS = 60.0
"""For what takes milliseconds on a machine that has nothing else to do."""


def until(condition: Callable[[], Any], what: str) -> None:
    """Look until it holds: for what ends by itself and tells nobody."""
    limit = time.monotonic() + PATIENCE_SECS
    while not condition():
        assert time.monotonic() < limit, f"not within {PATIENCE_SECS} s: {what}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether it runs: one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except OSError:
        return False


class Runtime:
    """A runtime that was started. Whatever it says is kept in order; ``reading`` can be held up."""

    def __init__(self, process: subprocess.Popen[bytes], workdir: Path) -> None:
        self.process = process
        self.workdir = workdir
        self.said: list[wire.Response] = []
        self.reading = threading.Event()
        self.reading.set()
        self.ended = False
        self._id = 0
        self._cut = 0
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        frames, fd = wire.Frames(), self.process.stdout.fileno()
        while self.reading.wait() and (data := os.read(fd, 4096)):
            got = [wire.decode_response(payload) for payload in frames.feed(data)]
            with self._news:
                self.said += got
                self._news.notify_all()
        with self._news:
            self.ended, self._cut = True, frames.waiting
            self._news.notify_all()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """What ``condition`` gives, once it is true; it is looked at after each thing said."""
        with self._news:
            found = self._news.wait_for(lambda: condition() or self.ended, PATIENCE_SECS) and condition()
        assert found, f"no {what}: {self.said[-10:]}, exit code {self.process.poll()}"
        return found

    def send(self, command: Any) -> int:
        """Ask; the request's number."""
        self._id += 1
        assert self.process.stdin is not None
        self.process.stdin.write(wire.frame(wire.Request(self._id, command)))
        self.process.stdin.flush()
        return self._id

    def reply(self, request: int) -> Any:
        def found() -> list[wire.Response]:
            return [one for one in self.said if not one.event and one.id == request]

        (reply,) = self.wait(found, f"reply to {request}")
        return reply.command

    def ask(self, command: Any) -> Any:
        return self.reply(self.send(command))

    def run(self, *argv: str, **fields: Any) -> int:
        """Run a program, as a requestor does; the command's number."""
        reply = self.ask(wire.RunProcess(argv[0], (os.path.basename(argv[0]), *argv[1:]), **fields))
        assert isinstance(reply, wire.RunReply), reply
        return reply.pid

    def shell(self, script: str, **fields: Any) -> int:
        return self.run("/bin/sh", "-c", script, **fields)

    def events(self, pid: int) -> list[wire.ProcessStatus]:
        with self._news:
            statuses = [one.command for one in self.said if isinstance(one.command, wire.ProcessStatus)]
        return [each for each in statuses if each.pid == pid]

    def stdout(self, pid: int) -> bytes:
        return b"".join(each.stdout for each in self.events(pid))

    def stderr(self, pid: int) -> bytes:
        return b"".join(each.stderr for each in self.events(pid))

    def counters(self) -> dict[str, float]:
        """The last value of each."""
        with self._news:
            statuses = [one.command.kind for one in self.said if isinstance(one.command, wire.RuntimeStatus)]
        return {each.name: each.value for each in statuses if isinstance(each, wire.Counter)}

    def until_stdout(self, pid: int, text: bytes) -> None:
        self.wait(lambda: text in self.stdout(pid), f"{text!r} from {pid}")

    def exit(self, pid: int) -> int:
        """The command's exit code, once it is over; its events have the form that they must have."""

        def over() -> bool:
            return any(not each.running for each in self.events(pid))

        self.wait(over, f"end of {pid}")
        events = self.events(pid)
        assert events[0] == wire.ProcessStatus(pid, True), events[0]
        assert [each.running for each in events] == [True] * (len(events) - 1) + [False]
        assert not events[-1].stdout and not events[-1].stderr
        assert all(len(each.stdout) <= 64 * 1024 and len(each.stderr) <= 64 * 1024 for each in events)
        return events[-1].return_code

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def exit_code(self) -> int:
        """The runtime's own, once it has ended and all that it said is read."""
        code = self.close()
        assert not self._cut, "it ended within a frame"
        return code

    def close(self) -> int:
        self.reading.set()
        code = self.process.wait(PATIENCE_SECS)
        self._reader.join(PATIENCE_SECS)
        assert self.ended
        return code


@contextmanager
def serving(program: Path, workdir: Path, *options: str, **settings: Any) -> Iterator[Runtime]:
    """A runtime of the examples that serves; it is killed at the end, if it is there still."""
    argv = [sys.executable, str(program), "--workdir", str(workdir), *options, "start"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **settings) as process:
        runtime = Runtime(process, workdir)
        try:
            yield runtime
        finally:
            process.kill()
            runtime.close()
