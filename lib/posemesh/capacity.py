"""What the runners of a node can take at a time. A task claims one slot of its runner and the resources that needs.

First come, first served: a task may begin where its claim fits beside those of the leases before it, whether or not
these have begun. So nobody is overtaken by one who wants the same, and those who did overtake leave enough. A task only
ever waits for earlier ones, and all of these end, but for user code that does not stop (:meth:`Claims.is_hopeless`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from posemesh.errors import ConfigError
from posemesh.events import LeaseId

__all__ = ("Capacity", "Claims", "Offer")


@dataclass(frozen=True, slots=True)
class Offer:
    """One runner: how many tasks of its capability it takes at a time (None: any number), and what each of them needs
    of the named ``resources``.
    """

    runner: str
    capability: str
    slots: int | None = None
    resources: Mapping[str, int] = field(default_factory=dict)


class Capacity:
    """The offers of a node, one for each runner, and the ``totals`` of its named resources; one that is not named there
    exists once.

    Raises :class:`ConfigError` with everything that no task could ever have.
    """

    def __init__(self, offers: Iterable[Offer] = (), totals: Mapping[str, int] | None = None) -> None:
        self._offers = tuple(offers)
        self._totals: Counter[tuple[str, str]] = Counter()
        for offer in self._offers:
            self._totals["slots of", offer.runner] = 0 if offer.slots is None else offer.slots
            for name in offer.resources:
                self._totals["resource", name] = (totals or {}).get(name, 1)
        self._needs = {offer.runner: _needs(offer) for offer in self._offers}
        self._smallest_first = sorted(self._needs.values(), key=lambda needs: sum(needs.values()))
        self.limited = any(self._needs.values())
        if problems := list(self._problems()):
            raise ConfigError(problems)

    def _problems(self) -> Iterator[str]:
        for offer in self._offers:
            if offer.slots is not None and offer.slots < 1:
                yield f"runner {offer.runner}: slots={offer.slots}; expected at least 1, or None for any number"
            for name, needed in offer.resources.items():
                there = self._totals["resource", name]
                if needed < 1:
                    yield f"runner {offer.runner}: {name}:{needed}; expected at least 1"
                elif needed > there:
                    yield f"RESOURCES: {name}:{there}, and runner {offer.runner} needs {name}:{needed} for one task"
        for runner, number in Counter(offer.runner for offer in self._offers).items():
            if number > 1:
                yield f"runner {runner}: {number} offers; expected one for each name"

    def is_limited(self, runner: str) -> bool:
        """Whether there is any number of tasks that it cannot take at a time."""
        return bool(self._needs.get(runner))

    def fits(self, runner: str, claims: Iterable[str]) -> bool:
        """Whether a task of ``runner`` can run beside ``claims``, the runners of other tasks."""
        return not self.is_limited(runner) or _times(self._needs[runner], self._left(claims)) > 0

    def is_exceeded(self, claims: Iterable[str]) -> bool:
        """Whether one of ``claims`` has to wait for the end of others."""
        return self.limited and any(amount < 0 for amount in self._left(claims).values())

    def spare(self, claims: Iterable[str], most: int) -> int | None:
        """How many tasks could begin besides, up to ``most``: some number that can, not always the largest. None where
        no runner is limited.
        """
        if not self.limited:
            return None
        left, found = self._left(claims), 0
        for needs in self._smallest_first:
            times = _times(needs, left) if needs else most
            left.subtract({name: times * needed for name, needed in needs.items()})
            found += times
        return min(found, most)

    def with_room(self, claims: Iterable[str]) -> tuple[str, ...] | None:
        """The capabilities with a runner that can take another task, in order; None where all have one."""
        if not self.limited:
            return None
        left = self._left(claims)
        found = {o.capability for o in self._offers if not (needs := self._needs[o.runner]) or _times(needs, left)}
        return None if found == {offer.capability for offer in self._offers} else tuple(sorted(found))

    def _left(self, claims: Iterable[str]) -> Counter[tuple[str, str]]:
        left = Counter(self._totals)
        for runner, number in Counter(claims).items():
            left.subtract({name: number * needed for name, needed in self._needs.get(runner, {}).items()})
        return left


def _needs(offer: Offer) -> dict[tuple[str, str], int]:
    slot = {} if offer.slots is None else {("slots of", offer.runner): 1}
    return {**slot, **{("resource", name): needed for name, needed in offer.resources.items()}}


def _times(needs: Mapping[tuple[str, str], int], left: Mapping[tuple[str, str], int]) -> int:
    """How often ``needs``, which are not empty, can be met."""
    return max(0, min(left[name] // needed for name, needed in needs.items()))


@dataclass(slots=True)
class _Claim:
    runner: str
    task: str
    stuck: bool = False


class Claims:
    """What the leases of a node hold, by their numbers; of one task, one lease at a time.

    The same task may be leased twice: its first lease ran out and its user code has not ended. Twice at once it would
    write the same artifacts.
    """

    def __init__(self, capacity: Capacity | None = None) -> None:
        self.waiting: set[LeaseId] = set()
        self._capacity = capacity or Capacity()
        self._held: dict[LeaseId, _Claim] = {}
        self._leases: Counter[str] = Counter()
        self._room: tuple[int | None, tuple[str, ...] | None] | None = None

    def take(self, key: LeaseId, runner: str, task: str) -> None:
        """A lease of ``task`` was accepted for ``runner``; said again, nothing changes."""
        if key not in self._held:
            self._held[key] = _Claim(runner, task)
            self._leases[task] += 1
            self._room = None

    def note(self, key: LeaseId, *, waits: bool, stuck: bool) -> None:
        """A lease that was taken waits for room, or has user code that does not stop."""
        (self.waiting.add if waits else self.waiting.discard)(key)
        if (claim := self._held.get(key)) is not None:
            claim.stuck = stuck

    def release(self, key: LeaseId) -> None:
        """The lease holds nothing any more, if it ever did."""
        self.waiting.discard(key)
        if (claim := self._held.pop(key, None)) is not None:
            self._leases[claim.task] -= 1
            if not self._leases[claim.task]:
                del self._leases[claim.task]
            self._room = None

    def has_room(self, key: LeaseId) -> bool:
        """Whether the lease's task may begin."""
        return self._fits(key, lambda other, claim: other < key)

    def is_hopeless(self, key: LeaseId) -> bool:
        """Whether the lease's task could not even begin if all user code ended that is not stuck."""
        return not self._fits(key, lambda other, claim: claim.stuck)

    def _fits(self, key: LeaseId, before: Callable[[LeaseId, _Claim], bool]) -> bool:
        mine = self._held[key]
        if self._leases[mine.task] == 1 and not self._capacity.is_limited(mine.runner):
            return True
        others = [claim for other, claim in self._held.items() if other != key and before(other, claim)]
        twins = any(claim.task == mine.task for claim in others)
        return not twins and self._capacity.fits(mine.runner, [claim.runner for claim in others])

    def room(self, most: int) -> tuple[int | None, tuple[str, ...] | None]:
        """``spare`` and ``with_room`` of the capacity beside all that is held. Nothing is spare while a lease waits, or
        will have to once it is ready.
        """
        if self.waiting:
            return 0, None
        if self._room is None:
            runners = [claim.runner for claim in self._held.values()] if self._capacity.limited else []
            if len(self._leases) < len(self._held) or self._capacity.is_exceeded(runners):
                self._room = 0, None
            else:
                self._room = self._capacity.spare(runners, most), self._capacity.with_room(runners)
        return self._room
