"""Workspaces: gone at a task's end, and after a crash at the next start; a living node's are not touched."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from posemesh.errors import DiskFull, StorageError
from posemesh.storage.workspace import Workplace, Workspace, disk_errors, state_dir

CRASH = """
import sys, pathlib
from posemesh.storage.workspace import Workplace, Workspace
work = Workspace(Workplace(pathlib.Path(sys.argv[1])), 100)
(work.path() / "deep").mkdir()
(work.path() / "deep" / "file").write_text("x")
(work.path() / "deep").chmod(0o500)
print(work.path(), flush=True)
sys.stdin.read()
"""


def test_a_workspace_is_made_when_asked_for_and_removed(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    work = Workspace(place, 100)
    work.remove()
    assert not list(tmp_path.iterdir())
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
    place.close()
    assert not list((tmp_path / "work").iterdir())
    place.close()


def test_what_user_code_made_unwritable_goes_too(tmp_path: Path) -> None:
    work = Workspace(Workplace(tmp_path), 100)
    (work.path() / "deep").mkdir()
    (work.path() / "deep" / "file").write_text("x")
    (work.path() / "deep").chmod(0o500)
    work.remove()
    assert not work.path().exists()


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


def test_without_a_state_directory_the_temporary_one_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").write_text("in the way")
    for state in (None, tmp_path / "file"):
        place = Workplace(state)
        assert place.sweep() == 0
        path = Workspace(place, 100).path()
        assert path.is_relative_to(tmp_path / "tmp")
        place.close()
        assert not list((tmp_path / "tmp").iterdir())


def test_a_workspace_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workplace(None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(StorageError, match="workspace"):
        Workspace(place, 100).path()


def test_room_is_counted(tmp_path: Path) -> None:
    work = Workspace(Workplace(tmp_path), 100)
    work.take(60)
    with pytest.raises(DiskFull, match="WORKSPACE_BYTES_MAX, which is 100"):
        work.take(41)
    assert work.left == 40
    work.take(-60)
    work.take(100)


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
