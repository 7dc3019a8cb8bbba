"""Removing what user code made: trees of any depth, with links, with directories that nobody may enter.

``shutil.rmtree`` recurses, so that some thousand levels are a RecursionError, and it leaves what is in directories
without permissions. Here one directory is open at a time, and each is found from the one above it by its name alone: a
longer path could be too long, or lead through a link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ("remove_tree",)

ATTEMPTS = 2
"""Threads that user code left behind may make files while theirs are removed."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Remove ``path`` and all below it, where there is such a thing. Links go; what they lead to stays.

    Raises OSError where something stays, such as what is mounted below, after all that can go is gone.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            return _remove(path)
        except OSError:
            if not os.path.lexists(path):
                return
            if not left:
                raise


def _remove(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        path.unlink()
        return
    removal = _Removal(_opened(str(path), None, found.st_dev))
    try:
        removal.run()
    finally:
        removal.close()
    if removal.failure is not None:
        raise removal.failure
    path.rmdir()


class _Level(NamedTuple):
    """A directory between the top and the one that is open, which included."""

    name: str
    found: os.stat_result
    #: Its directories that are not gone yet.
    waiting: list[str]


class _Removal:
    """Empties the open directory ``top``."""

    def __init__(self, top: int) -> None:
        self.failure: OSError | None = None
        self._here = top
        self._device = os.fstat(top).st_dev
        self._levels: list[_Level] = []

    def run(self) -> None:
        self._begin("")
        while self._levels:
            waiting = self._levels[-1].waiting
            if waiting:
                self._down(waiting.pop())
            else:
                self._up()

    def close(self) -> None:
        os.close(self._here)

    def _begin(self, name: str) -> None:
        """Remove what is no directory from the open one."""
        level = _Level(name, os.fstat(self._here), [])
        self._levels.append(level)
        try:
            with os.scandir(self._here) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        level.waiting.append(entry.name)
                    else:
                        self._try(os.unlink, entry.name)
        except OSError as error:
            self._note(error)

    def _down(self, name: str) -> None:
        try:
            below = _opened(name, self._here, self._device)
        except OSError as error:
            return self._note(error)
        os.close(self._here)
        self._here = below
        self._begin(name)

    def _up(self) -> None:
        done = self._levels.pop()
        if not self._levels:
            return
        above = os.open("..", _DIRECTORY, dir_fd=self._here)
        os.close(self._here)
        self._here = above
        if not os.path.samestat(os.fstat(above), self._levels[-1].found):
            raise OSError(errno.EBUSY, "it was moved while it was removed", done.name)
        self._try(os.rmdir, done.name)

    def _try(self, remove: Callable[..., None], name: str) -> None:
        try:
            remove(name, dir_fd=self._here)
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            self.failure = self.failure or error


def _opened(name: str, parent: int | None, device: int) -> int:
    """That directory, open, and permitted to its owner as far as that can be done."""
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if found.st_dev != device:
        raise OSError(errno.EBUSY, "another file system is mounted there", name)
    if stat.S_IMODE(found.st_mode) & 0o700 != 0o700:
        with suppress(OSError):
            _permit(name, parent)
    return os.open(name, _DIRECTORY, dir_fd=parent)


def _permit(name: str, parent: int | None) -> None:
    if os.chmod in os.supports_follow_symlinks:
        os.chmod(name, 0o700, dir_fd=parent, follow_symlinks=False)
        return
    # Linux: what is open for nothing but its name has a path that is no link of others.
    held = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{held}", 0o700)
    finally:
        os.close(held)
