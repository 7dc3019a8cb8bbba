"""Both sides of the protocol against peers in another language, written from its bytes alone."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from posemesh.golem.supervisor import CommandLine, Output, RuntimeEnded, RuntimeMode, Supervisor
from posemesh.wire import golem as wire

from .checks import further
from .golem_pipes import ROOT

EXAMPLES = ROOT / "examples" / "golem"
LIMIT_SECS = 60

pytestmark = pytest.mark.skipif(shutil.which("perl") is None, reason="the peers are written in Perl")

SUPERVISOR = r"""
use strict; use warnings; use IPC::Open2; binmode STDOUT;
my ($which, $wanted, $requests, @runtime) = @ARGV;
my $pid = open2(my $from, my $to, @runtime);
syswrite $to, pack 'H*', $requests;
my ($data, $ends) = ('', 0);
while (1) {
    my ($size, $shift, $at) = (0, 0, 0);
    while ($at < length $data) {
        my $byte = ord substr $data, $at++, 1;
        $size |= ($byte & 127) << $shift;
        $shift += 7;
        if ($byte < 128 && length $data >= $at + $size) {
            my $frame = substr $data, 0, $at + $size, '';
            print unpack('H*', $frame), "\n";
            close $to if unpack('H*', $frame) =~ $which && --$wanted == 0;
            ($size, $shift, $at) = (0, 0, 0);
        }
        elsif ($byte < 128) { last }
    }
    sysread $from, $data, 65536, length $data or last;
}
waitpid $pid, 0;
print "exit ", $? >> 8, " left ", length $data, "\n";
"""

RUNTIME = r"""#!/usr/bin/env perl
use strict; use warnings; $| = 1; binmode STDIN; binmode STDOUT;
my ($step) = grep { /^(test|offer-template|deploy|start)$/ } @ARGV;
if ($step eq 'test') { exit }
if ($step eq 'offer-template') { print '{"properties":{"a":1},"constraints":"(x=1)"} junk'; exit }
if ($step eq 'deploy') { print qq(a log\n{"valid":{"Ok":"fine"},"startMode":"blocking"}\n); exit }
sub hex_size { sprintf '%02x', length($_[0]) / 2 }
sub tell_all { my $frame = join '', @_; syswrite STDOUT, pack 'H*', hex_size($frame) . $frame }
sub event { my ($status, @id) = @_; tell_all('0801', @id, 'a201', hex_size($status), $status) }
my $data = '';
while (sysread STDIN, $data, 65536, length $data) {
    while (length $data && length $data > (my $size = ord $data)) {
        my $request = substr $data, 0, $size + 1, '';
        my ($id, $kind) = map { sprintf '%02x', ord substr $request, $_, 1 } 2, 3;
        if ($kind eq '12') { tell_all("10${id}22070a05312e322e33") }
        elsif ($kind eq '62') { tell_all("10${id}6200") }
        elsif ($request =~ /dies/) { exit 0 }
        elsif ($request =~ /late/) {
            event('08011001');
            event('0801100122026f75');
            event('08011805');
            tell_all("f83f01", "10${id}52020801");    # and a field that nobody knows
        }
        else {
            my @id = ("10$id");                       # events have none that counts
            tell_all("10${id}52020802");
            event('08021001', @id);
            event('08631001' . '220361626a');         # commands that nobody knows
            event('08641809');
            event('0802100122026869', @id);
            event('08021803', @id);
            event('08021804');                        # a second end
        }
    }
}
"""


def perl(program: Path, requests: str, until: tuple[str, int], tmp_path: Path) -> list[str]:
    """What the runtime said, frame by frame in hexadecimal, and how it ended. Its input ends after so many frames of a
    pattern.
    """
    runtime = [sys.executable, str(program), "-w", str(tmp_path), "start"]
    argv = ["perl", "-e", SUPERVISOR, until[0], str(until[1]), requests, *runtime]
    return subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_SECS, check=True).stdout.splitlines()


def by_pid(frames: list[str]) -> dict[int, list[str]]:
    """The events of each command, in their order."""
    found = defaultdict(list)
    for frame in frames:
        (payload,) = wire.Frames().feed(bytes.fromhex(frame))
        command = wire.decode_response(payload).command
        if isinstance(command, wire.ProcessStatus):
            found[command.pid].append(frame)
    return found


def test_a_session_of_the_example_runtime(tmp_path: Path) -> None:
    hello, run = "0b080212070a05302e312e30", "15080352110a072f62696e2f6c7312026c7312022d6c"
    kill, unknown = "0808045a0408011009", "020809"
    *said, end = perl(EXAMPLES / "example_runtime.py", hello + run + kill + unknown, ("", 9), tmp_path)
    assert end == "exit 0 left 0"
    events = by_pid(said)
    assert events == {
        0: ["260801a201211001221d" + b'{"exampleProperty":"running"}'.hex()],
        1: [
            "090801a2010408011001",
            "190801a2011408011001220e" + b"/bin/ls ls -l\n".hex(),
            "090801a2010408011001",
            "070801a201020801",
        ],
    }
    replies = sorted(frame for frame in said if all(frame not in each for each in events.values()))
    assert replies == [
        "06100352020801",
        "0b100222070a05312e322e33",
        "1510041a110801120d4e6f7420737570706f72746564",
        "1510091a11120f756e6b6e6f776e20636f6d6d616e64",
    ]


def test_a_session_of_the_process_runtime(tmp_path: Path) -> None:
    words = (b"sh", b"-c", b"echo out; echo err >&2; exit 3")
    command = "0a07" + b"/bin/sh".hex() + "".join(f"12{len(word):02x}{word.hex()}" for word in words)
    request = f"080352{len(command) // 2:02x}{command}"
    *said, end = perl(EXAMPLES / "process_runtime.py", f"{len(request) // 2:02x}{request}", (".{8}1803$", 1), tmp_path)
    assert (said[0], end) == ("0410035200", "exit 0 left 0")
    first, *output, last = by_pid(said)[0]
    assert (first, last) == ("070801a201021001", "070801a201021803")
    assert sorted(output) == ["0d0801a2010810012204" + b"out\n".hex(), "0d0801a2010810012a04" + b"err\n".hex()]


def shell(id: int, script: str) -> wire.Request:
    return wire.Request(id, wire.RunProcess("/bin/sh", ("sh", "-c", script)))


def requests(*given: wire.Request) -> str:
    return b"".join(wire.frame(request) for request in given).hex()


def statuses(frames: list[str]) -> dict[int, list[wire.ProcessStatus]]:
    found = defaultdict(list)
    for pid, events in by_pid(frames).items():
        for event in events:
            (payload,) = wire.Frames().feed(bytes.fromhex(event))
            status = wire.decode_response(payload).command
            assert isinstance(status, wire.ProcessStatus)
            found[pid].append(status)
    return found


def test_a_session_of_the_environment_runtime(tmp_path: Path) -> None:
    given = requests(wire.Request(2, wire.Hello("0.1.0")), wire.Request(3, wire.RunProcess("echo", ("echo", "hi"))))
    *said, end = perl(EXAMPLES / "environment.py", given, ("", 5), tmp_path)
    assert end == "exit 0 left 0"
    assert {"0b100222070a05302e312e30", "0410035200"} <= set(said)
    begun, output, ended = statuses(said)[0]
    assert (begun.running, begun.stdout, ended.running, ended.return_code) == (True, b"", False, 0)
    assert output.stdout.startswith(b'[RunProcess { bin: "echo", args: ["echo", "hi"]')


def test_interleaved_and_large_output_and_kills_of_the_process_runtime(tmp_path: Path) -> None:
    given = requests(
        shell(2, "for n in 1 2 3; do echo $n; sleep 0.1; done"),
        shell(3, "head -c 3000000 /dev/zero; exit 7"),
        shell(4, "sleep 60"),
        wire.Request(5, wire.KillProcess(2, 9)),
        wire.Request(6, wire.Hello("0.1.0")),
    )
    *said, end = perl(EXAMPLES / "process_runtime.py", given, ("^..0801a201..(08..)?(18.+)?$", 3), tmp_path)
    assert end == "exit 0 left 0"
    assert max(map(len, said)) // 2 <= 64 * 1024 + 64
    found = statuses(said)
    assert [sum(not each.running for each in found[pid]) for pid in range(3)] == [1, 1, 1]
    assert [found[pid][-1].return_code for pid in range(3)] == [0, 7, 137]
    assert b"".join(each.stdout for each in found[0]) == b"1\n2\n3\n"
    assert b"".join(each.stdout for each in found[1]) == bytes(3_000_000)


@pytest.mark.parametrize("how", ["end of input", "shutdown", "SIGTERM", "garbage", "half a frame"])
@pytest.mark.parametrize("program", ["process_runtime.py", *further("example_runtime.py", "environment.py")])
def test_the_ends_of_a_runtime(tmp_path: Path, program: str, how: str) -> None:
    """Each right after its answer to hello, the process runtime's with a child, of which nothing is left."""
    mark = f"31415{len(program)}{len(how)}"
    child = [shell(9, f"sleep {mark}")] if program == "process_runtime.py" else []
    given = requests(wire.Request(2, wire.Hello("0.1.0")), *child)
    hello = "^0b1002"
    if how == "shutdown":
        given, hello = given + requests(wire.Request(3, wire.Shutdown())), "^0410036200$"
    given += {"garbage": "ff" * 12, "half a frame": "15080352"}.get(how, "")
    argv = [sys.executable, str(EXAMPLES / program), "-w", str(tmp_path), "start"]
    if how == "SIGTERM":  # from a neighbour, as it has begun to answer
        argv = ["sh", "-c", '"$@" & sleep 1; kill -TERM $!; wait $!', "sh", *argv]
    ends = {"garbage": 1, "half a frame": 1}
    if how == "SIGTERM":
        done = subprocess.run(argv, input=bytes.fromhex(given), capture_output=True, timeout=LIMIT_SECS)
        assert done.returncode in (0, 1)
    else:
        *said, end = perl(EXAMPLES / program, given, (hello, 1), tmp_path)
        assert end == f"exit {ends.get(how, 0)} left 0"
        assert "Traceback" not in "".join(said)
    left = subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, check=False)
    assert left.returncode == 1, "no child is left"


def test_the_supervisor_and_a_runtime_that_says_things_in_its_own_order(tmp_path: Path) -> None:
    binary = tmp_path / "runtime"
    binary.write_text(RUNTIME)
    binary.chmod(0o755)

    async def scenario() -> None:
        async with Supervisor(CommandLine(binary=str(binary), workdir=tmp_path / "work")) as runtime:
            await runtime.test()
            assert (await runtime.offer_template()).constraints == "(x=1)"
            deployment = await runtime.deploy()
            assert (deployment.message, deployment.mode) == ("fine", RuntimeMode.SERVER)
            await runtime.start()
            for program, data, code in (("/late", b"ou", 5), ("/x", b"hi", 3)):
                command = await runtime.run(program)
                assert [event async for event in command] == [Output("stdout", data)]
                assert command.code == code
            with pytest.raises(RuntimeEnded, match="exit code 0 before it had answered"):
                await runtime.run("/dies")

    asyncio.run(asyncio.wait_for(scenario(), LIMIT_SECS))
