"""A runner as it was declared: what it offers, on which terms, and where it is to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from posemesh.capacity import Offer
from posemesh.config import NodeConfig
from posemesh.errors import ConfigError
from posemesh.runners.api import Runner, SyncRunner
from posemesh.runners.executors.inline import InlineRunner
from posemesh.runners.executors.thread import ThreadRunner
from posemesh.runners.kinds import AsyncRunner, BlockingRunner, user_runner
from posemesh.runners.noop import CAPABILITY as NOOP
from posemesh.runners.noop import noop
from posemesh.runners.router import RoutedRunner
from posemesh.shell.offload import Offload

__all__ = (
    "EXECUTORS",
    "Declared",
    "Terms",
    "check_capability",
    "check_name",
    "declare_command",
    "declare_routed",
    "declare_runner",
    "offered",
)

EXECUTORS = ("inline", "thread", "process")
RESTARTS = ("replay", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """``timeout`` is in seconds; ``slots`` is how many tasks may run at once, None for as many as the node runs.

    ``restart`` says what becomes of a task that was under way when the node ended: ``replay`` runs it again where its
    lease still stands, ``never`` fails it, as nobody knows how far it came.
    """

    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    slots: int | None = None
    resources: Mapping[str, int] = field(default_factory=dict)
    restart: str = "replay"

    @classmethod
    def of(
        cls,
        name: str | None,
        labels: Mapping[str, str] | None,
        timeout: float | None,
        slots: int | None,
        resources: Mapping[str, int] | None,
        restart: str,
    ) -> Self:
        """As the options of a decorator give them."""
        return cls(
            name=name, labels=labels or {}, timeout=timeout, slots=slots, resources=resources or {}, restart=restart
        )

    def __post_init__(self) -> None:
        _number("timeout", self.timeout, "seconds above 0", lambda value: math.isfinite(value) and value > 0)
        _whole("slots", self.slots)
        if self.restart not in RESTARTS:
            raise ValueError(f"restart: expected {' or '.join(RESTARTS)}, got {self.restart!r}")
        if self.name is not None:
            _check_name(self.name)
        for resource, amount in _mapping("resources", self.resources, '{"gpu": 1}'):
            if not resource or not isinstance(resource, str):
                raise ValueError(f"resources: expected numbers by name, got {resource!r}: {amount!r}")
            _whole(f"resource {resource!r}", amount)
        for label, value in _mapping("labels", self.labels, '{"gpu": "a100"}'):
            if not label or not isinstance(label, str) or not isinstance(value, str):
                raise ValueError(f"labels: expected text by name, got {label!r}: {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """``make`` is called at each start of the node: what a runner holds (threads, processes) ends with its node."""

    name: str
    capability: str
    terms: Terms
    make: Callable[[Offload], RoutedRunner]

    @property
    def offer(self) -> Offer:
        return Offer(
            runner=self.name, capability=self.capability, slots=self.terms.slots, resources=dict(self.terms.resources)
        )


def declare_runner(
    capability: str,
    target: Any,
    terms: Terms,
    *,
    executor: str | None = None,
    memory_bytes: int | None = None,
    keep: bool = True,
    env: Mapping[str, str] | None = None,
) -> Declared:
    """User code: a function, a generator, or a class with ``run``. Raises TypeError for what is none of them,
    ValueError for a capability, or options, that do not fit.
    """
    check_capability(capability)
    name = terms.name or capability
    user = user_runner(target)
    chosen = executor or ("inline" if user.is_async else "thread")
    if chosen not in EXECUTORS:
        raise ValueError(f"runner {name}: expected executor inline, thread or process, got {executor!r}")
    if chosen == "process":
        _whole("memory_bytes", memory_bytes)
        _check_env(env)
        return _in_process(name, capability, target, terms, memory_bytes, keep, env)
    if memory_bytes is not None or keep is not True or env is not None:
        raise ValueError(f'runner {name}: memory_bytes, keep and env are for executor="process", not {chosen}')
    if user.is_async and chosen == "thread":
        raise ValueError(f"runner {name}: an async runner runs inline or in a process; leave executor out")
    if not user.is_async and chosen == "inline":
        raise ValueError(f"runner {name}: a plain function would stop the loop; leave executor out for a thread")

    def make(offload: Offload) -> RoutedRunner:
        if user.is_async:
            return InlineRunner(name, capability, AsyncRunner(target), offload)
        return ThreadRunner(name, capability, BlockingRunner(target), offload)

    return Declared(name=name, capability=capability, terms=terms, make=make)


def _in_process(
    name: str,
    capability: str,
    target: Any,
    terms: Terms,
    memory_bytes: int | None,
    keep: bool,
    env: Mapping[str, str] | None,
) -> Declared:
    from posemesh.runners.executors.process import ProcessRunner

    def make(offload: Offload | None = None) -> RoutedRunner:
        return ProcessRunner(name, capability, target, env=env, memory_bytes=memory_bytes, keep=keep)

    make()  # what another interpreter could not find is told here, where it was written
    return Declared(name=name, capability=capability, terms=terms, make=make)


def declare_command(
    capability: str,
    argv: Sequence[str],
    terms: Terms,
    *,
    memory_bytes: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Declared:
    """Any program. Raises ValueError for a template, or options, that do not fit."""
    from posemesh.runners.executors.command import CommandRunner

    check_capability(capability)
    name = terms.name or capability
    _check_env(env)
    _whole("memory_bytes", memory_bytes)
    command = CommandRunner(name, capability, argv, env=env, memory_bytes=memory_bytes)
    return Declared(name=name, capability=capability, terms=terms, make=lambda offload: command)


def declare_routed(capability: str, routed: RoutedRunner, terms: Terms) -> Declared:
    """A runner that decides itself what it supports and builds its own tasks."""
    check_capability(capability)
    if not isinstance(routed, RoutedRunner):
        raise TypeError(f"expected name, supports(spec) and build_task(spec, ctx), got {type(routed).__name__}")
    _check_name(routed.name)
    return Declared(name=routed.name, capability=capability, terms=terms, make=lambda offload: routed)


def offered(
    declared: Mapping[str, Declared], given: Iterable[Runner | SyncRunner], config: NodeConfig
) -> list[Declared]:
    """A node's runners in the order of their routing: declared, given, and the no-op where it is enabled.

    Raises ConfigError where there are none, and for each that was given and is no runner or has the name of another.
    """
    found, problems = dict(declared), []
    for number, runner in enumerate(given):
        try:
            made = _given(runner)
            check_name(made, found)
        except (TypeError, ValueError) as error:
            problems.append(f"runners[{number}]: {error}")
        else:
            found[made.name] = made
    if problems:
        raise ConfigError(problems)
    if config.enable_noop and all(runner.capability != NOOP for runner in found.values()):
        found[NOOP] = declare_runner(NOOP, noop(config.noop_sleep_secs), Terms())
    if not found:
        raise ConfigError(['no runner: decorate one with @node.runner("/your/capability/v1"), or set ENABLE_NOOP=true'])
    return list(found.values())


def _given(runner: Any) -> Declared:
    capability = getattr(runner, "capability", None)
    if isinstance(runner, type) or not callable(capability):
        got = f"the class {runner.__name__}" if isinstance(runner, type) else f"{runner!r:.80}"
        raise TypeError(
            f"expected an object with methods `capability()` and `run(task)`, got {got}; functions and classes are "
            'declared with @node.runner("/your/capability/v1")'
        )
    return declare_runner(capability(), runner, Terms())


def check_name(declared: Declared, taken: Mapping[str, Declared]) -> None:
    """Raises ValueError for a name that another runner has."""
    if declared.name in taken:
        raise ValueError(
            f"there is a runner named {declared.name} already; for another one of the same capability give a name"
        )


def check_capability(capability: Any) -> None:
    """Raises TypeError and ValueError for what is none."""
    if not isinstance(capability, str):
        got = getattr(capability, "__name__", type(capability).__name__)
        raise TypeError(f'expected a capability, as in @node.runner("/examples/hello/v1"), got {got}')
    if not capability.isprintable() or not 1 <= len(capability.encode()) <= 256:
        raise ValueError(f"expected a capability of 1 to 256 bytes, such as /examples/hello/v1, got {capability!r:.80}")
    if any(letter.isspace() for letter in capability):
        raise ValueError(f"expected a capability without blanks, got {capability!r}")


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.strip() or len(name) > 256 or not name.isprintable():
        raise ValueError(f"expected a runner's name of 1 to 256 printable characters, got {name!r:.80}")


def _check_env(env: Any) -> None:
    for name, value in _mapping("env", env or {}, '{"LC_ALL": "C"}'):
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"env: expected text by name, got {name!r}")


def _mapping(what: str, value: Any, example: str) -> Iterable[tuple[Any, Any]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what}: expected a mapping, such as {example}, got {type(value).__name__}")
    return value.items()


def _whole(what: str, value: Any) -> None:
    _number(what, value, "a whole number of at least 1", lambda value: isinstance(value, int) and value >= 1)


def _number(what: str, value: Any, wanted: str, fits: Callable[[Any], bool]) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise ValueError(f"{what}: expected {wanted}, got {value!r:.80}")
