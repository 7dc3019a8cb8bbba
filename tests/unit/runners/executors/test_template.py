"""A program's command line and what fills it."""

from __future__ import annotations

import os
from typing import Any

import pytest

from posemesh.runners.executors.template import PLACES, Template

VALUES = {place: f"<{place}>" for place in PLACES}


def filled(*argv: str, inputs: tuple[str, ...] = ("/w/0-a", "/w/1-b")) -> list[str]:
    return Template(("tool", *argv)).fill(VALUES, inputs)[1:]


def test_every_placeholder_has_its_value() -> None:
    given = [f"{{{place}}}" for place in PLACES if place != "input"]
    assert filled(*given) == [f"<{place}>" for place in PLACES if place != "input"]
    assert filled("{input}", "{inputs[0]}", "{inputs[1]}") == ["/w/0-a", "/w/0-a", "/w/1-b"]
    assert filled("-i={input}:{outputs}!") == ["-i=/w/0-a:<outputs>!"]


def test_an_argument_stays_one_argument() -> None:
    odd = "/w/0-a b;$(reboot) 'c' * {task}\n--flag"
    assert filled("{input}", "", " x  y ", "*", inputs=(odd,)) == [odd, "", " x  y ", "*"]


def test_doubled_braces_are_braces() -> None:
    assert filled("{{}}", '{{"task": "{task_id}"}}') == ["{}", '{"task": "<task_id>"}']


@pytest.mark.parametrize(
    ("argv", "least"), [(("x",), 0), (("x", "{inputs}"), 0), (("x", "{input}"), 1), (("{inputs[7]}", "{input}"), 8)]
)
def test_it_knows_how_many_inputs_it_needs(argv: tuple[str, ...], least: int) -> None:
    assert Template(argv).inputs_min == least


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ("tool --flag", "expected a list of arguments, the program first"),
        ((), "expected a list of arguments, the program first"),
        (("",), "expected a list of arguments, the program first"),
        (("tool", 3), r"argv\[1\]: expected text without NUL, got 3"),
        (("tool", "a\0b"), r"argv\[1\]: expected text without NUL"),
        (("tool", "{token}"), r"argv\[1\]: no placeholder \{token\}; expected one of .*\{inputs\[0\]\}"),
        (("tool", "{}"), r"no placeholder \{\}"),
        (("tool", "{inputs[]}"), "Empty attribute|no placeholder"),
        (("tool", "{inputs[-1]}"), "no placeholder"),
        (("tool", "{inputs[01]}"), "no placeholder"),
        (("tool", "{inputs.__class__}"), "no placeholder"),
        (("tool", "{input!r}"), "expected a bare placeholder"),
        (("tool", "{input:>9}"), "expected a bare placeholder"),
        (("tool", "a{"), r"argv\[1\] 'a\{': Single '\{' .*; write \{\{ and \}\} for braces"),
        (("tool", "a}"), "Single '}'"),
    ],
)
def test_what_cannot_be_filled_is_refused_beforehand(argv: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Template(argv)


def test_a_relative_program_is_the_one_beside_the_node() -> None:
    """It runs in a directory of its task's, where ``./tool`` would be looked for otherwise."""
    assert Template(("./tool",)).fill(VALUES, ()) == [os.path.abspath("tool")]
    assert Template(("tool",)).fill(VALUES, ()) == ["tool"]
    assert Template(("/bin/tool",)).fill(VALUES, ()) == ["/bin/tool"]
