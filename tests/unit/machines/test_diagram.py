"""The page made from the tables, and the lint that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import posemesh.machines
from posemesh.events import LeaveDue, NoWork, PollDue
from posemesh.machines import diagram
from posemesh.machines._kernel import Edge, Lifecycle, State, Step, Subject


class DoorState(State):
    OPEN = "open", "It can be walked through."
    SHUT = "shut", "It cannot."


class OtherState(State):
    AJAR = "ajar", "Neither."


OPEN, SHUT = DoorState


@dataclass(eq=False, slots=True, kw_only=True)
class Door(Subject):
    state: State = OPEN


def windy(door: Door, step: Step[PollDue]) -> bool:
    return True


SOUND = (
    Edge(PollDue, OPEN, None, "it is windy | stays open", windy),
    Edge(PollDue, OPEN, SHUT, "it is time"),
)


def module(*table: Edge, states: type[State] = DoorState, ends: tuple[State, ...] = (SHUT,)) -> ModuleType:
    made = ModuleType("door", "Door: it opens.\n\nRules:\n1. It shuts.\n")
    made.MACHINE = Lifecycle("poller", states, table, subject=Door, initial=OPEN, ends=ends)  # type: ignore[attr-defined]
    return made


def problems(made: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(diagram, "MODULES", (made,))
    return diagram.lint()


def test_the_tables_are_sound() -> None:
    assert diagram.lint() == []


def test_a_sound_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(module(*SOUND), monkeypatch) == []


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (lambda: module(SOUND[0], Edge(PollDue, OPEN, SHUT, " ")), "PollDue from open: no why"),
        (lambda: module(SOUND[0]), "PollDue in open: the last row has a condition"),
        (lambda: module(SOUND[1], SOUND[0], SOUND[1]), "PollDue in open: a row stands below one without a condition"),
        (lambda: module(SOUND[0], SOUND[0], SOUND[1]), "PollDue in open: two rows with one condition"),
        (lambda: module(SOUND[1], SOUND[1]), "a row stands below one without a condition"),
        (lambda: module(Edge(PollDue, OPEN, None, "so")), "shut cannot be reached"),
        (lambda: module(*SOUND, Edge(NoWork, SHUT, OPEN, "so")), "shut is an end with a way out"),
        (lambda: module(*SOUND, ends=()), "shut has no way out and is no end"),
        (lambda: module(Edge(PollDue, OPEN, None, "so"), ends=(SHUT,)), "open has no way out and is no end"),
        (lambda: module(*SOUND, Edge(PollDue, OtherState.AJAR, OPEN, "so")), "PollDue: unknown state"),
        (lambda: module(*SOUND, Edge(LeaveDue, OPEN, OtherState.AJAR, "so")), "LeaveDue: unknown state"),
        (lambda: _misaddressed(), "PollDue in open: the event is not addressed to this machine"),
        (lambda: module(*SOUND, states=State("Mute", {"OPEN": ("open", "so"), "SHUT": ("shut", "")})), "no meaning"),
    ],
)  # fmt: skip
def test_the_lint_finds(made: Callable[[], ModuleType], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(problem in found for found in problems(made(), monkeypatch))


def _misaddressed() -> ModuleType:
    made = module(*SOUND)
    made.MACHINE.name = "lease"
    return made


def test_the_page_tells_all() -> None:
    page = diagram.render_markdown()
    for made in diagram.MODULES:
        machine = made.MACHINE
        assert f"\n## {machine.name}\n" in page
        for state in machine.states:
            assert f"| `{state}` | {state.meaning} |" in page
        for edge in machine.table:
            assert edge.why in page and edge.event.__name__ in page
    for _, rules in diagram.RULES:
        assert all(rule.why in page for rule in rules)
    assert page.count("```mermaid") == len(diagram.MODULES)


def test_what_would_break_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagram, "MODULES", (module(*SOUND),))
    page = diagram.render_markdown()
    assert "it is windy \\| stays open" in page and "Door: it opens." in page
    assert "    [*] --> open\n    open --> shut: PollDue\n    shut --> [*]\n" in page
    assert "| PollDue | `open` | windy | *stays* |  | it is windy" in page


def test_the_json_tells_all() -> None:
    told = json.loads(diagram.render_json())
    assert list(told) == [made.MACHINE.name for made in diagram.MODULES]
    for made in diagram.MODULES:
        machine = made.MACHINE
        assert told[machine.name]["initial"] == machine.initial
        assert told[machine.name]["states"] == {state: state.meaning for state in machine.states}
        assert [edge["why"] for edge in told[machine.name]["edges"]] == [edge.why for edge in machine.table]


def test_the_page_is_current() -> None:
    page = Path(posemesh.machines.__path__[0]) / "MACHINES.md"
    assert page.read_text(encoding="utf-8") == diagram.render_markdown(), "run: bin/posemesh-node diagram"
