"""Finding the object that ``posemesh-node run TARGET`` names, in a Python file or a module."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

from posemesh.errors import TargetError

__all__ = ("importing", "load_target", "load_user_module")

T = TypeVar("T")

_DEFAULT_ATTRIBUTE: Final = "node"
# Enough of a traceback to find the line, in a file that is being written.
_FRAMES_MAX: Final = 4
_OURS: Final = f"{Path(__file__).parent}{os.sep}"
_importing: ContextVar[bool] = ContextVar("posemesh_importing", default=False)


def importing() -> bool:
    """Whether posemesh itself is importing the caller's file. ``Node.run()`` does nothing then."""
    return _importing.get()


def load_target(spec: str, kind: type[T]) -> T:
    """The ``kind`` that ``spec`` names: ``file.py``, ``module``, or one of the two with ``:attribute`` (else ``node``).

    The directory of the file, or the current one for a module, goes first on ``sys.path``, as Python does for a
    program. Raises :class:`posemesh.TargetError` with what to do.
    """
    place, attribute = _split(spec)
    module = _load_file(place) if _is_file(place) else _load_module(place)
    found = getattr(module, attribute, None)
    if isinstance(found, kind):
        return found
    what = "has no attribute" if not hasattr(module, attribute) else f"holds a {type(found).__name__} as"
    others = sorted(name for name, value in vars(module).items() if isinstance(value, kind))
    todo = f"try {place}:{others[0]}" if others else f"write there: {attribute} = posemesh.{kind.__name__}()"
    raise TargetError(f"{place} {what} {attribute!r}, and a {kind.__name__} was expected; {todo}")


def load_user_module(name: str, file: str | None) -> ModuleType:
    """The module that another interpreter of the same program has: by its name, or the one in ``file``.

    ``sys.path`` is that interpreter's. Raises :class:`posemesh.TargetError`.
    """
    if file is not None:
        return _load_file(file)
    try:
        return _import(name, None, lambda: import_module(name))
    except ModuleNotFoundError as error:
        raise TargetError(
            f"there is no module {name!r} for another interpreter; put it where it can be imported"
        ) from error


def _split(spec: str) -> tuple[str, str]:
    if Path(spec).is_file():  # also one with a colon in its name
        return spec, _DEFAULT_ATTRIBUTE
    place, colon, attribute = spec.rpartition(":")
    if not colon:
        place, attribute = spec, _DEFAULT_ATTRIBUTE
    if not attribute.isidentifier() or not (_is_file(place) or all(map(str.isidentifier, place.split(".")))):
        raise TargetError(f"{spec!r} names no target; write file.py, module or module:attribute")
    return place, attribute


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or Path(place).is_file()


def _load_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise TargetError(f"{place} is not a file; name a Python file that holds a Node, or a module without its .py")
    name = path.stem
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"posemesh_target_{name}"  # imports of the other one must still find it
    loader = SourceFileLoader(name, str(path))
    module = module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module  # before it runs, as the import system does: dataclasses look themselves up there
    try:
        _import(place, path.parent, lambda: loader.exec_module(module))
    except TargetError:
        del sys.modules[name]
        raise
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return _import(name, Path.cwd(), lambda: import_module(name))
    except ModuleNotFoundError:
        raise TargetError(
            f"there is no module {name!r} here or among what is installed; name a Python file or a module that exists"
        ) from None


def _import(place: str, directory: Path | None, action: Callable[[], T]) -> T:
    """Run what imports the caller's code; whatever that code raises becomes a TargetError with its lines."""
    if directory is not None and str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    token = _importing.set(True)
    try:
        return action()
    except ModuleNotFoundError as error:
        # The target itself, or a package it is in, and not something it imports.
        if error.name is not None and f"{place}.".startswith(f"{error.name}."):
            raise
        raise TargetError(_story(place, error)) from error
    except (Exception, SystemExit) as error:
        raise TargetError(_story(place, error)) from error
    finally:
        _importing.reset(token)


def _story(place: str, error: BaseException) -> str:
    """The error and the caller's lines that led to it, without ours and the import system's."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen importlib")
        and "/importlib/" not in frame.filename
        and not frame.filename.startswith(_OURS)
    ]
    lines = [f"  {frame.filename}:{frame.lineno}: {frame.line}" for frame in frames[-_FRAMES_MAX:]]
    what = traceback.format_exception_only(error)
    if isinstance(error, SyntaxError):
        return "\n".join((f"{place} is not valid Python; mend it:", "".join(what).rstrip()))
    return "\n".join((f"{place} failed while it was imported: {what[-1].strip()}; mend it:", *lines))
