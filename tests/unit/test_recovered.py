"""What a node that starts makes of what it finds: one event for each, with a reason where a task is not run again."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs

from posemesh.control.memory import MemoryStore
from posemesh.control.node_ledger import NodeLedger
from posemesh.events import Event, LeaseRecovered, OutcomeRecovered
from posemesh.recovered import recovered
from posemesh.runners.executors.declared import Terms, declare_runner
from posemesh.runners.registry import Route
from posemesh.secret import Secret
from posemesh.types import LeaseEnvelope, Outcome, OutcomeKind, TaskIdentity, TaskSpec

NOW = 1_000_000.0
TO_A = Route("a", "")


async def work(task: Any) -> None: ...


def lease(number: int, seconds: float | None = 60.0) -> LeaseEnvelope:
    return LeaseEnvelope(
        task=TaskSpec(id=UUID(int=number), capability="/a/v1"),
        access_token=Secret("a-token"),
        lease_expires_at=None if seconds is None else datetime.fromtimestamp(NOW + seconds, UTC),
    )


def outcome(number: int) -> Outcome:
    return Outcome(kind=OutcomeKind.COMPLETED, task=TaskIdentity(task_id=str(UUID(int=number))))


async def opened(rows: dict[object, Any]) -> NodeLedger:
    names = itertools.count(len(rows) * 100)
    return await NodeLedger.open(MemoryStore(rows), "rt:node:1", wall=lambda: NOW, ids=lambda: f"n{next(names)}")


def found(
    rows: dict[object, Any], *, route: Route = TO_A, slots: int = 4, **terms: Any
) -> tuple[list[Event], NodeLedger]:
    async def main() -> tuple[list[Event], NodeLedger]:
        ledger = await opened(rows)
        runners = {"a": declare_runner("/a/v1", work, Terms(name="a", timeout=9.0, **terms))}
        numbers = range(1, 1 + len(ledger.owed) + len(ledger.interrupted))
        events = recovered(ledger, numbers, route=lambda spec: route, runners=runners, slots=slots, wall=NOW)
        return list(events), ledger

    return asyncio.run(main())


def left(*leases: LeaseEnvelope, ended: tuple[int, ...] = ()) -> dict[object, Any]:
    """The rows of a node that took these leases and was killed when it had committed the outcomes of ``ended``."""
    rows: dict[object, Any] = {}

    async def main() -> None:
        ledger = await opened(rows)
        for number, each in enumerate(leases, 1):
            await ledger.commit_accepted(number, each)
            if each.task.id.int in ended:
                await ledger.commit_outcome(number, outcome(each.task.id.int))

    asyncio.run(main())
    return rows


def test_nothing_is_made_of_nothing() -> None:
    assert found({})[0] == []


def test_outcomes_come_before_leases_each_with_a_number() -> None:
    events, ledger = found(left(lease(1), lease(2), lease(3), ended=(2,)))
    bare = [replace(lease(number), access_token=None) for number in (1, 3)]
    assert events == [
        OutcomeRecovered(lease=1, outcome=outcome(2)),
        LeaseRecovered(lease=2, envelope=bare[0], ttl=60.0, runner="a", timeout=9.0),
        LeaseRecovered(lease=3, envelope=bare[1], ttl=60.0, runner="a", timeout=9.0),
    ]
    assert ledger.undelivered(str(UUID(int=2))) == outcome(2)


@pytest.mark.parametrize("seconds", [None, 0.0, -5.0])
def test_an_expiry_that_is_past_or_absent_says_nothing(seconds: float | None) -> None:
    (event,), _ = found(left(lease(1, seconds)))
    assert isinstance(event, LeaseRecovered)
    assert (event.ttl, event.code) == (None, "")


def test_why_a_task_is_not_run_again() -> None:
    rows = left(lease(1))
    (never,), _ = found(dict(rows), restart="never")
    (nobody,), _ = found(dict(rows), route=Route("", "runner a does not support it"))
    (crowded,), _ = found(dict(rows), slots=0)
    for event, code, said in (
        (never, "killed", 'restart="never"'),
        (nobody, "no_runner", "runner a does not support it"),
        (crowded, "node_shutdown", "fewer slots"),
    ):
        assert isinstance(event, LeaseRecovered)
        assert event.code == code
        assert said in event.problem


def test_a_task_under_which_the_node_ends_again_and_again_is_given_up() -> None:
    rows = left(lease(1))

    async def again() -> None:
        ledger = await opened(rows)
        (interrupted,) = ledger.interrupted
        ledger.resume(1, interrupted.id)
        await ledger.commit_accepted(1, lease(1))

    for attempts in (1, 2):
        (event,), ledger = found(dict(rows))
        assert isinstance(event, LeaseRecovered)
        assert event.code == ""
        assert [each.attempts for each in ledger.interrupted] == [attempts]
        asyncio.run(again())
    (event,), _ = found(dict(rows))
    assert isinstance(event, LeaseRecovered)
    assert (event.code, "3 times" in event.problem) == ("killed", True)


@pytest.mark.parametrize("tick", [1, -3600])
def test_a_lease_whose_task_an_earlier_one_finished_meanwhile_is_dropped(tick: int) -> None:
    """The result is offered under whichever lease there is. A second run, or its failure, would compete with it."""
    rows: dict[object, Any] = {}

    async def main() -> None:
        now = itertools.count(NOW, tick)
        names = itertools.count()
        ledger = await NodeLedger.open(
            MemoryStore(rows), "rt:node:1", wall=lambda: next(now), ids=lambda: f"n{next(names)}"
        )
        await ledger.commit_accepted(1, lease(1))
        await ledger.commit_accepted(2, lease(1))
        await ledger.commit_outcome(1, outcome(1))

    asyncio.run(main())

    async def start() -> tuple[list[Event], int]:
        ledger = await opened(rows)
        events = list(
            recovered(ledger, range(1, 3), route=lambda spec: TO_A, runners={}, slots=4, wall=NOW),
        )
        await ledger.close()
        return events, len(ledger.interrupted)

    assert asyncio.run(start()) == ([OutcomeRecovered(lease=1, outcome=outcome(1))], 1)
    assert asyncio.run(start()) == ([OutcomeRecovered(lease=1, outcome=outcome(1))], 0)


@pytest.mark.parametrize("tick", [1, -3600])
def test_a_lease_that_came_after_the_result_goes_on_whatever_the_clock_says(tick: int) -> None:
    """Its run is there as the result's artifacts are gone. With the clock moved back it was dropped, and the result
    accepted.
    """
    rows: dict[object, Any] = {}

    async def main() -> None:
        now, names = itertools.count(NOW, tick), itertools.count()
        ledger = await NodeLedger.open(
            MemoryStore(rows), "rt:node:1", wall=lambda: next(now), ids=lambda: f"n{next(names)}"
        )
        await ledger.commit_accepted(1, lease(1))
        await ledger.commit_outcome(1, outcome(1))
        await ledger.commit_accepted(2, lease(1))
        await ledger.close()
        again = await opened(rows)
        route = {"route": lambda spec: TO_A, "runners": {}, "slots": 4, "wall": NOW}
        kinds = [type(event) for event in recovered(again, range(1, 3), **route)]
        assert kinds == [OutcomeRecovered, LeaseRecovered]
        again = await opened(rows)
        again.owed = tuple(replace(each, position=None) for each in again.owed)
        kinds = [type(event) for event in recovered(again, range(3, 5), **route)]
        assert kinds == [OutcomeRecovered], "of which nobody knows is not run twice"
        await again.close()

    asyncio.run(main())


@pytest.mark.parametrize("later", ["under way", "failed", "completed"])
def test_a_failure_that_was_being_reported_when_its_task_was_leased_again_gives_way(later: str) -> None:
    """Offered beside what the newer lease came to, it could be taken first, and the result be refused."""
    rows: dict[object, Any] = {}
    failed = replace(outcome(1), kind=OutcomeKind.FAILED, code="runner_error")

    async def main() -> None:
        ledger = await opened(rows)
        await ledger.commit_accepted(1, lease(1))
        await ledger.commit_outcome(1, failed)
        await ledger.commit_accepted(2, lease(1))
        if later != "under way":
            await ledger.commit_outcome(2, outcome(1) if later == "completed" else replace(failed, message="again"))

    asyncio.run(main())

    async def start() -> list[Event]:
        ledger = await opened(rows)
        runners = {"a": declare_runner("/a/v1", work, Terms(name="a"))}
        events = list(recovered(ledger, (1, 2), route=lambda spec: TO_A, runners=runners, slots=4, wall=NOW))
        await ledger.close()
        return events

    (event,) = asyncio.run(start())
    if later == "under way":
        assert isinstance(event, LeaseRecovered)
    else:
        assert isinstance(event, OutcomeRecovered)
        assert event.outcome != failed
    (again,) = asyncio.run(start())
    assert structs.replace(again, lease=event.lease) == event, "the first is on record as superseded"


def test_a_result_that_came_after_a_later_lease_had_failed_is_what_is_offered() -> None:
    rows: dict[object, Any] = {}

    async def main() -> None:
        ledger = await opened(rows)
        await ledger.commit_accepted(1, lease(1))
        await ledger.commit_accepted(2, lease(1))
        await ledger.commit_outcome(2, replace(outcome(1), kind=OutcomeKind.FAILED, code="runner_error"))
        await ledger.commit_outcome(1, outcome(1))

    asyncio.run(main())
    events, _ = found(rows)
    assert [type(event) for event in events] == [OutcomeRecovered]
    assert isinstance(events[0], OutcomeRecovered) and events[0].outcome == outcome(1)
