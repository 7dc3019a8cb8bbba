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

from posemesh.runners.router import RunnerRouter
from posemesh.shell.offload import InlineOffload
from posemesh.types import TaskSpec

FOLDER = Path(__file__).parents[3] / "examples" / "runners"

Example = Callable[[str], Any]
Run = Callable[..., Any]


def test_a_plain_function(example: Example, run_task: Run) -> None:
    result = run_task(example("runners/function.py").count_words, b"to be or not to be")
    assert json.loads(result.artifacts["counts.json"]) == {"to": 2, "be": 2, "or": 1, "not": 1}
    assert result.events == [{"words": 6}]


def test_an_async_generator(example: Example, run_task: Run) -> None:
    result = run_task(example("runners/generator.py").join, b"one, ", b"two")
    assert result.artifacts == {"joined.bin": b"one, two"}
    assert result.progress == [{"pct": 0}, {"pct": 50}, {"pct": 100}]


def test_a_class_with_a_setup(example: Example, run_task: Run) -> None:
    squeeze = example("runners/prepared.py").Squeeze
    result = run_task(squeeze, b"again " * 100)
    assert zlib.decompress(result.artifacts["squeezed.zlib"]) == b"again " * 100
    squeeze().check()


def test_a_process_of_its_own(example: Example, run_task: Run) -> None:
    """What it does; that it does it in another process is its executor's."""
    digest = example("runners/process.py").digest
    once = hashlib.sha256(b"data").digest()
    assert run_task(digest, b"data").artifacts == {"digest.txt": once.hex().encode()}
    assert run_task(digest, b"data", meta={"rounds": 1001}).progress == [{"round": 0}, {"round": 1000}]


def made(module: Any) -> list[Any]:
    """The runners of a file's node, as its router would have them, with their labels."""
    return [(each.make(InlineOffload()), each.terms.labels) for each in module.node._declared.values()]


def test_which_executor_each_has(example: Example) -> None:
    names = ("function", "generator", "prepared", "process", "command", "routed")
    kinds = {name: [runner.runner_type for runner, _ in made(example(f"runners/{name}.py"))] for name in names}
    assert kinds == {
        "function": ["thread"],
        "generator": ["inline"],
        "prepared": ["inline"],
        "process": ["process"],
        "command": ["command"],
        "routed": ["command", "command"],
    }


def test_a_command(example: Example) -> None:
    ((runner, _),) = made(example("runners/command.py"))
    assert runner.template.inputs_min == 1
    assert runner.template.fill({"outputs": "/o"}, ["/i/0-a"]) == ["sort", "--output=/o/sorted.txt", "/i/0-a"]


@pytest.mark.parametrize(
    ("meta", "picked"),
    [
        ({"lines": 10}, "reverse-small"),
        ({"lines": 10_000}, "reverse-any"),
        ({"lines": 10, "runner_selector": {"matchLabels": {"size": "any"}}}, "reverse-any"),
        (None, "reverse-any"),
    ],
)
def test_a_routed_runner_with_labels(example: Example, meta: Any, picked: str) -> None:
    router = RunnerRouter()
    for runner, labels in made(example("runners/routed.py")):
        router.register(runner, labels, capability="/examples/reverse/v1")
    spec = TaskSpec(id=UUID(int=1), capability="/examples/reverse/v1", meta=meta)
    assert router.pick(spec).name == picked


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: str(path.stem))
def test_each_has_its_test_and_says_what_it_is(path: Path) -> None:
    assert f'("runners/{path.name}")' in Path(__file__).read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.match(r".+: .+\.", said.splitlines()[0])
