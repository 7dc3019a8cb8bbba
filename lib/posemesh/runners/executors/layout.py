"""The files of a program's task: what it finds when it starts, and what it leaves."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from posemesh.runners.api import JSON, LeaseEnvelope, MaterializedInput
from posemesh.wire import domain

__all__ = ("OUTPUTS_MAX", "Layout")

OUTPUTS_MAX = 10_000
"""Files, and directories, that a task may leave below ``outputs``."""

_NAME_CHARS_MAX: Final = 200
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Layout:
    """The task's directory, with everything in it made. Raises OSError.

    ``inputs`` holds input *n* as ``<n>-<name>`` and, where its download had other files too, those as
    ``<n>-related/<k>-<name>``. ``outputs`` is collected in the end. ``work``, where the program runs, and ``tmp`` are
    not. ``task`` is described in :meth:`describe`. Empty directories elsewhere may stand in for ``inputs`` and
    ``outputs``; then ``task`` is in the first, and ``shown`` tells as what the program finds a path there.
    """

    def __init__(
        self,
        root: Path,
        *,
        inputs: Path | None = None,
        outputs: Path | None = None,
        shown: Callable[[Path], str] = str,
    ) -> None:
        self.root = root
        self.inputs = inputs or root / "inputs"
        self.outputs = outputs or root / "outputs"
        self.work = root / "work"
        self.tmp = root / "tmp"
        self.task = (inputs or root) / "task.json"
        self._shown = shown
        for directory in (self.inputs, self.outputs, self.work, self.tmp):
            directory.mkdir(exist_ok=directory in (inputs, outputs))
        self._outputs = self.outputs.resolve()
        self._placed: list[tuple[MaterializedInput, Path, list[Path]]] = []

    def place(self, found: MaterializedInput) -> Path:
        """Move the next input to its place below ``inputs``, which is returned. Raises OSError."""
        number = len(self._placed)
        path = self.inputs / f"{number}-{_plain(found.path.name)}"
        found.path.rename(path)
        related: list[Path] = []
        if found.related_files:
            folder = self.inputs / f"{number}-related"
            folder.mkdir()
            for file in found.related_files:
                related.append(file.rename(folder / f"{len(related)}-{_plain(file.name)}"))
        self._placed.append((found, path, related))
        return path

    def describe(self, lease: LeaseEnvelope) -> None:
        """Write ``task.json``: ``task`` as the service gave it, the lease's ``domain_id`` and ``domain_server_url``,
        and ``inputs``, in the order of ``inputs_cids``: each with ``cid``, ``path``, ``related_paths``, ``data_id``,
        ``name`` and ``data_type``. No secret is in it. Raises OSError.
        """
        inputs: list[JSON] = [
            {
                "cid": cid,
                "path": self._shown(path),
                "related_paths": [self._shown(one) for one in related],
                "data_id": found.data_id,
                "name": found.name,
                "data_type": found.data_type,
            }
            for cid, (found, path, related) in zip(lease.task.inputs_cids, self._placed, strict=True)
        ]
        known: JSON = {
            "task": json.loads(lease.task.to_json()),
            "domain_id": None if lease.domain_id is None else str(lease.domain_id),
            "domain_server_url": lease.domain_server_url,
            "inputs": inputs,
        }
        self.task.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")

    def collect(self) -> list[tuple[str, Path]]:
        """The files below ``outputs`` by their relative paths, sorted. A link to one of them is one of them.

        Raises ValueError where there is anything else, for names that are no text or that the domain server could not
        tell apart, and for more than OUTPUTS_MAX; OSError for what cannot be read.
        """
        root = self._outputs
        if self.outputs.resolve() != root:
            raise ValueError("outputs: expected the directory that was there, and it is a link")
        found: list[tuple[str, Path]] = []
        names: dict[tuple[str, str], str] = {}
        for entry in _walk(root):
            rel_path = Path(entry.path).relative_to(root).as_posix()
            if _CONTROL.search(rel_path):
                raise ValueError(f"outputs/{rel_path!a}: expected a name of printable text")
            item = domain.infer_artifact(None, rel_path, "")
            other = names.setdefault((item.name, item.data_type), rel_path)
            if other != rel_path:
                raise ValueError(f"outputs/{rel_path} and outputs/{other} have one name on the domain server")
            found.append((rel_path, _target(entry, root, rel_path)))
        return sorted(found)


def _walk(root: Path) -> Iterator[os.DirEntry[str]]:
    """Whatever below ``root`` is no directory, links included."""
    folders, files, left = 0, 0, [str(root)]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders += 1
                    left.append(entry.path)
                else:
                    files += 1
                    yield entry
                if max(folders, files) > OUTPUTS_MAX:
                    raise ValueError(f"outputs: expected at most {OUTPUTS_MAX} files; pack them into an archive")


def _target(entry: os.DirEntry[str], root: Path, rel_path: str) -> Path:
    """The file that the entry is, or is a link to."""
    path = Path(entry.path)
    if entry.is_symlink():
        path = Path(os.path.realpath(path))
        if not path.is_relative_to(root):
            raise ValueError(f"outputs/{rel_path}: expected a file, and it is a link that leads out of outputs")
    if not path.is_file():
        raise ValueError(f"outputs/{rel_path}: expected a plain file, or a link to one")
    return path


def _plain(name: str) -> str:
    return _UNSAFE.sub("_", name)[-_NAME_CHARS_MAX:]
