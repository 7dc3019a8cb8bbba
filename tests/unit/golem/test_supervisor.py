"""The supervisor with a runtime that knows nothing of posemesh: what it asks, what it makes of that, what is left."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from posemesh.golem.command import HELD_MAX
from posemesh.golem.supervisor import (
    Counter,
    GolemError,
    Output,
    RuntimeEnded,
    RuntimeGarbled,
    RuntimeMode,
    RuntimeRefused,
    RuntimeSilent,
    State,
    StepFailed,
    Supervisor,
    Volume,
)
from posemesh.machines.activity import OutOfOrder
from posemesh.wire import golem as wire

from ..runners.executors.processes import finished, wait_until
from .supervising import SHORT_SECS, Stub, events, output, stub

__all__ = ("stub",)


async def ready(runtime: Supervisor) -> Supervisor:
    await runtime.deploy()
    await runtime.start()
    return runtime


# --- Steps ----------------------------------------------------------------------------------------------------------


def test_a_runtime_from_its_test_to_its_stop(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor() as runtime:
            await runtime.test()
            assert (await runtime.offer_template()).properties == {"a.b": 1}
            deployed = await runtime.deploy()
            assert (deployed.mode, deployed.message) == (RuntimeMode.SERVER, "ready")
            assert deployed.volumes == (Volume("vol-in", "/in"), Volume("vol-out", "/out"))
            assert deployed.custom == {"more": 1}
            assert (stub.workdir / "vol-in").is_dir()
            assert await runtime.start() == b'{"exampleProperty":"running"}'
            assert await output(await runtime.run("/bin/echo", ["one", "two"])) == {"stdout": b"one two", "stderr": b""}
            await runtime.stop()
            await runtime.deploy()  # it is back where it began

    finished(test)
    work = ["--workdir", str(stub.workdir)]
    here = str(Path.cwd())
    assert stub.argv() == [
        ["test", here],
        ["offer-template", here],
        [*work, "deploy", "--", str(stub.workdir)],
        [*work, "start", str(stub.workdir)],
        [*work, "deploy", "--", str(stub.workdir)],
    ]


def test_a_runtime_of_commands(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor("command", mode=RuntimeMode.COMMAND) as runtime:
            await runtime.deploy()
            assert await runtime.start(["-x"]) == b"{}"
            command = await runtime.run("/bin/sh", ["-c", "echo one; echo two >&2; exit 3"])
            assert await output(command) == {"stdout": b"one\n", "stderr": b"two\n"}
            assert (command.pid, command.code) == (None, 3)
            killed = await runtime.run("/bin/sh", ["-c", "kill -9 $$"])
            assert await killed.wait() == -1
            sleeping = await runtime.run("/bin/sleep", ["1000"])
            await sleeping.kill()
            assert await sleeping.wait() == -1
            deaf = await runtime.run("/bin/sh", ["-c", "trap '' TERM; echo; while :; do sleep 1000; done"])
            assert await anext(deaf) == Output("stdout", b"\n")
            await runtime.stop(SHORT_SECS)
            assert deaf.code == -1

    finished(test)
    common = ["--workdir", str(stub.workdir), "--be", "command"]
    assert stub.argv()[1] == [*common, "start", "--", "-x", str(stub.workdir)]
    assert stub.argv()[3] == [
        *common, "run", "--entrypoint", "/bin/sh", "--", "-c", "kill -9 $$", str(stub.workdir)
    ]  # fmt: skip


def test_output_of_a_process_waits_until_it_is_read(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor("command") as runtime:
            await ready(runtime)
            command = await runtime.run("/bin/sh", ["-c", f"head -c {8 * HELD_MAX} /dev/zero; echo end >&2"])
            wrote = await output(command)
            assert len(wrote["stdout"]) == 8 * HELD_MAX and wrote["stderr"] == b"end\n"
            assert await (await runtime.run("/bin/sh", ["-c", f"head -c {8 * HELD_MAX} /dev/zero"])).wait() == 0

    finished(test)


@pytest.mark.parametrize(
    ("be", "error", "text"),
    [
        ("{} hangs", RuntimeSilent, "did not end within 0.5 s"),
        ("{} fails", StepFailed, "ended with exit code 1; its stderr: it does not work here"),
        ("{} floods", RuntimeGarbled, "expected at most 4194304 bytes"),
    ],
)
@pytest.mark.parametrize("step", ["test", "offer-template", "deploy"])
def test_a_step_that_goes_wrong_is_an_error_in_time(
    stub: Stub, step: str, be: str, error: type[GolemError], text: str
) -> None:
    async def test() -> None:
        limits = dict.fromkeys(("test", "offer", "deploy"), SHORT_SECS) if "hangs" in be else {}
        runtime = stub.supervisor(be.format(step), timeouts=limits)
        with pytest.raises(error) as raised:
            await getattr(runtime, step.replace("-", "_"))()
        assert raised.value.step == step and text in str(raised.value)

    finished(test)


def test_what_cannot_be_started_is_an_error(stub: Stub) -> None:
    async def test() -> None:
        stub.binary.chmod(0o644)
        with pytest.raises(RuntimeEnded, match="could not be started"):
            await stub.supervisor().test()
        stub.binary.unlink()
        with pytest.raises(RuntimeEnded, match="could not be started"):
            await stub.supervisor().deploy()

    finished(test)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ('{"valid": {"Err": "no image"}}', StepFailed),
        ('{"valid": {"Ok": ""}, "startMode": "empty"}', StepFailed),
        ("deployed", RuntimeGarbled),
    ],
)
def test_a_deploy_must_say_that_it_went_well(stub: Stub, said: str, error: type[GolemError]) -> None:
    async def test() -> None:
        with pytest.raises(error):
            await stub.supervisor(f"deploy says {said}", mode=RuntimeMode.SERVER).deploy()

    finished(test)


# --- Start ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("be", "error", "text"),
    [
        ("die", RuntimeEnded, "ended with exit code 1 before it had answered; its stderr: cannot start"),
        ("text", RuntimeSilent, "12 bytes of a frame, where nothing but frames belongs"),
        ("mute", RuntimeSilent, "start: the runtime did not answer within 0.5 s"),
        ("flood", RuntimeSilent, "did not answer"),
    ],
)
def test_a_start_that_goes_wrong_is_an_error_in_time(stub: Stub, be: str, error: type[GolemError], text: str) -> None:
    async def test() -> None:
        runtime = stub.supervisor(be, timeouts={"start": SHORT_SECS} if error is RuntimeSilent else {})
        await runtime.deploy()
        with pytest.raises(error) as raised:
            await runtime.start()
        assert text in str(raised.value)
        assert not stub.living()

    finished(test)


# --- Commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "seen", "code"),
    [
        ("echo", [Output("stdout", b"x")], 0),
        ("both", [Output("stdout", b"a"), Output("stderr", b"b"), Output("stdout", b"end")], 0),
        ("fail", [Output("stderr", b"no\n")], 3),
        ("early", [Output("stdout", b"early")], 4),
        ("numbered", [Output("stdout", b"x")], 0),
        ("late", [], 0),
        ("usage", [Counter("golem.usage.c", 2.5), State("st", {"a": [True, None], "b": 1})], 0),
    ],
)
def test_what_a_command_says_and_how_it_ends(stub: Stub, program: str, seen: list[Any], code: int) -> None:
    async def test() -> None:
        async with stub.supervisor() as runtime:
            await ready(runtime)
            for _ in range(3):  # what comes late is not taken for the next one's
                command = await runtime.run(f"/bin/{program}", ["x"])
                assert (await events(command), command.code) == (seen, code)

    finished(test)


def test_a_refusal_hurts_nothing(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor("unkillable") as runtime:
            await ready(runtime)
            with pytest.raises(RuntimeRefused, match="Not supported") as raised:
                await runtime.run("refuse")
            assert (raised.value.step, raised.value.code) == ("run", 1)
            command = await runtime.run("sleep")
            with pytest.raises(RuntimeRefused):
                await command.kill()
            assert await (await runtime.run("echo")).wait() == 0
            assert not command.over

    finished(test)


def test_commands_run_side_by_side_and_are_killed(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor() as runtime:
            await ready(runtime)
            commands = [await runtime.run("sleep") for _ in range(40)]  # numbers below 128 are all that the stub has
            assert await (await runtime.run("echo")).wait() == 0
            for command in commands:
                await command.kill(signal.SIGTERM)
                assert await command.wait() == 1

    finished(test)


def test_what_comes_out_of_turn_is_refused_and_the_runtime_not_asked(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor() as runtime:
            with pytest.raises(OutOfOrder, match=r"Activity is initialized - deploy\(\) command is expected now"):
                await runtime.start()
            await runtime.deploy()
            with pytest.raises(OutOfOrder, match=r"Activity is deployed - start\(\) command is expected now"):
                await runtime.run("echo")
            await runtime.start()
            with pytest.raises(OutOfOrder, match=r"Cannot send command after a successful start\(\)"):
                await runtime.deploy()
            command = await runtime.run("sleep")
            assert runtime.state == "running"
            await command.kill()
            await command.ended()
            assert runtime.state == "ready"

    finished(test)
    assert len(stub.argv()) == 2


def test_a_failed_step_leaves_nothing_but_a_stop(stub: Stub) -> None:
    async def test() -> None:
        runtime = stub.supervisor("deploy fails")
        with pytest.raises(StepFailed):
            await runtime.deploy()
        for step in (runtime.deploy, runtime.start, lambda: runtime.run("echo")):
            with pytest.raises(OutOfOrder, match="Activity is failed"):
                await step()
        await runtime.stop()
        assert runtime.state == "initialized"

    finished(test)


def test_a_stop_interrupts_a_step(stub: Stub) -> None:
    async def test() -> None:
        runtime = stub.supervisor("mute")
        await runtime.deploy()
        starting = asyncio.create_task(runtime.start())
        await stub.begun()
        await runtime.stop()
        with pytest.raises(GolemError, match="start: the runtime was told to stop"):
            await starting
        assert not stub.living() and runtime.state == "initialized"

    finished(test)


def test_a_network_has_an_endpoint(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor() as runtime:
            await ready(runtime)
            networks = [wire.Network(addr="10.0.0.1", mask="255.0.0.0")]
            endpoint = await runtime.join_network(networks, {"a": "10.0.0.2"})
            assert endpoint == wire.Endpoint("udp_datagram", "127.0.0.1:5000")

    finished(test)


@pytest.mark.parametrize("entrypoint", ["", "/", "..", "/bin/.."])
def test_an_entry_point_names_a_file(stub: Stub, entrypoint: str) -> None:
    async def test() -> None:
        async with stub.supervisor() as runtime:
            await ready(runtime)
            with pytest.raises(ValueError, match="entry point"):
                await runtime.run(entrypoint)

    finished(test)


# --- Trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "error", "text"),
    [
        ("die", RuntimeEnded, "run: the runtime ended with exit code 7 before it had answered; its stderr: it broke"),
        ("mute", RuntimeSilent, "run: the runtime did not answer within 0.5 s"),
        ("text", RuntimeSilent, "bytes of a frame, where"),
        ("garbage", RuntimeGarbled, "is no frames"),
        ("wrong", RuntimeGarbled, "expected a RunReply"),
        ("close", RuntimeEnded, "as it had closed its stdout"),
        ("unasked", RuntimeGarbled, "before the reply that says whose they are"),
    ],
)
def test_a_run_that_goes_wrong_is_an_error_in_time(stub: Stub, program: str, error: type[Exception], text: str) -> None:
    async def test() -> None:
        async with stub.supervisor(timeouts={"reply": SHORT_SECS} if error is RuntimeSilent else {}) as runtime:
            await ready(runtime)
            with pytest.raises(error) as raised:
                await runtime.run(program)
            assert text in str(raised.value)

    finished(test)


def test_a_runtime_that_is_killed_ends_its_commands(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor() as runtime:
            await ready(runtime)
            other = await runtime.run("sleep")
            command = await runtime.run("crash")
            assert await anext(command) == Output("stdout", b"half")
            with pytest.raises(RuntimeEnded, match="was killed by SIGKILL while it served") as raised:
                await anext(command)
            assert raised.value.signal == "SIGKILL"
            with pytest.raises(RuntimeEnded):
                await other.wait()
            assert (command.over, command.code) == (True, None)
            with pytest.raises(GolemError):
                await runtime.run("echo")

    finished(test)


def test_two_commands_with_one_number_are_an_error(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor() as runtime:
            await ready(runtime)
            await runtime.run("twice")
            with pytest.raises(RuntimeGarbled, match="which is in use"):
                await runtime.run("twice")

    finished(test)


@pytest.mark.parametrize("limit", [None, SHORT_SECS / 10])
def test_a_run_that_was_given_up_is_killed_when_it_begins(stub: Stub, limit: float | None) -> None:
    async def test() -> None:
        async with stub.supervisor(timeouts={} if limit is None else {"reply": SHORT_SECS / 10}) as runtime:
            await ready(runtime)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(runtime.run("slow", [str(SHORT_SECS)]), SHORT_SECS / 20 if limit is None else 99)
            assert runtime.state == "ready"
            await stub.told(b"kill 1\n")

    finished(test)


@pytest.mark.slow
def test_a_run_that_is_given_up_as_it_begins_is_killed(stub: Stub) -> None:
    """Its reply was there, and whoever had asked was cancelled before it could take it."""

    async def test() -> None:
        async with stub.supervisor() as runtime:
            await ready(runtime)
            asked = asyncio.create_task(runtime.run("flood"))
            link: Any = runtime._link
            while not link._running:  # noqa: ASYNC110
                await asyncio.sleep(0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert all(command._dropping for command in link.commands)

    finished(test)


def test_output_that_nobody_reads_waits_in_the_runtime(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor(timeouts={"reply": SHORT_SECS}) as runtime:
            await ready(runtime)
            command = await runtime.run("bytes", [str(32 * HELD_MAX), "49152"])
            with pytest.raises(RuntimeSilent, match=r"the output of its commands \[1\] is not read"):
                await runtime.run("echo")
            assert command._held <= HELD_MAX + 65536
            assert len((await output(command))["stdout"]) >= 32 * HELD_MAX

    finished(test)


def test_endless_output_is_killed(stub: Stub) -> None:
    async def test() -> None:
        async with stub.supervisor("unkillable") as runtime:
            await ready(runtime)
            command = await runtime.run("flood")
            assert isinstance(await anext(command), Output)
            await runtime.stop(SHORT_SECS)
            assert not stub.living()
            with pytest.raises(RuntimeEnded):
                await command.wait()

    finished(test)


# --- The end --------------------------------------------------------------------------------------------------------


def test_a_stop_that_fails_is_told_when_all_is_gone(stub: Stub) -> None:
    async def test() -> None:
        runtime = await ready(stub.supervisor("unstoppable"))
        with pytest.raises(RuntimeRefused, match="cannot stop"):
            await runtime.stop()
        assert not stub.living()

    finished(test)


def test_a_runtime_that_does_not_stop_is_killed(stub: Stub) -> None:
    async def test() -> None:
        runtime = await ready(stub.supervisor("stubborn", timeouts={"stop": SHORT_SECS}))
        wait_until(lambda: len(stub.living()) == 2)
        await runtime.stop()
        assert not stub.living()

    finished(test)


def test_a_cancelled_step_leaves_nothing(stub: Stub) -> None:
    async def test() -> None:
        for be, work in (("deploy hangs", Supervisor.deploy), ("mute", ready)):
            task = asyncio.create_task(work(stub.supervisor(be)))  # type: ignore[operator]
            await stub.begun()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not stub.living()

    finished(test)


def test_a_start_that_is_cancelled_anywhere_leaves_nothing(stub: Stub) -> None:
    """Once it could be left, where it had begun and its pipes were not yet connected."""

    async def test() -> None:
        for turns in range(0, 40, 3):
            runtime = stub.supervisor("mute")
            await runtime.deploy()
            starting = asyncio.create_task(runtime.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            await runtime.stop()
            with pytest.raises(GolemError):
                await starting
            assert not stub.living()

    finished(test)


def test_a_killed_supervisor_leaves_nothing(stub: Stub) -> None:
    pid = os.fork()
    if pid == 0:
        try:

            async def test() -> None:
                await ready(stub.supervisor())
                os.kill(os.getpid(), signal.SIGKILL)

            asyncio.run(test())
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
