"""Where another interpreter finds user code, and how one is started that finds what this one does."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

from posemesh.config import NodeConfig
from posemesh.runners.executors.frames import Load
from posemesh.secret import Secret

__all__ = ("command_of", "environment", "is_found", "located")

_BOOT: Final = (
    "import json, sys; told = json.loads(sys.argv[1]); sys.path[:] = told['path']; sys.argv[:] = told['argv']; "
    "from posemesh.runners.executors.child import main; main(told['socket'])"
)


def located(target: object) -> Load:
    """The place of ``target``, which must have a name at the top of a module that can be imported again.

    Raises ValueError with what to do where it has none.
    """
    if isinstance(target, FunctionType | type):
        module, name = target.__module__, target.__qualname__
        if "<" in name:
            raise _unlocatable(name, "it is made inside of a function, where another interpreter cannot look")
    else:
        module, name = _named(target)
    return Load(*_place(module, name), name)


def is_found(target: object, load: Load) -> bool:
    """Whether that is what the name stands for by now: another definition may have taken it."""
    if isinstance(target, FunctionType | type):
        found: Any = sys.modules.get(target.__module__)
        for name in load.name.split("."):
            found = getattr(found, name, None)
        return found is target
    return True


def command_of(name: str, socket: int) -> list[str]:
    """The command line of a child with this interpreter's flags and ``sys.path``; ``name`` is for whoever lists
    processes.
    """
    path = [entry or str(Path.cwd()) for entry in sys.path]
    told = {"path": path, "argv": sys.argv[:1], "socket": socket}
    return [sys.executable, *_flags(), "-c", _BOOT, json.dumps(told), f"runner={name}"]


def environment() -> dict[str, str]:
    """This process's, without the node's secrets."""
    return {name: value for name, value in os.environ.items() if name.upper() not in _secrets()}


@cache
def _secrets() -> frozenset[str]:
    rows = dataclasses.fields(NodeConfig)
    return frozenset(row.name.upper() for row in rows if row.metadata.get("read") is Secret)


def _flags() -> Iterator[str]:
    flags = sys.flags
    letters: Mapping[str, int] = {
        "B": flags.dont_write_bytecode,
        "E": flags.ignore_environment,
        "O": flags.optimize,
        "P": flags.safe_path,
        "s": flags.no_user_site,
        "b": flags.bytes_warning,
    }
    yield from (f"-{letter * count}" for letter, count in letters.items() if count)
    yield from (f"-W{option}" for option in sys.warnoptions)
    if flags.dev_mode:
        yield from ("-X", "dev")
    if flags.utf8_mode:
        yield from ("-X", "utf8")


def _named(target: object) -> tuple[str, str]:
    """Where an object stands: a name at the top of its class's module, or of any other."""
    own = type(target).__module__
    modules = [own, "__main__", *sys.modules]
    for module in modules:
        space = getattr(sys.modules.get(module), "__dict__", {})
        for name, value in tuple(space.items()):
            if value is target:
                return module, name
    kind = type(target).__qualname__
    raise _unlocatable(f"{kind} object", "it has no name; put `name = ...` at the top of its module, or give its class")


def _place(name: str, what: str) -> tuple[str, str | None]:
    """A module by its name, or by its file where another interpreter would not find that."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if name == "__main__":
        spec = getattr(module, "__spec__", None)
        if spec is not None:
            return spec.name, None
    elif module is not None and _can_be_imported(name, module):
        return name, None
    if file is None or not Path(file).is_file():
        raise _unlocatable(what, f"its module {name} has no file; put it into one")
    return name, str(Path(file).resolve())


def _can_be_imported(name: str, module: ModuleType) -> bool:
    parent = name.rpartition(".")[0]
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    if parent and path is None:
        return False
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        found = None if find is None else find(name, path)
        if found is not None:
            return found.origin in (getattr(module, "__file__", None), "built-in", "frozen")
    return False


def _unlocatable(what: str, why: str) -> ValueError:
    return ValueError(
        f"{what} cannot run in a process of its own: {why}. Define it at the top of a module or choose another executor"
    )
