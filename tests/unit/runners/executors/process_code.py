"""What the process executor's tests run: each is found again in another interpreter by its name."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from posemesh.runners.api import SyncTaskContext, TaskContext


def crash(how: str) -> None:
    match how:
        case "return" | "":
            return
        case "raise":
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise ValueError("outer") from error
        case "exit":
            sys.exit(4)
        case "exit_0":
            sys.exit()
        case "os_exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory":
            bytearray(1 << 40)
        case "close_stdout":
            os.close(1)
            os.close(2)
        case "close_all":
            os.closerange(0, 1000)
            time.sleep(1000)
        case "garbage":
            speak(b"\0\0\0\4oops")
        case "huge":
            speak(b"\xff\xff\xff\xff")
        case "done_twice":
            speak(b"\0\0\0\x0c\x97\xa4Done\x01\xc0\xa0\x90\xc3\xc2")
        case "interrupt":
            raise KeyboardInterrupt
        case "fork":
            if os.fork():
                os.wait()
            else:
                return  # lets what follows run twice
        case _:
            raise AssertionError(how)


def speak(data: bytes) -> None:
    """Write to the node in place of the executor."""
    for number in range(3, 100):
        try:
            if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                os.write(number, data)
        except OSError:
            continue


def daemon() -> int:
    """A process that nobody waits for, in a session of its own; its number once it runs."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(tell, str(os.getpid()).encode())
            os.close(tell)
            time.sleep(1000)
        os._exit(0)
    os.close(tell)
    os.waitpid(pid, 0)
    return int(os.read(told, 20))


def wanted(task: Any) -> dict[str, Any]:
    return dict(task.lease.task.meta or {})


def plain(task: SyncTaskContext) -> None:
    """Says who it is, leaves a daemon where wanted, and ends as wanted."""
    meta = wanted(task)
    task.ctrl.progress({"pid": os.getpid(), "daemon": daemon() if meta.get("daemon") else None})
    sys.stdout.write("out\n")
    crash(meta.get("end", ""))


async def coroutine(task: TaskContext) -> None:
    meta = wanted(task)
    await task.ctrl.progress({"pid": os.getpid(), "daemon": daemon() if meta.get("daemon") else None})
    sys.stdout.write("out\n")
    crash(meta.get("end", ""))


def generator(task: SyncTaskContext) -> Iterator[object]:
    yield {"pid": os.getpid()}
    yield 2**70


async def async_generator(task: TaskContext) -> AsyncIterator[object]:
    yield {"pid": os.getpid()}
    yield 2**70


def hang(task: SyncTaskContext) -> None:
    """Ignores that it is told to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    task.ctrl.progress({"pid": os.getpid(), "daemon": daemon()})
    while True:
        time.sleep(1000)


async def spin(task: TaskContext) -> None:
    """Never awaits."""
    task.ctrl.progress({"pid": os.getpid()})
    while True:
        pass


def sleep(task: SyncTaskContext) -> None:
    meta = wanted(task)
    try:
        task.ctrl.progress({"pid": os.getpid(), "task": meta.get("task")})
        time.sleep(meta.get("seconds", 1000))
    except asyncio.CancelledError:
        sys.stdout.write(f"tidied {task.ctrl.is_cancelled()}\n")
        raise


def wait_for_file(task: SyncTaskContext) -> None:
    task.ctrl.progress({"pid": os.getpid()})
    while not os.path.exists(wanted(task)["file"]):
        time.sleep(0.001)


async def async_sleep(task: TaskContext) -> None:
    meta = wanted(task)
    try:
        task.ctrl.progress({"pid": os.getpid(), "task": meta.get("task")})
        await asyncio.sleep(meta.get("seconds", 1000))
    except asyncio.CancelledError:
        sys.stdout.write(f"tidied {task.ctrl.is_cancelled()}\n")
        raise


def asks_for_ever(task: SyncTaskContext) -> None:
    try:
        task.ctrl.progress({"pid": os.getpid()})
        task.input.get_bytes_by_cid("never")
    finally:
        sys.stdout.write("tidied\n")


async def async_asks_for_ever(task: TaskContext) -> None:
    try:
        task.ctrl.progress({"pid": os.getpid()})
        await task.input.get_bytes_by_cid("never")
    finally:
        sys.stdout.write("tidied\n")


def polls(task: SyncTaskContext) -> None:
    """Swallows the exception, as code that only looks at the flag might."""
    try:
        task.ctrl.progress({"pid": os.getpid()})
        while True:
            time.sleep(0.01)
    except asyncio.CancelledError:
        assert task.ctrl.is_cancelled()


async def whole_port(task: TaskContext) -> None:
    """Every message there is."""
    data = await task.input.get_bytes_by_cid("large")
    await task.output.put_bytes("small", data[:1000])
    await task.output.put_bytes("large", data)
    found = await task.input.materialize_cid_with_meta("file", extract=True)
    (task.workspace / "copy").write_bytes(found.path.read_bytes())
    await task.output.put_file("file", task.workspace / "copy")
    async with task.output.open_multipart("parts") as upload:
        await upload.write(data)
    try:
        async with task.output.open_multipart("aborted") as upload:
            raise LookupError
    except LookupError:
        pass
    token = await task.access_token.get()
    await task.ctrl.log_event({"token": len(token), "artifacts": len(await task.output.uploaded_artifacts())})
    errors = []
    for cid in ("bad", "invalid", "odd"):
        try:
            await task.input.get_bytes_by_cid(cid)
        except Exception as error:
            errors.append([type(error).__name__, str(error), getattr(error, "status", None)])
    await task.ctrl.progress(errors)
    assert sorted(path.name for path in task.workspace.iterdir()) == ["copy"]


def whole_plain_port(task: SyncTaskContext) -> None:
    data = task.input.get_bytes_by_cid("large")
    task.output.put_bytes("small", data[:1000])
    task.output.put_bytes("large", data)
    found = task.input.materialize_cid_with_meta("file", extract=True)
    (task.workspace / "copy").write_bytes(found.path.read_bytes())
    task.output.put_file("file", task.workspace / "copy")
    with task.output.open_multipart("parts") as upload:
        upload.write(data)
    try:
        with task.output.open_multipart("aborted") as upload:
            raise LookupError
    except LookupError:
        pass
    token = task.access_token.get()
    task.ctrl.log_event({"token": len(token), "artifacts": len(task.output.uploaded_artifacts())})
    errors = []
    for cid in ("bad", "invalid", "odd"):
        try:
            task.input.get_bytes_by_cid(cid)
        except Exception as error:
            errors.append([type(error).__name__, str(error), getattr(error, "status", None)])
    task.ctrl.progress(errors)
    assert sorted(path.name for path in task.workspace.iterdir()) == ["copy"]


def threads(task: SyncTaskContext) -> None:
    """Several threads ask at once."""
    found: list[int] = []

    def ask() -> None:
        found.extend(len(task.input.get_bytes_by_cid("large")) for _ in range(20))

    workers = [threading.Thread(target=ask) for _ in range(4)]
    for worker in workers:
        worker.start()
    ask()
    for worker in workers:
        worker.join()
    task.ctrl.progress({"sizes": sorted(set(found)), "count": len(found)})


class WithSetup:
    """Starts a helper for its child, and counts."""

    def setup(self) -> None:
        self.helper = daemon()
        self.other = subprocess.Popen(["sleep", "1000"])
        self.count = 0

    def run(self, task: SyncTaskContext) -> None:
        self.count += 1
        stray = daemon() if wanted(task).get("daemon") else None
        task.ctrl.progress(
            {"pid": os.getpid(), "helpers": [self.helper, self.other.pid], "daemon": stray, "count": self.count}
        )

    def teardown(self) -> None:
        Path(os.environ["TEARDOWN"]).write_text("torn down")


class AsyncWithSetup(WithSetup):
    """Its loop is the same for all its tasks."""

    async def setup(self) -> None:  # type: ignore[override]
        super().setup()
        self.loop = asyncio.get_running_loop()

    async def run(self, task: TaskContext) -> None:  # type: ignore[override]
        assert asyncio.get_running_loop() is self.loop
        super().run(task)  # type: ignore[arg-type]


class BadSetup:
    def setup(self) -> None:
        raise OSError("no such device")

    def run(self, task: SyncTaskContext) -> None:
        raise AssertionError


class LeavingSetup:
    """Ends its interpreter before it is ready."""

    def setup(self) -> None:
        match os.environ["HOW"]:
            case "exit":
                sys.exit("no model here")
            case "os_exit":
                os._exit(7)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)

    def run(self, task: SyncTaskContext) -> None:
        raise AssertionError


def moves(task: SyncTaskContext) -> None:
    os.chdir(task.workspace)
    Path("result.txt").write_text("from the runner")
    task.output.put_file("result", "result.txt")
    task.output.put_domain_artifact("again", Path("result.txt"))
    gone = task.workspace / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        task.output.put_file("nothing", "gone.txt")
    except OSError as error:
        task.ctrl.progress({"asked": error.filename})


class BadInit:
    def __init__(self) -> None:
        raise OSError("no such device")

    def run(self, task: SyncTaskContext) -> None:
        raise AssertionError


class AsyncBadInit(BadInit):
    async def run(self, task: TaskContext) -> None:  # type: ignore[override]
        raise AssertionError


class Checked:
    def check(self) -> None:
        if "BROKEN" in os.environ:
            raise RuntimeError("no GPU here")

    def run(self, task: SyncTaskContext) -> None:
        task.ctrl.progress({"pid": os.getpid()})


class HangingCheck:
    def check(self) -> None:
        Path(os.environ["TEARDOWN"]).write_text("the check has begun")
        time.sleep(1000)

    def run(self, task: SyncTaskContext) -> None:
        raise AssertionError


def environ(task: SyncTaskContext) -> None:
    task.ctrl.progress({"env": dict(os.environ), "cwd": os.getcwd(), "name": __name__})


instance = WithSetup()


async def twice(task: TaskContext) -> None:
    raise AssertionError("the second definition is another one")


first_twice = twice


async def twice(task: TaskContext) -> None:  # type: ignore[no-redef]
    pass


async def many(task: TaskContext) -> None:
    """More questions at once than a node answers at once."""
    found = await asyncio.gather(*(task.input.get_bytes_by_cid(str(number)) for number in range(700)))
    task.ctrl.progress(len(found))


def talks_on(task: SyncTaskContext) -> None:
    """Leaves a thread that reports and asks after the task's end."""

    def talk() -> None:
        while True:
            task.ctrl.log_event(wanted(task)["task"])
            task.input.get_bytes_by_cid("late")

    threading.Thread(target=talk, daemon=True).start()
    task.ctrl.progress({"pid": os.getpid()})


def nothing(task: SyncTaskContext) -> None:
    pass


async def async_nothing(task: TaskContext) -> None:
    pass
