"""examples/runners: one for each kind, each run once."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from posemesh.runners.executors.template import Template
from posemesh.runners.router import RunnerRouter
from posemesh.types import TaskSpec

FOLDER = Path(__file__).parents[3] / "examples" / "runners"

Offers = Callable[[str], dict[str, Any]]
Run = Callable[..., Any]


def test_a_plain_function(offers: Offers, run_task: Run) -> None:
    offer = offers("runners/function.py")["/examples/count-words/v1"]
    result = run_task(offer.target, b"to be or not to be")
    assert json.loads(result.artifacts["counts.json"]) == {"to": 2, "be": 2, "or": 1, "not": 1}
    assert result.events == [{"words": 6}]


def test_an_async_generator(offers: Offers, run_task: Run) -> None:
    offer = offers("runners/generator.py")["/examples/join/v1"]
    result = run_task(offer.target, b"one, ", b"two")
    assert result.artifacts == {"joined.bin": b"one, two"}
    assert result.progress == [{"pct": 0}, {"pct": 50}, {"pct": 100}]


def test_a_class_with_a_setup(offers: Offers, run_task: Run) -> None:
    offer = offers("runners/prepared.py")["/examples/squeeze/v1"]
    result = run_task(offer.target, b"again " * 100)
    assert zlib.decompress(result.artifacts["squeezed.zlib"]) == b"again " * 100
    offer.target().check()


def test_a_process_of_its_own(offers: Offers, run_task: Run) -> None:
    """What it does; that it does it in another process is its executor's."""
    offer = offers("runners/process.py")["/examples/digest/v1"]
    assert offer.options["executor"] == "process"
    once = hashlib.sha256(b"data").digest()
    assert run_task(offer.target, b"data").artifacts == {"digest.txt": once.hex().encode()}
    result = run_task(offer.target, b"data", meta={"rounds": 1001})
    assert result.progress == [{"round": 0}, {"round": 1000}]


def test_a_command(offers: Offers) -> None:
    offer = offers("runners/command.py")["/examples/sort/v1"]
    command = Template(offer.target)
    assert command.inputs_min == 1
    assert command.fill({"outputs": "/o"}, ["/i/0-a"]) == ["sort", "--output=/o/sorted.txt", "/i/0-a"]


@pytest.mark.parametrize(
    ("meta", "picked"),
    [
        ({"lines": 10}, "reverse-small"),
        ({"lines": 10_000}, "reverse-any"),
        ({"lines": 10, "runner_selector": {"matchLabels": {"size": "any"}}}, "reverse-any"),
        (None, "reverse-any"),
    ],
)
def test_a_routed_runner_with_labels(offers: Offers, meta: Any, picked: str) -> None:
    router = RunnerRouter()
    for offer in offers("runners/routed.py").values():
        router.register(offer.target, offer.options["labels"], capability="/examples/reverse/v1")
    spec = TaskSpec(id=UUID(int=1), capability="/examples/reverse/v1", meta=meta)
    assert router.pick(spec).name == picked


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: str(path.stem))
def test_each_has_its_test_and_says_what_it_is(path: Path) -> None:
    assert f'"runners/{path.name}"' in Path(__file__).read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.match(r".+: .+\.", said.splitlines()[0])
