"""hello.py and hello_class.py: one runner in two forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from posemesh.runners.api import Runner


@pytest.mark.parametrize("name", ["hello.py", "hello_class.py"])
def test_it_gives_back_its_input(
    name: str, offers: Callable[[str], dict[str, Any]], run_task: Callable[..., Any]
) -> None:
    ((capability, offer),) = offers(name).items()
    assert capability == "/examples/hello/v1"
    result = run_task(offer.target, b"hello, world")
    assert result.artifacts == {"outputs/hello.bin": b"hello, world"}
    assert result.progress == [{"status": "started"}, {"status": "finished"}]


def test_the_class_is_a_runner_and_inherits_nothing(offers: Callable[[str], dict[str, Any]]) -> None:
    (offer,) = offers("hello_class.py").values()
    assert isinstance(offer.target, Runner)
    assert type(offer.target).__bases__ == (object,)
