"""A whole local network, a node, and a job on it: what `make demo` runs.

It does what a user would do in three terminals, with `posemesh-node devnet`, `run` and `submit` and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

import posemesh

CAPABILITY: Final = "/examples/voxel-downsample/v1"
META: Final = '{"voxel_size": 0.05, "min_points": 2}'
HERE: Final = Path(__file__).resolve().parent
#: For a machine that is busy with other things; it takes a few seconds otherwise.
SECS_MAX: Final = 120.0
STOP_SECS: Final = 5.0
TAIL_LINES: Final = 15
INTERRUPTED: Final = 130


class Failed(Exception):
    """What went wrong, and the end of what the ``commands`` printed: first of the one whose fault it is, the last."""

    def __init__(self, what: str, commands: Sequence[Command] = ()) -> None:
        ends = (f"\n  {command}\n{command.tail}" for command in reversed(commands))
        super().__init__(what + "".join(ends))


class Show:
    """The steps of the demo on stderr: live on a terminal, a line for each change elsewhere."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description:8}"), BarColumn(24))
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        said = TextColumn("{task.fields[text]}", markup=False, table_column=rest)
        self._live = Progress(*columns, said, console=console, expand=True) if console.is_terminal else None
        self._rows: dict[str, Any] = {}
        self._said: dict[str, str] = {}

    def __enter__(self) -> Show:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, name: str, text: str, percent: float | None = None) -> None:
        """Row ``name`` says ``text`` now; at 100 per cent it is done."""
        if self._live is not None:
            if name not in self._rows:
                self._rows[name] = self._live.add_task(name, total=None, text=text)
            total = None if percent is None else 100
            self._live.update(self._rows[name], total=total, completed=percent or 0, text=text)
        elif self._said.get(name) != text:
            print(f"{name}: {text}", file=sys.stderr, flush=True)
        self._said[name] = text


class Command:
    """A child process, in a session of its own: Ctrl-C is this program's to deal with."""

    def __init__(self, *words: str | Path, env: dict[str, str]) -> None:
        self.printed: list[str] = []
        self._words = [str(word) for word in words]
        self._env = env
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Task[int] | None = None

    def __str__(self) -> str:
        return shlex.join([Path(self._words[0]).name, *self._words[1:]])

    @property
    def tail(self) -> str:
        """The end of its output."""
        return "\n".join(f"    {line}" for line in self._tail) or "    (nothing)"

    async def start(self, told: Callable[[str], None] = lambda line: None) -> asyncio.Task[int]:
        """Start it and return the task that ends, with its exit code, when it does. ``told`` gets each line."""
        pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(
            *self._words, stdin=none, stdout=pipe, stderr=pipe, env=self._env, start_new_session=True, limit=2**20
        )
        self._ended = asyncio.create_task(self._follow(self._process, told))
        return self._ended

    async def _follow(self, process: asyncio.subprocess.Process, told: Callable[[str], None]) -> int:
        async def read(stream: asyncio.StreamReader | None, keep: list[str]) -> None:
            assert stream is not None
            async for line in stream:
                text = line.decode(errors="replace").rstrip()
                self._tail.append(text)
                keep.append(text)
                told(text)

        await asyncio.gather(read(process.stdout, self.printed), read(process.stderr, []))
        return await process.wait()

    async def stop(self) -> None:
        """Ask it to end; after a while, make it and what it started end."""
        if self._process is None or self._ended is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self._ended.done():
                try:
                    os.killpg(self._process.pid, number)
                except ProcessLookupError:
                    break
                await asyncio.wait((self._ended,), timeout=STOP_SECS)


class Demo:
    """A network, a scan, a node, a job."""

    def __init__(self, show: Show, work: Path, out: Path) -> None:
        self.commands: list[Command] = []
        self._services: dict[asyncio.Task[int], Command] = {}
        self._show = show
        self._net = work / "net"
        self._out = out
        self._program = program()
        self._env = environment()

    async def run(self) -> list[str]:
        """All of it. Returns what `submit` printed: the job, and the paths of the artifacts."""
        scan = self._out / "scan.ply"
        await self._service("network", "network is up", "devnet", "--port", "0", "--data", self._net)
        self._show.step("scan", "laser scanners look at a room")
        (said,) = await self._task(lambda line: None, sys.executable, HERE / "scene.py", scan)
        self._show.step("scan", said.rpartition(": ")[2], 100)
        await self._service("node", CAPABILITY, "run", HERE / "runner.py", "--env-file", self._net / "node.env")
        self._show.step("job", "waiting for the node")
        words = ("submit", CAPABILITY, "--input", scan, "--meta", META, "--out", self._out)
        printed = await self._task(self._job_says, self._program, *words, "--env-file", self._net / "app.env")
        self._show.step("job", "completed", 100)
        return printed

    async def stop(self) -> None:
        """End whatever still runs, the latest first."""
        for command in reversed(self.commands):
            await command.stop()

    def _job_says(self, line: str) -> None:
        # What `submit` shows of the runner's progress: "running · pct 40 step drawing the preview".
        if found := re.search(r"\bpct (\d+) step (.*)", line):
            self._show.step("job", found[2], min(99, int(found[1])))

    async def _service(self, name: str, sign: str, *words: str | Path) -> None:
        """Start what runs until it is told to stop, and wait for the line that says it is up."""
        command, up = self._command(self._program, *words), asyncio.Event()
        self._show.step(name, f"starting posemesh-node {words[0]}")
        self._services[await command.start(lambda line: up.set() if sign in line else None)] = command
        await self._while_services_run(up.wait())
        self._show.step(name, f"posemesh-node {words[0]}", 100)

    async def _task(self, told: Callable[[str], None], *words: str | Path) -> list[str]:
        """Run what ends by itself. Returns the lines it printed."""
        command = self._command(*words)
        ended = await command.start(told)
        await self._while_services_run(asyncio.wait((ended,)))
        if code := ended.result():
            raise self._failed(f"a command ended with {code}", command)
        return command.printed

    def _command(self, *words: str | Path) -> Command:
        self.commands.append(Command(*words, env=self._env))
        return self.commands[-1]

    def _failed(self, what: str, command: Command) -> Failed:
        return Failed(what, [one for one in self.commands if one is not command] + [command])

    async def _while_services_run(self, wanted: Coroutine[Any, Any, Any]) -> None:
        goal = asyncio.create_task(wanted)
        try:
            await asyncio.wait((goal, *self._services), return_when=asyncio.FIRST_COMPLETED)
            for ended, command in self._services.items():
                if ended.done():
                    raise self._failed(f"a command ended too early, with {ended.result()}", command)
        finally:
            goal.cancel()


def program() -> str:
    """The posemesh-node that belongs to this interpreter, or the one on the PATH."""
    beside = Path(sys.executable).with_name("posemesh-node")
    found = str(beside) if beside.exists() else shutil.which("posemesh-node")
    if found is None:
        raise Failed("there is no posemesh-node; install posemesh first, or run: make demo")
    return found


def environment() -> dict[str, str]:
    """The shell's, without settings for another network than the demo's own."""
    settings = {field.name.upper() for field in dataclasses.fields(posemesh.NodeConfig)}
    settings |= {"DMS_BASE_URL", "DOMAIN_SERVER_URL", "DOMAIN_ID", "APP_JWT"}
    own = {"NODE_PORT": "0", "LOG_FORMAT": "text", "POLL_BACKOFF_MS_MAX": "1000", "PYTHONUNBUFFERED": "1"}
    return {name: value for name, value in os.environ.items() if name not in settings} | own


async def bounded(out: Path) -> list[str]:
    """The demo within its time. Whatever happens, nothing that it started is left behind."""
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None
    told = False

    def interrupt() -> None:
        nonlocal told
        if not told:  # a second one must not disturb the tidying up
            told = True
            me.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, interrupt)
    with tempfile.TemporaryDirectory(prefix="posemesh-demo-") as work, Show() as show:
        demo = Demo(show, Path(work), out)
        try:
            async with asyncio.timeout(SECS_MAX):
                return await demo.run()
        except TimeoutError:
            raise Failed(f"not done after {SECS_MAX:g} s", demo.commands) from None
        finally:
            await demo.stop()


def main() -> int:
    """Run the demo. 0 when the job completed, 1 when something failed, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("demo-out"), help="for the scan and the results"
    )
    out = parser.parse_args().out.resolve()
    began = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
        _, completed, *paths = asyncio.run(bounded(out))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("demo: interrupted; nothing is left running", file=sys.stderr)
        return INTERRUPTED
    except (Failed, OSError) as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1
    print(f"{completed}, {time.monotonic() - began:.1f} s after the start")
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
