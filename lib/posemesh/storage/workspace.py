"""Where a node keeps its tasks' files: one directory a task, removed at its end, and after a crash at the next start.

``work/<run>/`` is one running node's; it holds a lock on ``work/<run>.lock`` as long as it lives. What has a lock that
nobody holds was left by a node that crashed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from posemesh.errors import DiskFull, StorageError

__all__ = ("Workplace", "Workspace", "disk_errors", "state_dir")

_RUN = re.compile(r"[0-9a-f]{16}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def state_dir(given: Path | None, address: str) -> Path | None:
    """STATE_DIR, else ``${XDG_STATE_HOME:-~/.local/state}/posemesh/<address>``; None where there is no home."""
    if given is not None:
        return given.absolute()
    base = os.environ.get("XDG_STATE_HOME", "")
    try:
        home = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return home / "posemesh" / address


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Make an OSError of the block a DiskFull or a StorageError that names ``what``."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        if error.errno in _FULL:
            raise DiskFull(f"{what}: {said}; make room, or move STATE_DIR to a larger disk") from error
        raise StorageError(f"{what}: {said}") from error


class Workspace:
    """One task's directory, made when it is first asked for, and how much posemesh may still put into it."""

    def __init__(self, place: Workplace, limit: int) -> None:
        self._place = place
        self._limit = limit
        self._used = 0
        self._path: Path | None = None
        self._lock = threading.Lock()

    def path(self) -> Path:
        """The directory. From any thread. Raises StorageError where none can be made."""
        with self._lock:
            if self._path is None:
                with disk_errors("the task's workspace"):
                    self._path = self._place.new_directory()
            return self._path

    def new_directory(self, prefix: str) -> Path:
        """An empty directory within."""
        with disk_errors("the task's workspace"):
            path = self.path() / f"{prefix}{secrets.token_hex(16)}"
            path.mkdir(parents=True)
            return path

    @property
    def made(self) -> bool:
        """Whether there is anything to remove."""
        return self._path is not None

    @property
    def left(self) -> int:
        """How many bytes may still be put in."""
        return self._limit - self._used

    def take(self, size: int) -> None:
        """Count ``size`` bytes that are to be written; negative where they are gone. Raises DiskFull."""
        if size > self.left:
            raise DiskFull(
                f"{size} more bytes in the task's workspace would exceed WORKSPACE_BYTES_MAX, which is {self._limit}"
            )
        self._used += size

    def discard(self, path: Path) -> None:
        """Remove one file or directory within."""
        if path.is_dir():
            _remove(path)
        else:
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of it. Nothing is made anew where there was none."""
        if self._path is not None:
            _remove(self._path)


class Workplace:
    """One node's. ``state`` is its state directory; the temporary one serves where that cannot be written."""

    def __init__(self, state: Path | None) -> None:
        self._base = None if state is None else state / "work"
        self._run: Path | None = None
        self._lock: int | None = None
        self._making = threading.Lock()

    def sweep(self) -> int:
        """Remove what crashed nodes left behind; how many. A living node's files are not touched."""
        if self._base is None:
            return 0
        swept = 0
        with suppress(OSError):
            for lock in sorted(self._base.glob("*.lock")):
                swept += _RUN.fullmatch(lock.stem) is not None and lock != self._own_lock and _swept(lock)
        return swept

    def new_directory(self) -> Path:
        """A task's. Raises OSError."""
        with self._making:
            if self._run is None:
                self._run = self._begin()
        return Path(tempfile.mkdtemp(prefix="task-", dir=self._run))

    def close(self) -> None:
        """Remove what is left and give up the lock."""
        run, self._run = self._run, None
        if run is not None:
            _remove(run)
        if self._lock is not None:
            with suppress(OSError):
                if run is not None:
                    run.with_suffix(".lock").unlink()
            os.close(self._lock)
            self._lock = None

    @property
    def _own_lock(self) -> Path | None:
        return self._run and self._run.with_suffix(".lock")

    def _begin(self) -> Path:
        if self._base is not None:
            with suppress(OSError):
                return self._locked(self._base)
        return Path(tempfile.mkdtemp(prefix="posemesh-"))

    def _locked(self, base: Path) -> Path:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            run = base / secrets.token_hex(8)
            lock = run.with_suffix(".lock")
            held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
                if not _is_at(held, lock):  # another node, starting, took it for a leftover
                    os.close(held)
                    continue
                run.mkdir(mode=0o700)
            except OSError:
                lock.unlink(missing_ok=True)
                os.close(held)
                raise
            self._lock = held
            return run


def _swept(lock: Path) -> bool:
    """Remove one run's files, unless its lock is held."""
    try:
        held = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(held, lock):
            return False
        _remove(lock.with_suffix(""))
        lock.unlink()
    except OSError:
        return False
    finally:
        os.close(held)
    return True


def _is_at(held: int, path: Path) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except FileNotFoundError:
        return False


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():  # user code made directories that cannot be written
        for path, _, _ in os.walk(directory):
            with suppress(OSError):
                os.chmod(path, 0o700)
        shutil.rmtree(directory, ignore_errors=True)
