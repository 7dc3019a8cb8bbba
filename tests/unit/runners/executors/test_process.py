"""User code in a process of its own: whatever it does, its end is told right, the next task runs, nobody is left."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from loguru import logger

from posemesh.errors import BadInput, InvalidCid, RunnerInternal
from posemesh.outcomes import FailureCode
from posemesh.runners.context import BuildContext
from posemesh.runners.ending import Ending
from posemesh.runners.executors.peer import Peer
from posemesh.runners.executors.process import ProcessRunner
from posemesh.runners.job import Run
from posemesh.runners.metrics import MetricsHandle, NoOpMetrics, RunnerType
from posemesh.runners.port import (
    FinishUpload,
    GetBytes,
    GetToken,
    ListArtifacts,
    LogEvent,
    Materialize,
    MaterializedInput,
    OpenUpload,
    Progress,
    PutArtifact,
    Question,
    WriteUpload,
)
from posemesh.secret import Secret
from posemesh.types import Artifact, LeaseEnvelope, TaskSpec

from . import process_code as code
from .processes import children, finished, is_alive, living, wait_until

CAPABILITY = "/tests/process/v1"
LARGE = os.urandom(1 << 16) * 800  # 50 MiB


class Job:
    """The node's end of one task."""

    def __init__(self, root: Path, **meta: Any) -> None:
        task = TaskSpec(id=uuid4(), capability=CAPABILITY, meta=meta)
        self.lease = LeaseEnvelope(task=task, access_token=Secret("token-of-the-lease"), domain_id=UUID(int=1))
        self.cancelled = False
        self.stop_reason = None
        self.reports: list[Progress | LogEvent] = []
        self.put: dict[str, bytes] = {}
        self.asked: list[Question] = []
        self._root = root
        self._news = asyncio.Event()

    @property
    def progress(self) -> Any:
        return next(each.value for each in reversed(self.reports) if isinstance(each, Progress))

    def report(self, message: Progress | LogEvent) -> None:
        self.reports.append(message)
        self._news.set()

    async def until(self, count: int = 1) -> Any:
        """The latest progress, when so much was reported."""
        while len(self.reports) < count:
            self._news.clear()
            await self._news.wait()
        return self.progress

    def workspace(self) -> Path:
        self._root.mkdir(exist_ok=True)
        return self._root

    async def answer(self, question: Question) -> Any:
        self.asked.append(question)
        self._news.set()
        match question:
            case GetToken():
                return Secret("token-of-the-moment")
            case GetBytes(cid="never"):
                await asyncio.Event().wait()
            case GetBytes(cid="bad"):
                raise BadInput("it did not come whole", 502)
            case GetBytes(cid="invalid"):
                raise InvalidCid("it names nothing")
            case GetBytes(cid="odd"):
                raise LookupError("of no public kind")
            case GetBytes():
                return LARGE
            case Materialize():
                root = self._root.parent / "download"
                root.mkdir()
                (root / "file").write_bytes(b"content")
                return MaterializedInput(
                    path=root / "file", data_id="1", name="n", data_type="t", domain_id="d", root_dir=root
                )
            case PutArtifact(rel_path=name, content=content):
                self.put[name] = content.read_bytes() if isinstance(content, Path) else content
                return f"id-{name}"
            case OpenUpload(rel_path=name):
                self.put[name] = b""
                return len(self.put)
            case WriteUpload(data=data):
                self.put["parts"] += data
            case FinishUpload():
                return "id-parts"
            case ListArtifacts():
                return tuple(Artifact(logical_path=name, name=name, data_type="t") for name in self.put)


class Started:
    """A run that was started, and how it ended."""

    def __init__(self, runner: ProcessRunner, job: Job, context: BuildContext | None = None) -> None:
        self.job = job
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.ends = 0
        self.run: Run = runner.build_task(job.lease.task, context or BuildContext()).start(job, self._end)

    def _end(self, ending: Ending) -> None:
        self.ends += 1
        self._ended.set_result(ending)

    def cancel(self) -> None:
        self.job.cancelled = True
        self.run.cancel()

    async def ending(self) -> Ending:
        return await self._ended


class Bench:
    """A runner at work, whose processes bear a mark."""

    def __init__(self, tmp_path: Path, mark: str) -> None:
        self._tmp_path = tmp_path
        self.mark = mark
        self.torn_down = tmp_path / "teardown"

    @asynccontextmanager
    async def runner(self, target: Any, **options: Any) -> AsyncIterator[ProcessRunner]:
        env = {"MARK": self.mark, "TEARDOWN": str(self.torn_down), **options.pop("env", {})}
        runner = ProcessRunner("r", CAPABILITY, target, env=env, **options)
        try:
            yield runner
        finally:
            await runner.close()
            assert not living(self.mark)

    def start(self, runner: ProcessRunner, **meta: Any) -> Started:
        return Started(runner, Job(self._tmp_path / str(uuid4()), **meta))

    async def ending(self, runner: ProcessRunner, **meta: Any) -> tuple[Ending, Job]:
        started = self.start(runner, **meta)
        return await started.ending(), started.job


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    before = set(children())
    bench = Bench(tmp_path, f"mark-{uuid4()}")
    try:
        yield bench
        wait_until(lambda: not living(bench.mark) and set(children()) <= before)
    finally:
        for pid in living(bench.mark):
            os.kill(pid, signal.SIGKILL)
        gc.collect()


BOTH = pytest.mark.parametrize("target", [code.plain, code.coroutine])


@pytest.mark.parametrize("target", [code.plain, pytest.param(code.coroutine, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("end", "failure", "message", "reused"),
    [
        ("return", None, "", True),
        ("raise", FailureCode.RUNNER_ERROR, "ValueError: outer", True),
        ("exit", FailureCode.RUNNER_ERROR, "the runner's process ended with exit code 4 before it answered", False),
        ("exit_0", FailureCode.RUNNER_ERROR, "the runner's process ended with exit code 0 before it answered", False),
        ("os_exit", FailureCode.RUNNER_ERROR, "the runner's process ended with exit code 3 before it answered", False),
        ("segfault", FailureCode.KILLED, "the runner's process was killed by SIGSEGV", False),
        ("kill", FailureCode.KILLED, "the runner's process was killed by SIGKILL", False),
        ("memory", FailureCode.OUT_OF_MEMORY, "MemoryError", False),
        ("interrupt", FailureCode.RUNNER_ERROR, "KeyboardInterrupt", False),
        ("close_stdout", None, "", False),
        ("close_all", FailureCode.RUNNER_ERROR, "the runner's process closed its connection to the node", False),
        ("garbage", FailureCode.RUNNER_ERROR, "the runner's process sent what is no message", False),
        ("huge", FailureCode.RUNNER_ERROR, "the runner's process sent what is no message", False),
        ("done_twice", None, "", False),
        ("fork", None, "", True),
    ],
)
def test_however_a_task_ends_it_is_told_and_the_next_one_runs(
    bench: Bench, target: Any, end: str, failure: FailureCode | None, message: str, reused: bool
) -> None:
    async def test() -> None:
        async with bench.runner(target, memory_bytes=8 << 30) as runner:
            ending, job = await bench.ending(runner, end=end, daemon=True)
            assert ending.code == failure
            assert ending.message.startswith(message)
            assert not is_alive(job.progress["daemon"])
            if failure is not None:
                assert ending.details["output"][0] == "out"
            if end == "raise":
                assert ending.details["chain"] == ["ValueError: outer", "KeyError: 'inner'"]
            if not reused:
                await asyncio.to_thread(wait_until, lambda: not is_alive(job.progress["pid"]))
            second, after = await bench.ending(runner)
            assert second.code is None
            assert (after.progress["pid"] == job.progress["pid"]) == reused

    finished(test)


@pytest.mark.parametrize("target", [code.generator, code.async_generator])
def test_each_yield_is_progress(bench: Bench, target: Any) -> None:
    async def test() -> None:
        async with bench.runner(target) as runner:
            ending, job = await bench.ending(runner)
            assert ending.code is None
            assert [each.value for each in job.reports][1:] == [2**70]

    finished(test)


@pytest.mark.parametrize("target", [code.whole_port, code.whole_plain_port])
def test_all_of_the_port_goes_through(bench: Bench, target: Any) -> None:
    async def test() -> None:
        async with bench.runner(target) as runner:
            ending, job = await bench.ending(runner)
            assert ending == Ending()
            assert job.put == {
                "small": LARGE[:1000],
                "large": LARGE,
                "file": b"content",
                "parts": LARGE,
                "aborted": b"",
            }
            assert job.reports == [
                LogEvent(value={"token": len("token-of-the-moment"), "artifacts": 5}),
                Progress(
                    value=[
                        ["BadInput", "it did not come whole", 502],
                        ["InvalidCid", "it names nothing", None],
                        ["PosemeshError", "LookupError: of no public kind", None],
                    ]
                ),
            ]

    finished(test)


@BOTH
def test_a_task_that_the_socket_does_not_take_at_once_comes_whole(bench: Bench, target: Any) -> None:
    async def test() -> None:
        async with bench.runner(target) as runner:
            ends = [await bench.ending(runner, filler="x" * 3_000_000, end="raise") for _ in range(2)]
            assert [ending.message for ending, _ in ends] == ["ValueError: outer"] * 2
            assert len({job.progress["pid"] for _, job in ends}) == 1

    finished(test)


def test_threads_of_user_code_may_ask_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LARGE", b"x" * 100_000)

    async def test() -> None:
        async with bench.runner(code.threads) as runner:
            ending, job = await bench.ending(runner)
            assert ending == Ending()
            assert job.progress == {"sizes": [100_000], "count": 100}

    finished(test)


def test_more_questions_than_are_answered_at_once_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LARGE", b"x" * 1000)

    async def test() -> None:
        async with bench.runner(code.many) as runner:
            ending, job = await bench.ending(runner)
            assert (ending, job.progress) == (Ending(), 700)

    finished(test)


def test_what_a_task_says_after_its_end_is_not_the_next_ones(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LARGE", b"")

    async def test() -> None:
        async with bench.runner(code.talks_on) as runner:
            jobs = [(await bench.ending(runner, task=number)) for number in range(6)]
            assert [ending for ending, _ in jobs] == [Ending()] * 6
            assert len({job.progress["pid"] for _, job in jobs}) == 1
            for number, (_, job) in enumerate(jobs):
                assert {each.value for each in job.reports if isinstance(each, LogEvent)} <= {number}

    finished(test)


@pytest.mark.parametrize("target", [code.sleep, code.async_sleep])
def test_a_stop_is_raised_where_user_code_is(bench: Bench, target: Any) -> None:
    async def test() -> None:
        async with bench.runner(target) as runner:
            started = bench.start(runner)
            pid = (await started.job.until())["pid"]
            for _ in range(3):
                started.cancel()
            ending = await started.ending()
            assert ending.code is FailureCode.CANCELLED
            assert ending.details["output"] == ["tidied True"]
            assert not is_alive(pid)
            started.cancel()
            assert started.ends == 1

    finished(test)


@pytest.mark.parametrize("target", [code.hang, code.spin])
def test_whoever_ignores_a_stop_is_killed(bench: Bench, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posemesh.runners.executors.peer.CHILD_GRACE_SECS", 0.1)

    async def test() -> None:
        async with bench.runner(target) as runner:
            started = bench.start(runner)
            await started.job.until()
            started.cancel()
            assert (await started.ending()).code is FailureCode.CANCELLED
            assert not living(bench.mark)

    finished(test)


def test_who_returns_when_told_to_stop_has_returned(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.polls) as runner:
            started = bench.start(runner)
            pid = (await started.job.until())["pid"]
            started.cancel()
            assert await started.ending() == Ending()
            assert not is_alive(pid)

    finished(test)


@pytest.mark.parametrize("target", [code.sleep, code.async_sleep])
def test_a_stop_reaches_its_own_task_alone(bench: Bench, target: Any) -> None:
    async def test() -> None:
        async with bench.runner(target) as runner:
            tasks = [bench.start(runner, task=number) for number in range(4)]
            pids = [(await each.job.until())["pid"] for each in tasks]
            assert len(set(pids)) == 4
            tasks[2].cancel()
            assert (await tasks[2].ending()).code is FailureCode.CANCELLED
            assert [is_alive(pid) for pid in pids] == [True, True, False, True]
            assert [each.ends for each in tasks] == [0, 0, 1, 0]

    finished(test)


@pytest.mark.parametrize("turns", range(8))
def test_a_stop_while_the_child_starts_leaves_nothing(bench: Bench, turns: int) -> None:
    async def test() -> None:
        async with bench.runner(code.sleep) as runner:
            started = bench.start(runner)
            for _ in range(turns):
                await asyncio.sleep(0.02 if turns > 4 else 0)
            started.cancel()
            assert (await started.ending()).code is FailureCode.CANCELLED

    finished(test)


def test_a_stop_when_the_child_has_just_started_ends_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the task was told of its child."""

    async def test() -> None:
        async def then_stopped(*arguments: Any) -> Peer:
            peer = await start(*arguments)
            asyncio.get_running_loop().call_soon(started.cancel)
            return peer

        start = Peer.start
        monkeypatch.setattr(Peer, "start", then_stopped)
        async with bench.runner(code.sleep) as runner:
            started = bench.start(runner)
            assert (await started.ending()).code is FailureCode.CANCELLED
            assert not living(bench.mark)

    finished(test)


def test_a_stop_after_the_end_touches_nothing(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.plain) as runner:
            first = bench.start(runner)
            assert await first.ending() == Ending()
            first.cancel()
            ending, job = await bench.ending(runner)
            assert ending == Ending()
            assert job.progress["pid"] == first.job.progress["pid"]

    finished(test)


@pytest.mark.parametrize("end", ["returned", "killed"])
def test_an_end_that_came_before_the_stop_counts(bench: Bench, tmp_path: Path, end: str) -> None:
    """The child has ended its task, or was killed, and the node has not looked yet."""

    async def test() -> None:
        file = tmp_path / "go on"
        async with bench.runner(code.wait_for_file) as runner:
            started = bench.start(runner, file=str(file))
            pid = (await started.job.until())["pid"]
            connection = started.run._peer._connection  # type: ignore[attr-defined]
            if end == "returned":  # from here on without a turn of the loop
                file.touch()
                wait_until(lambda: bool(select.select([connection], [], [], 0)[0]))
            else:
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not is_alive(pid))
            started.cancel()
            assert started.ends == 0, "whoever tells it to stop is not called meanwhile"
            ending = await started.ending()
            assert ending.code is (None if end == "returned" else FailureCode.KILLED)

    finished(test)


@pytest.mark.parametrize("target", [code.WithSetup, code.AsyncWithSetup, code.instance])
def test_what_setup_started_lasts_as_long_as_the_child(bench: Bench, target: Any) -> None:
    async def test() -> None:
        async with bench.runner(target) as runner:
            for count in range(1, 4):
                ending, job = await bench.ending(runner, daemon=True)
                assert ending == Ending()
                assert job.progress["count"] == count
                assert all(map(is_alive, job.progress["helpers"]))
                assert not is_alive(job.progress["daemon"])
        assert bench.torn_down.read_text() == "torn down"

    finished(test)


def test_without_keeping_each_task_has_its_own_child(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.WithSetup, keep=False) as runner:
            for _ in range(2):
                ending, job = await bench.ending(runner)
                assert (ending, job.progress["count"]) == (Ending(), 1)
                assert bench.torn_down.read_text() == "torn down"
                bench.torn_down.unlink()
                assert not living(bench.mark)

    finished(test)


@pytest.mark.parametrize("seen", [True, False])
def test_a_child_that_died_between_tasks_is_replaced(bench: Bench, seen: bool) -> None:
    """Also where the loop had no turn since."""

    async def test() -> None:
        async with bench.runner(code.plain) as runner:
            _, job = await bench.ending(runner)
            os.kill(job.progress["pid"], signal.SIGKILL)
            if seen:
                await asyncio.to_thread(wait_until, lambda: not is_alive(job.progress["pid"]))
            else:
                wait_until(lambda: not is_alive(job.progress["pid"]))
            ending, after = await bench.ending(runner)
            assert ending == Ending()
            assert after.progress["pid"] != job.progress["pid"]

    finished(test)


def test_a_setup_that_fails_fails_the_task(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.BadSetup) as runner:
            for _ in range(2):
                ending, _ = await bench.ending(runner)
                assert (ending.code, ending.message) == (FailureCode.SETUP_FAILED, "OSError: no such device")

    finished(test)


@pytest.mark.parametrize(
    ("how", "failure", "message"),
    [
        ("exit", FailureCode.SETUP_FAILED, "ended with exit code 1 before it was set up: no model here"),
        ("os_exit", FailureCode.SETUP_FAILED, "ended with exit code 7 before it was set up"),
        ("kill", FailureCode.KILLED, "was killed by SIGKILL"),
    ],
)
def test_a_setup_that_ends_the_child_is_told_as_such(
    bench: Bench, how: str, failure: FailureCode, message: str
) -> None:
    async def test() -> None:
        async with bench.runner(code.LeavingSetup, env={"HOW": how}) as runner:
            ending, _ = await bench.ending(runner)
            assert (ending.code, ending.message) == (failure, f"the runner's process {message}")

    finished(test)


def test_a_file_is_the_runner_s_wherever_it_has_gone(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's file of that name was uploaded in its place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "result.txt").write_text("of the node")

    async def test() -> None:
        async with bench.runner(code.moves) as runner:
            ending, job = await bench.ending(runner)
            assert ending.code is None, ending
            assert job.put == {"result": b"from the runner", "again": b"from the runner"}
            assert str(job.asked[-1].content) == "gone.txt", "where it was asked for is the node's to say"

    finished(test)


@pytest.mark.parametrize("target", [code.BadInit, code.AsyncBadInit])
def test_a_class_that_declares_no_check_is_not_made_for_one(bench: Bench, target: Any) -> None:
    """Its ``__init__`` fails its tasks, and not the start of the node."""

    async def test() -> None:
        async with bench.runner(target) as runner:
            await runner.check()
            ending, _ = await bench.ending(runner)
            assert (ending.code, ending.message) == (FailureCode.SETUP_FAILED, "OSError: no such device")

    finished(test)


def test_a_check_is_made_in_a_child_which_then_serves(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.Checked) as runner:
            await runner.check()
            (before,) = living(bench.mark)
            _, job = await bench.ending(runner)
            assert job.progress["pid"] == before
        async with bench.runner(code.Checked, env={"BROKEN": "1"}) as runner:
            with pytest.raises(RunnerInternal, match="RuntimeError: no GPU here"):
                await runner.check()
            assert not living(bench.mark)

    finished(test)


def test_a_child_is_not_kept_from_a_check_where_none_is(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.Checked, keep=False) as runner:
            await runner.check()
            assert not living(bench.mark)

    finished(test)


def test_a_check_that_is_cancelled_leaves_no_child(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.HangingCheck) as runner:
            check = asyncio.ensure_future(runner.check())
            await asyncio.to_thread(wait_until, bench.torn_down.exists)
            check.cancel()
            with pytest.raises(asyncio.CancelledError):
                await check
            await asyncio.to_thread(wait_until, lambda: not living(bench.mark))

    finished(test)


def test_a_child_finds_the_environment_without_the_secrets(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REG_SECRET", "hush-registration")
    monkeypatch.setenv("SECP256K1_PRIVHEX", "hush-key")
    monkeypatch.setenv("FOR_ALL", "1")

    async def test() -> None:
        async with bench.runner(code.environ, env={"MORE": "2"}) as runner:
            ending, job = await bench.ending(runner)
            assert ending == Ending()
            found = job.progress["env"]
            assert (found["FOR_ALL"], found["MORE"], job.progress["cwd"]) == ("1", "2", os.getcwd())
            assert not living("hush-")
            assert living(bench.mark)

    finished(test)


def test_a_kept_child_serves_no_task_that_is_built_with_another_environment(bench: Bench, tmp_path: Path) -> None:
    async def test() -> None:
        async with bench.runner(code.environ) as runner:
            for number in ("1", "2", "1"):
                job = Job(tmp_path / str(uuid4()))
                await Started(runner, job, BuildContext(env=(("BUILT", number),))).ending()
                assert job.progress["env"]["BUILT"] == number

    finished(test)


def test_what_a_child_writes_is_logged_with_its_task(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.plain) as runner:
            jobs = [(await bench.ending(runner))[1] for _ in range(2)]
        assert seen == [("INFO", "out", str(job.lease.task.id)) for job in jobs]

    seen: list[tuple[str, str, object]] = []
    logger.enable("posemesh")
    sink = logger.add(
        lambda message: seen.append(
            (message.record["level"].name, message.record["message"], message.record["extra"].get("task_id"))
        )
    )
    try:
        finished(test)
    finally:
        logger.remove(sink)
        logger.disable("posemesh")


def test_nothing_is_left_when_the_node_is_killed(bench: Bench) -> None:
    node = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[4])!r})
from pathlib import Path
from tests.unit.runners.executors import process_code as code, test_process as tests

async def main():
    bench = tests.Bench(Path({str(bench.torn_down.parent)!r}), {bench.mark!r})
    async with bench.runner(code.hang) as runner:
        await bench.start(runner).job.until()
        print("ready", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", node], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(living(bench.mark)) == 2
        process.kill()
        wait_until(lambda: not living(bench.mark))


def local() -> Any:
    def inner(task: Any) -> None:
        pass

    return inner


@pytest.mark.parametrize("target", [local(), lambda task: None, code.WithSetup()])
def test_what_another_interpreter_cannot_find_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match="cannot run in a process of its own: .*Define it at the top of a module"):
        ProcessRunner("r", CAPABILITY, target)


def test_a_name_that_stands_for_another_function_is_refused(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.first_twice) as runner:
            with pytest.raises(RunnerInternal, match="give that a name of its own"):
                bench.start(runner)
            with pytest.raises(RunnerInternal, match="give that a name of its own"):
                await runner.check()
            assert not living(bench.mark)

    finished(test)


def test_a_runner_is_for_its_capability_and_tells_its_state(bench: Bench) -> None:
    async def test() -> None:
        async with bench.runner(code.sleep) as runner:
            assert runner.supports(TaskSpec(id=uuid4(), capability=CAPABILITY))
            assert not runner.supports(TaskSpec(id=uuid4(), capability="/other/v1"))
            started = bench.start(runner, seconds=0)
            assert repr(runner) == f"<ProcessRunner r {CAPABILITY}, 1 running, 0 idle>"
            await started.ending()
            assert repr(runner) == f"<ProcessRunner r {CAPABILITY}, 0 running, 1 idle>"

    finished(test)


def test_what_is_no_runner_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a runner"):
        ProcessRunner("r", CAPABILITY, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"env": {"A=": "1"}},
        {"env": {"A": "\0"}},
        {"env": {"": "1"}},
        {"env": {"A": 1}},
        {"env": {"A\0": "1"}},
        {"memory_bytes": 0},
    ],
)
def test_what_no_program_could_be_started_with_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        ProcessRunner("r", CAPABILITY, code.plain, **options)


def test_an_environment_is_forgotten_with_the_child_that_had_it(bench: Bench, tmp_path: Path) -> None:
    """It may hold secrets, and a new one may come with each task."""

    async def test() -> None:
        async with bench.runner(code.plain, keep=False) as runner:
            for number in "12":
                context = BuildContext(env=(("BUILT", number),))
                assert (await Started(runner, Job(tmp_path / number), context).ending()).code is None
            assert not runner._idle

    finished(test)


def test_what_cannot_be_started_fails_the_task_and_is_counted(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(NoOpMetrics):
        def runner_error(self, runner_type: RunnerType, kind: str) -> None:
            counted.append((runner_type, kind))

    async def test() -> None:
        async with bench.runner(code.plain) as runner:
            monkeypatch.setattr(sys, "executable", "/no/such/python")
            started = Started(runner, Job(tmp_path), BuildContext(metrics=MetricsHandle(Counting())))
            ending = await started.ending()
            assert ending.code is FailureCode.SETUP_FAILED
            assert "/no/such/python" in ending.message
            assert counted == [(RunnerType.PROCESS, "spawn_failed")]

    counted: list[tuple[RunnerType, str]] = []
    finished(test)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("target", [code.asks_for_ever, code.async_asks_for_ever])
def test_a_stop_ends_the_wait_for_an_answer(bench: Bench, target: Any, asked: bool) -> None:
    """Also where nobody has begun to answer the question that came: then the child was killed, after its grace."""

    async def test() -> None:
        async with bench.runner(target) as runner:
            started = bench.start(runner)
            await started.job.until()
            while asked and not started.job.asked:
                started.job._news.clear()
                await started.job._news.wait()
            started.cancel()
            ending = await started.ending()
            assert ending.code is FailureCode.CANCELLED
            assert ending.details["output"] == ["tidied"]  # by the child itself

    finished(test)
