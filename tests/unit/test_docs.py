"""docs/runners.md says what is so: its code runs, and its tables leave nothing out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import posemesh.node
from posemesh.outcomes import OUTCOMES
from posemesh.runners import api
from posemesh.runners.executors.template import PLACES
from posemesh.testing import run_runner

from .examples.offers import Offers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runners.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SECTIONS = dict(re.findall(r"^#+ ([^\n]+)\n(.*?)(?=^#+ [A-Z]|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def rows(section: str) -> list[tuple[str, ...]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def options(method: str) -> set[str]:
    return set(inspect.signature(getattr(Offers, method)).parameters) - {"self", "capability", "argv", "routed"}


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The names of each block of code, once it ran."""
    monkeypatch.setattr(posemesh.node, "Node", Offers)
    found = []
    for block in BLOCKS:
        names: dict[str, Any] = {"__name__": "docs"}
        exec(compile(block, "docs/runners.md", "exec", dont_inherit=True), names)
        found.append(names)
    return found


def test_the_code_runs(offered: list[dict[str, Any]]) -> None:
    kinds, options, _ = offered
    assert set(kinds["node"].offered) == {
        *("/docs/function/v1", "/docs/plain-function/v1", "/docs/generator/v1", "/docs/class/v1")
    }
    assert set(options["node"].offered) == {"/docs/segment/v1", "/docs/sort/v1", "head"}


def test_the_kinds_are_runners(offered: list[dict[str, Any]]) -> None:
    kinds, segments, _ = offered
    found = {**kinds["node"].offered, **kinds["other"].offered, "segment": segments["node"].offered["/docs/segment/v1"]}
    results = {name: run_runner(offer.target, inputs={"cid": b"abc"}) for name, offer in found.items()}
    assert all(result.outcome.ok for result in results.values())
    assert (
        results["/docs/function/v1"].artifacts == results["/docs/plain-function/v1"].artifacts == {"copy.bin": b"abc"}
    )
    assert results["/docs/generator/v1"].progress == [{"pct": 0}, {"pct": 100}]
    assert results["/docs/class/v1"].artifacts == {"translated.bin": b"xyz"}
    assert results["/docs/hello/v1"].artifacts == {"hello.txt": b"hello"}


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
