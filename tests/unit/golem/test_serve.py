"""A runtime's server over its pipes: what it answers, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import pytest

from posemesh import golem
from posemesh.golem.pipes import HIGH_BYTES
from posemesh.wire import golem as wire

from .serving import PATIENCE_SECS, Methods, no_children, play, serving, turns

__all__ = ("no_children",)

STARTED_0 = wire.ProcessStatus(0, True)
HELLO = wire.Hello("0.1.0")
GREETING = wire.HelloReply("1.2.3")


def out(pid: int, data: bytes) -> wire.ProcessStatus:
    return wire.ProcessStatus(pid, True, 0, data)


def end(pid: int, code: int = 0) -> wire.ProcessStatus:
    return wire.ProcessStatus(pid, False, code)


# --- Replies ------------------------------------------------------------------------------------------------------


def test_hello_is_answered_with_the_version_whenever_it_comes_and_in_the_bytes_of_the_protocol() -> None:
    class Runtime(Methods):
        async def quick(self, run: golem.RunContext) -> None:
            await run.stdout("a\n")

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            peer.write(bytes.fromhex("0b080212070a05302e312e30"))
            await peer.until(lambda: peer.said)
            assert peer.raw.hex() == "0b100222070a05312e322e33"
            peer.run("quick")
            assert await peer.exit(0) == 0
            assert await peer.ask(wire.Hello("anything")) == GREETING

    play(scenario())


def test_each_piece_of_a_request_may_come_alone_and_many_may_come_at_once() -> None:
    async def scenario() -> None:
        async with serving(Methods()) as peer:
            for byte in bytes.fromhex("0b080212070a05302e312e30"):
                peer.write(bytes((byte,)))
                await asyncio.sleep(0)
            await peer.until(lambda: len(peer.said) == 1)
            peer.write(bytes.fromhex("0b080212070a05302e312e30") * 1000)
            await peer.until(lambda: len(peer.said) == 1001)
            peer.write(bytes.fromhex("026200"))  # three bytes, and a request all the same
            assert await peer.reply(0) == wire.ShutdownReply()

    play(scenario())


def test_a_command_that_nobody_knows_is_an_error_and_no_end() -> None:
    async def scenario() -> None:
        async with serving(Methods()) as peer:
            peer.write(bytes.fromhex("020809"))
            assert await peer.reply(9) == wire.Error(wire.ErrorCode.INTERNAL, "unknown command")
            assert peer.raw.hex() == "1510091a11120f756e6b6e6f776e20636f6d6d616e64"
            assert await peer.ask(HELLO) == GREETING
            assert await peer.hang_up() == 0

    play(scenario())


def test_what_has_no_handler_is_not_supported() -> None:
    async def scenario() -> None:
        async with serving(golem.Runtime()) as peer:
            for command in (wire.RunProcess("ls"), wire.KillProcess(0, 9), wire.CreateNetwork()):
                assert await peer.ask(command) == wire.Error(1, "Not supported")

    play(scenario())


def test_kill_and_network_get_what_was_asked() -> None:
    got: list[Any] = []
    endpoints = [
        golem.Endpoint(kind, "127.0.0.1:1")
        for kind in ("unix_stream", "unix_datagram", "udp_datagram", "tcp_listener", "tcp_stream")
    ]

    class Runtime(golem.Runtime):
        def kill_command(self, kill: golem.KillProcess, ctx: golem.Context[Any]) -> None:  # type: ignore[override]
            got.append(kill)

        async def join_network(self, network: golem.CreateNetwork, ctx: golem.Context[Any]) -> golem.Endpoint | None:
            got.append(network)
            return endpoints[len(got) - 2] if len(got) < 7 else None

    kill = wire.KillProcess(7, -9)
    network = wire.CreateNetwork((wire.Network("10.0.0.0", "10.0.0.1", "255.0.0.0", "10.0.0.2"),), {"a": "10.0.0.3"}, 1)

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            assert await peer.ask(kill) == wire.KillReply()
            for endpoint in endpoints:
                assert await peer.ask(network) == wire.NetworkReply(endpoint)
            assert await peer.ask(network) == wire.NetworkReply(None)

    play(scenario())
    assert got == [kill, *[network] * 6]


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (golem.HandlerError("no", 7, {"a": "b"}), wire.Error(7, "no", {"a": "b"})),
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            wire.Error(2, "No such file or directory (os error 2)"),
        ),
        (PermissionError(13, "Permission denied"), wire.Error(13, "Permission denied (os error 13)")),
        (KeyError("x"), wire.Error(1, "'x'")),
        (golem.HandlerError("\udcff", 1 << 40), wire.Error(1, "'\\udcff'")),
        (asyncio.CancelledError(), wire.Error(1, "The runtime stops")),
    ],
)
def test_what_a_handler_raises_is_the_reply(error: BaseException, reply: wire.Error) -> None:
    class Runtime(golem.Runtime):
        async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Any]) -> int:
            raise error

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            assert await peer.ask(wire.RunProcess("x")) == reply
            assert await peer.ask(HELLO) == wire.HelloReply("0.1.0")

    play(scenario())


@pytest.mark.parametrize("pid", [None, True, "1", -1, 1 << 64])
def test_what_is_no_number_of_a_command_is_an_error_and_nothing_happened(pid: Any) -> None:
    class Runtime(golem.Runtime):
        async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Any]) -> Any:
            ctx.command(lambda run: run.stdout("never"))
            return pid

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            assert isinstance(await peer.ask(wire.RunProcess("x")), wire.Error)
            assert await peer.hang_up() == 0
            assert len(peer.said) == 1

    play(scenario())


# --- Commands -----------------------------------------------------------------------------------------------------


def test_the_reply_comes_before_the_events_and_the_end_once_and_last() -> None:
    class Runtime(golem.Runtime):
        async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Any]) -> int:
            assert mode is golem.RuntimeMode.SERVER
            pid = ctx.command(self.work)
            await turns(10)  # time in which it could have begun
            return pid

        async def work(self, run: golem.RunContext) -> dict[str, Any]:
            await run.stdout("a\n")
            await run.stderr(b"b")
            await run.stdout(b"")
            asyncio.get_running_loop().call_soon(asyncio.ensure_future, self.late(run))
            return {"b": 1e16, "a": None}

        async def late(self, run: golem.RunContext) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                await run.stdout("too late")

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            request = peer.run("x")
            assert await peer.exit(0) == 0
            assert await peer.ask(HELLO) == wire.HelloReply("0.1.0")
            assert peer.said[0] == wire.Response(False, request, wire.RunReply(0))
            assert peer.events(0) == [
                STARTED_0,
                out(0, b"a\n"),
                wire.ProcessStatus(0, True, 0, b"", b"b"),
                STARTED_0,  # what an empty write looks like
                out(0, b'{"a":null,"b":1e16}'),
                end(0),
            ]
            assert len(peer.said) == 8

    play(scenario())


class Endings(Methods):
    async def fails(self, run: golem.RunContext) -> None:
        raise golem.HandlerError("no")

    async def crashes(self, run: golem.RunContext) -> None:
        raise KeyError("x")

    async def cancels(self, run: golem.RunContext) -> None:
        raise asyncio.CancelledError

    async def code(self, run: golem.RunContext, code: str) -> None:
        raise golem.CommandExit(int(code))

    async def interrupts(self, run: golem.RunContext) -> None:
        raise KeyboardInterrupt

    async def leaves(self, run: golem.RunContext, code: str) -> None:
        raise SystemExit(int(code) if code else None)

    async def says(self, run: golem.RunContext) -> None:
        raise SystemExit("in words")

    async def mumbles(self, run: golem.RunContext) -> object:
        return object()

    def is_plain(self, run: golem.RunContext) -> str:
        return "plain"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("fails",), 1),
        (("crashes",), 1),
        (("cancels",), 1),
        (("code", "0"), 0),
        (("code", "-9"), -9),
        (("code", "137"), 137),
        (("leaves", "3"), 3),
        (("leaves", ""), 0),
        (("interrupts",), 1),
        (("says",), 1),
        (("mumbles",), 1),
        (("is_plain",), 0),
        (("is_plain", "too many"), 1),
    ],
)
def test_however_a_command_ends_it_ends_once_and_the_runtime_goes_on(words: tuple[str, ...], code: int) -> None:
    async def scenario() -> None:
        async with serving(Endings()) as peer:
            assert await peer.reply(peer.run(*words)) == wire.RunReply(0)
            assert await peer.exit(0) == code
            assert await peer.reply(peer.run("is_plain")) == wire.RunReply(1)
            assert await peer.exit(1) == 0
            assert peer.events(1) == [wire.ProcessStatus(1, True), out(1, b'"plain"'), end(1)]
            assert [each for each in peer.events(0) if not each.running] == [end(0, code)]

    play(scenario())


def test_commands_run_beside_each_other_and_hello_is_answered_meanwhile() -> None:
    class Runtime(Methods):
        def __init__(self) -> None:
            self.both = asyncio.Barrier(3)

        async def meet(self, run: golem.RunContext) -> None:
            await self.both.wait()

        async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Any]) -> Any:
            if command.bin == "slow":
                await self.both.wait()  # a handler that waits holds up nothing
            return await super().run_command(command, mode, ctx)

        async def slow(self, run: golem.RunContext) -> None:
            pass

    async def scenario() -> None:
        async with serving(runtime := Runtime()) as peer:
            runtime.both = asyncio.Barrier(3)
            slow = peer.run("slow")
            one, other = peer.run("meet"), peer.run("meet")
            assert await peer.reply(one) == wire.RunReply(0)
            assert await peer.ask(HELLO) == GREETING
            assert (await peer.exit(0), await peer.exit(1)) == (0, 0)
            assert await peer.reply(other) == wire.RunReply(1)
            assert await peer.reply(slow) == wire.RunReply(2)

    play(scenario())


def test_a_thousand_commands_run_at_a_time() -> None:
    number = 1000

    class Runtime(Methods):
        def __init__(self) -> None:
            self.begun = 0
            self.all = asyncio.Event()

        async def meet(self, run: golem.RunContext) -> int:
            self.begun += 1
            if self.begun == number:
                self.all.set()
            await self.all.wait()
            return run.id

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            for _ in range(number):
                peer.run("meet")
                await asyncio.sleep(0)
            for pid in range(number):
                assert await peer.exit(pid) == 0
                assert peer.events(pid) == [wire.ProcessStatus(pid, True), out(pid, b"%d" % pid), end(pid)]

    play(scenario())


def test_what_comes_before_a_command_fails_it_before_it_began_and_takes_its_number() -> None:
    class Runtime(golem.Runtime):
        async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Any]) -> int:
            return await ctx.as_command(self.first(command.bin), self.work)

        async def first(self, name: str) -> str:
            if name == "nothing":
                raise FileNotFoundError(2, "No such file or directory", name)
            return name

        async def work(self, name: str, run: golem.RunContext) -> None:
            await run.stdout(name)

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            error = wire.Error(2, "No such file or directory (os error 2)")
            assert await peer.ask(wire.RunProcess("nothing")) == error
            assert await peer.ask(wire.RunProcess("ls")) == wire.RunReply(1)
            assert await peer.exit(1) == 0
            assert peer.events(0) == []
            assert peer.events(1) == [wire.ProcessStatus(1, True), out(1, b"ls"), end(1)]

    play(scenario())


def test_a_runtime_may_tell_of_commands_by_numbers_of_its_own() -> None:
    class Runtime(golem.Runtime):
        async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Any]) -> int:
            assert ctx.emitter is not None
            if command.bin == "next":
                return ctx.command(lambda run: None)
            ctx.emitter.started(0)
            with pytest.raises(ValueError, match="runs already"):
                ctx.emitter.started(0)
            await ctx.emitter.stdout(0, "x")
            ctx.emitter.exited(4242, 1)  # never began
            return 0

        async def stop(self, ctx: golem.Context[Any]) -> None:
            assert ctx.emitter is not None
            ctx.emitter.exited(0, 3)
            await ctx.emitter.stdout(0, "over")
            ctx.emitter.exited(0, 4)

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            request = peer.run("x")
            assert await peer.reply(request) == wire.RunReply(0)
            assert await peer.ask(wire.RunProcess("next")) == wire.RunReply(1)  # as 0 still runs
            assert await peer.exit(1) == 0
            assert await peer.ask(wire.Shutdown()) == wire.ShutdownReply()
            assert peer.events(0) == [STARTED_0, out(0, b"x"), end(0, 3)]
            assert peer.said[0].id == request

    play(scenario())


def test_output_is_cut_and_waits_for_a_slow_reader_who_may_still_ask() -> None:
    size, written = 4 * 1024 * 1024, 0

    class Runtime(Methods):
        async def flood(self, run: golem.RunContext) -> None:
            nonlocal written
            for _ in range(16):
                await run.stdout(b"o" * (size // 16))
                written += size // 16
            await run.stderr(memoryview(b"e" * (wire.OUTPUT_MAX + 1)))

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            peer.read(False)
            peer.run("flood")
            await turns(1000)
            assert written <= HIGH_BYTES + size // 16 + (1 << 20)  # the pipe holds something too
            peer.read()
            assert await peer.exit(0) == 0
            assert b"".join(each.stdout for each in peer.events(0)) == b"o" * size
            assert max(len(each.stdout) for each in peer.events(0)) == wire.OUTPUT_MAX
            assert [len(each.stderr) for each in peer.events(0) if each.stderr] == [wire.OUTPUT_MAX, 1]

    play(scenario())


def test_who_asks_and_does_not_read_is_not_read_either() -> None:
    async def scenario() -> None:
        async with serving(Methods()) as peer:
            peer.read(False)
            hellos = bytes.fromhex("0b080212070a05302e312e30") * 1000
            sent = refused = 0
            os.set_blocking(peer._there, False)
            while refused < 50:
                assert sent < 1 << 23, "it keeps whatever it is asked"
                await turns(2)
                try:
                    sent += os.write(peer._there, hellos[sent % 12 :])
                    refused = 0
                except BlockingIOError:
                    refused += 1
            peer.read()
            await peer.until(lambda: len(peer.said) == sent // 12)

    play(scenario())


def test_counters_and_states_are_told_in_their_place() -> None:
    class Runtime(Methods):
        async def tell(self, run: golem.RunContext) -> None:
            await run.counter("golem.usage.c", 2.5)
            await run.counter("zero", 0)
            await run.state("st", {"b": 1, "a": [True, None]})

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            peer.run("tell")
            await peer.exit(0)
            assert [wire.frame(each).hex() for each in peer.said[2:5]] == [
                "1f0801aa011a12180a0d676f6c656d2e75736167652e63110000000000000440",
                "0d0801aa010812060a047a65726f",
                "240801aa011f0a1d0a02737412177b2261223a5b747275652c6e756c6c5d2c2262223a317d",
            ]

    play(scenario())


def test_a_command_can_be_cancelled_by_its_number() -> None:
    class Runtime(Methods):
        async def wait(self, run: golem.RunContext) -> None:
            await asyncio.Event().wait()

        async def kill_command(self, kill: golem.KillProcess, ctx: golem.Context[Any]) -> None:
            if not ctx.cancel(kill.pid):
                raise golem.HandlerError("no such command")

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            peer.run("wait")
            assert await peer.ask(wire.KillProcess(1, 9)) == wire.Error(1, "no such command")
            assert await peer.ask(wire.KillProcess(0, 9)) == wire.KillReply()
            assert await peer.exit(0) == 1
            assert await peer.ask(wire.KillProcess(0, 9)) == wire.Error(1, "no such command")

    play(scenario())


# --- Start --------------------------------------------------------------------------------------------------------


def test_what_start_returns_is_the_first_event_and_has_the_first_number() -> None:
    class Runtime(Methods):
        async def start(self, ctx: golem.Context[Any]) -> dict[str, str]:
            assert ctx.emitter is not None
            await ctx.emitter.counter("early", 1)
            await asyncio.sleep(0)
            return {"exampleProperty": "running"}

        async def quick(self, run: golem.RunContext) -> None:
            pass

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            peer.send(HELLO)
            assert await peer.reply(peer.run("quick")) == wire.RunReply(1)
            assert peer.said[0] == wire.Response(True, 0, out(0, b'{"exampleProperty":"running"}'))
            assert peer.raw.startswith(bytes.fromhex("260801a20121"))
            assert isinstance(peer.said[1].command, wire.RuntimeStatus)
            assert await peer.exit(1) == 0

    play(scenario())


@pytest.mark.parametrize(
    "error", [golem.HandlerError("no"), KeyError("x"), asyncio.CancelledError(), SystemExit(0), KeyboardInterrupt()]
)
def test_a_start_that_fails_says_nothing_on_the_stream(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    class Runtime(golem.Runtime):
        async def start(self, ctx: golem.Context[Any]) -> None:
            ctx.command(lambda run: run.stdout("never"))
            raise error

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            peer.send(HELLO)
            assert await peer.all() == 1
            assert peer.raw == b""

    play(scenario())
    assert "Failed to start the runtime: " in capsys.readouterr().err


# --- Ends ---------------------------------------------------------------------------------------------------------


class Stopping(Methods):
    """Its ``story`` is what happened; ``stop`` does as ``then`` says."""

    def __init__(self, then: str = "") -> None:
        self.then = then
        self.story: list[str] = []

    async def stop(self, ctx: golem.Context[Any]) -> None:
        self.story.append("stop")
        await asyncio.sleep(0)
        if self.then == "fail":
            raise golem.HandlerError("it is stuck", 5)
        if self.then == "hang":
            await asyncio.Event().wait()
        self.story.append("stopped")

    async def wait(self, run: golem.RunContext) -> None:
        self.story.append("wait")
        try:
            await asyncio.Event().wait()
        finally:
            self.story.append("cancelled")
            await run.stdout("bye")

    async def quick(self, run: golem.RunContext) -> None:
        self.story.append("quick")

    async def asks(self, run: golem.RunContext) -> str:
        run.control().shutdown()
        run.control().shutdown()
        return "last words"


def test_a_shutdown_stops_before_its_reply_and_the_runtime_serves_on_until_its_input_ends() -> None:
    async def scenario() -> None:
        async with serving(runtime := Stopping()) as peer:
            peer.run("wait")
            await peer.until(lambda: peer.events(0))
            assert await peer.ask(wire.Shutdown()) == wire.ShutdownReply()
            assert runtime.story == ["wait", "stop", "stopped", "cancelled"]
            assert peer.events(0) == [STARTED_0, out(0, b"bye"), end(0, 1)]
            assert peer.said[-1].command == wire.ShutdownReply()
            assert await peer.ask(HELLO) == GREETING
            assert await peer.hang_up() == 0
            assert runtime.story.count("stop") == 1

    play(scenario())


def test_commands_run_after_a_shutdown_and_then_it_is_stopped_again() -> None:
    async def scenario() -> None:
        async with serving(runtime := Stopping()) as peer:
            shutdown, run, again = peer.send(wire.Shutdown()), peer.run("quick"), peer.send(wire.Shutdown())
            assert await peer.reply(again) == wire.ShutdownReply()
            assert [each.id for each in peer.said if not each.event] == [shutdown, run, again]
            assert runtime.story == ["stop", "stopped", "quick", "stop", "stopped"]
            peer.run("quick")
            assert await peer.exit(1) == 0
            assert await peer.hang_up() == 0
            assert runtime.story[5:] == ["quick", "stop", "stopped"]

    play(scenario())


def test_a_stop_that_fails_is_the_reply_to_a_shutdown_and_is_tried_again() -> None:
    async def scenario() -> None:
        async with serving(runtime := Stopping("fail")) as peer:
            assert await peer.ask(wire.Shutdown()) == wire.Error(5, "it is stuck")
            assert await peer.ask(HELLO) == GREETING
            assert await peer.hang_up() == 1
            assert runtime.story == ["stop", "stop"]

    play(scenario())


def test_the_end_of_input_stops_the_runtime_and_all_that_runs() -> None:
    async def scenario() -> None:
        async with serving(runtime := Stopping()) as peer:
            peer.run("wait")
            await peer.until(lambda: peer.events(0))
            assert await peer.hang_up() == 0
            assert runtime.story == ["wait", "stop", "stopped", "cancelled"]
            await peer.all()
            assert peer.events(0)[-1] == end(0, 1)

    play(scenario())


def test_what_was_asked_before_the_end_of_input_is_answered() -> None:
    async def scenario() -> None:
        async with serving(runtime := Stopping()) as peer:
            hello, run = peer.send(HELLO), peer.run("quick")
            assert await peer.hang_up() == 0
            await peer.all()
            assert {each.id for each in peer.said if not each.event} == {hello, run}
            assert peer.events(0) == [STARTED_0, end(0)]
            assert runtime.story == ["quick", "stop", "stopped"]

    play(scenario())


def test_the_end_of_input_ends_a_start_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who would have asked is gone: a start that waits for something would stay for ever."""
    monkeypatch.setattr("posemesh.golem.serve.START_SECS", 0.01)

    class Runtime(Stopping):
        async def start(self, ctx: golem.Context[Any]) -> None:
            await asyncio.Event().wait()

    async def scenario() -> None:
        async with serving(runtime := Runtime()) as peer:
            peer.send(HELLO)
            assert await peer.hang_up() == 1
            assert peer.raw == b""
            assert runtime.story == ["stop", "stopped"]

    play(scenario())


def test_what_was_piped_in_is_answered_where_the_start_is_over_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posemesh.golem.serve.START_SECS", PATIENCE_SECS)
    monkeypatch.setattr("posemesh.golem.serve.EARLY_MAX", 20)

    class Runtime(Stopping):
        async def start(self, ctx: golem.Context[Any]) -> None:
            self.may_go_on = asyncio.Event()
            await self.may_go_on.wait()

    async def scenario() -> None:
        async with serving(runtime := Runtime()) as peer:
            asked = [peer.send(HELLO), peer.run("quick")]
            await turns(10)
            asked.append(peer.send(HELLO))
            peer.end_input()
            await turns(10)
            assert peer.raw == b""
            runtime.may_go_on.set()
            assert await peer.all() == 0
            assert {each.id for each in peer.said if not each.event} == {*asked}
            assert runtime.story == ["quick", "stop", "stopped"]

    play(scenario())


def test_a_handler_that_exits_ends_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    """Parsers of arguments do that. A program that ended with 0 would be taken for a start, a run, that went well."""

    class Runtime(Stopping):
        async def join_network(self, network: wire.CreateNetwork, ctx: golem.Context[Any]) -> None:
            sys.exit(0)

        async def kill_command(self, kill: wire.KillProcess, ctx: golem.Context[Any]) -> None:
            raise KeyboardInterrupt

        def stop(self, ctx: golem.Context[Any]) -> Any:
            self.story.append("stop")
            sys.exit(3)

    async def scenario() -> None:
        async with serving(runtime := Runtime()) as peer:
            text = "The handler wanted to end the program, with exit code"
            assert await peer.ask(wire.CreateNetwork()) == wire.Error(1, f"{text} 0")
            assert await peer.ask(wire.KillProcess()) == wire.Error(1, "KeyboardInterrupt")
            assert await peer.ask(wire.Shutdown()) == wire.Error(1, f"{text} 3")
            assert await peer.ask(HELLO) == GREETING
            assert await peer.hang_up() == 1
            assert runtime.story == ["stop", "stop"]

    play(scenario())
    assert "SystemExit" in capsys.readouterr().err


def test_a_stop_that_hangs_ends_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posemesh.golem.serve.STOP_SECS", 0.01)
    monkeypatch.setattr("posemesh.golem.serve.SHUTDOWN_SECS", 0.01)

    async def scenario() -> None:
        async with serving(runtime := Stopping("hang")) as peer:
            assert await peer.ask(wire.Shutdown()) == wire.Error(1, "stop took longer than 0.01 s")
            assert await peer.hang_up() == 1
            assert runtime.story == ["stop", "stop"]

    play(scenario())


def test_a_runtime_that_ends_itself_says_first_what_there_is_to_say() -> None:
    async def scenario() -> None:
        async with serving(runtime := Stopping()) as peer:
            peer.run("asks")
            assert await peer.all() == 0
            assert peer.events(0) == [STARTED_0, out(0, b'"last words"'), end(0)]
            assert runtime.story == ["stop", "stopped"]

    play(scenario())


def test_a_start_may_end_it_too() -> None:
    class Runtime(Stopping):
        async def start(self, ctx: golem.Context[Any]) -> str:
            ctx.control().shutdown()
            return "in vain"

    async def scenario() -> None:
        async with serving(runtime := Runtime()) as peer:
            assert await peer.all() == 0
            assert peer.events(0) == [out(0, b'"in vain"')]
            assert runtime.story == ["stop", "stopped"]

    play(scenario())


@pytest.mark.parametrize(
    "garbage",
    ["ff" * 12, "040f006200", "07080212030a01ff", "040805627f", "050a01416200", "ffffffff7f"],
)
def test_input_that_is_no_request_ends_it_after_what_came_before(
    garbage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        async with serving(runtime := Stopping()) as peer:
            hello = wire.frame(wire.Request(7, HELLO))
            peer.write(hello + bytes.fromhex(garbage) + hello)
            assert await peer.all() == 1
            assert peer.said == [wire.Response(False, 7, GREETING)]
            assert runtime.story == ["stop", "stopped"]

    play(scenario())
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: Undecodable input: ") and printed.out == ""


def test_input_that_ends_within_a_request_is_no_good_end(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with serving(Methods()) as peer:
            peer.write(bytes.fromhex("0b0802"))
            assert await peer.hang_up() == 1

    play(scenario())
    assert "ended within a request, after 3 bytes" in capsys.readouterr().err


def test_output_that_nobody_reads_ends_it_though_a_command_goes_on_writing() -> None:
    class Runtime(Stopping):
        async def floods(self, run: golem.RunContext) -> None:
            while True:
                await run.stdout(b"x" * 100_000)

    async def scenario() -> None:
        async with serving(runtime := Runtime()) as peer:
            peer.run("floods")
            await peer.until(lambda: len(peer.events(0)) > 3)
            peer.read(False)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, peer._back)  # closes the pipe's end
            os.close(null)
            assert await peer.exit_code == 1
            assert runtime.story == ["stop", "stopped"]

    play(scenario())


def test_handlers_get_one_context(tmp_path: Any) -> None:
    seen: list[golem.Context[Any]] = []

    class Runtime(golem.Runtime):
        async def start(self, ctx: golem.Context[Any]) -> None:
            seen.append(ctx)

        async def stop(self, ctx: golem.Context[Any]) -> None:
            seen.append(ctx)

    async def scenario() -> None:
        async with serving(Runtime()) as peer:
            await peer.ask(wire.Shutdown())

    play(scenario())
    ctx, other = seen
    assert ctx is other and ctx.control() is ctx.control()
    assert (ctx.conf, str(ctx.conf_path), ctx.cli.command) == ({"its": "conf"}, "/nowhere/conf.json", "start")
    ctx.write_config({"a": 1}, tmp_path / "a.yml")
    assert ctx.read_config(str(tmp_path / "a.yml")) == {"a": 1}
