"""The rules of the house, read off the source: what may import what, how long things are, what a name promises."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIB = ROOT / "lib" / "posemesh"

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# A module imports from its own row and those above it. CONTRIBUTING.md says why.
LAYERS = (
    ("errors", "outcomes", "secret", "types"),
    ("terms", "orders"),
    ("wire",),
    ("events", "commands"),
    ("policy", "config", "capacity", "verdict"),
    ("machines._kernel",),
    ("machines",),
    ("coupling",),
    ("machines.diagram",),
    ("snapshot", "leased"),
    ("engine",),
    ("telemetry", "target"),
    ("runners",),
    ("shell",),
    ("runners.executors",),
    ("golem",),
    ("storage",),
    ("control",),
    ("recovered",),
    ("runtime",),
    ("signals", "hosting"),
    ("node",),
    ("devnet", "conformance", "testing"),
    ("cli",),
)
# Up to the engine nothing happens by itself: events and bytes go in, commands and bytes come out.
PURE = tuple(name for row in LAYERS[:11] for name in row)
ONLY_FOR_PROGRAMS = ("devnet", "conformance", "testing")
WIRE_MAY_SEE = ("errors", "outcomes", "secret", "types", "wire")

IMPURE_IMPORTS = frozenset(
    "aiohttp asyncio concurrent dotenv fcntl glob io logging loguru multiprocessing os pathlib secrets select "
    "selectors shutil signal socket sqlite3 ssl subprocess sys tempfile threading time urllib.request".split()
)
IMPURE_ALLOWED = {
    "config": {"dotenv", "file.open", "os", "pathlib"},  # it reads the environment and the file beside it
    "machines._kernel": {"logging"},  # it quiets the library below
    "wire.domain": {"pathlib"},  # PurePosixPath only takes names apart
}
IMPURE_CALLS = frozenset({"open", "print", "input", "now", "utcnow", "today", "uuid1", "uuid4", "urandom"})

# Modules whose tests stand under another name than theirs.
TESTED_IN = {
    "": "test_init.py",
    "cli": "cli/test_cli.py",
    "cli.diagram": "cli/test_cli.py",
    "cli.run": "cli/test_cli.py",
    "cli._debugger": "cli/test_golem.py",
    "cli._client": "cli/test_submit.py",
    "cli._progress": "cli/test_submit.py",
    # The two ends of a child do nothing without each other.
    "runners.executors.async_place": "runners/executors/test_process.py",
    "runners.executors.blocking_place": "runners/executors/test_process.py",
    "runners.executors.child": "runners/executors/test_process.py",
    "runners.executors.link": "runners/executors/test_process.py",
    "runners.executors.peer": "runners/executors/test_process.py",
    "control.node_rows": "control/test_node_ledger.py",
    "shell.ledger": "shell/test_executor.py",
    "runners.executors.program": "runners/executors/test_command.py",
    # One suite for both stores.
    "control.memory": "control/test_store.py",
    "control.tables": "control/test_store.py",
    # What stands behind the wire of the local network is tested through it.
    "devnet.config": "devnet/test_server.py",
    "devnet.context": "devnet/test_server.py",
    "devnet.records": "devnet/test_jobs.py",
    "devnet.store": "devnet/test_server.py",
    "devnet.uploads": "devnet/test_domain.py",
    # What handlers are and get shows in what their program does with them.
    "golem.commands": "golem/test_serve.py",
    "golem.context": "golem/test_serve.py",
    "golem.runtime": "golem/test_oneshot.py",
    # A runtime's processes, the protocol with it and what goes wrong there are seen by who drives it.
    "golem._process": "golem/test_supervisor.py",
    "golem.failures": "golem/test_supervisor.py",
    "golem.hosted": "golem/test_runner.py",
    "golem.link": "golem/test_supervisor.py",
    # What a driver knows and what operations make of it shows in what it promises.
    "control.image": "control/test_behaviours.py",
    "control.operations": "control/test_behaviours.py",
}
# Frozen data without behaviour: whoever uses them tests them.
RECORDS_ONLY = ("commands", "control.store", "events", "machines.lease.record", "runners.job", "snapshot", "types")

FORBIDDEN = {
    r"/wo" r"rk/": "a path of one machine",
    r"\bissue #?\d": "a number only some readers can look up",
    r"\b(?:fac" r"ts?) (?:section )?\d": "a document the repository does not have",
    r"\b(?:design|measured|style|posemesh-protocol)\.m" r"d\b": "a document the repository does not have",
    r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b": "a note to oneself",
}


@dataclass(frozen=True)
class Module:
    """One file of the library, by its name below ``posemesh``."""

    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def imports(self) -> list[str]:
        """Everything imported, anywhere in it, as absolute names; ``from a import b`` gives ``a.b``."""
        found: list[str] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        return found

    @cached_property
    def ours(self) -> list[str]:
        return [name.removeprefix("posemesh.") for name in self.imports if name.startswith("posemesh.")]

    @cached_property
    def listed(self) -> ast.expr | None:
        """The value of ``__all__``."""
        found = [node.value for node in self.tree.body if isinstance(node, ast.Assign) and is_all(node.targets[0])]
        return found[0] if found else None

    @cached_property
    def definitions(self) -> list[str]:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return [node.name for node in self.tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def is_all(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "__all__"


def name_of(path: Path) -> str:
    parts = path.relative_to(LIB).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = [Module(name_of(path), path.read_text(encoding="utf-8")) for path in sorted(LIB.rglob("*.py"))]
FULL_NAMES = {f"posemesh.{module.name}".rstrip(".") for module in MODULES}
LISTED = {f"posemesh.{module.name}".rstrip("."): ast.literal_eval(module.listed) for module in MODULES if module.listed}


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def layer(name: str) -> int | None:
    """The row of the longest place that holds ``name``."""
    places = [(len(place), row) for row, places in enumerate(LAYERS) for place in places if within(name, place)]
    return max(places)[1] if places else None


# --- The rules: each gives what breaks it -----------------------------------------------------------------------


def imports_go_one_way(module: Module) -> Iterator[str]:
    if not module.name:
        return  # the public names are found lazily, wherever they are
    mine = layer(module.name)
    if mine is None:
        yield "has no place in LAYERS"
        return
    for name in module.ours:
        other = layer(name)
        if other is None and name != "__version__":
            yield f"imports {name}, which has no place in LAYERS"
        elif other is not None and other > mine:
            yield f"imports {name}, which is built on it"
    yield from (f"imports {name} by a relative name" for name in module.imports if name.startswith("."))


def machines_do_not_know_one_another(module: Module) -> Iterator[str]:
    if not module.name.startswith("machines.") or module.name == "machines.diagram":
        return
    own = ".".join(module.name.split(".")[:2])
    for name in module.ours:
        if within(name, "machines") and not within(name, "machines._kernel") and not within(name, own):
            yield f"imports {name}"


def the_wire_sees_no_state(module: Module) -> Iterator[str]:
    if within(module.name, "wire"):
        yield from (
            f"imports {name}"
            for name in module.ours
            if not any(within(name, place) for place in (*WIRE_MAY_SEE, "__version__"))
        )


def programs_are_not_imported(module: Module) -> Iterator[str]:
    if any(within(module.name, place) for place in (*ONLY_FOR_PROGRAMS, "cli")):
        return
    yield from (f"imports {name}" for name in module.ours if any(within(name, place) for place in ONLY_FOR_PROGRAMS))


def only_the_kernel_knows_transitions(module: Module) -> Iterator[str]:
    if module.name != "machines._kernel" and any(within(name, "transitions") for name in module.imports):
        yield "imports transitions"


def the_core_is_pure(module: Module) -> Iterator[str]:
    if not any(within(module.name, place) for place in PURE):
        return
    allowed = IMPURE_ALLOWED.get(module.name, set())
    for name in module.imports:
        if any(within(name, impure) for impure in IMPURE_IMPORTS - allowed):
            yield f"imports {name}"
        if within(name, "random") and name not in ("random", "random.Random"):
            yield f"imports {name}; randomness is passed in as a Random"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await):
            yield f"is asynchronous in line {node.lineno}"
        if isinstance(node, ast.Call):
            yield from (f"calls {call} in line {node.lineno}" for call in impure_calls(node) if call not in allowed)


def impure_calls(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    if name in IMPURE_CALLS or owner == "random" or (name == "Random" and not node.args):
        yield ast.unparse(node.func)


def files_are_short(module: Module) -> Iterator[str]:
    lines = len(module.source.splitlines())
    if lines > FILE_LINES_MAX:
        yield f"has {lines} lines"


def functions_are_short(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{node.name} has {lines} lines"


def all_is_true_and_sorted(module: Module) -> Iterator[str]:
    """``__all__`` is a tuple at the top; constants first, then classes, then the rest, as ruff sorts it."""
    if any(part.startswith("_") for part in module.name.split(".")):
        return
    if module.listed is None:
        if module.definitions:
            yield "has public names and no __all__"
        return
    if not isinstance(module.listed, ast.Tuple):
        yield "has an __all__ that is no tuple"
        return
    listed = list(ast.literal_eval(module.listed))
    if listed != sorted(set(listed), key=lambda name: (not name.isupper(), not name[0].isupper(), name)):
        yield f"has an __all__ out of order: {listed}"
    missing = set(listed) - set(top_level_names(module.tree.body))
    yield from (f"lists {name} and does not have it" for name in sorted(missing))


def only_public_names_are_imported(module: Module) -> Iterator[str]:
    """From another module come the names it lists; one with a leading underscore belongs to its package."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ImportFrom) or node.module not in LISTED:
            continue
        yield from (
            f"imports {alias.name}, which {node.module} does not list"
            for alias in node.names
            if alias.name not in LISTED[node.module]
            and f"{node.module}.{alias.name}" not in FULL_NAMES
            and alias.name != "__version__"
        )


def top_level_names(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.If | ast.Try):
            yield from top_level_names([*node.body, *node.orelse])


def modules_begin_alike(module: Module) -> Iterator[str]:
    """A docstring, then, where there is code, annotations that are not evaluated."""
    if not module.tree.body:
        return
    if not ast.get_docstring(module.tree):
        yield "has no docstring"
    if len(module.tree.body) > 1 and "__future__.annotations" not in module.imports:
        yield "does not begin with `from __future__ import annotations`"


def modules_have_their_tests(module: Module) -> Iterator[str]:
    if any(within(module.name, place) for place in RECORDS_ONLY):
        return
    if not module.definitions and module.name not in TESTED_IN:
        return  # a package's own file that only gathers names
    *folders, name = module.name.split(".")
    place = TESTED_IN.get(module.name, "/".join((*folders, f"test_{name.strip('_')}.py")))
    if not (ROOT / "tests" / "unit" / place).is_file():
        yield f"has no tests/unit/{place}"


RULES: tuple[Callable[[Module], Iterator[str]], ...] = (
    imports_go_one_way,
    machines_do_not_know_one_another,
    the_wire_sees_no_state,
    programs_are_not_imported,
    only_the_kernel_knows_transitions,
    the_core_is_pure,
    files_are_short,
    functions_are_short,
    all_is_true_and_sorted,
    only_public_names_are_imported,
    modules_begin_alike,
    modules_have_their_tests,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_library_keeps_the_rule(rule: Callable[[Module], Iterator[str]]) -> None:
    broken = [f"posemesh.{module.name} {what}" for module in MODULES for what in rule(module)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (imports_go_one_way, "events", "import posemesh.engine"),
        (imports_go_one_way, "machines._kernel", "from posemesh.machines import lease"),
        (imports_go_one_way, "shell.http", "from posemesh import node"),
        (imports_go_one_way, "engine", "def f():\n    from posemesh.telemetry import init"),
        (imports_go_one_way, "engine", "from . import coupling"),
        (imports_go_one_way, "unheard_of", ""),
        (machines_do_not_know_one_another, "machines.auth", "from posemesh.machines.lease import State"),
        (machines_do_not_know_one_another, "machines.auth", "from posemesh.machines import lease"),
        (the_wire_sees_no_state, "wire.dms", "from posemesh.events import LeaseAnswered"),
        (programs_are_not_imported, "node", "from posemesh.devnet import server"),
        (only_the_kernel_knows_transitions, "machines.lease", "from transitions import Machine"),
        (only_the_kernel_knows_transitions, "node", "import transitions.extensions"),
        (the_core_is_pure, "policy", "import time"),
        (the_core_is_pure, "policy", "from random import uniform"),
        (the_core_is_pure, "policy", "import random\nx = random.random()"),
        (the_core_is_pure, "policy", "from random import Random\nx = Random()"),
        (the_core_is_pure, "engine", "async def f(): ..."),
        (the_core_is_pure, "wire.siwe", "from datetime import datetime\nx = datetime.now()"),
        (the_core_is_pure, "config", "import socket"),
        (the_core_is_pure, "config", "import random\nx = random.random()"),
        (files_are_short, "types", "x = 1\n" * 401),
        (functions_are_short, "types", "def f():\n" + "    x = 1\n" * 70),
        (all_is_true_and_sorted, "types", "def f(): ..."),
        (all_is_true_and_sorted, "types", "__all__ = ['f']\ndef f(): ..."),
        (all_is_true_and_sorted, "types", "__all__ = ('b', 'a')\na = b = 1"),
        (all_is_true_and_sorted, "types", "__all__ = ('a', 'a')\na = 1"),
        (all_is_true_and_sorted, "types", "__all__ = ('a', 'A')\na = A = 1"),
        (all_is_true_and_sorted, "types", "__all__ = ('a',)"),
        (only_public_names_are_imported, "shell.x", "from posemesh.errors import Sequence"),
        (only_public_names_are_imported, "shell.x", "def f():\n    from posemesh.config import _wrong"),
        (modules_begin_alike, "types", "from __future__ import annotations\nx = 1"),
        (modules_begin_alike, "types", "'''doc'''\nx = 1"),
        (modules_have_their_tests, "untested", "def f(): ..."),
    ],
)
def test_the_rule_finds_what_breaks_it(rule: Callable[[Module], Iterator[str]], name: str, source: str) -> None:
    assert list(rule(Module(name, source)))


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (
            imports_go_one_way,
            "node",
            "import posemesh\nfrom posemesh.shell import http\nfrom posemesh import __version__",
        ),
        (machines_do_not_know_one_another, "machines.auth", "from posemesh.machines._kernel import build"),
        (
            the_core_is_pure,
            "policy",
            "import random\nfrom random import Random\ndef f(r: random.Random): r.uniform(0, 1)",
        ),
        (the_core_is_pure, "shell.http", "import asyncio, time"),
        (
            all_is_true_and_sorted,
            "types",
            "__all__ = ('JSON', 'Artifact', 'f')\nfrom x import JSON, Artifact\ndef f(): ...",
        ),
        (all_is_true_and_sorted, "wire._json", "def f(): ..."),
        (only_public_names_are_imported, "shell.x", "from posemesh import errors, Secret"),
    ],
)
def test_the_rule_lets_pass_what_keeps_it(rule: Callable[[Module], Iterator[str]], name: str, source: str) -> None:
    assert not list(rule(Module(name, source)))


def test_every_folder_of_the_library_is_a_package() -> None:
    folders = {path.parent for path in LIB.rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def texts() -> Iterator[Path]:
    kinds = {".py", ".md", ".cfg", ".toml", ".json", ".sh", ""}
    for place in ("lib", "tests", "bin", "examples", "docs", "benchmarks", ".ci"):
        yield from (path for path in (ROOT / place).rglob("*") if path.is_file() and path.suffix in kinds)
    not_ours = (".env", ".git")  # the second is a file where the checkout is one of several
    yield from (p for p in ROOT.iterdir() if p.is_file() and p.suffix in kinds and p.name not in not_ours)


def test_no_text_speaks_of_what_its_reader_does_not_have() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {why}: {line.strip()}"
        for path in texts()
        if not re.search(r"egg-info|__pycache__|/\.[a-z]+_cache/|/LICENSE$", str(path))
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        for pattern, why in FORBIDDEN.items()
        if re.search(pattern, line)
    ]
    assert not found, "\n".join(found)
