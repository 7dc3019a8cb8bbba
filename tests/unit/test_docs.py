"""docs/runners.md says what is so: its code runs, and its tables leave nothing out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from posemesh.node import Node
from posemesh.outcomes import OUTCOMES
from posemesh.runners import api
from posemesh.runners.executors.template import PLACES
from posemesh.shell.offload import InlineOffload
from posemesh.testing import run_runner

from .examples.importing import imported

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runners.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SECTIONS = dict(re.findall(r"^#+ ([^\n]+)\n(.*?)(?=^#+ [A-Z]|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def rows(section: str) -> list[tuple[str, ...]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def options(method: str) -> set[str]:
    return set(inspect.signature(getattr(Node, method)).parameters) - {"self", "capability", "argv", "routed"}


def block(holding: str) -> str:
    (found,) = (block for block in BLOCKS if holding in block)
    return found


def module(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code as a file of a user's."""
    file = folder / "from_docs.py"
    file.write_text(code, encoding="utf-8")
    return imported(file, monkeypatch)


def test_every_kind_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = module(block("def plain_function"), tmp_path, monkeypatch)
    targets = [docs.function, docs.plain_function, docs.generator, docs.Prepared, *docs.other._given]
    assert len(docs.node._declared) == 4
    results = [run_runner(target, inputs={"cid": b"abc"}) for target in targets]
    assert all(result.outcome.ok for result in results)
    assert [result.artifacts for result in results] == [
        {"copy.bin": b"abc"},
        {"copy.bin": b"abc"},
        {},
        {"translated.bin": b"xyz"},
        {"hello.txt": b"hello"},
    ]
    assert results[2].progress == [{"pct": 0}, {"pct": 100}]


def test_every_way_to_offer_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = module(block("node.command"), tmp_path, monkeypatch)
    declared = docs.node._declared
    assert {name: each.capability for name, each in declared.items()} == {
        "/docs/segment/v1": "/docs/segment/v1",
        "/docs/sort/v1": "/docs/sort/v1",
        "head": "/docs/head/v1",
    }
    assert all(each.make(InlineOffload()) for each in declared.values())


def test_the_test_passes() -> None:
    exec(compile(block("run_runner"), "docs/runners.md", "exec", dont_inherit=True), {})


def test_every_option_has_its_row() -> None:
    assert {name.strip("`") for name, *_ in rows("Offering one")} == options("runner")
    text = " ".join(SECTIONS["Offering one"].split())
    for method in ("command", "register"):
        said = re.search(rf"`node\.{method}\(.*?It takes (.*?)\.", text)
        assert said and set(re.findall(r"`(\w+)`", said[1])) == options(method)
    assert set(re.findall(r"`\{(\w+)\}`", text)) == set(PLACES)


def test_every_code_has_its_row_and_its_label() -> None:
    told = {code.strip("`"): label for code, _, label in rows("How it ends")}
    assert told == {code.value: label.value for code, label in OUTCOMES.items()}


def test_every_call_of_the_task_has_its_row() -> None:
    told = {
        match[1]: "†" in cells[0] for cells in rows("The task") if (match := re.match(r"`task\.([\w.]+)", cells[0]))
    }
    parts = {"input": api.InputSource, "output": api.ArtifactSink, "ctrl": api.ControlPlane}
    parts |= {"access_token": api.AccessTokenProvider}
    there = {
        f"{part}.{name}": inspect.iscoroutinefunction(function)
        for part, kind in parts.items()
        for name, function in vars(kind).items()
        if not name.startswith("_")
    }
    assert told == there | {"lease": False, "workspace": False}


def test_every_link_leads_to_something() -> None:
    headings = [line.strip("# ").lower().replace(" ", "-") for line in PAGE.splitlines() if line.startswith("#")]
    for path, heading in re.findall(r"\]\(([^)#]*)(?:#([\w-]+))?\)", PAGE):
        assert (ROOT / "docs" / path).exists()
        assert not heading or heading in headings
