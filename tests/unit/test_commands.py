"""Commands: each answered one knows its answers, and how it ends where it cannot be carried out."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

import posemesh.commands as commands
from posemesh.commands import Answered, Ask, Authorized, Command, SendHeartbeat, StopReason
from posemesh.errors import NodeStartError
from posemesh.secret import Secret

from ..stage import DONE, TASK, TOKEN, envelope, failure

VALUES: dict[str, Any] = {
    "request": 7,
    "node_id": "node",
    "secret": TOKEN,
    "status": 409,
    "lease": 3,
    "task_id": str(TASK),
    "progress": {},
    "events": (),
    "timeout": 1.0,
    "outcome": DONE,
    "envelope": envelope(),
    "ending": "delivered",
    "reason": StopReason.SHUTDOWN,
    "error": NodeStartError("why"),
    "message": "look",
}
BARE = ("Command", "Answered", "Authorized", "StopReason")
KINDS = [getattr(commands, name) for name in commands.__all__ if name not in BARE]


def sample(kind: type[Command]) -> Command:
    return kind(**{field.name: VALUES[field.name] for field in structs.fields(kind) if field.name in VALUES})


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_is_frozen_and_says_what_it_does(kind: type[Command]) -> None:
    command = sample(kind)
    assert command == sample(kind) and not hasattr(command, "__dict__") and kind.__doc__
    for field in structs.fields(kind):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(command, field.name, None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, Answered)])
def test_a_command_that_could_not_be_carried_out_ends_in_one_of_its_answers(kind: type[Answered]) -> None:
    command = sample(kind)
    answer = command.failed(failure(None))
    assert type(answer) in kind.answers
    for name in ("lease", "request"):
        if hasattr(command, name):
            assert getattr(answer, name) == getattr(command, name)


def test_the_bare_kinds_have_no_answer() -> None:
    assert Answered.answers == ()
    with pytest.raises(NotImplementedError):
        Answered().failed(failure())


def test_who_carries_the_token() -> None:
    authorized = {kind.__name__ for kind in KINDS if issubclass(kind, Authorized)}
    assert authorized == {"Ask", "SendHeartbeat", "OfferOutcome"}


def test_a_command_under_a_token() -> None:
    command = sample(SendHeartbeat)
    assert isinstance(command, SendHeartbeat) and command.token is None and command.generation == 0
    stamped = command.under(Secret("t"), 4)
    assert (stamped.token, stamped.generation, stamped.lease) == (Secret("t"), 4, 3)
    assert command.token is None and "hush" not in repr(Ask().under(Secret("hush"), 4))


def test_a_stronger_reason_takes_the_place_of_a_weaker() -> None:
    weakest_first = ["shutdown", "expired", "timeout", "lost", "cancelled"]
    assert list(StopReason) == weakest_first
    for index, one in enumerate(StopReason):
        assert one.outweighs(None)
        assert [other for other in StopReason if one.outweighs(other)] == weakest_first[:index]


def test_the_module_lists_all() -> None:
    kinds = {
        kind.__name__ for kind in (*Command.__subclasses__(), *Answered.__subclasses__(), *Authorized.__subclasses__())
    }
    assert kinds | {"Command", "StopReason"} == set(commands.__all__) and list(commands.__all__) == sorted(
        commands.__all__
    )
