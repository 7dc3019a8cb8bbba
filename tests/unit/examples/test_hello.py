"""hello.py and hello_class.py: one runner in two forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from posemesh.runners.api import Runner

Example = Callable[[str], Any]


def check(result: Any) -> None:
    assert result.artifacts == {"outputs/hello.bin": b"hello, world"}
    assert result.progress == [{"status": "started"}, {"status": "finished"}]


def test_the_function_gives_back_its_input(example: Example, run_task: Callable[..., Any]) -> None:
    hello = example("hello.py")
    check(run_task(hello.hello, b"hello, world"))
    assert list(hello.node._declared) == ["/examples/hello/v1"]


def test_the_class_does_the_same_and_inherits_nothing(example: Example, run_task: Callable[..., Any]) -> None:
    hello = example("hello_class.py")
    (runner,) = hello.node._given
    check(run_task(runner, b"hello, world"))
    assert isinstance(runner, Runner)
    assert runner.capability() == "/examples/hello/v1"
    assert type(runner).__bases__ == (object,)


@pytest.mark.parametrize("name", ["hello.py", "hello_class.py"])
def test_without_an_input_it_fails(name: str, example: Example, run_task: Callable[..., Any]) -> None:
    hello = example(name)
    with pytest.raises(IndexError):
        run_task(hello.hello if name == "hello.py" else hello.HelloRunner)
