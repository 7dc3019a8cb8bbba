"""tools/contract.py: the page is current, and what is taken away or changed is refused."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from posemesh.runners import api

TOOL = Path(__file__).parents[2] / "tools" / "contract.py"


@pytest.fixture
def tool(tmp_path: Path) -> dict[str, Any]:
    """The script's names, over a page of its own."""
    names = runpy.run_path(str(TOOL))
    kept = names["PAGE"].read_text(encoding="utf-8")
    names["main"].__globals__["PAGE"] = tmp_path / "contract.txt"
    (tmp_path / "contract.txt").write_text(kept, encoding="utf-8")
    return dict(names["main"].__globals__)


def test_the_page_is_current(tool: dict[str, Any]) -> None:
    assert tool["main"](["--check"]) == 0


def test_every_public_name_has_its_line(tool: dict[str, Any]) -> None:
    lines = tool["PAGE"].read_text(encoding="utf-8").splitlines()
    assert {line.split(":")[0].split(" ")[0] for line in lines} >= set(api.__all__)
    assert "InputSource.get_bytes_by_cid: async (self, cid: str) -> bytes" in lines
    assert "LeaseEnvelope.cancel: bool = False" in lines
    assert "TaskContext.workspace: Path (to be read)" in lines


def test_what_is_new_fails_until_it_is_taken_in(tool: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    page = tool["PAGE"]
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    page.write_text("".join(lines[1:]), encoding="utf-8")
    assert tool["main"](["--check"]) == 1
    assert lines[0].strip() in capsys.readouterr().err
    assert tool["main"]([]) == 0
    assert page.read_text(encoding="utf-8") == "".join(lines)
    assert tool["main"](["--check"]) == 0


@pytest.mark.parametrize("arguments", [[], ["--check"]])
@pytest.mark.parametrize(
    "line", ["ControlPlane.pause: (self) -> None", "InputSource.get_bytes_by_cid: (self) -> bytes"]
)
def test_what_is_gone_or_changed_is_refused(
    tool: dict[str, Any], capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    """As if the contract had had this line."""
    page = tool["PAGE"]
    before = f"{page.read_text(encoding='utf-8')}{line}\n"
    page.write_text(before, encoding="utf-8")
    assert tool["main"](arguments) == 1
    assert line in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == before


def test_other_arguments_are_explained(tool: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert tool["main"](["--what"]) == 2
    assert "only grows" in capsys.readouterr().err
