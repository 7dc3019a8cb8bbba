"""The runner contract as text, one line for each name, field and signature: `tools/contract.py [--check]`.

Without an option it takes what is new into lib/posemesh/runners/contract.txt. With --check it writes nothing, and fails
where the file is stale. The contract only grows: what was taken away or changed is refused either way.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import posemesh.runners.api

PAGE = Path(posemesh.runners.api.__file__).with_name("contract.txt")
BLOCKS = ("__enter__", "__exit__", "__aenter__", "__aexit__")
"""What makes a class usable in `with`: the methods that are public in spite of their names."""


def contract(module: ModuleType) -> list[str]:
    """Every public name of ``module`` with what belongs to it, a line each, sorted."""
    lines = [line for name in module.__all__ for line in _of(module, name)]
    return sorted(lines)


def faults(kept: list[str], found: list[str]) -> tuple[list[str], list[str]]:
    """What is gone from the lines that were kept, and what is new among those found."""
    return sorted(set(kept) - set(found)), sorted(set(found) - set(kept))


def _of(module: ModuleType, name: str) -> Iterator[str]:
    value = getattr(module, name)
    if isinstance(value, type) and value.__name__ == name:
        yield from _of_class(value)
    elif isinstance(value, str):
        yield f"{name} = {value!r}"
    else:
        yield f"{name} = {_alias(module, name)}"


def _of_class(kind: type) -> Iterator[str]:
    fields = {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    frozen = " (frozen, by keyword)" if fields and kind.__dataclass_params__.frozen else ""  # type: ignore[attr-defined]
    checkable = " (runtime-checkable)" if getattr(kind, "_is_runtime_protocol", False) else ""
    yield f"{kind.__name__}: class{frozen}{checkable}"
    for field in fields.values():
        yield f"{kind.__name__}.{field.name}: {field.type}{_default(field)}"
    members = {name for each in kind.__mro__ if each.__module__.startswith("posemesh.") for name in vars(each)}
    for name in sorted(members - fields.keys()):
        if not name.startswith("_") or name in BLOCKS:
            yield _member(kind, name)


def _member(kind: type, name: str) -> str:
    found = inspect.getattr_static(kind, name)
    place = f"{kind.__name__}.{name}"
    if isinstance(found, property):
        return f"{place}: {found.fget.__annotations__['return']} (to be read)"
    function = found.__func__ if isinstance(found, classmethod) else found
    signature = str(inspect.signature(function)).replace("'", "")  # annotations are text
    way = "async " if inspect.iscoroutinefunction(function) else "of the class " if function is not found else ""
    return f"{place}: {way}{signature}"


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    return "" if field.default_factory is dataclasses.MISSING else f" = {field.default_factory.__name__}()"


def _alias(module: ModuleType, name: str) -> str:
    """The text that stands for ``name``, in the module or where that has it from."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == name:
            return ast.unparse(node.value).replace("'", "").replace('"', "")
        if isinstance(node, ast.ImportFrom) and node.module and name in (alias.name for alias in node.names):
            return _alias(sys.modules[node.module], name)
    raise LookupError(f"{name} is given no value in {module.__name__}")


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    kept = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.is_file() else []
    found = contract(posemesh.runners.api)
    gone, new = faults(kept, found)
    if gone:
        print("the runner contract only grows (CONTRIBUTING.md); these are gone or changed:", file=sys.stderr)
        print(*(f"  {line}" for line in gone), sep="\n", file=sys.stderr)
        return 1
    if arguments and new:
        print("the runner contract has grown; take it in with: .venv/bin/python tools/contract.py", file=sys.stderr)
        print(*(f"  {line}" for line in new), sep="\n", file=sys.stderr)
        return 1
    if new:
        PAGE.write_text("\n".join(found) + "\n", encoding="utf-8")
        print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
