"""A Golem runtime as a runner: tasks of a real one, from their inputs to their artifacts, and what is left of them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posemesh.errors import BadInput, UploadFailed
from posemesh.golem.runner import RuntimeRunner, declare_runtime
from posemesh.golem.supervisor import Command, StepFailed, Supervisor, Timeouts
from posemesh.outcomes import FailureCode
from posemesh.runners.ending import Ending
from posemesh.runners.executors.declared import Terms
from posemesh.runners.metrics import RunnerType

from ..runners.executors.processes import finished, wait_until
from ..runners.executors.programs import Rig
from .supervising import SHORT_SECS, Stub, stub

__all__ = ("stub",)


class Tasks:
    """Tasks of one runner, each with a workspace of its own beside the others'."""

    def __init__(self, stub: Stub, be: str = "", **options: Any) -> None:
        env = {"MARK": stub.mark, "STUB_ARGV": str(stub._argv)}
        options = {"entrypoint": "copy", "runtime_args": ["--be", be] if be else [], "env": env} | options
        self.base = stub.directory / "work"
        self.base.mkdir()
        self.runner = RuntimeRunner("render", "/a/v1", str(stub.binary), **options)
        self.rigs: list[Rig] = []

    def rig(self, *cids: str, meta: Any = None) -> Rig:
        runner = self.runner

        class RuntimeRig(Rig):
            def runner_of(self, argv: list[str], options: dict[str, Any]) -> Any:
                return runner

        workspace = self.base / f"task-{len(self.rigs)}"
        workspace.mkdir()
        rig = RuntimeRig(workspace, [], list(cids), None)
        rig.lease = replace(rig.lease, task=replace(rig.lease.task, meta=meta))
        self.rigs.append(rig)
        return rig

    async def ran(self, *cids: str, meta: Any = None) -> Rig:
        rig = self.rig(*cids, meta=meta)
        rig.start()
        await rig.end()
        return rig

    def runtimes(self) -> list[Path]:
        """The directories of those that are deployed."""
        return sorted(self.base.glob("runtime-*"))


def carry_out(tasks: Tasks, work: Callable[[Tasks], Awaitable[None]]) -> None:
    """Do ``work`` and close the runner, after which nothing may be left."""

    async def main() -> None:
        try:
            await work(tasks)
        finally:
            await tasks.runner.close()
        assert not tasks.runtimes()

    finished(main)


# --- From inputs to artifacts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["server", "command"])
def test_inputs_are_files_of_the_runtime_and_its_files_artifacts(stub: Stub, mode: str) -> None:
    args = ["{input}", "{inputs[1]}", "{inputs}", "{outputs}", "{task_id}", "-x"]

    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran("one", "two")
        assert rig.ending == Ending()
        assert rig.uploads.keys() == {"args", "more/0-one.txt", "more/1-two.txt"}
        assert rig.uploads["more/1-two.txt"] == b"DATA OF TWO.TXT"
        _, *given = json.loads(rig.uploads["args"])
        assert given == ["/in/0-one.txt", "/in/1-two.txt", "/in", "/out", str(rig.lease.task.id), "-x"]
        assert rig.events[-1] == "copied"
        if mode == "server":
            assert rig.progress == [{"counters": {"golem.usage.c": 2.5}}]
            assert rig.events[0] == {"state": "st", "value": {"a": [True, None], "b": 1}}

    carry_out(Tasks(stub, "" if mode == "server" else "command", mode=mode, args=args), work)


def test_a_runtime_is_kept_for_the_next_task_and_its_files_are_not(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        first, second = await tasks.ran("one"), await tasks.ran("two")
        assert second.uploads.keys() == {"args", "more/0-two.txt"}
        assert first.uploads["args"] == second.uploads["args"]  # it is the same process
        (root,) = tasks.runtimes()
        assert not [each for each in (root / "work").rglob("*") if each.is_file()]

    carry_out(Tasks(stub), work)


def test_without_keep_each_task_has_its_own(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        first, second = await tasks.ran(), await tasks.ran()
        assert first.uploads["args"] != second.uploads["args"]
        assert not tasks.runtimes() and not stub.living()

    carry_out(Tasks(stub, keep=False), work)


def test_tasks_at_once_have_a_runtime_each(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        rigs = [tasks.rig("one"), tasks.rig("two")]
        for rig in rigs:
            rig.start()
        for rig in rigs:
            assert await rig.end() == Ending()
        assert len({rig.uploads["args"] for rig in rigs}) == 2
        assert len(tasks.runtimes()) == 2

    carry_out(Tasks(stub), work)


def test_task_json_is_there_where_it_is_asked_for(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran("one", meta={"size": 3})
        known = json.loads(rig.uploads["more/task.json"].lower())
        assert known["task"]["meta"] == {"size": 3}
        assert [each["path"] for each in known["inputs"]] == ["/in/0-one.txt"]
        assert json.loads(rig.uploads["args"])[1] == "/in/task.json"

    carry_out(Tasks(stub, args=["{task}"]), work)


def test_a_runtime_that_is_gone_is_deployed_anew(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        first = await tasks.ran()
        os.kill(json.loads(first.uploads["args"])[0], 9)
        await asyncio.to_thread(wait_until, lambda: not stub.living())
        await tasks.runner._idle[0].supervisor.lost()
        second = await tasks.ran()
        assert second.ending == Ending() and second.uploads["args"] != first.uploads["args"]
        assert len(tasks.runtimes()) == 1

    carry_out(Tasks(stub), work)


# --- Where files are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("volumes", "inputs", "outputs"),
    [
        ([("a", "/data/input"), ("b", "/data/output"), ("c", "/cache")], ("/data/input", "a"), ("/data/output", "b")),
        ([("a", "/golem")], ("/golem/inputs", "a/inputs"), ("/golem/outputs", "a/outputs")),
        ([("a", "/in")], ("/in", "a"), ("/in/outputs", "a/outputs")),
        ([], (None, "inputs"), (None, "outputs")),
    ],
)
def test_the_places_of_files(
    stub: Stub, volumes: list[tuple[str, str]], inputs: tuple[str | None, str], outputs: tuple[str | None, str]
) -> None:
    deploy = {"valid": {"Ok": ""}, "startMode": "empty", "vols": [{"name": n, "path": p} for n, p in volumes]}
    script = f'cp "{inputs[1]}"/0-one.txt "{outputs[1]}/found"; printf "%s " "$@" >> "{outputs[1]}/found"'

    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran("one")
        assert rig.ending == Ending()
        (root,) = tasks.runtimes()
        shown = [shown or str(root / "work" / name) for shown, name in (inputs, outputs)]
        assert rig.uploads == {"found": f"data of one.txt{shown[0]} {shown[1]} ".encode()}

    args = ["-c", script, "sh", "{inputs}", "{outputs}"]
    be = f"deploy says {json.dumps(deploy)}"
    carry_out(Tasks(stub, be, mode="command", entrypoint="/bin/sh", args=args), work)


@pytest.mark.parametrize(
    ("volumes", "options", "text"),
    [
        ([("a", "/one"), ("b", "/two")], {}, "which of the volumes ['/one', '/two'] is for inputs? Give inputs=PATH"),
        ([("a", "/one")], {"outputs": "/two/x"}, "expected a volume for outputs that holds /two/x, there is none"),
    ],
)
def test_a_runtime_without_a_place_for_files_does_not_start(
    stub: Stub, volumes: list[tuple[str, str]], options: dict[str, str], text: str
) -> None:
    deploy = {"valid": {"Ok": ""}, "startMode": "empty", "vols": [{"name": n, "path": p} for n, p in volumes]}

    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran()
        assert rig.ending is not None and rig.ending.code is FailureCode.SETUP_FAILED
        assert text in rig.ending.message
        assert rig.metrics.errors == [(RunnerType.COMMAND, "spawn_failed")]

    carry_out(Tasks(stub, f"deploy says {json.dumps(deploy)}", mode="command", **options), work)


def test_a_link_in_place_of_a_volume_is_not_followed(stub: Stub, tmp_path: Path) -> None:
    """Emptying it would empty what it leads to."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    script = f'rm -r vol-out; ln -s "{tmp_path}/mine" vol-out'

    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran()
        assert rig.ending is not None and rig.ending.code is FailureCode.RUNNER_ERROR
        assert "is a link" in rig.ending.message
        assert (tmp_path / "mine" / "file").read_text() == "mine"
        assert not tasks.runtimes()

    carry_out(Tasks(stub, "command", mode="command", entrypoint="/bin/sh", args=["-c", script]), work)


# --- What a task may say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meta", [{"entrypoint": "/bin/sh"}, {"args": []}, {"entrypoint": "x", "args": ["y"]}])
def test_a_task_does_not_choose_what_is_run(stub: Stub, meta: dict[str, Any]) -> None:
    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran(meta=meta)
        assert rig.ending is not None and rig.ending.code is FailureCode.BAD_INPUT
        assert "this runner chooses what is run" in rig.ending.message
        assert (await tasks.ran(meta={"other": 1})).ending == Ending()

    carry_out(Tasks(stub), work)


def test_a_task_chooses_where_it_may(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran("one", meta={"entrypoint": "/opt/copy", "args": ["{input}", "-y", "{{}}"]})
        assert json.loads(rig.uploads["args"])[1:] == ["/in/0-one.txt", "-y", "{}"]
        rig = await tasks.ran("one", meta={"args": ["z"]})
        assert json.loads(rig.uploads["args"])[1:] == ["z"]
        rig = await tasks.ran("one", meta={"entrypoint": "copy"})  # arguments belong to their entry point
        assert json.loads(rig.uploads["args"])[1:] == []
        rig = await tasks.ran("one")
        assert json.loads(rig.uploads["args"])[1:] == ["own"]

    carry_out(Tasks(stub, allow_meta=True, args=["own"]), work)


@pytest.mark.parametrize(
    "meta",
    [
        None,
        {"args": ["x"]},
        {"entrypoint": 1},
        {"entrypoint": "/"},
        {"entrypoint": "a\0b"},
        {"entrypoint": "\ud800"},
        {"entrypoint": "copy", "args": "x"},
        {"entrypoint": "copy", "args": [1]},
        {"entrypoint": "copy", "args": ["\0"]},
        {"entrypoint": "copy", "args": ["\ud800"]},
        {"entrypoint": "copy", "args": ["{secret}"]},
        {"entrypoint": "copy", "args": ["{input}"]},
    ],
)
def test_what_a_task_says_badly_is_bad_input(stub: Stub, meta: Any) -> None:
    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran(meta=meta)
        assert rig.ending is not None and rig.ending.code is FailureCode.BAD_INPUT
        assert not stub.living()

    carry_out(Tasks(stub, entrypoint=None, allow_meta=True), work)


# --- How it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("be", "entrypoint", "code", "text"),
    [
        ("", "fail", FailureCode.RUNNER_ERROR, "ended with exit code 3"),
        ("", "refuse", FailureCode.RUNNER_ERROR, "the runtime refused: Not supported (code: 1)"),
        ("", "die", FailureCode.RUNNER_ERROR, "ended with exit code 7 before it had answered"),
        ("", "crash", FailureCode.KILLED, "was killed by SIGKILL"),
        ("", "garbage", FailureCode.RUNNER_ERROR, "is no frames"),
        ("deploy fails", "copy", FailureCode.SETUP_FAILED, "it does not work here"),
        ("die", "copy", FailureCode.SETUP_FAILED, "cannot start"),
        ("deploy says no", "copy", FailureCode.SETUP_FAILED, "expected one JSON object"),
    ],
)
def test_each_end_has_its_reason(stub: Stub, be: str, entrypoint: str, code: FailureCode, text: str) -> None:
    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran()
        assert rig.ending is not None and rig.ending.code is code
        assert text in rig.ending.message
        assert rig.uploads == {}

    carry_out(Tasks(stub, be, entrypoint=entrypoint), work)


def test_what_a_command_wrote_last_is_in_its_failure(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran()
        assert rig.ending is not None and rig.ending.details == {"exit_code": 3, "output": ["no"]}
        assert len(tasks.runtimes()) == 1  # a command that failed is no fault of the runtime's

    carry_out(Tasks(stub, entrypoint="fail"), work)


def test_a_process_killed_by_a_signal_is_told_as_such(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran()
        assert rig.ending is not None and rig.ending.code is FailureCode.KILLED

    args = ["-c", "kill -9 $$"]
    carry_out(Tasks(stub, "command", mode="command", entrypoint="/bin/sh", args=args), work)


def test_what_the_node_cannot_give_or_take_fails_the_task_alone(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        rig = tasks.rig("one")
        rig.fails["one"] = BadInput("half of it")
        rig.start()
        assert (await rig.end()).code is FailureCode.BAD_INPUT
        rig = tasks.rig("one")
        rig.fails["args"] = UploadFailed("no room")
        rig.start()
        assert (await rig.end()).code is FailureCode.UPLOAD_FAILED
        assert (await tasks.ran("one")).ending == Ending()
        assert len(tasks.runtimes()) == 1

    carry_out(Tasks(stub), work)


# --- Stops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("be", "entrypoint", "mode", "kept"),
    [
        ("", "sleep", "server", 1),
        ("unkillable", "sleep", "server", 0),
        ("unkillable", "flood", "server", 0),
        ("", "mute", "server", 0),
        ("command", "/bin/sleep", "command", 1),
        ("deploy hangs", "copy", "server", 0),
        ("mute", "copy", "server", 0),
    ],
)
def test_a_stop_ends_it_wherever_it_is(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, be: str, entrypoint: str, mode: str, kept: int
) -> None:
    run = Supervisor.run
    begun: list[bool] = []

    async def noted(self: Supervisor, *args: Any) -> Command:
        begun.append(entrypoint == "mute")  # of that nothing else is heard
        command = await run(self, *args)
        begun.append(True)
        return command

    async def work(tasks: Tasks) -> None:
        rig = tasks.rig()
        rig.start()
        if entrypoint == "copy":
            await stub.begun()
        else:
            await asyncio.to_thread(wait_until, lambda: any(begun))
        rig.cancel()
        rig.cancel()
        ending = await rig.end()
        assert ending.code is FailureCode.CANCELLED
        assert len(tasks.runtimes()) == kept
        if not kept:
            assert not stub.living()

    monkeypatch.setattr(Supervisor, "run", noted)
    carry_out(Tasks(stub, be, entrypoint=entrypoint, mode=mode, args=["1000"]), work)


def test_the_nodes_end_is_the_runtimes(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        rig = tasks.rig()
        rig.start()
        await stub.begun()
        await tasks.runner.close()
        assert rig.ending is not None and rig.ending.code is FailureCode.CANCELLED
        assert not stub.living()

    carry_out(Tasks(stub, entrypoint="sleep"), work)


# --- How it is declared ---------------------------------------------------------------------------------------------


def test_its_check_is_the_runtimes_test(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        with pytest.raises(StepFailed, match="it does not work here"):
            await tasks.runner.check()

    carry_out(Tasks(stub, "test fails"), work)
    finished(RuntimeRunner("a", "/a", str(stub.binary), entrypoint="x", env={"MARK": stub.mark}).check)


def test_limits_are_the_runners(stub: Stub) -> None:
    async def work(tasks: Tasks) -> None:
        rig = await tasks.ran()
        assert rig.ending is not None and rig.ending.code is FailureCode.SETUP_FAILED
        assert "did not answer within 0.5 s" in rig.ending.message

    carry_out(Tasks(stub, "mute", timeouts=Timeouts(start=SHORT_SECS)), work)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"entrypoint": ""},
        {"entrypoint": "x", "args": "y"},
        {"entrypoint": "x", "args": ["{what}"]},
        {"entrypoint": "x", "mode": "both"},
        {"entrypoint": "x", "inputs": "in"},
        {"entrypoint": "x", "memory_bytes": 0},
        {"entrypoint": "x", "env": {"a=b": "c"}},
    ],
)
def test_options_that_do_not_fit_are_told_where_they_are_written(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        declare_runtime("/a/v1", "runtime", Terms(), **options)
    with pytest.raises(ValueError, match="binary"):
        declare_runtime("/a/v1", "", Terms(), entrypoint="x")
