"""What fits beside what: slots, named resources, and the order of those who wait."""

from __future__ import annotations

import pytest

from posemesh.capacity import Capacity, Claims, Offer
from posemesh.errors import ConfigError

SMALL = Offer("small", "/a/v1", resources={"gpu": 1})
BIG = Offer("big", "/b/v1", resources={"gpu": 2, "lidar": 1})
FEW = Offer("few", "/c/v1", slots=2)
FREE = Offer("free", "/d/v1")
GPUS = Capacity([SMALL, BIG, FEW], {"gpu": 3})


def claims(capacity: Capacity, *held: str) -> Claims:
    """Leases 1, 2 … of those runners, each of a task of its own."""
    made = Claims(capacity)
    for key, runner in enumerate(held, 1):
        made.take(key, runner, f"task {key}")
    return made


def stuck(made: Claims, key: int) -> Claims:
    """User code of that lease was told to stop and goes on."""
    made.note(key, waits=False, stuck=True)
    return made


# -- Capacity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "small", "big", "few"),
    [
        ("", True, True, True),
        ("small", True, True, True),
        ("small small", True, False, True),
        ("small small small", False, False, True),
        ("big", True, False, True),  # the only lidar is taken
        ("big small", False, False, True),
        ("few", True, True, True),
        ("few few", True, True, False),
        ("few few few small", True, True, False),
        ("a runner that nobody offers", True, True, True),
    ],
)
def test_what_fits(held: str, small: bool, big: bool, few: bool) -> None:
    runners = [held] if " that " in held else held.split()
    assert [GPUS.fits(runner, runners) for runner in ("small", "big", "few")] == [small, big, few]


@pytest.mark.parametrize(
    ("held", "spare", "with_room"),
    [
        ("", 3 + 2, None),
        ("small", 2 + 2, None),
        ("small small", 1 + 2, ("/a/v1", "/c/v1")),
        ("big", 1 + 2, ("/a/v1", "/c/v1")),
        ("few few", 3, ("/a/v1", "/b/v1")),
        ("few few big", 1, ("/a/v1",)),
        ("few few big small", 0, ()),
        ("few few few big small small", 0, ()),
    ],
)
def test_how_many_more_can_begin_and_of_what(held: str, spare: int, with_room: tuple[str, ...] | None) -> None:
    assert GPUS.spare(held.split(), 64) == spare
    assert GPUS.with_room(held.split()) == with_room
    assert GPUS.spare(held.split(), 1) == min(spare, 1)
    assert GPUS.is_exceeded(held.split()) is (held.split() == ["few", "few", "few", "big", "small", "small"])


def test_that_many_can_indeed_begin() -> None:
    for held in ([], ["small"], ["big"], ["few"], ["small", "small"], ["few", "big"]):
        begin = list(held)
        while runner := next((runner for runner in ("small", "few", "big") if GPUS.fits(runner, begin)), None):
            begin.append(runner)
        assert len(begin) - len(held) >= (GPUS.spare(held, 64) or 0)


def test_a_runner_without_limits_takes_any_number() -> None:
    some = Capacity([SMALL, FREE])
    assert some.spare(["free"] * 9 + ["small"], 8) == 8 and some.with_room(["small"]) == ("/d/v1",)
    assert some.fits("free", ["free"] * 100) and not some.is_limited("free")


def test_where_no_runner_is_limited_nothing_is_counted() -> None:
    for none in (Capacity(), Capacity([FREE], {"gpu": 1})):
        assert not none.limited and none.fits("free", ["free"])
        assert none.spare(["free"], 8) is None and none.with_room(["free"]) is None
        assert not none.is_exceeded(["free"] * 9)


def test_two_runners_of_one_capability() -> None:
    both = Capacity([Offer("one", "/a/v1", slots=1), Offer("other", "/a/v1", slots=1), FEW])
    assert both.with_room(["one", "few"]) is None
    assert both.with_room(["one", "other"]) == ("/c/v1",)


def test_what_no_task_could_ever_have_is_told_at_once() -> None:
    offers = [
        Offer("small", "/a/v1", slots=0),
        Offer("big", "/b/v1", resources={"gpu": 3, "lidar": 0}),
        Offer("small", "/c/v1"),
    ]
    with pytest.raises(ConfigError) as error:
        Capacity(offers, {"gpu": 2})
    assert error.value.problems == (
        "runner small: slots=0; expected at least 1, or None for any number",
        "RESOURCES: gpu:2, and runner big needs gpu:3 for one task",
        "runner big: lidar:0; expected at least 1",
        "runner small: 2 offers; expected one for each name",
    )


# -- Claims ---------------------------------------------------------------------------------------------------------


def test_first_come_first_served() -> None:
    made = claims(Capacity([FEW]), "few", "few", "few", "few")
    assert [made.has_room(key) for key in (1, 2, 3, 4)] == [True, True, False, False], "ready or not, they come first"
    made.release(1)
    assert [made.has_room(key) for key in (2, 3, 4)] == [True, True, False]


def test_one_that_waits_is_not_overtaken_by_one_that_wants_the_same() -> None:
    made = claims(GPUS, "small", "small", "big", "small", "few")
    assert not made.has_room(3), "one gpu is free, and it needs two"
    assert not made.has_room(4), "it would take that one away"
    assert made.has_room(5), "it wants something else"
    made.release(1)
    assert made.has_room(3) and not made.has_room(4)


def test_a_task_that_is_leased_again_waits_for_the_end_of_its_first_lease() -> None:
    made = Claims()
    made.take(1, "free", "same")
    made.take(2, "free", "other")
    made.take(3, "free", "same")
    assert made.has_room(1) and made.has_room(2) and not made.has_room(3)
    assert not made.is_hopeless(3)
    stuck(made, 1)
    assert made.is_hopeless(3) and not made.is_hopeless(2)
    made.release(1)
    assert made.has_room(3) and not made.is_hopeless(3)


def test_who_waits_for_what_does_not_stop_has_no_hope() -> None:
    made = claims(GPUS, "small", "small", "big", "small")
    assert not made.is_hopeless(3)
    stuck(made, 1)
    assert not made.is_hopeless(3), "the other one may end"
    stuck(made, 2)
    assert made.is_hopeless(3) and not made.is_hopeless(4)


def test_what_is_held_takes_room_from_the_moment_it_is_taken() -> None:
    made = claims(GPUS)
    assert made.room(64) == (5, None)
    made.take(1, "big", "t")
    made.take(1, "big", "t")
    assert made.room(64) == (3, ("/a/v1", "/c/v1"))
    made.release(1)
    made.release(1)
    assert made.room(64) == (5, None) and made.room(64) == (5, None)


def test_nothing_is_spare_while_one_waits() -> None:
    for made in (claims(GPUS, "big"), claims(Capacity(), "free")):
        before = made.room(64)
        made.note(1, waits=True, stuck=False)
        assert made.room(64) == (0, None) and made.waiting == {1}
        made.note(1, waits=False, stuck=False)
        assert made.room(64) == before and not made.waiting
        made.note(1, waits=True, stuck=False)
        made.release(1)
        assert not made.waiting


def test_nothing_is_spare_while_one_will_have_to_wait() -> None:
    made = claims(GPUS, "big", "big")
    assert made.room(64) == (0, None)
    made.release(1)
    assert made.room(64) == (3, ("/a/v1", "/c/v1"))
    made = Claims()
    made.take(1, "free", "same")
    made.take(2, "free", "same")
    assert made.room(64) == (0, None)
    made.release(1)
    assert made.room(64) == (None, None)


def test_a_lease_that_was_never_taken_holds_nothing() -> None:
    made = claims(GPUS)
    made.note(7, waits=False, stuck=True)
    made.release(7)
    assert made.room(64) == (5, None)
