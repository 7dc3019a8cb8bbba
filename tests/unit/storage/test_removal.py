"""Whatever user code made of its workspace goes, and nothing else does."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from posemesh.storage import removal
from posemesh.storage.removal import remove_tree

NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of a user for whom permissions count, which is who the test is while it runs."""
    with TemporaryDirectory(prefix="posemesh-test-") as name:
        root = os.geteuid() == 0
        if root:
            os.chown(name, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


def nested(top: Path, levels: int) -> None:
    """As many directories in one another, the path of which no call takes."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_a_tree_of_any_depth(tmp_path: Path) -> None:
    """Recursion ended at about a thousand levels: the workspace stayed, and so did all others at the next start."""
    top = tmp_path / "top"
    top.mkdir()
    nested(top, 5000)
    (top / "d" / "beside").mkdir()
    remove_tree(top)
    assert not list(tmp_path.iterdir())


def test_a_wide_tree(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / "top" / str(number % 20) / str(number)).mkdir(parents=True)
        (tmp_path / "top" / str(number % 20) / f"{number}.txt").write_text("x")
    remove_tree(tmp_path / "top")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400, 0o500, 0o300])
def test_directories_without_permissions(place: Path, mode: int) -> None:
    inner = place / "top" / "closed" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    for directory in (inner, inner.parent, place / "top"):
        directory.chmod(mode)
    remove_tree(place / "top")
    assert not list(place.iterdir())


def test_links_go_and_what_they_lead_to_stays(place: Path) -> None:
    """Permissions were given by path: a link could have led them to a directory elsewhere."""
    kept = place / "kept"
    (kept / "inner").mkdir(parents=True)
    (kept / "file").write_text("x")
    (kept / "inner").chmod(0o500)
    top = place / "top"
    (top / "closed").mkdir(parents=True)
    (top / "closed" / "link").symlink_to(kept / "inner")
    (top / "link").symlink_to(kept)
    (top / "broken").symlink_to("nowhere")
    (top / "circle").symlink_to(top)
    os.link(kept / "file", top / "file")
    (top / "closed").chmod(0o500)
    remove_tree(top)
    assert not top.exists() and (kept / "file").read_text() == "x"
    assert (kept / "inner").stat().st_mode & 0o777 == 0o500


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "file", "fifo", "nothing"):
        remove_tree(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def failing(monkeypatch: pytest.MonkeyPatch, wanted: str, error: OSError, times: int = 10**6) -> None:
    """Have the removal of files of that name fail so often."""
    unlink = os.unlink

    def instead(name: Any, *given: Any, **more: Any) -> None:
        nonlocal times
        if name == wanted and times:
            times -= 1
            raise error
        unlink(name, *given, **more)

    monkeypatch.setattr(os, "unlink", instead)


def test_what_cannot_be_removed_is_told_and_the_rest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "top" / name / "deep").mkdir(parents=True)
        (tmp_path / "top" / name / "deep" / f"file-{name}").write_text("x")
    with monkeypatch.context() as patch:
        failing(patch, "file-b", PermissionError(errno.EPERM, "immutable"))
        with pytest.raises(PermissionError, match="immutable"):
            remove_tree(tmp_path / "top")
    left = [str(path.relative_to(tmp_path / "top")) for path in sorted((tmp_path / "top").rglob("*"))]
    assert left == ["b", "b/deep", "b/deep/file-b"]
    remove_tree(tmp_path / "top")
    assert not list(tmp_path.iterdir())


def test_it_is_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "file").write_text("x")
    failing(monkeypatch, "file", OSError(errno.EBUSY, "busy"), times=1)
    remove_tree(tmp_path / "top")
    assert not list(tmp_path.iterdir())


def test_two_at_once(tmp_path: Path) -> None:
    """A task's end and the node's may meet: what one finds gone is what it wanted."""
    for number in range(200):
        (tmp_path / "top" / str(number) / "deep").mkdir(parents=True)

    def remove() -> None:
        with suppress(OSError):  # of two, one may meet the other's work
            remove_tree(tmp_path / "top")

    threads = [threading.Thread(target=remove) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    remove_tree(tmp_path / "top")
    assert not list(tmp_path.iterdir())


def test_what_is_mounted_below_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """User code may have mounted a bucket there."""
    (tmp_path / "top" / "bucket").mkdir(parents=True)
    (tmp_path / "top" / "bucket" / "file").write_text("x")
    (tmp_path / "top" / "file").write_text("x")
    stat = os.stat

    def instead(name: Any, *given: Any, **more: Any) -> os.stat_result:
        found = stat(name, *given, **more)
        return os.stat_result((*found[:2], found.st_dev + 1, *found[3:])) if name == "bucket" else found

    with monkeypatch.context() as patch:
        patch.setattr(removal.os, "stat", instead)
        with pytest.raises(OSError, match="mounted"):
            remove_tree(tmp_path / "top")
    assert [path.name for path in (tmp_path / "top").rglob("*")] == ["bucket", "file"]
    assert (tmp_path / "top" / "bucket" / "file").exists() and not (tmp_path / "top" / "file").exists()
