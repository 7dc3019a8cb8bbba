"""Poller: event in, list of commands out."""

from __future__ import annotations

from itertools import pairwise

import pytest

from posemesh.commands import Ask, Leave, Warn
from posemesh.events import (
    AskAbandoned,
    AskFailed,
    CancelRequested,
    CensusTaken,
    DrainOver,
    DrainRequested,
    Emptied,
    Event,
    LeaseOffered,
    LeaseUnreadable,
    LeaveDue,
    NoWork,
    PollDue,
    TokenRenewed,
)
from posemesh.machines import poller
from posemesh.machines.poller import PollerState

from ...stage import Bench, config, envelope, failure, names, sweep, untaken

WAITING, ASKING, FULL, DRAINING, CLOSING, STOPPED = PollerState
TOKEN = TokenRenewed(generation=1)
DRAIN = DrainRequested(seconds=30.0)


def bench(*events: Event, slots: int = 1, **settings: object) -> Bench:
    made = Bench(poller, settings=config(max_concurrency=slots, **settings))
    made(*events)
    return made


def census(
    busy: int = 0,
    backlog: int = 0,
    settling: int = 0,
    ran: int = 0,
    unran: int = 0,
    spare: int | None = None,
    with_room: tuple[str, ...] | None = None,
) -> CensusTaken:
    return CensusTaken(
        busy=busy, backlog=backlog, settling=settling, ran=ran, unran=unran, spare=spare, with_room=with_room
    )


def offered() -> LeaseOffered:
    return LeaseOffered(envelope=envelope(), ttl=60.0)


def unreadable() -> LeaseUnreadable:
    return LeaseUnreadable(task_id="t", problem="p")


def failed(status: int | None = 503, retry_after: float | None = None) -> AskFailed:
    return AskFailed(failure=failure(status, retry_after=retry_after))


def burst(slots: int = 4) -> Bench:
    """Tasks have run: two asks are in flight, one task runs."""
    made = bench(TOKEN, offered(), slots=slots)
    made(census(busy=1, ran=1))
    assert made.subject.asking == 2
    return made


REACH = {
    WAITING: lambda: bench(),
    ASKING: lambda: bench(TOKEN),
    FULL: lambda: bench(TOKEN, offered()),
    DRAINING: lambda: bench(TOKEN, DRAIN),
    CLOSING: lambda: bench(TOKEN, CancelRequested()),
    STOPPED: lambda: bench(TOKEN, CancelRequested(), Emptied()),
}


def test_every_event_in_every_state() -> None:
    sweep(REACH)


def test_the_first_token_brings_the_first_ask() -> None:
    made = bench()
    assert made.wait(1e6) == []
    assert made(TOKEN) == [Ask()] and made.state is ASKING


def test_outcomes_that_waited_for_the_token_go_before_the_ask() -> None:
    """A service that counts leases answers 409 to an ask that overtakes a completion."""
    made = bench(census(backlog=1, settling=1))
    assert made(TOKEN) == [] and made.state is WAITING
    assert made.left(PollDue) == 1
    assert made.due(PollDue) == [Ask()]


def test_an_idle_node_asks_ever_less_often() -> None:
    """Weakness 6 of the reference: it asks every 1 to 2 s for ever."""
    made = bench(TOKEN)
    for low, high in [(1, 1), (1, 2), (2, 4), (4, 8), (8, 16), (15, 30), (15, 30)]:
        assert made(NoWork()) == []
        assert low <= made.left(PollDue) <= high
        assert made.due(PollDue) == [Ask()]


@pytest.mark.parametrize(("asked", "held"), [(None, 1), (0.5, 1), (120.0, 120), (1e9, 300)])
def test_retry_after(asked: float | None, held: float) -> None:
    for answer in (NoWork(retry_after=asked), failed(503, asked)):
        made = bench(TOKEN, answer)
        assert made.left(PollDue) == held
        assert made(TokenRenewed(generation=2)) == []


def test_a_retry_after_outlives_a_full_node() -> None:
    made = burst()
    made(NoWork(retry_after=100.0), census(busy=4, ran=1))
    assert made.state is FULL
    assert made(census(busy=1, ran=2)) == [] and made.left(PollDue) == 100.0


def test_the_second_answer_of_a_burst_may_say_when_to_come_back() -> None:
    made = burst()
    made(NoWork(), failed(503, 100.0))
    assert made.left(PollDue) == 100.0
    made = burst()
    made(failed(503, 100.0), NoWork())
    assert made.left(PollDue) == 100.0 and made.subject.held_until == made.now + 100.0
    made = burst(slots=3)
    made(census(busy=3, ran=1), offered())
    assert made.state is FULL
    made(failed(503, 100.0))
    assert made(census(busy=1, ran=2)) == [] and made.left(PollDue) == 100.0


def test_one_slot_one_task() -> None:
    made = bench(TOKEN)
    assert made(offered()) == [] and made.state is FULL
    assert made(census(busy=1, ran=1)) == []
    assert made(census(busy=0, backlog=1, settling=1, ran=2)) == []
    assert made.state is WAITING and made.left(PollDue) == 1.0, "the service may not count the slot as free yet"
    assert made(census(ran=2)) == [Ask()]


def test_idle_pauses_begin_anew_after_a_task_that_ran() -> None:
    made = bench(TOKEN)
    for _ in range(5):
        made(NoWork())
        made.due(PollDue)
    made(offered(), census(busy=1, ran=1), census(backlog=1, settling=1, ran=2), census(ran=2))
    made(NoWork())
    assert made.left(PollDue) == 1.0


def test_a_task_that_could_not_run_lets_the_pause_grow() -> None:
    """The reference burns 15 attempts in 13 ms on a task that cannot be set up."""
    made = bench(TOKEN)
    for round_, (low, high) in enumerate([(1, 1), (1, 2), (2, 4), (4, 8)], 1):
        made(offered(), census(busy=1, unran=round_ - 1))
        assert made(census(backlog=1, settling=1, unran=round_)) == []
        assert low <= made.left(PollDue) <= high
        assert made(census(unran=round_)) == []
        made.due(PollDue)


def test_more_slots_are_filled_one_at_a_time() -> None:
    made = bench(TOKEN, slots=4)
    assert made(offered()) == [] and made.state is WAITING, "it has yet to show that it runs"
    assert made(census(busy=1, ran=1)) == [Ask(), Ask()]
    assert made(offered()) == [Ask()]
    assert made(offered()) == [] and made.subject.busy == 3 and made.subject.asking == 1
    assert made(offered()) == [] and made.state is FULL


def test_slots_that_come_free_while_asking() -> None:
    made = burst(slots=3)
    made(offered())
    assert made.subject.asking == 1
    assert made(census(busy=1, ran=2)) == [Ask()] and made.subject.asking == 2


def test_the_last_slot_is_taken_while_waiting() -> None:
    made = burst(slots=2 + 1)
    made(census(busy=1, ran=1, unran=1))
    assert made.subject.asking == 2 and not made.subject.trusting
    assert made(offered()) == [] and made.state is WAITING
    assert made(offered()) == [] and made.state is FULL and made.wait(1e6) == []


def test_the_last_slot_is_taken_by_a_lease_that_cannot_be_read() -> None:
    made = bench(TOKEN)
    assert made(unreadable()) == [] and made.state is FULL
    made(census(unran=1))
    assert made.state is WAITING
    made = burst(slots=3)
    made(NoWork(), unreadable())
    made.subject.asking = 1
    assert made(census(busy=2, ran=1)) == []
    made(unreadable())
    assert made.state is FULL


def test_a_lease_that_cannot_be_read_ends_a_burst() -> None:
    made = burst()
    assert made(unreadable()) == [] and made.state is WAITING and not made.subject.trusting
    assert made(offered()) == [] and made.state is WAITING
    assert made(census(busy=3, ran=1, unran=1)) == []


def test_the_first_of_a_burst_that_finds_no_work_ends_it() -> None:
    made = burst()
    assert made(NoWork()) == [] and made.state is WAITING
    assert made(NoWork()) == [] and made.state is WAITING and made.subject.asking == 0
    assert made.due(PollDue) == [Ask()]


def test_an_ask_in_flight_is_counted_when_the_pause_is_over() -> None:
    made = burst()
    made(failed())
    assert made.due(PollDue) == [] and made.state is ASKING and made.subject.asking == 1


def test_a_backlog_stops_asking() -> None:
    made = bench(TOKEN, NoWork())
    assert made(census(backlog=64)) == [] and made.state is FULL and made.wait(1e6) == []
    assert made(census(backlog=64, settling=1)) == [] and made.state is FULL
    assert made(census(backlog=63)) == [] and made.state is WAITING
    assert made.due(PollDue) == [Ask()]


def test_a_full_node_asks_again_at_once_after_a_task_that_ran() -> None:
    made = bench(TOKEN, offered())
    assert made(census(busy=0, ran=2)) == [Ask()]


def test_a_rejected_token_is_made_good_once() -> None:
    made = bench(TOKEN, failed(401))
    assert made(TokenRenewed(generation=2)) == [Ask()]
    assert made(failed(401), TokenRenewed(generation=3)) == [], "a service that rejects every token gets its pause"
    assert made.due(PollDue) == [Ask()]
    made(NoWork())
    assert made(TokenRenewed(generation=4)) == [], "the token was not what was missing"


# -- Where runners are limited --------------------------------------------------------------------------------------


def test_it_asks_for_no_more_than_can_begin() -> None:
    made = bench(TOKEN, slots=8)
    made(census(spare=3))
    made(offered(), census(busy=1, ran=1, spare=2))
    assert made.subject.asking == 2, "as wide as one task that ran allows"
    assert made(census(busy=2, ran=3, spare=1)) == []
    made(offered(), census(busy=3, ran=4, spare=1))
    assert made.subject.asking == 1, "three would be as wide as it may, and one can begin"


def test_it_does_not_ask_where_nothing_can_begin() -> None:
    made = bench(TOKEN, NoWork(), slots=8)
    assert made(census(busy=1, spare=0)) == [] and made.state is FULL and made.wait(1e6) == []
    assert made(census(busy=1, spare=1)) == [] and made.state is WAITING
    assert made.due(PollDue) == [Ask()]


def test_what_room_a_task_leaves_is_known_with_the_census_that_follows() -> None:
    """It may take what several others would have run on, so nothing is asked for before."""
    made = bench(TOKEN, slots=8)
    made(census(spare=4))
    assert made(offered()) == [] and made.subject.busy == 0, "the census counts it"
    made(census(busy=1, ran=1, spare=3))
    assert made.subject.asking == 2
    assert made(offered()) == [] and made.state is WAITING
    made(census(busy=2, ran=1, spare=1, with_room=("/a/v1",)))
    assert made.state is ASKING and made.subject.asking == 1
    assert made(offered()) == []
    assert made(census(busy=3, ran=1, spare=0, with_room=())) == [] and made.state is FULL


def test_room_that_is_taken_while_an_ask_is_in_flight() -> None:
    """Else the pause would end in an ask for what cannot begin, or be stored."""
    for answer in (NoWork(retry_after=100.0), failed(503, 100.0)):
        for taken in (census(spare=0), census(backlog=64)):
            made = bench(TOKEN, slots=8)
            assert made(taken, answer) == [] and made.state is FULL and made.wait(50.0) == []
            made(census(spare=1))
            assert made.state is WAITING and made.left(PollDue) == 50.0, "the service's pause goes on"


def test_a_late_answer_of_a_burst_does_not_put_off_the_next_ask() -> None:
    made = bench(TOKEN, slots=8)
    made(census(spare=4))
    made(offered(), census(busy=1, ran=1, spare=3), NoWork())
    due = made.subject.timers[PollDue]
    made(offered(), census(busy=2, ran=1, spare=2))
    assert made.subject.timers[PollDue] == due


def test_where_only_some_capabilities_have_room_each_is_asked_for_in_turn() -> None:
    made = bench(TOKEN, slots=8)
    made(census(spare=3, with_room=("/a/v1", "/b/v1", "/d/v1")), NoWork())
    asked = []
    for _ in range(4):
        asked += made.due(PollDue)
        made(NoWork())
    assert [ask.capability for ask in asked] == ["/a/v1", "/b/v1", "/d/v1", "/a/v1"]
    made(census(spare=2, with_room=("/c/v1", "/d/v1")))
    asked = []
    for _ in range(3):
        asked += made.due(PollDue)
        made(NoWork())
    assert [ask.capability for ask in asked] == ["/c/v1", "/d/v1", "/c/v1"], "after the one that had its turn"
    made(census(spare=4))
    assert made.due(PollDue) == [Ask()], "the service may choose"


def test_the_asks_of_a_burst_take_turns() -> None:
    made = bench(TOKEN, slots=8)
    made(census(spare=4, with_room=("/a/v1", "/b/v1")))
    asked = made(offered(), census(busy=1, ran=1, spare=3, with_room=("/a/v1", "/b/v1")))
    assert [ask.capability for ask in asked] == ["/a/v1", "/b/v1"]


def test_draining_takes_nothing_new_and_leaves_when_empty() -> None:
    made = bench(TOKEN, DRAIN, slots=2)
    assert made.subject.asking == 1 and made(NoWork()) == []
    assert made(census(busy=1)) == [] and made(Emptied()) == [Leave()]
    assert made.state is STOPPED and made.wait(1e6) == []


def test_an_unanswered_ask_does_not_hold_up_the_stop() -> None:
    made = bench(TOKEN, DRAIN)
    assert made.left(AskAbandoned) < 0.5
    assert made.due(AskAbandoned) == [] and made.subject.asking == 0
    assert made(offered()) == [] and made.subject.asking == 0
    made = bench(TOKEN, CancelRequested())
    assert made.due(AskAbandoned) == [] and made.state is CLOSING


def test_a_drain_that_takes_too_long() -> None:
    made = bench(DRAIN)
    assert made.left(DrainOver) == 30.0
    assert made.due(DrainOver) == [] and made.state is CLOSING
    assert made.left(LeaveDue) == 5.0
    assert made.due(LeaveDue) == [Leave()] and made.state is STOPPED


def test_a_second_signal_closes_at_once() -> None:
    for arrive in (REACH[WAITING], REACH[ASKING], REACH[FULL], REACH[DRAINING]):
        made = arrive()
        assert made(CancelRequested()) == [] and made.state is CLOSING
        assert made(CancelRequested(), DRAIN) == []


def test_a_service_that_does_not_answer_is_told_of_now_and_then() -> None:
    """A node whose DMS could not be reached said nothing at all."""
    made = bench(TOKEN)
    told: list[float] = []
    for _ in range(60):
        told += [made.now for command in made(failed(None)) if isinstance(command, Warn)]
        made.due(PollDue)
    assert len(told) > 2 and told[0] > 0, "one failure alone is nothing"
    assert min(after - before for before, after in pairwise(told)) >= 180
    made(NoWork(retry_after=None))
    made.due(PollDue)
    assert names(made(failed(None))) == []
    made.due(PollDue)
    assert names(made(failed(401))) == [], "that is for the sign-in to tell"
    made.due(PollDue)
    assert names(made(failed(503))) == ["Warn"]


def test_every_edge_is_taken() -> None:
    assert not untaken(poller, globals())
