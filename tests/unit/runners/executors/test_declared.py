"""Runners as they are declared: where each kind runs, and what is refused where it was written."""

from __future__ import annotations

from typing import Any

import pytest

from posemesh.capacity import Offer
from posemesh.runners.executors.command import CommandRunner
from posemesh.runners.executors.declared import Terms, declare_command, declare_routed, declare_runner
from posemesh.runners.executors.inline import InlineRunner
from posemesh.runners.executors.process import ProcessRunner
from posemesh.runners.executors.thread import ThreadRunner
from posemesh.shell.offload import InlineOffload
from posemesh.types import TaskSpec


async def coroutine(task: Any) -> None: ...


async def steps(task: Any) -> Any:
    yield {"pct": 1}


def plain(task: Any) -> None: ...


class Model:
    async def run(self, task: Any) -> None: ...


class Routed:
    name = "mine"

    def supports(self, spec: TaskSpec) -> bool:
        return True

    def build_task(self, spec: TaskSpec, ctx: Any) -> Any:
        raise AssertionError("not here")


@pytest.mark.parametrize(
    ("target", "executor", "kind"),
    [
        (coroutine, None, InlineRunner),
        (steps, None, InlineRunner),
        (Model, None, InlineRunner),
        (Model(), "inline", InlineRunner),
        (plain, None, ThreadRunner),
        (plain, "thread", ThreadRunner),
        (plain, "process", ProcessRunner),
        (coroutine, "process", ProcessRunner),
        (Model, "process", ProcessRunner),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_each_kind_has_its_place(target: Any, executor: str | None, kind: type) -> None:
    declared = declare_runner("/a/v1", target, Terms(name="x"), executor=executor)
    made = declared.make(InlineOffload())
    assert isinstance(made, kind)
    assert (declared.name, declared.capability, made.name) == ("x", "/a/v1", "x")
    assert made is not declared.make(InlineOffload()), "nothing of one start is left for the next"


def test_the_name_is_the_capability_where_there_is_none() -> None:
    declared = declare_runner("/a/v1", coroutine, Terms(slots=2, resources={"gpu": 1}))
    assert declared.name == "/a/v1"
    assert declared.offer == Offer("/a/v1", "/a/v1", 2, {"gpu": 1})


def test_a_program_and_a_routed_runner() -> None:
    command = declare_command("/a/v1", ["true"], Terms(), env={"A": "1"}, memory_bytes=10**9)
    assert isinstance(command.make(InlineOffload()), CommandRunner)
    routed = Routed()
    declared = declare_routed("/a/v1", routed, Terms(labels={"zone": "a"}))
    assert declared.name == "mine" and declared.make(InlineOffload()) is routed
    with pytest.raises(TypeError, match="expected name, supports"):
        declare_routed("/a/v1", plain, Terms())  # type: ignore[arg-type]


def test_what_another_interpreter_could_not_find_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError, match="local"):
        declare_runner("/a/v1", lambda task: None, Terms(), executor="process")


@pytest.mark.parametrize("memory", [0, -1, 1.5, True])
def test_a_memory_limit_is_a_number_of_bytes(memory: Any) -> None:
    with pytest.raises(ValueError, match="memory_bytes: expected a whole number of at least 1"):
        declare_runner("/a/v1", plain, Terms(), executor="process", memory_bytes=memory)
    with pytest.raises(ValueError, match="memory_bytes: expected a whole number of at least 1"):
        declare_command("/a/v1", ["true"], Terms(), memory_bytes=memory)


@pytest.mark.parametrize("keep", ["no", 0, None])
def test_whether_a_child_is_kept_is_true_or_false(keep: Any) -> None:
    """Any text was taken for True."""
    with pytest.raises(TypeError, match="keep: expected True or False, got"):
        declare_runner("/a/v1", plain, Terms(), executor="process", keep=keep)
    with pytest.raises(ValueError, match='keep and env are for executor="process"'):
        declare_runner("/a/v1", plain, Terms(), keep=keep)


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ({"resources": "gpu:1"}, 'resources: expected a mapping, such as {"gpu": 1}, got str'),
        ({"resources": ["gpu"]}, "resources: expected a mapping"),
        ({"resources": {1: 1}}, "resources: expected numbers by name"),
        ({"resources": {"gpu": 0}}, "resource 'gpu': expected a whole number of at least 1, got 0"),
        ({"labels": "gpu=a100"}, "labels: expected a mapping"),
        ({"labels": {"gpu": 1}}, "labels: expected text by name"),
        ({"name": 3}, "expected a runner's name"),
        ({"name": "  "}, "expected a runner's name"),
        ({"name": "x" * 257}, "expected a runner's name"),
        ({"timeout": "60"}, "timeout: expected seconds above 0, got '60'"),
        ({"slots": True}, "slots: expected a whole number"),
    ],
)
def test_terms_of_a_wrong_kind_are_refused_in_words(terms: Any, problem: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        Terms(**terms)
    assert problem in str(raised.value)


@pytest.mark.parametrize("capability", [3, None, plain, "", "/a b", "/a\udc80", "/a\n", "x" * 257])
def test_a_capability_is_a_short_text_without_blanks(capability: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="expected a capability"):
        declare_runner(capability, plain, Terms())


@pytest.mark.parametrize("env", [["a=b"], {"a": 1}, {1: "a"}])
def test_an_environment_is_text_by_name(env: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="^env: expected"):
        declare_runner("/a/v1", plain, Terms(), executor="process", env=env)
    with pytest.raises((TypeError, ValueError), match="^env: expected"):
        declare_command("/a/v1", ["true"], Terms(), env=env)


def test_a_routed_runner_without_a_proper_name_is_refused_where_it_is_written() -> None:
    nameless = Routed()
    nameless.name = ""
    with pytest.raises(ValueError, match="expected a runner's name"):
        declare_routed("/a/v1", nameless, Terms())
