"""Workspaces: gone at a task's end, and after a crash at the next start; a living node's are not touched."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from posemesh.errors import DiskFull, StorageError
from posemesh.storage.removal import remove_tree
from posemesh.storage.workspace import Workplace, Workspace, disk_errors, state_dir
from posemesh.telemetry import logger

CRASH = """
import sys, pathlib
from posemesh.storage.workspace import Workplace, Workspace
work = Workspace(Workplace(pathlib.Path(sys.argv[1]) if sys.argv[1] else None), 100)
(work.path() / "deep").mkdir()
(work.path() / "deep" / "file").write_text("x")
(work.path() / "deep").chmod(0o500)
print(work.path(), flush=True)
sys.stdin.read()
"""


def crash(temporary: Path, state: Path | str) -> Path:
    """The workspace that a node left which was killed; it keeps state in ``state``, or has none."""
    running = subprocess.Popen(
        [sys.executable, "-c", CRASH, state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    assert running.stdout is not None
    left = Path(running.stdout.readline().strip())
    running.send_signal(signal.SIGKILL)
    running.communicate()
    return left


def test_a_workspace_is_made_when_asked_for_and_removed(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    Workspace(place, 100).remove()
    assert not list(tmp_path.iterdir())
    work = Workspace(place, 100)
    paths = set()
    threads = [threading.Thread(target=lambda: paths.add(work.path())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = paths
    assert path.is_absolute() and path.stat().st_mode & 0o077 == 0 and path.is_relative_to(tmp_path / "work")
    assert Workspace(place, 100).path() != path
    work.remove()
    work.remove()
    assert not path.exists()
    for make in (work.path, lambda: work.new_directory("late-")):
        with pytest.raises(StorageError, match="the task has ended"):
            make()
    assert not path.exists()
    place.close()
    assert not list((tmp_path / "work").iterdir())
    place.close()


def test_what_user_code_made_unwritable_goes_too(tmp_path: Path) -> None:
    work = Workspace(Workplace(tmp_path), 100)
    (work.path() / "deep").mkdir()
    (work.path() / "deep" / "file").write_text("x")
    (path := work.path() / "deep").chmod(0o500)
    work.remove()
    assert not path.parent.exists()


def test_a_workspace_of_an_ended_task_is_not_made() -> None:
    """A thread that user code left running made one, which stayed as long as the node."""
    work = Workspace(Workplace(None), 100)
    assert not work.end()
    with pytest.raises(StorageError, match="the task has ended"):
        work.path()


def test_a_crashed_nodes_are_swept_and_a_living_nodes_are_not(tmp_path: Path) -> None:
    def start() -> tuple[subprocess.Popen[str], Path]:
        running = subprocess.Popen(
            [sys.executable, "-c", CRASH, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert running.stdout is not None
        return running, Path(running.stdout.readline().strip())

    (living, its), (crashed, left) = start(), start()
    try:
        crashed.send_signal(signal.SIGKILL)
        crashed.communicate()
        mine = Workspace(place := Workplace(tmp_path), 100)
        mine.path()
        (tmp_path / "work" / "notes.lock").write_text("not ours")
        assert (its.exists(), left.exists()) == (True, True)
        assert place.sweep() == 1
        assert (its.exists(), left.exists(), mine.path().exists()) == (True, False, True)
        assert place.sweep() == 0 and Workplace(tmp_path).sweep() == 0
    finally:
        living.kill()
        living.communicate()
    assert Workplace(tmp_path).sweep() == 1
    assert not its.exists() and mine.path().exists()
    place.close()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["notes.lock"]


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The part of the temporary directory that is this user's, before anybody made it."""
    base = tmp_path_factory.mktemp("tmp")
    monkeypatch.setattr("tempfile.tempdir", str(base))
    return base / f"posemesh-{os.geteuid()}"


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    said: list[str] = []
    logger().enable("posemesh")
    sink = logger().add(said.append, level="WARNING")
    yield said
    logger().remove(sink)
    logger().disable("posemesh")


def test_without_a_state_directory_the_temporary_one_serves(
    tmp_path: Path, temporary: Path, warnings: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "work").write_text("in the way")
    for state in (None, tmp_path / "file", tmp_path / "taken"):
        place = Workplace(state)
        assert place.sweep() == 0
        path = Workspace(place, 100).path()
        assert path.parent.parent == temporary and stat.S_IMODE(temporary.stat().st_mode) == 0o700
        Workspace(place, 100).path()
        place.close()
        assert not list(temporary.iterdir())
        assert len(warnings) == (state is not None)
        assert all(str(state) in line and "STATE_DIR" in line for line in warnings)
        warnings.clear()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOLCK])
def test_a_state_directory_that_cannot_be_written(
    tmp_path: Path, temporary: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    unwritable(monkeypatch, tmp_path / "state", number)
    place = Workplace(tmp_path / "state")
    assert Workspace(place, 100).path().is_relative_to(temporary)
    assert len(warnings) == 1 and os.strerror(number) in warnings[0]
    place.close()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, None)])
def test_a_state_directory_that_is_full_or_broken_is_told(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError] | None
) -> None:
    """Any error moved a node's workspaces to the temporary directory, which often is memory, and told nobody."""
    unwritable(monkeypatch, tmp_path / "state", number)
    with pytest.raises(kind or StorageError, match="workspace"):
        Workspace(Workplace(tmp_path / "state"), 100).path()
    assert not temporary.exists()


def unwritable(monkeypatch: pytest.MonkeyPatch, below: Path, number: int) -> None:
    mkdir = Path.mkdir

    def instead(path: Path, *given: Any, **more: Any) -> None:
        if path.is_relative_to(below):
            raise OSError(number, os.strerror(number))
        mkdir(path, *given, **more)

    monkeypatch.setattr(Path, "mkdir", instead)


def test_a_crashed_nodes_are_swept_from_the_temporary_directory(tmp_path: Path, temporary: Path) -> None:
    """They stayed for ever, since no start looked there."""
    crashed = crash(temporary.parent, "")
    assert crashed.is_relative_to(temporary) and crashed.exists()
    assert Workplace(tmp_path / "state").sweep() == 1
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("made", ["link", "file", "open", "of another"])
def test_a_temporary_directory_that_a_stranger_made_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    """Its name is known to all, and so is where it is to be."""
    (elsewhere := temporary.with_name("elsewhere")).mkdir(mode=0o700)
    (elsewhere / f"{'ab' * 8}.lock").touch()
    if made == "link":
        temporary.symlink_to(elsewhere)
    elif made == "file":
        temporary.touch()
    else:
        elsewhere.rename(temporary)
        elsewhere = temporary
        temporary.chmod(0o777 if made == "open" else 0o700)
    if made == "of another":
        monkeypatch.setattr("os.geteuid", lambda: temporary.stat().st_uid + 1)
        monkeypatch.setattr("posemesh.storage.workspace._temporary", lambda: temporary)
    place = Workplace(None)
    with pytest.raises(StorageError, match="directory of this user alone"):
        Workspace(place, 100).path()
    assert place.sweep() == 0
    assert [path.name for path in elsewhere.iterdir()] == [f"{'ab' * 8}.lock"]


def test_a_workspace_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workplace(None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(StorageError, match="workspace"):
        Workspace(place, 100).path()


def test_a_run_that_somebody_removed_is_made_anew(temporary: Path) -> None:
    """What cleans the temporary directory takes what was not used for days; every later task would fail."""
    place = Workplace(None)
    before = Workspace(place, 100).path()
    for path in (before, before.parent):
        path.rmdir()
    before.parent.with_suffix(".lock").unlink()
    after = Workspace(place, 100).path()
    assert after.exists() and after.parent != before.parent
    place.close()
    assert not list(temporary.iterdir())


def test_one_leftover_that_cannot_be_removed_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    """And its lock stays with it, so that the next start tries again."""
    runs = sorted(crash(tmp_path, tmp_path / "state").parent for _ in range(3))
    with monkeypatch.context() as patch:
        patch.setattr("posemesh.storage.workspace.remove_tree", failing_for(runs[0]))
        assert Workplace(tmp_path / "state").sweep() == 2
    assert [run.exists() for run in runs] == [True, False, False]
    assert sorted(runs[0].parent.iterdir()) == [runs[0], runs[0].with_suffix(".lock")]
    assert len(warnings) == 1 and str(runs[0]) in warnings[0]
    assert Workplace(tmp_path / "state").sweep() == 1
    assert not list(runs[0].parent.iterdir())


def test_a_lock_stays_with_what_could_not_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, no later start knew of the files."""
    place = Workplace(tmp_path)
    run = Workspace(place, 100).path().parent
    with monkeypatch.context() as patch:
        patch.setattr("posemesh.storage.workspace.remove_tree", failing_for(run))
        place.close()
    assert sorted(run.parent.iterdir()) == [run, run.with_suffix(".lock")]
    assert Workplace(tmp_path).sweep() == 1
    assert not list(run.parent.iterdir())


def failing_for(run: Path) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        if path == run:
            raise PermissionError(errno.EPERM, "immutable")
        remove_tree(path)

    return remove


def test_what_stays_of_a_workspace_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workspace(Workplace(tmp_path), 100)
    path = work.path()
    with monkeypatch.context() as patch:
        patch.setattr("posemesh.storage.workspace.remove_tree", failing_for(path))
        with pytest.raises(StorageError, match="cannot be removed: immutable"):
            work.remove()
    work.remove()
    assert not path.exists()


def test_a_tree_deeper_than_calls_may_be_goes(tmp_path: Path) -> None:
    """It stayed, and its RecursionError took the place of the task's result, and ended the next start's sweep."""
    work = Workspace(place := Workplace(tmp_path), 100)
    here = os.open(path := work.path(), os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    work.remove()
    assert not path.exists()
    place.close()


def test_room_is_counted(tmp_path: Path) -> None:
    work = Workspace(Workplace(tmp_path), 100)
    work.take(60)
    with pytest.raises(DiskFull, match="WORKSPACE_BYTES_MAX, which is 100"):
        work.take(41)
    work.take(40)
    work.take(-100)
    work.take(100)


def test_room_is_counted_from_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive is unpacked in a thread of its own, while a download goes on: each must see the other's bytes."""
    work = Workspace(Workplace(tmp_path), 100)
    met = threading.Barrier(2)

    class Slow(int):
        """A size that the other thread gets in between the check and the count, if anything lets it."""

        def __gt__(self, other: int) -> bool:
            found = int(self) > other
            with suppress(threading.BrokenBarrierError):
                met.wait(timeout=0.2)
            return found

    refused = []

    def take() -> None:
        try:
            work.take(Slow(60))
        except DiskFull:
            refused.append(True)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StorageError)]
)
def test_disk_errors_are_told(number: int, kind: type[StorageError]) -> None:
    with pytest.raises(StorageError, match="input x: ") as caught, disk_errors("input x"):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is kind


def test_where_state_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_dir(tmp_path / "given", "0xa") == tmp_path / "given"
    assert state_dir(None, "0xa") == Path("/state/posemesh/0xa")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        assert state_dir(None, "0xa") == tmp_path / ".local/state/posemesh/0xa"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert state_dir(None, "0xa") is None
