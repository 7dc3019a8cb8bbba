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
