"""Files that are not on the path, imported as a node imports the file it is to run."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


def imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file's module, under a name of its own."""
    spec = spec_from_file_location(f"posemesh_example_{path.stem}", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where a process executor looks for what is in it
    spec.loader.exec_module(module)
    return module
