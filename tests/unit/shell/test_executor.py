"""Every command that is answered ends in exactly one event of those it names, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from posemesh import telemetry
from posemesh.commands import (
    AnswerCallback,
    Answered,
    Ask,
    Command,
    CommitAccepted,
    CommitOutcome,
    GiveUp,
    Leave,
    OfferOutcome,
    Register,
    SendHeartbeat,
    SettleOutcome,
    SignIn,
    StartRunner,
    StopRunner,
    StoreSecret,
    UpdateLease,
    Warn,
)
from posemesh.errors import NodeStartError
from posemesh.events import (
    CommitFailed,
    Committed,
    LeaseOffered,
    NoWork,
    RunnerFailed,
    RunnerFinished,
    SecretStored,
    SecretUnstored,
)
from posemesh.runners.metrics import noop_metrics
from posemesh.secret import Secret
from posemesh.shell.executor import Executor
from posemesh.shell.secrets import MemorySecretStore
from posemesh.testing import run_virtual
from posemesh.types import LeaseEnvelope, Outcome, OutcomeKind, TaskIdentity, TaskSpec

from ...registering import registering

ENVELOPE = LeaseEnvelope(task=TaskSpec(id=UUID(int=1), capability="/a/v1"), access_token=Secret("t1"))
OUTCOME = Outcome(kind=OutcomeKind.COMPLETED, task=TaskIdentity(task_id="1"))
ANSWERED: list[Answered] = [
    Register(),
    SignIn(),
    Ask(token=Secret("n")),
    SendHeartbeat(lease=1, task_id="1", progress={}, events=(), timeout=1.0),
    OfferOutcome(lease=1, outcome=OUTCOME),
    StartRunner(lease=1, envelope=ENVELOPE),
    CommitAccepted(lease=1, envelope=ENVELOPE),
    CommitOutcome(lease=1, outcome=OUTCOME),
    StoreSecret(request=1, node_id="n", secret=Secret("s")),
]


class Failing:
    """Whatever is called of it raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def fail(*args: Any) -> Any:
            raise self.error

        return fail


class NoStorage:
    artifacts = ()

    def workspace(self) -> Path:
        raise AssertionError("nobody asks for it here")

    def stop(self) -> None: ...

    async def close(self) -> None:
        pass


class Noted:
    """A ledger that takes everything down at once."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self.owed: dict[str, Outcome] = {}

    def commit_accepted(self, lease: int, envelope: LeaseEnvelope) -> None:
        self.notes.append((lease, envelope))

    def commit_outcome(self, lease: int, outcome: Outcome, name: str = "") -> None:
        self.notes.append((lease, outcome, name))

    def settle(self, lease: int, ending: str, problem: str = "") -> None:
        self.notes.append((lease, ending, problem))

    def undelivered(self, task_id: str) -> Outcome | None:
        return self.owed.get(task_id)


async def all_stand(envelope: LeaseEnvelope, artifacts: object) -> bool:
    return True


class Rig:
    def __init__(self, **parts: Any) -> None:
        self.posted: list[Any] = []
        self.left: list[NodeStartError | None] = []
        given = {
            "network": Failing(OSError("no network")),
            "ledger": Noted(),
            "secrets": MemorySecretStore(),
            "registry": registering({}),
            "metrics": noop_metrics(),
            "storage": lambda host: NoStorage(),
            "stands": all_stand,
        }
        self.executor = Executor(**(given | parts), post=self.posted.append, left=self.left.append)

    async def answer(self, command: Command) -> Any:
        self.executor.execute(command)
        async with asyncio.timeout(10):
            while not self.posted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        (event,) = self.posted
        self.posted.clear()
        return event


def virtually(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    run_virtual(main(), limit=3600)


@pytest.fixture
def log() -> Iterator[list[str]]:
    logger = telemetry.logger()
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level="WARNING", format="{level} {message}")
    logger.enable("posemesh")
    yield lines
    logger.disable("posemesh")
    logger.remove(sink)


def test_all_kinds_of_answered_commands_are_looked_at() -> None:
    assert {type(command).__name__ for command in ANSWERED} == {
        kind.__name__ for kind in _below(Answered) if kind.answers
    }


def _below(kind: type[Any]) -> set[type[Any]]:
    return {below for direct in kind.__subclasses__() for below in {direct, *_below(direct)}}


@pytest.mark.parametrize("command", ANSWERED, ids=lambda command: type(command).__name__)
@pytest.mark.parametrize("error", [OSError("broken"), asyncio.CancelledError("by the library"), AssertionError()])
def test_what_fails_is_answered_once(command: Answered, error: BaseException) -> None:
    async def test() -> None:
        def no_storage(host: Any) -> Any:
            raise error

        failing = Failing(error)
        rig = Rig(network=failing, ledger=failing, secrets=failing, storage=no_storage)
        assert type(await rig.answer(command)) in command.answers

    virtually(test)


def test_an_answer_is_passed_on() -> None:
    class Network:
        async def ask(self, command: Ask) -> NoWork:
            return NoWork(retry_after=3.0)

    async def test() -> None:
        assert await Rig(network=Network()).answer(Ask()) == NoWork(retry_after=3.0)

    virtually(test)


def test_commits_are_answered_when_they_are_on_record() -> None:
    async def test() -> None:
        ledger = Noted()
        rig = Rig(ledger=ledger)
        assert await rig.answer(CommitAccepted(lease=1, envelope=ENVELOPE)) == Committed(lease=1)
        assert await rig.answer(CommitOutcome(lease=1, outcome=OUTCOME)) == Committed(lease=1)
        rig.executor.execute(SettleOutcome(lease=1, ending="refused", problem="410"))
        assert ledger.notes == [(1, ENVELOPE), (1, OUTCOME, ""), (1, "refused", "410")]

    virtually(test)


def test_a_ledger_may_take_its_time_or_refuse_at_once() -> None:
    class Slow:
        async def commit_accepted(self, lease: int, envelope: object) -> None:
            await asyncio.sleep(5)

        def commit_outcome(self, lease: int, outcome: object, name: str = "") -> None:
            raise OSError("the disk is full")

    async def test() -> None:
        rig = Rig(ledger=Slow())
        rig.executor.execute(CommitAccepted(lease=1, envelope=ENVELOPE))
        assert rig.posted == []
        await asyncio.sleep(6)
        assert rig.posted == [Committed(lease=1)]
        rig.executor.execute(CommitOutcome(lease=1, outcome=OUTCOME))
        assert rig.posted[1:] == [CommitFailed(lease=1, problem="OSError: the disk is full")]

    virtually(test)


def test_a_note_the_ledger_does_not_take_is_only_told(log: list[str]) -> None:
    class Full(Noted):
        def settle(self, lease: int, ending: str, problem: str = "") -> None:
            raise OSError("disk full")

    async def test() -> None:
        Rig(ledger=Full()).executor.execute(SettleOutcome(lease=1, ending="delivered"))
        assert "ledger" in log[0]

    virtually(test)


@pytest.mark.parametrize(
    ("write", "read", "problem"),
    [
        (OSError(), None, "persist failed"),
        (None, OSError(), "persist verify failed"),
        (None, None, "persist verify failed"),
        (None, Secret("other"), "persist verify failed"),
        (None, Secret(" secret "), None),
    ],
)
def test_a_secret_counts_once_it_is_read_back(write: Any, read: Any, problem: str | None) -> None:
    """The two 409 answers of the registration callback."""

    class Store:
        async def write(self, node_id: str, secret: Secret) -> None:
            if write is not None:
                raise write

        async def read(self) -> Secret | None:
            if isinstance(read, Exception):
                raise read
            return read

    async def test() -> None:
        event = await Rig(secrets=Store()).answer(StoreSecret(request=9, node_id="n", secret=Secret(" secret ")))
        expected = SecretUnstored(request=9, problem=problem) if problem else SecretStored(request=9, node_id="n")
        assert event == expected

    virtually(test)


def test_a_callback_gets_its_answer() -> None:
    async def test() -> None:
        rig = Rig()
        waiting = rig.executor.expect_callback(5)
        answer = AnswerCallback(request=5, status=200)
        rig.executor.execute(AnswerCallback(request=4, status=409))
        assert not waiting.done()
        rig.executor.execute(answer)
        assert await waiting == answer
        gone = rig.executor.expect_callback(6)
        gone.cancel()
        rig.executor.execute(AnswerCallback(request=6, status=200))  # its caller has hung up
        assert rig.posted == []

    virtually(test)


def test_the_rest_is_done_at_once(log: list[str]) -> None:
    async def test() -> None:
        rig = Rig()
        error = NodeStartError("no")
        for command in (GiveUp(error=error), Leave(), Warn(message="look here")):
            rig.executor.execute(command)
        assert rig.left == [error, None]
        assert log == ["WARNING look here\n"]
        # For a task that has ended meanwhile.
        rig.executor.execute(StopRunner(lease=9, reason="lost"))
        rig.executor.execute(UpdateLease(lease=9, envelope=ENVELOPE))
        with pytest.raises(TypeError):
            rig.executor.execute(Command())
        assert rig.posted == []

    virtually(test)


def test_a_runner_is_stopped_and_given_new_terms() -> None:
    async def test() -> None:
        tokens: list[str] = []

        async def run(task: Any) -> None:
            tokens.append(await task.access_token.get())
            await asyncio.sleep(5)
            tokens.append(await task.access_token.get())
            await asyncio.Event().wait()

        hosts: list[Any] = []
        registry = registering({"/a/v1": run})
        rig = Rig(registry=registry, storage=lambda host: hosts.append(host) or NoStorage())
        rig.executor.execute(StartRunner(lease=1, envelope=ENVELOPE))
        await asyncio.sleep(1)
        renewed = LeaseEnvelope(task=ENVELOPE.task, access_token=Secret("t2"))
        rig.executor.execute(UpdateLease(lease=1, envelope=renewed))
        await asyncio.sleep(10)
        assert tokens == ["t1", "t2"]
        event = await rig.answer(StopRunner(lease=1, reason="cancelled"))
        assert isinstance(event, RunnerFailed) and event.code == "cancelled"
        assert [host.stop_reason for host in hosts] == ["cancelled"]

    virtually(test)


def test_a_capability_without_a_runner_fails_its_task() -> None:
    async def test() -> None:
        event = await Rig().answer(StartRunner(lease=1, envelope=ENVELOPE))
        assert isinstance(event, RunnerFailed) and event.code == "no_runner"

        async def run(task: Any) -> None: ...

        assert await Rig(registry=registering({"/a/v1": run})).answer(
            StartRunner(lease=1, envelope=ENVELOPE)
        ) == RunnerFinished(lease=1)

    virtually(test)


class Asked:
    """Answers after a second, and notes which task of the loop asked."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    async def ask(self, command: Ask) -> Any:
        self.tasks.append(asyncio.current_task())
        await asyncio.sleep(1)
        return NoWork()


@pytest.mark.parametrize(("others", "cancelled"), [(0, False), (1, False), (0, True)])
def test_what_follows_goes_on_in_the_same_task_of_the_loop(others: int, cancelled: bool) -> None:
    """Only where nothing else is in flight. And a loop that ends its tasks must not wait for one that goes on."""

    async def test() -> None:
        network, posted = Asked(), []

        def post(event: Any) -> None:
            posted.append(event)
            if len(posted) == 1 + others:
                for _ in range(2):
                    rig.executor.execute(Ask(token=Secret("n")))

        rig = Rig(network=network)
        rig.executor._post = post
        for _ in range(1 + others):
            rig.executor.execute(Ask(token=Secret("n")))
        await asyncio.sleep(0.5)
        if cancelled:
            network.tasks[0].cancel()
        await asyncio.sleep(3)
        assert len(posted) == 3 + others
        last, first, second = network.tasks[others:]
        assert first is not second
        assert (last in (first, second)) is (others == 0 and not cancelled)
        assert all(task.done() for task in network.tasks)

    virtually(test)


def test_closing_cancels_what_is_in_flight_and_posts_nothing() -> None:
    class Slow:
        async def register(self) -> Any:
            await asyncio.sleep(1000)

    async def test() -> None:
        async def stubborn(task: Any) -> None:
            while not over.is_set():
                try:
                    await over.wait()
                except asyncio.CancelledError:
                    continue

        over = asyncio.Event()
        rig = Rig(network=Slow(), registry=registering({"/a/v1": stubborn}))
        rig.executor.execute(Register())
        rig.executor.execute(StartRunner(lease=1, envelope=ENVELOPE))
        await asyncio.sleep(1)
        await rig.executor.close()
        await rig.executor.close()
        assert rig.posted == []
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)
        over.set()
        await asyncio.sleep(1)
        assert rig.posted == []

    virtually(test)


@pytest.mark.parametrize("stands", [True, False])
@pytest.mark.parametrize("kind", [OutcomeKind.COMPLETED, OutcomeKind.FAILED])
def test_a_task_whose_result_waits_and_stands_is_offered_with_it(stands: bool, kind: OutcomeKind) -> None:
    asked: list[Any] = []

    class Leasing:
        async def ask(self, command: Ask) -> LeaseOffered:
            return LeaseOffered(envelope=ENVELOPE, ttl=60.0)

    async def looked(envelope: LeaseEnvelope, artifacts: object) -> bool:
        asked.append((envelope, artifacts))
        return stands

    async def test() -> None:
        ledger = Noted()
        rig = Rig(ledger=ledger, network=Leasing(), stands=looked)
        ledger.owed["another"] = OUTCOME
        event = await rig.answer(Ask(token=Secret("n")))
        assert (event.standing, asked) == (None, [])
        rig.posted.clear()
        owed = ledger.owed[str(ENVELOPE.task.id)] = replace(OUTCOME, kind=kind)
        event = await rig.answer(Ask(token=Secret("n")))
        completed = kind is OutcomeKind.COMPLETED
        assert event.standing == (owed if completed and stands else None)
        assert asked == ([(ENVELOPE, owed.artifacts)] if completed else [])

    virtually(test)
