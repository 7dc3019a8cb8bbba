"""Run ids: one number for the whole process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from posemesh.runners.ids import RunId, make_run_id
from posemesh.runners.router import RunnerRouter

from .routing import CAPABILITY, FakeJob, Stub, spec


def test_an_id_names_the_runner_the_slot_and_a_number() -> None:
    made = make_run_id("gpu-a", "0")
    assert made == RunId(name=f"gpu-a-0-{made.seq}", seq=made.seq)
    assert str(made) == made.name
    assert made.seq >= 1


def test_numbers_rise_over_runners_and_slots() -> None:
    made = [make_run_id(runner, slot).seq for runner in ("a", "b") for slot in ("0", "1")]
    assert made == sorted(set(made))


def test_a_thousand_concurrent_builds_give_a_thousand_ids() -> None:
    router = RunnerRouter()
    for name in ("a", "b"):
        router.register(Stub(name), capability=f"/{name}{CAPABILITY}")

    def build(at: int) -> RunId:
        return router.build(spec(f"/{'ab'[at % 2]}{CAPABILITY}"), slot=str(at % 3)).run_id

    with ThreadPoolExecutor(16) as threads:
        made = list(threads.map(build, range(1000)))
    assert len({each.seq for each in made}) == len({each.name for each in made}) == 1000


def test_starting_again_keeps_the_id_and_building_again_gives_another() -> None:
    """A task that its runner tries again is the same run; one that is submitted again is not."""
    router = RunnerRouter()
    router.register(Stub("a"))
    first = router.build(spec(), slot="0")
    name = first.run_id.name
    for _ in range(2):
        first.start(FakeJob(), lambda ending: None)
        assert first.run_id.name == name
    second = router.build(spec(), slot="0")
    assert second.run_id.seq > first.run_id.seq
