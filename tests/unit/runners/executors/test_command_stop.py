"""Programs that are told to stop, at any moment."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posemesh.outcomes import FailureCode
from posemesh.runners.ending import Ending
from posemesh.runners.executors import command

from .programs import PATIENCE_SECS, Rig, lives, python, ran, sh


def cancelled(rig: Rig) -> bool:
    return rig.ending is not None and rig.ending.code is FailureCode.CANCELLED


def test_a_stop_while_it_runs_ends_grandchildren_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "CHILD_GRACE_SECS", 600.0)  # SIGTERM is enough

    async def during(rig: Rig) -> None:
        await rig.until(lambda: len(rig.events) == 2)
        for _ in range(3):
            rig.cancel()

    sleeper = "sleep 600 & echo words; printf '{{\"event\": %d}}\\n' $! $$; wait"
    rig = ran(tmp_path, sh(sleeper), during=during)
    assert cancelled(rig) and rig.ending is not None
    assert rig.ending.details["output"] == ["words"]
    assert not any(map(lives, rig.events))


def test_what_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "CHILD_GRACE_SECS", 0.1)

    async def during(rig: Rig) -> None:
        await rig.until(lambda: rig.events)
        rig.cancel()

    hang = python("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "say(os.getpid())", "time.sleep(600)")
    rig = ran(tmp_path, hang, during=during)
    assert cancelled(rig) and not lives(rig.events[0])


def test_one_that_ends_well_because_it_was_told_to_has_no_result(tmp_path: Path) -> None:
    """Many programs clean up and exit with 0 on SIGTERM: that is not the task's end."""

    async def during(rig: Rig) -> None:
        await rig.until(lambda: rig.events)
        rig.cancel()

    rig = ran(
        tmp_path,
        python("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))", "say(1)", "time.sleep(600)"),
        during=during,
    )
    assert cancelled(rig)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells that a process has ended")
@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("exit 0", None),
        ("exit 3", "runner_error"),
        ("kill -SEGV $$", "killed"),
        ('echo x > "$POSEMESH_OUTPUTS/x"; exit 0', "cancelled"),
    ],
)
def test_an_end_that_came_before_the_stop_counts(tmp_path: Path, program: str, code: str | None) -> None:
    """Its artifacts cannot be uploaded any more, though."""

    async def during(rig: Rig) -> None:
        await rig.until(lambda: rig.events)
        (rig.root / "go").touch()
        deadline = time.monotonic() + PATIENCE_SECS
        while not ended(rig.events[0]) and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251 the loop must not hear of it
        rig.cancel()

    wait = "printf '{{\"event\": %d}}\\n' $$; while [ ! -e ../go ]; do sleep 0.01; done; "
    rig = ran(tmp_path, sh(wait + program), during=during)
    assert rig.ending is not None and rig.ending.code == code
    assert rig.uploads == {}


@pytest.mark.parametrize("held", ["two", "b"])
def test_a_stop_while_files_are_moved(tmp_path: Path, held: str) -> None:
    async def during(rig: Rig) -> None:
        await rig.until(lambda: held in rig.asked)
        rig.cancel()
        rig.cancel()

    rig = ran(
        tmp_path,
        sh("cd {outputs}; echo > a; echo > b; echo > c"),
        cids=("one", "two"),
        before=lambda rig: rig.holds.add(held),
        during=during,
    )
    assert cancelled(rig)
    assert rig.asked[-1] == held and list(rig.uploads) == ["a"] * (held == "b")


@pytest.mark.parametrize("cids", [(), ("one",)])
def test_a_stop_at_once_keeps_it_from_beginning(tmp_path: Path, cids: tuple[str, ...]) -> None:
    async def during(rig: Rig) -> None:
        rig.cancel()

    rig = ran(tmp_path, ["touch", "{workspace}/begun"], cids=cids, during=during)
    assert cancelled(rig) and rig.asked == [] and not (tmp_path / "begun").exists()


def test_a_stop_while_it_is_being_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = command.keep

    async def during(rig: Rig) -> None:
        await rig.until(lambda: cancelled(rig) or rig.events)

    def before(rig: Rig) -> None:
        async def kept(*args: Any, **options: Any) -> Any:
            rig.cancel()
            made = await keep(*args, **options)
            rig.events.append(made.pid)
            return made

        monkeypatch.setattr(command, "keep", kept)

    rig = ran(tmp_path, ["sleep", "600"], before=before, during=during)
    assert cancelled(rig) and not lives(rig.events[0])


def test_a_stop_after_the_end_does_nothing(tmp_path: Path) -> None:
    async def during(rig: Rig) -> None:
        await rig.end()
        rig.cancel()

    assert ran(tmp_path, ["true"], during=during).ending == Ending()


def test_a_loop_that_is_closed_leaves_nothing_running(tmp_path: Path) -> None:
    async def main() -> int:
        async with asyncio.timeout(PATIENCE_SECS):
            rig = Rig(tmp_path, python("say(os.getpid())", "time.sleep(600)"), [], None)
            rig.start()
            await rig.until(lambda: rig.events)
            return int(rig.events[0])

    assert not lives(asyncio.run(main()))
