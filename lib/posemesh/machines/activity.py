"""Activity: one runtime, as whoever drives it sees it, from deploy to stop and on to another deploy.

Rules:
1. Deploy, start, commands, stop, in that order. What comes out of turn is refused in words that those who know Golem's
   own supervisor know, and the runtime is not asked.
2. While a deploy or a start is under way nothing else but a stop is taken. Of commands any number may run.
3. A deploy or start that fails, and a runtime that is lost, leave nothing but to stop. (Golem's supervisor goes on as
   if they had succeeded.)
4. A stop is taken at any time, and ends it whatever the runtime makes of it. Stopped goes back to initialized.
5. To test the runtime and to ask for its offer needs no state and changes none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from posemesh.errors import OperationRefused
from posemesh.events import (
    ActivityRenewed,
    CommandAsked,
    CommandEnded,
    DeployAsked,
    DeployEnded,
    DeployFailed,
    Event,
    KillAsked,
    NetworkAsked,
    RuntimeLost,
    ShutdownAsked,
    ShutdownEnded,
    StartAsked,
    StartEnded,
    StartFailed,
)
from posemesh.machines._kernel import Edge, Guard, Lifecycle, Moved, State, Subject, Tick, refuse

__all__ = ("MACHINE", "ActivityState", "ActivitySubject", "OutOfOrder", "invariants", "take")


class ActivityState(State):
    INITIALIZED = "initialized", "Nothing was made of it; a deploy may be under way."
    DEPLOYED = "deployed", "Its work directory is prepared; a start may be under way."
    READY = "ready", "It takes commands, and none runs."
    RUNNING = "running", "At least one command runs."
    STOPPING = "stopping", "It was asked to stop."
    STOPPED = "stopped", "Nothing of it runs."
    FAILED = "failed", "It could not be deployed or started, or its process is lost."


INITIALIZED, DEPLOYED, READY, RUNNING, STOPPING, STOPPED, FAILED = ActivityState
_ENDING = (STOPPING, STOPPED)


class OutOfOrder(OperationRefused):
    """What was asked is not what comes next: the text says what does. Nothing was changed, and nobody was asked."""

    def __init__(self, refusal: OperationRefused) -> None:
        super().__init__(refusal.machine, refusal.state, refusal.trigger, refusal.guard, refusal.story)
        self.args = (refusal.guard,)


@dataclass(eq=False, slots=True, kw_only=True)
class ActivitySubject(Subject):
    """``asked`` while a deploy or a start is under way; ``commands`` is how many run."""

    state: State = INITIALIZED
    asked: bool = False
    commands: int = 0


def asked(subject: ActivitySubject, step: Tick[Any]) -> bool:
    return subject.asked


def not_asked(subject: ActivitySubject, step: Tick[Any]) -> bool:
    return not subject.asked


def others_go_on(subject: ActivitySubject, step: Tick[Any]) -> bool:
    return subject.commands > 1


def ask(subject: ActivitySubject, step: Tick[Any]) -> None:
    subject.asked = True


def begin(subject: ActivitySubject, step: Tick[Any]) -> None:
    subject.commands += 1


def end(subject: ActivitySubject, step: Tick[Any]) -> None:
    subject.commands -= 1


def drop(subject: ActivitySubject, step: Tick[Any]) -> None:
    subject.asked, subject.commands = False, 0


def answered(subject: ActivitySubject, step: Tick[Any]) -> None:
    subject.asked = False


def _refused(event: type[Event], state: State | tuple[State, ...], text: str, guard: Guard | None = None) -> Edge:
    return Edge(event, state, None, "it is not its turn", guard, (refuse(text),))


_DEPLOY_FIRST = "Activity is initialized - deploy() command is expected now"
_START_FIRST = "Activity is deployed - start() command is expected now"
_STARTED = "Cannot send command after a successful start()"


def _out_of_turn(event: type[Event], *before: State) -> Iterator[Edge]:
    """The rows that refuse what is asked; ``before`` are the states in which it would come too early, or again."""
    yield _refused(event, INITIALIZED, "Activity is busy - deploy() has not ended yet", asked)
    yield _refused(event, DEPLOYED, "Activity is busy - start() has not ended yet", asked)
    if INITIALIZED in before:
        yield _refused(event, INITIALIZED, _DEPLOY_FIRST)
    if DEPLOYED in before:
        yield _refused(event, DEPLOYED, _START_FIRST)
    if READY in before:
        yield _refused(event, (READY, RUNNING), _STARTED)
    for state in (STOPPING, STOPPED):
        yield _refused(event, state, f"Activity is {state} - no command is expected before it is initialized again")
    yield _refused(event, FAILED, "Activity is failed - stop() command is expected now")


_NOT_UNDER_WAY = "it was asked for"

TABLE = (
    *_out_of_turn(DeployAsked, DEPLOYED, READY),
    Edge(DeployAsked, INITIALIZED, None, "that it has ended will be told", do=(ask,)),
    _refused(DeployEnded, INITIALIZED, _NOT_UNDER_WAY, not_asked),
    Edge(DeployEnded, INITIALIZED, DEPLOYED, "its work directory is prepared", do=(answered,)),
    _refused(DeployFailed, INITIALIZED, _NOT_UNDER_WAY, not_asked),
    Edge(DeployFailed, INITIALIZED, FAILED, "nobody knows what there is of it", do=(answered,)),
    *_out_of_turn(StartAsked, INITIALIZED, READY),
    Edge(StartAsked, DEPLOYED, None, "that it has ended will be told", do=(ask,)),
    _refused(StartEnded, DEPLOYED, _NOT_UNDER_WAY, not_asked),
    Edge(StartEnded, DEPLOYED, READY, "it takes commands", do=(answered,)),
    _refused(StartFailed, DEPLOYED, _NOT_UNDER_WAY, not_asked),
    Edge(StartFailed, DEPLOYED, FAILED, "it takes no commands", do=(answered,)),
    *_out_of_turn(CommandAsked, INITIALIZED, DEPLOYED),
    Edge(CommandAsked, READY, RUNNING, "it is the first", do=(begin,)),
    Edge(CommandAsked, RUNNING, None, "commands run beside each other", do=(begin,)),
    Edge(CommandEnded, RUNNING, None, "others go on", others_go_on, (end,)),
    Edge(CommandEnded, RUNNING, READY, "it was the last", do=(end,)),
    Edge(CommandEnded, (*_ENDING, FAILED), None, "it ended with its runtime"),
    *_out_of_turn(KillAsked, INITIALIZED, DEPLOYED),
    Edge(KillAsked, (READY, RUNNING), None, "its end will be told, and may have been already"),
    *_out_of_turn(NetworkAsked, INITIALIZED, DEPLOYED),
    Edge(NetworkAsked, (READY, RUNNING), None, "networks come and go beside commands"),
    Edge(RuntimeLost, (DEPLOYED, READY, RUNNING), FAILED, "it takes no commands", do=(drop,)),
    Edge(RuntimeLost, (*_ENDING, FAILED), None, "its end was expected"),
    Edge(ShutdownAsked, (INITIALIZED, DEPLOYED, READY, RUNNING, FAILED), STOPPING, "it may always end", do=(drop,)),
    Edge(ShutdownAsked, _ENDING, None, "it was asked for already"),
    *(
        Edge(event, STOPPING, None, "it comes too late")
        for event in (DeployEnded, DeployFailed, StartEnded, StartFailed)
    ),
    Edge(ShutdownEnded, STOPPING, STOPPED, "nothing of it runs"),
    Edge(ActivityRenewed, STOPPED, INITIALIZED, "the same work directory may see another deploy"),
)

MACHINE = Lifecycle("activity", ActivityState, TABLE, subject=ActivitySubject, initial=INITIALIZED)


def take(subject: ActivitySubject, event: Event, now: float = 0.0) -> Moved:
    """Move ``subject`` by ``event``. Raises OutOfOrder where it is not its turn, and IllegalTransition for what cannot
    have happened; then nothing is changed.
    """
    try:
        return MACHINE.fire(subject, Tick(event, now))[1]
    except OperationRefused as refusal:
        raise OutOfOrder(refusal) from None


def invariants(subject: ActivitySubject) -> Iterator[str]:
    """What does not hold and should."""
    if (subject.state is RUNNING) != (subject.commands > 0):
        yield f"{subject.state} with {subject.commands} commands"
    if subject.asked and subject.state not in (INITIALIZED, DEPLOYED):
        yield f"{subject.state} with a deploy or start under way"
