"""How a task finds its runner.

A runner is asked in the order of registration, and the first that takes the task gets it: it was registered for the
task's capability (or for none, and says itself what it takes), its ``supports()`` says yes, and its labels meet the
task's selector, where it has one. Nothing else counts: no priority, no load. A runner registered early that takes
everything therefore hides those after it, and a warning says so.

A task without a capability is refused before any runner is asked, so that one which claims everything does not get it.
(Routers of tasks with a kind refuse those of the kind that no runner may run; here that is the kind without a name.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

from posemesh.errors import DuplicateRunner, NoRunner, RunnerError
from posemesh.runners.context import BuildContext
from posemesh.runners.ending import FAULTS, said
from posemesh.runners.ids import RunId
from posemesh.runners.job import Ended, Job, Run
from posemesh.runners.metrics import RunnerType
from posemesh.runners.selector import Selector, selector_of
from posemesh.telemetry import logger
from posemesh.types import TaskSpec

__all__ = (
    "Considered",
    "Explanation",
    "Registered",
    "RoutedRunner",
    "RunnerRouter",
    "TaskRef",
    "Verdict",
)

TOLD_MAX = 5
"""A text for people names so many runners."""


class TaskRef(Protocol):
    """A task that was built and not started."""

    @property
    def run_id(self) -> RunId:
        """Made by ``make_run_id`` when it was built; the same however often it is started."""
        ...

    @property
    def runner_type(self) -> RunnerType: ...

    def start(self, job: Job, ended: Ended) -> Run:
        """Run user code, on the node's loop; ``ended`` is called once, when all of it is over."""
        ...


@runtime_checkable
class RoutedRunner(Protocol):
    """A runner as the router knows it.

    It may have two more methods, ``async def check(self)``, which raises where the machine lacks what it needs, and
    ``async def close(self)``, which lets go of what it keeps; and a ``runner_type``, for metrics of failed builds.
    """

    @property
    def name(self) -> str: ...

    def supports(self, spec: TaskSpec) -> bool:
        """Whether it takes this task. Asked often, so it must be quick, and nothing may depend on being asked."""
        ...

    def build_task(self, spec: TaskSpec, ctx: BuildContext) -> TaskRef:
        """Build, never start: what belongs to one run (files, processes) is made when that starts. Raises RunnerError,
        which the submitter sees; no other runner is tried.
        """
        ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A runner under the name and labels that it had when it was registered; it cannot change them later.

    ``capability`` is None where ``supports()`` alone decides. ``labels`` are sorted and read-only.
    """

    name: str
    capability: str | None
    labels: Mapping[str, str] = field(compare=False)
    runner: RoutedRunner = field(repr=False, compare=False)


class Verdict(StrEnum):
    """What became of a runner when one was sought for a task."""

    PICKED = "picked"
    SHADOWED = "shadowed"
    """It would do, and one registered earlier does."""
    OTHER_CAPABILITY = "other_capability"
    UNSUPPORTED = "unsupported"
    """Its ``supports()`` said no, or raised."""
    LABELS = "labels"
    NOT_ASKED = "not_asked"
    """The task itself cannot be routed."""


class Considered(NamedTuple):
    """One runner and why it was skipped; ``why`` is "" for the one that is picked."""

    runner: str
    verdict: Verdict
    why: str = ""

    def __str__(self) -> str:
        return f"{self.runner}: skipped: {self.why}" if self.why else f"{self.runner}: {self.verdict}"


class Explanation(NamedTuple):
    """What each runner had to say of a task, in the order they were asked. ``problem`` is "" where one is picked."""

    capability: str
    runners: tuple[Considered, ...]
    problem: str = ""

    @property
    def picked(self) -> str | None:
        """The name of the runner that gets it."""
        return next((each.runner for each in self.runners if each.verdict is Verdict.PICKED), None)

    def __str__(self) -> str:
        head = self.problem or f"{self.capability} goes to {self.picked}"
        return "\n".join((head, *(f"  {each}" for each in self.runners)))


class RunnerRouter:
    """The runners of a node. All are built with one ``context``."""

    def __init__(self, context: BuildContext | None = None) -> None:
        self._context = context or BuildContext()
        self._registered: tuple[Registered, ...] = ()
        self._told: set[tuple[str, ...]] = set()

    def __repr__(self) -> str:
        return f"<RunnerRouter {[each.name for each in self._registered]}>"

    def register(
        self, runner: RoutedRunner, labels: Mapping[str, str] | None = None, *, capability: str | None = None
    ) -> None:
        """Add a runner after those there are. Its name and labels are taken as they are now.

        Raises DuplicateRunner for a name that is taken, TypeError or ValueError for what is no runner, no name or no
        labels; then nothing is changed.
        """
        if not isinstance(runner, RoutedRunner):
            raise TypeError(f"expected a runner with name, supports and build_task, got {type(runner).__name__}")
        entry = Registered(_text("name", runner.name), capability, _labels(labels or {}), runner)
        if capability is not None:
            _text("capability", capability)
        if any(each.name == entry.name for each in self._registered):
            raise DuplicateRunner(entry.name)
        self._registered = (*self._registered, entry)

    def catalog(self) -> tuple[Registered, ...]:
        """The runners in the order they are asked. What is registered later is not in it."""
        return self._registered

    def pick(self, spec: TaskSpec) -> Registered:
        """The runner that gets this task. Changes nothing, and builds nothing.

        Raises NoRunner, which says what each that came near lacked, and InvalidSpec for a selector that is none.
        """
        explained: list[Considered] = []
        for entry, considered in self._consider(spec):
            if considered.verdict is Verdict.PICKED:
                return entry
            explained.append(considered)
        raise NoRunner(spec.capability, _why(explained))

    def build(self, spec: TaskSpec, *, slot: str = "0", picked: Registered | None = None) -> TaskRef:
        """Have the runner that gets this task build it. ``picked`` is what :meth:`pick` gave, where ``slot`` depends on
        it.

        Raises what ``pick`` raises, and what the runner raises, as it is: the next one that would do is not asked.
        """
        entry = picked or self.pick(spec)
        self._tell_of_a_second(spec, entry)
        return entry.runner.build_task(spec, replace(self._context, slot=slot))

    def explain(self, spec: TaskSpec) -> Explanation:
        """Why each runner gets the task or does not; ``str()`` of it is for people. Changes nothing, never raises."""
        try:
            runners = tuple(considered for _, considered in self._consider(spec))
        except RunnerError as error:
            skipped = (Considered(each.name, Verdict.NOT_ASKED, "it was not asked") for each in self._registered)
            return Explanation(spec.capability, tuple(skipped), str(error))
        found = Explanation(spec.capability, runners)
        return found if found.picked else found._replace(problem=str(NoRunner(spec.capability, _why(runners))))

    def _consider(self, spec: TaskSpec) -> Iterator[tuple[Registered, Considered]]:
        """Each runner and what becomes of it; one after the other, as far as the caller goes on."""
        if not spec.capability or not spec.capability.strip():
            raise NoRunner(spec.capability, "a task needs a capability, such as /examples/hello/v1, and has none")
        selector = selector_of(spec)
        picked: str | None = None
        for entry in self._registered:
            skipped = self._skipped(entry, spec, selector)
            if skipped is not None:
                yield entry, skipped
            elif picked is not None:
                yield entry, Considered(entry.name, Verdict.SHADOWED, f"{picked} comes first")
            else:
                picked = entry.name
                yield entry, Considered(entry.name, Verdict.PICKED)

    def _skipped(self, entry: Registered, spec: TaskSpec, selector: Selector | None) -> Considered | None:
        if entry.capability not in (None, spec.capability):
            return Considered(entry.name, Verdict.OTHER_CAPABILITY, f"it is for {entry.capability}")
        try:
            supported = bool(entry.runner.supports(spec))
        except FAULTS as error:
            self._warn_once((entry.name,), f"runner {entry.name}: supports() raised, which counts as no", error)
            return Considered(entry.name, Verdict.UNSUPPORTED, f"its supports() raised {said(error)}")
        if not supported:
            return Considered(entry.name, Verdict.UNSUPPORTED, "its supports() says no")
        missed = selector.missed_by(entry.labels) if selector else None
        if missed is not None:
            has = f"{entry.labels[missed.key]!r}" if missed.key in entry.labels else "no such label"
            return Considered(entry.name, Verdict.LABELS, f"the task asks for {str(missed):.200}, it has {has}")
        return None

    def _tell_of_a_second(self, spec: TaskSpec, picked: Registered) -> None:
        later = self._registered[self._registered.index(picked) + 1 :]
        selector = selector_of(spec) if later else None
        second = next((each.name for each in later if self._skipped(each, spec, selector) is None), None)
        if second is not None:
            self._warn_once(
                (picked.name, second),
                f"{spec.capability}: runner {picked.name} gets the task, and {second} would do as well; the one "
                "registered first wins, unless labels and a selector tell them apart",
            )

    def _warn_once(self, about: tuple[str, ...], text: str, error: BaseException | None = None) -> None:
        if about not in self._told:
            self._told.add(about)
            logger().opt(exception=error).warning(text)


def _why(considered: list[Considered] | tuple[Considered, ...]) -> str:
    near = [f"{each.runner}: {each.why}" for each in considered if each.verdict is not Verdict.OTHER_CAPABILITY]
    if not near:
        return "none is registered for it"
    more = f"; and {len(near) - TOLD_MAX} more" if len(near) > TOLD_MAX else ""
    return "; ".join(near[:TOLD_MAX]) + more


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected the runner's {what} to be text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"expected a {what} for the runner, got {value!r}")
    return value


def _labels(labels: object) -> Mapping[str, str]:
    if not isinstance(labels, Mapping):
        raise TypeError(f"expected labels as a mapping of text to text, got {type(labels).__name__}")
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"expected labels as a mapping of text to text, got {key!r}: {value!r}")
        if not key:
            raise ValueError("expected a name for each label, got an empty one, which no selector can ask for")
    return MappingProxyType(dict(sorted(labels.items())))
