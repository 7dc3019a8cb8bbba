"""docs/golem.md says what is so: its code runs, and its tables leave nothing out."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from pathlib import Path

import pytest

from posemesh.golem import failures
from posemesh.golem.runtime import Runtime
from posemesh.golem.supervisor import Timeouts
from posemesh.node import Node

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "golem.md").read_text(encoding="utf-8")
RUNTIME, RUNNER, SUPERVISOR = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OWN_CELLS, FIRST_CELLS = (
    re.findall(r"^\| (`.+?`) \|", part, re.MULTILINE) for part in PAGE.split("## A runtime as a runner")
)


def test_all_of_a_runtimes_class_is_in_its_table() -> None:
    assert set(re.findall(r"`(\w+)`", " ".join(OWN_CELLS))) == {name for name in vars(Runtime) if name[0] != "_"}


def test_every_option_and_every_error_is_in_its_table() -> None:
    listed = set(re.findall(r"`(\w+)`", " ".join(FIRST_CELLS)))
    options = set(inspect.signature(Node.runtime).parameters) - {"self", "capability"}
    others = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("`name`, `labels`") :].partition("[")[0]))
    assert options == {name for name in listed if name.islower()} | others
    assert set(failures.__all__) - {"GolemError"} == {name for name in listed if not name.islower()}


def test_the_limits_are_the_ones_that_hold() -> None:
    (text,) = re.findall(r"`(Timeouts\([^)]+\))`", PAGE)
    assert eval(text, {"Timeouts": Timeouts}) == Timeouts()


def test_the_runner_is_declared() -> None:
    exec(RUNNER, names := {})
    assert list(names["node"]._declared) == ["/docs/thumbnails/v1"]


def test_the_runtime_is_driven_by_the_supervisor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = tmp_path / "echo"
    binary.write_text(f"#!{sys.executable}\n{RUNTIME}")
    binary.chmod(0o755)
    exec(SUPERVISOR, names := {"__name__": "page"})
    asyncio.run(names["main"](str(binary), tmp_path / "work"))
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("RuntimeMode.SERVER (Volume(name='in', path='/in')")
    assert said[-3:] == ["words.said 2.0", "ls -l", "exit code 0"]
