"""examples/hello.py."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELLO = Path(__file__).parents[3] / "examples" / "hello.py"


def test_it_gives_back_its_input_in_capitals(run_task: Callable[..., Any]) -> None:
    hello = runpy.run_path(str(HELLO))["hello"]
    assert run_task(hello, b"hello, world").artifacts == {"hello.bin": b"HELLO, WORLD"}
