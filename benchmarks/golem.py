"""What the Golem SDK costs a runtime, by ``make bench-golem``: ``benchmarks/golem.py [--rounds 7] [--hellos 3000]
[--mib 100] [--commands 1000] [--starts 15]``.

A runtime of a few lines (``golem_runtime.py``) and a bare asyncio script that gives the same answers, byte for byte
(``golem_bare.py``), in turns, over pipes: hello by hello, start to first answer, output in frames of 48 KiB, and many
commands at a time, of which each waits for the last. All that they say is compared with what they should. Prints
medians, ratios of the rounds, and the most memory that either had (VmHWM).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from posemesh.wire import golem as wire

HERE = Path(__file__).parent
PROGRAMS = {"posemesh.golem": "golem_runtime.py", "bare asyncio": "golem_bare.py"}
VERSION = "0.1.0"
READ_BYTES = 256 * 1024
MIB = 1 << 20
TIME_MAX_SECS = 120.0
"""A runtime that says nothing for longer than a whole round may take is killed, and the benchmark fails."""


class Client:
    """One end of a runtime's pipes, without a loop."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process = process
        self._there, self._back = process.stdin.fileno(), process.stdout.fileno()
        self._id = 0

    def request(self, command: wire.Hello | wire.RunProcess) -> bytes:
        self._id += 1
        return wire.frame(wire.Request(self._id, command))

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._there, data) :]

    def read(self, size: int) -> bytearray:
        """Exactly so many bytes. Raises SystemExit where they end before."""
        got = bytearray()
        while len(got) < size:
            got += self.some(min(READ_BYTES, size - len(got)))
        return got

    def some(self, most: int = READ_BYTES) -> bytes:
        data = os.read(self._back, most)
        if not data:
            raise SystemExit("a runtime ended, or was too slow")
        return data

    def expect(self, wanted: bytes) -> None:
        got = self.read(len(wanted))
        assert got == wanted, (bytes(got[:100]), wanted[:100])

    def greeting(self) -> tuple[bytes, bytes]:
        """A hello, and what is answered to it."""
        asked = self.request(wire.Hello(VERSION))
        return asked, wire.frame(wire.Response(id=self._id, command=wire.HelloReply(VERSION)))

    def hello(self) -> None:
        self.talk(*self.greeting())

    def talk(self, asked: bytes, wanted: bytes) -> None:
        self.send(asked)
        self.expect(wanted)

    def memory_mib(self) -> float:
        """The most that the process ever had in memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


@contextmanager
def started(program: str) -> Iterator[Client]:
    argv = [sys.executable, str(HERE / program), "start"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        late = threading.Timer(TIME_MAX_SECS, process.kill)
        late.start()
        try:
            yield Client(process)
            process.stdin.close()  # type: ignore[union-attr]
            process.wait()
        finally:
            late.cancel()
            process.kill()


def status(pid: int, *, running: bool = True, stdout: bytes = b"") -> bytes:
    return wire.frame(wire.Response(event=True, command=wire.ProcessStatus(pid, running, 0, stdout)))


def starts(program: str) -> tuple[float, float]:
    """Milliseconds from the start of the program to its answer, and MiB."""
    began = time.perf_counter()
    with started(program) as client:
        client.hello()
        took = time.perf_counter() - began
        return took * 1000, client.memory_mib()


def flood(program: str, mib: int) -> tuple[float, float]:
    """MiB a second of one command's output, and MiB."""
    with started(program) as client:
        client.hello()
        asked = client.request(wire.RunProcess("flood", ("flood", "flood", str(mib * MIB))))
        first, whole = frames_of(0)[:2], status(0, stdout=b"x" * wire.OUTPUT_MAX)
        left = mib * MIB
        began = time.perf_counter()
        client.talk(asked, b"".join(first))
        while left >= wire.OUTPUT_MAX:
            client.expect(whole)
            left -= wire.OUTPUT_MAX
        client.expect((status(0, stdout=b"x" * left) if left else b"") + status(0, running=False))
        return mib / (time.perf_counter() - began), client.memory_mib()


def crowd(program: str, commands: int) -> tuple[float, float]:
    """Commands a second, of which none ends before all have begun, and MiB. Each is seen to be complete."""
    with started(program) as client:
        client.hello()
        asked = [client.request(wire.RunProcess("say", ("say", str(n), str(commands)))) for n in range(commands)]
        size = sum(len(frame) for n in range(commands) for frame in frames_of(n))
        began = time.perf_counter()
        sender = threading.Thread(target=client.send, args=(b"".join(asked),))
        sender.start()
        got = client.read(size)
        took = time.perf_counter() - began
        sender.join()
        complete(bytes(got), commands)
        return commands / took, client.memory_mib()


def frames_of(pid: int) -> list[bytes]:
    """What one command of the crowd says."""
    reply = wire.frame(wire.Response(id=pid + 2, command=wire.RunReply(pid)))
    return [reply, status(pid), status(pid, stdout=str(pid).encode()), status(pid, running=False)]


def complete(said: bytes, commands: int) -> None:
    """Every command replied, began, spoke and ended, in that order, and nothing else was said."""
    found: dict[int, list[bytes]] = {pid: [] for pid in range(commands)}
    for payload in wire.Frames().feed(said):
        response = wire.decode_response(payload)
        assert isinstance(response.command, wire.RunReply | wire.ProcessStatus), response
        found[response.command.pid].append(wire.frame(response))
    wrong = [pid for pid, frames in found.items() if frames != frames_of(pid)]
    assert not wrong, f"commands {wrong[:10]} of {commands} are not complete or not in order"


def hellos(client: Client, number: int) -> tuple[float, float]:
    """Round trips a second, one after the other, and MiB."""
    greetings = [client.greeting() for _ in range(number)]
    began = time.perf_counter()
    for asked, wanted in greetings:
        client.talk(asked, wanted)
    return number / (time.perf_counter() - began), client.memory_mib()


def compare(title: str, unit: str, rounds: int, wanted: str, measure: Callable[[str], tuple[float, float]]) -> None:
    """``measure`` each program in turns, the first of a round being second in the next, and print what was found."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for turn in range(rounds + 1):
        for name in PROGRAMS if turn % 2 else reversed(PROGRAMS):
            result = measure(name)
            if turn:  # the first round warms all up
                found[name].append(result)
    print(f"{title}, {rounds} rounds")
    for name, results in found.items():
        middle, memory = statistics.median(one for one, _ in results), max(memory for _, memory in results)
        print(f"  {name:<16} {middle:10.1f} {unit:<14} {memory:6.1f} MiB at most")
    ours, theirs = found.values()
    ratios = sorted(one / other for (one, _), (other, _) in zip(ours, theirs, strict=True))
    middle, low, high = statistics.median(ratios), ratios[0], ratios[-1]
    print(f"  {'ratio':<16} {middle:10.2f} ({low:.2f} to {high:.2f}); {wanted}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name, default in (("rounds", 7), ("hellos", 3000), ("mib", 100), ("commands", 1000), ("starts", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rounds, mib, commands = options.rounds, options.mib, options.commands
    with started(PROGRAMS["posemesh.golem"]) as ours, started(PROGRAMS["bare asyncio"]) as bare:
        clients = dict(zip(PROGRAMS, (ours, bare), strict=True))
        compare(
            f"{options.hellos} hellos, one after the other",
            "round trips/s",
            rounds,
            "at least 0.5 is wanted",
            lambda name: hellos(clients[name], options.hellos),
        )
    compare("start to first answer", "ms", options.starts, "at most 1.5 is wanted", lambda name: starts(PROGRAMS[name]))
    compare(
        f"{mib} MiB of output in frames of {wire.OUTPUT_MAX // 1024} KiB",
        "MiB/s",
        rounds,
        "at least 0.5 is wanted, with bounded memory",
        lambda name: flood(PROGRAMS[name], mib),
    )
    compare(
        f"{commands} commands at a time, each complete",
        "commands/s",
        rounds,
        "no wish; all of them are",
        lambda name: crowd(PROGRAMS[name], commands),
    )


if __name__ == "__main__":
    main()
