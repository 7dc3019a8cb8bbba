"""Where a node keeps its tasks' files: one directory a task, removed at its end, and after a crash at the next start.

``work/<run>/`` is one running node's; it holds a lock on ``work/<run>.lock`` as long as it lives. What has a lock that
nobody holds was left by a node that crashed. A lock stays as long as there is anything left that it stands for.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from posemesh.errors import DiskFull, StorageError
from posemesh.storage.removal import remove_tree
from posemesh.telemetry import logger

__all__ = ("Workplace", "Workspace", "disk_errors", "state_dir")

_RUN = re.compile(r"[0-9a-f]{16}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Nothing can be kept there, now or later; the last two are of network file systems without locks.
_UNFIT = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENOLCK, errno.EOPNOTSUPP}
)


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
    """One task's directory, made when it is first asked for, and how much posemesh may still put into it.

    All of it may be called from any thread.
    """

    def __init__(self, place: Workplace, limit: int) -> None:
        self._place = place
        self._limit = limit
        self._used = 0
        self._path: Path | None = None
        self._ended = False
        self._lock = threading.Lock()

    def path(self) -> Path:
        """The directory. Raises StorageError where none can be made, or the task has ended."""
        with self._lock:
            return self._made()

    def new_directory(self, prefix: str) -> Path:
        """An empty directory within. Raises as :meth:`path` does."""
        with self._lock, disk_errors("the task's workspace"):  # none is made while the workspace is removed
            path = self._made() / f"{prefix}{secrets.token_hex(16)}"
            path.mkdir(parents=True)
            return path

    def _made(self) -> Path:
        if self._ended:
            raise StorageError("the task's workspace is gone: the task has ended")
        if self._path is None:
            with disk_errors("the task's workspace"):
                self._path = self._place.new_directory()
        return self._path

    def take(self, size: int) -> None:
        """Count ``size`` bytes that are to be written; negative where they are gone. Raises DiskFull."""
        with self._lock:
            if size > self._limit - self._used:
                raise DiskFull(
                    f"{size} more bytes in the task's workspace would exceed WORKSPACE_BYTES_MAX, which is "
                    f"{self._limit}"
                )
            self._used += size

    def discard(self, path: Path) -> None:
        """Remove one file or directory within. What cannot be removed goes with the workspace."""
        with suppress(OSError):
            remove_tree(path)

    def end(self) -> bool:
        """Nothing is made from now on; whether there is anything to remove."""
        with self._lock:
            self._ended = True
            return self._path is not None

    def remove(self) -> None:
        """Remove all of it, for good. Raises StorageError where something stays."""
        if self.end():
            assert self._path is not None
            with disk_errors("the task's workspace cannot be removed"):
                remove_tree(self._path)


class Workplace:
    """One node's. ``state`` is its state directory; one in the temporary directory serves where that cannot."""

    def __init__(self, state: Path | None) -> None:
        self._base = None if state is None else state / "work"
        self._run: Path | None = None
        self._lock = -1
        self._making = threading.Lock()

    def sweep(self) -> int:
        """Remove what crashed nodes left behind; how many. A living node's files are not touched."""
        locks: list[Path] = []
        if self._base is not None:
            with suppress(OSError):
                locks += self._base.glob("*.lock")
        with suppress(OSError):
            if _is_own(temporary := _temporary()):
                locks += temporary.glob("*.lock")
        own = self._run and self._run.with_suffix(".lock")
        return sum(_swept(lock) for lock in sorted(locks) if _RUN.fullmatch(lock.stem) and lock != own)

    def new_directory(self) -> Path:
        """A task's. Raises OSError."""
        with self._making:
            if self._run is None or not self._run.is_dir():  # who cleans the temporary directory may have taken it
                self._end()
                self._run = self._begin()
            return Path(tempfile.mkdtemp(prefix="task-", dir=self._run))

    def close(self) -> None:
        """Remove what is left and give up the lock."""
        with self._making:
            self._end()

    def _end(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            _remove_run(run)
            os.close(self._lock)

    def _begin(self) -> Path:
        if self._base is not None:
            try:
                self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
                return self._locked(self._base)
            except OSError as error:
                if error.errno not in _UNFIT:
                    raise
                logger().warning(
                    f"no workspace can be made in {self._base} ({error.strerror}), so that they go to the temporary "
                    "directory; STATE_DIR chooses another place"
                )
        base = _temporary()
        with suppress(FileExistsError):
            base.mkdir(mode=0o700)
        if not _is_own(base):
            said = f"expected {base} to be a directory of this user alone; remove it, or set STATE_DIR"
            raise PermissionError(errno.EPERM, said)
        return self._locked(base)

    def _locked(self, base: Path) -> Path:
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


def _temporary() -> Path:
    """This user's part of the temporary directory."""
    return Path(tempfile.gettempdir()) / f"posemesh-{os.geteuid()}"


def _is_own(base: Path) -> bool:
    """Whether it is a directory of this user alone. Anyone may have made it, in a directory that is everyone's."""
    found = base.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _swept(lock: Path) -> bool:
    """Remove one run's files, unless its lock is held."""
    try:
        held = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_at(held, lock) and _remove_run(lock.with_suffix(""))
    except OSError:
        return False
    finally:
        os.close(held)


def _remove_run(run: Path) -> bool:
    """Remove a run's files and then its lock, which is held; whether all are gone. The next start tries again."""
    try:
        remove_tree(run)
        run.with_suffix(".lock").unlink(missing_ok=True)
    except Exception as error:  # one that cannot be removed must not keep the others
        logger().opt(exception=error).warning(f"{run} could not be removed")
        return False
    return True


def _is_at(held: int, path: Path) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except FileNotFoundError:
        return False
