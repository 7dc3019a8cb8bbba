"""Programs as runners: real ones, which run in real time and are waited for by what they report."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posemesh.errors import BadInput, DiskFull, InvalidCid, StorageError, TaskStopped, UploadFailed
from posemesh.outcomes import FailureCode
from posemesh.runners.api import TaskSpec
from posemesh.runners.context import BuildContext
from posemesh.runners.ending import Ending
from posemesh.runners.executors.command import CommandRunner
from posemesh.runners.metrics import MetricsHandle, RunnerType
from posemesh.runners.registry import RunnerRegistry
from posemesh.runners.router import RoutedRunner, RunnerRouter
from posemesh.telemetry import logger

from .programs import PATIENCE_SECS, TASK_ID, Rig, lives, python, ran, sh


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged, as loguru's records."""
    records: list[Any] = []
    log = logger()
    log.enable("posemesh")
    sink = log.add(lambda message: records.append(message.record), level="DEBUG")
    try:
        yield records
    finally:
        log.remove(sink)
        log.disable("posemesh")


# --- What a program finds -------------------------------------------------------------------------------------------


def test_from_inputs_to_artifacts(tmp_path: Path) -> None:
    rig = ran(
        tmp_path,
        sh(
            'cat "$1" "$2" > "$3/sum.txt"; mkdir "$3/more"; pwd > "$3/more/where"; cp "$4" "$3/task.json"; echo $5 $6',
            "{input}",
            "{inputs[1]}",
            "{outputs}",
            "{task}",
            "{task_id}",
            "{capability}",
        ),
        cids=("one", "two"),
    )
    assert rig.ending == Ending()
    assert list(rig.uploads) == ["more/where", "sum.txt", "task.json"]
    assert rig.uploads["sum.txt"] == b"data of one.txtdata of two.txt"
    assert rig.uploads["more/where"].decode().strip() == str((rig.root / "work").resolve())
    known = json.loads(rig.uploads["task.json"])
    assert known["task"]["id"] == str(TASK_ID)
    assert [Path(each["path"]).name for each in known["inputs"]] == ["0-one.txt", "1-two.txt"]
    assert [Path(*Path(each["related_paths"][0]).parts[-2:]) for each in known["inputs"]] == [
        Path("0-related/0-one.csv"),
        Path("1-related/0-two.csv"),
    ]
    assert "token-of-the-domain" not in rig.uploads["task.json"].decode()


def test_a_program_without_outputs_completes(tmp_path: Path) -> None:
    rig = ran(tmp_path, ["true"])
    assert rig.ending == Ending() and rig.uploads == {}


def test_the_environment_is_the_nodes_safe_part_and_the_runners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "environ", {"PATH": "/bin:/usr/bin", "LC_TIME": "C", "REG_SECRET": "s1", "AWS_KEY": "s2", "TZ": "UTC"}
    )
    context = BuildContext(env=(("ONE", "context"), ("TWO", "context"), ("TZ", "Asia/Tokyo")))
    rig = ran(tmp_path, sh('env > "$POSEMESH_OUTPUTS/env"'), context=context, env={"TWO": "runner", "ODD": "a=b c"})
    found = dict(line.split("=", 1) for line in rig.uploads["env"].decode().splitlines())
    for name in ("PWD", "OLDPWD", "SHLVL", "_"):  # the shell's own
        found.pop(name, None)
    assert found == {
        "LC_TIME": "C",
        "ODD": "a=b c",
        "ONE": "context",
        "PATH": "/bin:/usr/bin",
        "POSEMESH_INPUTS": str(rig.root / "inputs"),
        "POSEMESH_OUTPUTS": str(rig.root / "outputs"),
        "POSEMESH_TASK": str(rig.root / "task.json"),
        "TMPDIR": str(rig.root / "tmp"),
        "TWO": "runner",
        "TZ": "Asia/Tokyo",
    }


def test_it_has_no_input_and_its_relative_path_is_the_nodes(tmp_path: Path) -> None:
    rig = ran(tmp_path, [os.path.relpath("/bin/cat")])
    assert rig.ending == Ending()


# --- What it writes -------------------------------------------------------------------------------------------------


def test_json_lines_are_reports_and_the_rest_is_logged(tmp_path: Path, logged: list[Any]) -> None:
    program = python(
        "print(json.dumps({'progress': {'pct': 50}}))",
        "say('begun')",
        "print('plain', flush=True)",
        "print('{\"event\": NaN}', flush=True)",
        "print('bad', file=sys.stderr)",
        "sys.stdout.buffer.write(b'\\xff\\x00end')",
    )
    rig = ran(tmp_path, program)
    assert rig.ending == Ending()
    assert (rig.progress, rig.events) == ([{"pct": 50}], ["begun"])
    said = {(each["level"].name, each["message"]) for each in logged}
    assert {("INFO", "plain"), ("WARNING", "bad"), ("INFO", "\ufffd\\x00end"), ("INFO", '{"event": NaN}')} <= said
    assert {each["extra"].get("task_id") for each in logged if each["message"] == "plain"} == {str(TASK_ID)}


def test_endless_output_holds_up_neither_the_program_nor_the_loop(tmp_path: Path) -> None:
    turns = 0

    async def count(rig: Rig) -> None:
        nonlocal turns
        while rig.ending is None:
            await asyncio.sleep(0)
            turns += not rig.events  # before the last line

    program = python(
        "os.write(1, b'x' * (8 << 20))",
        "os.write(2, bytes(8 << 20))",
        "sys.stdout.write('\\n' + 'y\\n' * (1 << 20))",
        "say('done')",
        "sys.exit(1)",
    )
    rig = ran(tmp_path, program, during=count)
    assert rig.events == ["done"] and turns > 100
    assert rig.ending is not None
    assert len(json.dumps(rig.ending.details)) < 32 * 1024


# --- How it ends ----------------------------------------------------------------------------------------------------


def test_an_exit_code_is_a_failure_and_nothing_is_uploaded(tmp_path: Path) -> None:
    rig = ran(tmp_path, sh('echo half > "$POSEMESH_OUTPUTS/half"; echo one; echo two >&2; exit 3'))
    ending = rig.ending
    assert ending is not None
    assert (ending.code, ending.message) == (FailureCode.RUNNER_ERROR, "the program ended with exit code 3")
    assert ending.details["exit_code"] == 3
    assert sorted(ending.details["output"]) == ["one", "two"]  # type: ignore[type-var, arg-type]
    assert rig.uploads == {} and rig.metrics.errors == []


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGTERM", "SIGABRT"])
def test_a_signal_is_its_reason(tmp_path: Path, name: str) -> None:
    rig = ran(
        tmp_path, python("print('last words', flush=True)", f"os.kill(os.getpid(), signal.{name})", "time.sleep(600)")
    )
    details = {"signal": name, "output": ["last words"]}
    assert rig.ending == Ending(code=FailureCode.KILLED, message=f"the program was killed by {name}", details=details)


def test_a_signal_without_a_name(tmp_path: Path) -> None:
    rig = ran(tmp_path, python("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "time.sleep(600)"))
    assert rig.ending is not None and rig.ending.message.startswith("the program was killed by signal ")


def test_the_memory_it_may_use(tmp_path: Path) -> None:
    rig = ran(tmp_path, python("bytearray(1 << 40)"), memory_bytes=1 << 30)
    assert rig.ending is not None
    assert rig.ending.code is FailureCode.OUT_OF_MEMORY
    assert "exit code 1, and said that memory ran out; it may use 1073741824 bytes" in rig.ending.message


def test_a_closed_stdout_is_no_end(tmp_path: Path) -> None:
    program = python(
        "os.close(1)", "os.close(2)", "time.sleep(0.2)", "open(os.environ['POSEMESH_OUTPUTS'] + '/late', 'w').close()"
    )
    rig = ran(tmp_path, program)
    assert rig.ending == Ending() and rig.uploads == {"late": b""}


@pytest.mark.parametrize("code", [0, 3])
def test_what_it_leaves_running_ends_with_it(tmp_path: Path, code: int) -> None:
    """It holds stdout, and has left the session of the program."""
    program = python(
        "ready, tell = os.pipe()",
        "if os.fork() == 0:",
        "    os.setsid()",
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "    say(os.getpid())",
        "    os.write(tell, b'.')",
        "    time.sleep(600)",
        "os.read(ready, 1)",
        f"sys.exit({code})",
    )
    rig = ran(tmp_path, program)
    assert rig.ending is not None and rig.ending.code == (FailureCode.RUNNER_ERROR if code else None)
    assert len(rig.events) == 1 and not lives(rig.events[0])


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["/no/such/program"], "No such file or directory"),
        (["no-such-program-anywhere"], "No such file or directory"),
        ([__file__], "Permission denied"),
        (["/"], "Permission denied"),
        (["true", "x" * (1 << 20)], "Argument list too long"),
    ],
)
def test_a_program_that_cannot_be_started_is_counted_once(tmp_path: Path, argv: list[str], why: str) -> None:
    rig = ran(tmp_path, argv)
    ending = rig.ending
    assert ending is not None and ending.code is FailureCode.SETUP_FAILED
    assert "the program could not be started" in ending.message and why in ending.message
    assert rig.metrics.errors == [("command", "spawn_failed")]


def test_what_was_not_started_is_counted_to_its_end(tmp_path: Path) -> None:
    async def main() -> Rig:
        rig = Rig(tmp_path, ["/no/such/program"], [], None)
        router = RunnerRouter(BuildContext(metrics=MetricsHandle(rig.metrics)))
        router.register(rig.runner, capability="/a/v1")
        ended = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(PATIENCE_SECS):
            RunnerRegistry(router, rig.metrics).run_for_lease(rig, ended.set_result)
            await ended
        return rig

    rig = asyncio.run(main())
    assert rig.metrics.errors == [("command", "spawn_failed")]
    assert rig.metrics.counted == ["started", "failure"]


# --- What the node cannot do ----------------------------------------------------------------------------------------


def test_a_task_with_too_few_inputs_is_not_begun(tmp_path: Path) -> None:
    rig = ran(tmp_path, ["cat", "{inputs[2]}"], cids=("one", "two"))
    assert rig.ending == Ending(
        code=FailureCode.BAD_INPUT, message="tool: its command needs 3 inputs or more, the task has 2"
    )
    assert rig.asked == [] and list(rig.root.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInput("too short"), "bad_input"),
        (InvalidCid("elsewhere"), "bad_input"),
        (DiskFull("no room"), "disk_full"),
        (StorageError("no such item"), "runner_error"),
        (TaskStopped("it is over"), "cancelled"),
    ],
)
def test_an_input_that_does_not_come(tmp_path: Path, error: BaseException, code: str) -> None:
    rig = ran(
        tmp_path, ["touch", "{outputs}/x"], cids=("one", "two", "three"), before=lambda rig: rig.fails.update(two=error)
    )
    assert rig.ending is not None and rig.ending.code == code
    assert rig.asked == ["one", "two"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(13, "Permission denied"), "setup_failed"),
        (StorageError("no workspace"), "setup_failed"),
        (OSError(28, "No space left on device"), "disk_full"),
        (DiskFull("no room"), "disk_full"),
    ],
)
def test_a_workspace_that_cannot_be_made(tmp_path: Path, error: BaseException, code: str) -> None:
    rig = ran(tmp_path, ["true"], before=lambda rig: rig.fails.update(workspace=error))
    assert rig.ending is not None and rig.ending.code == code
    assert rig.metrics.errors == []


@pytest.mark.parametrize("error", [UploadFailed("413"), StorageError("no token")])
def test_an_artifact_that_is_not_taken(tmp_path: Path, error: BaseException) -> None:
    program = sh("cd {outputs}; echo a > a; echo b > b; echo c > c; echo words")
    rig = ran(tmp_path, program, before=lambda rig: rig.fails.update(b=error))
    assert rig.ending is not None and rig.ending.code is FailureCode.UPLOAD_FAILED
    assert str(error) in rig.ending.message and rig.ending.details["output"] == ["words"]
    assert list(rig.uploads) == ["a"] and rig.asked == ["a", "b"]


def test_outputs_that_are_not_its_own_are_refused(tmp_path: Path) -> None:
    rig = ran(tmp_path, sh("cd {outputs}; echo a > a; ln -s /etc/hostname b; echo words"))
    assert rig.ending == Ending(
        code=FailureCode.RUNNER_ERROR,
        message="outputs/b: expected a file, and it is a link that leads out of outputs",
        details={"output": ["words"]},
    )
    assert rig.uploads == {}


# --- As a routed runner ---------------------------------------------------------------------------------------------


def test_it_is_a_runner_of_its_capability() -> None:
    runner = CommandRunner("tool", "/a/v1", ["true", "--password=p"], env={"KEY": "hidden"})
    assert isinstance(runner, RoutedRunner)
    assert runner.supports(TaskSpec(id=TASK_ID, capability="/a/v1"))
    assert not runner.supports(TaskSpec(id=TASK_ID, capability="/a/v2"))
    ref = runner.build_task(TaskSpec(id=TASK_ID, capability="/a/v1"), BuildContext(slot="4"))
    assert ref.run_id.name == f"tool-4-{ref.run_id.seq}" and ref.runner_type is RunnerType.COMMAND
    assert repr(runner) == "<CommandRunner tool /a/v1>"
    assert "hidden" not in repr(ref) and "password" not in repr(ref)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"argv": ["true", "{nonsense}"]}, "no placeholder {nonsense}"),
        ({"argv": "true"}, "expected a list of arguments"),
        ({"env": {"": "x"}}, "env ''"),
        ({"env": {"A=B": "x"}}, "env 'A=B'"),
        ({"env": {"A": "x\0y"}}, "env 'A'"),
        ({"env": {"A": 1}}, "env 'A'"),
        ({"memory_bytes": 0}, "memory_bytes: expected a number of bytes above 0, got 0"),
    ],
)
def test_what_no_program_could_be_started_with_is_refused_beforehand(options: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        CommandRunner("tool", "/a/v1", **({"argv": ["true"]} | options))
