"""The scheduler against the real engine, with time and commands in the test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from random import Random
from typing import Any

import pytest

from posemesh import NodeConfig, telemetry
from posemesh.commands import Command, Register, SignIn, Warn
from posemesh.engine import Engine
from posemesh.errors import IllegalTransition
from posemesh.events import (
    Event,
    Failure,
    NodeStarted,
    RegistrationAccepted,
    RegistrationRejected,
    SignedIn,
    SignInFailed,
)
from posemesh.secret import Secret
from posemesh.shell.scheduler import Scheduler
from posemesh.testing import LoopClock, ManualClock, run_virtual

CONFIG = NodeConfig(reg_secret=Secret("x" * 8), secp256k1_privhex=Secret("aa" * 32))
BUSY = RegistrationRejected(failure=Failure(message="503", status=503))


class Rig:
    """``commands`` in order; ``on_command`` may answer at once, as a fast executor would."""

    def __init__(self, clock: Any = None, engine: Any = None) -> None:
        self.engine = engine or Engine(CONFIG, ["/a/v1"], Random(1))
        self.commands: list[Command] = []
        self.moves: list[str] = []
        self.on_command: Callable[[Command], None] = lambda command: None
        self.scheduler = Scheduler(
            self.engine,
            clock or LoopClock(),
            self._execute,
            lambda moved: self.moves.extend(f"{each.machine}:{each.dest}" for each in moved),
            lambda ended: None,
        )

    def _execute(self, command: Command) -> None:
        self.commands.append(command)
        self.on_command(command)

    @property
    def kinds(self) -> list[str]:
        return [type(command).__name__ for command in self.commands if not isinstance(command, Warn)]


@pytest.fixture
def log() -> Iterator[list[str]]:
    logger = telemetry.logger()
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level="WARNING", format="{message}")
    logger.enable("posemesh")
    yield lines
    logger.disable("posemesh")
    logger.remove(sink)


def virtually(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    run_virtual(main(), limit=86_400)


def test_an_event_becomes_its_commands() -> None:
    async def test() -> None:
        rig = Rig()
        rig.scheduler.post(NodeStarted())
        assert rig.commands == [Register()]
        assert rig.moves == ["registration:registering"]

    virtually(test)


def test_what_a_command_posts_at_once_waits_its_turn() -> None:
    """The step that gave the command is over before the next begins."""

    async def test() -> None:
        rig = Rig()
        depth = 0

        def answer(command: Command) -> None:
            nonlocal depth
            depth += 1
            assert depth == 1
            if isinstance(command, Register):
                rig.scheduler.post(RegistrationAccepted())
            elif isinstance(command, SignIn):
                rig.scheduler.post(SignedIn(token=Secret("token-1"), ttl=100.0))
            depth -= 1

        rig.on_command = answer
        rig.scheduler.post(NodeStarted())
        assert rig.kinds == ["Register", "SignIn", "Ask"]

    virtually(test)


def test_a_step_does_not_run_in_the_context_of_whoever_posts() -> None:
    """A log line of one task named another one, whose message had set the timer."""

    async def test() -> None:
        about = ContextVar("about", default="the node")
        rig = Rig()
        seen: list[str] = []
        rig.on_command = lambda command: seen.append(about.get())
        about.set("a task")
        rig.scheduler.post(NodeStarted())
        rig.scheduler.post(BUSY)
        await asyncio.sleep(600)
        assert rig.kinds[:2] == ["Register", "Register"], "the second by a timer"
        assert set(seen) == {"the node"}

    virtually(test)


def test_timers_fire_at_their_deadlines() -> None:
    async def test() -> None:
        rig = Rig()
        loop = asyncio.get_running_loop()
        rig.scheduler.post(NodeStarted())
        for expected in (2, 4, 8, 16):
            rig.scheduler.post(BUSY)
            began, count = loop.time(), len(rig.commands)
            deadline = rig.engine.next_deadline()
            assert deadline is not None
            await asyncio.sleep(deadline - began - 0.001)
            assert len(rig.commands) == count
            await asyncio.sleep(0.002)
            assert len(rig.commands) == count + 1
            assert 0.8 * expected <= deadline - began <= 1.2 * expected

    virtually(test)


def test_a_timer_that_fires_early_counts_as_due() -> None:
    """Loops round: a timer a hair early must not be asked again and again until its time."""

    async def test() -> None:
        clock = ManualClock()
        rig = Rig(clock)
        rig.scheduler.post(NodeStarted())
        rig.scheduler.post(BUSY)
        await asyncio.sleep(10)  # the loop's timer fires; the node's clock stands still
        assert rig.kinds == ["Register", "Register"]

    virtually(test)


def test_a_timer_that_moved_does_not_fire_at_its_old_time() -> None:
    async def test() -> None:
        rig = Rig()
        rig.scheduler.post(NodeStarted())
        rig.scheduler.post(RegistrationAccepted())
        rig.scheduler.post(SignedIn(token=Secret("token-1"), ttl=1000.0))
        loop = asyncio.get_running_loop()
        handles = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        assert len(handles) == 1
        await asyncio.sleep(0)

    virtually(test)


def test_an_event_without_a_place_is_logged_and_the_node_goes_on(log: list[str]) -> None:
    async def test() -> None:
        rig = Rig()
        rig.scheduler.post(RegistrationAccepted())
        assert "registration in state 'idle' has no edge for RegistrationAccepted" in log[0]
        rig.scheduler.post(NodeStarted())
        rig.scheduler.post(BUSY)
        rig.scheduler.post(SignInFailed(failure=Failure(message="late")))
        assert len(log) == 2, "Warn is for the executor"
        await asyncio.sleep(5)
        assert rig.kinds == ["Register", "Register"]

    virtually(test)


class Broken:
    """An engine with a fault of its own, and a timer."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.moved: list[Any] = []
        self.ended: list[Any] = []
        self.deadlines = [5.0, 10.0, 15.0]
        self.elapsed: list[float] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        raise self.error

    def elapse(self, now: float) -> list[Command]:
        self.elapsed.append(now)
        self.deadlines = [at for at in self.deadlines if at > now]
        raise self.error

    def next_deadline(self) -> float | None:
        return min(self.deadlines, default=None)


@pytest.mark.parametrize("error", [AssertionError("no"), KeyError(5), IllegalTransition("lease", "lost", "X")])
def test_a_fault_of_the_engine_does_not_stop_its_timers(error: Exception, log: list[str]) -> None:
    async def test() -> None:
        engine = Broken(error)
        rig = Rig(engine=engine)
        rig.scheduler.post(NodeStarted())
        await asyncio.sleep(100)
        assert engine.elapsed == [5.0, 10.0, 15.0]
        assert len(log) == 4

    virtually(test)


class Moving:
    """An engine whose next deadline is in the test's hand."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.moved: list[Any] = []
        self.ended: list[Any] = []
        self.elapsed: list[float] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        return []

    def elapse(self, now: float) -> list[Command]:
        self.elapsed.append(now)
        self.deadline = None
        return []

    def next_deadline(self) -> float | None:
        return self.deadline


def test_a_deadline_that_moves_away_leaves_its_timer_and_one_that_comes_nearer_is_kept() -> None:
    """Most steps move it away, and a timer made anew at each of them costs more than one that finds nothing due."""

    async def test() -> None:
        engine, loop = Moving(), asyncio.get_running_loop()
        rig = Rig(engine=engine)

        def timers(deadline: float | None) -> list[float]:
            engine.deadline = deadline
            rig.scheduler.post(NodeStarted())
            scheduled = loop._scheduled  # type: ignore[attr-defined]
            return [handle.when() for handle in scheduled if not handle.cancelled()]

        assert [timers(at) for at in (5.0, 20.0, None, 9.0, 3.0)] == [[5.0], [5.0], [5.0], [5.0], [3.0]]
        assert timers(30.0) == [3.0]
        await asyncio.sleep(25)
        assert engine.elapsed == []
        assert timers(28.0) == [28.0]
        await asyncio.sleep(100)
        assert engine.elapsed == [28.0]

    virtually(test)


def test_nothing_happens_after_the_close() -> None:
    async def test() -> None:
        rig = Rig()
        rig.scheduler.post(NodeStarted())
        rig.scheduler.post(BUSY)
        rig.scheduler.close()
        rig.scheduler.post(BUSY)
        await asyncio.sleep(100)
        assert rig.kinds == ["Register"]
        rig.scheduler.close()

    virtually(test)


def test_a_close_in_the_middle_of_a_step_ends_it() -> None:
    async def test() -> None:
        rig = Rig()

        def close(command: Command) -> None:
            rig.scheduler.post(BUSY)
            rig.scheduler.close()

        rig.on_command = close
        rig.scheduler.post(NodeStarted())
        await asyncio.sleep(100)
        assert rig.kinds == ["Register"]

    virtually(test)
