"""Recovery: how many there were of each, and what is done about rows that nobody should have written.

What becomes of rows in each phase, and the verdicts, stand with the behaviours.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from posemesh.control.errors import DriverDestroyed, DriverNotReady, DriverRecoveryCorruption
from posemesh.control.records import Durability, InputPhase, RuntimeRecord, RuntimeState, encode
from posemesh.control.recovery import runs_to_look_up
from posemesh.control.rows import row_of
from posemesh.control.store import Commit, InputRow, Snapshot

from .rig import RUNTIME, Rig, on_both_stores
from .rig import rig as opened_rig
from .stores import KINDS


@on_both_stores(slots=4)
async def test_the_counts_make_up_all_there_was(rig: Rig) -> None:
    ids = [await rig.accepted(rig.task(f"task-{number}")) for number in range(4)]
    await rig.accepted(rig.progress())
    runs = [await rig.run(given) for given in ids[:2]]
    with pytest.raises(DriverNotReady) as refused:
        await rig.driver.recover()
    assert (refused.value.state, refused.value.operation) == (RuntimeState.RUNNING, "RuntimeRecovered")
    for run in runs:
        await rig.driver.roll_back(run)
    report = await rig.driver.recover()
    assert (report.inputs_recovered, report.inputs_requeued, report.inputs_discarded) == (4, 0, 1)
    await rig.run(ids[3])
    report = await rig.restart()
    assert (report.inputs_recovered, report.inputs_requeued, report.inputs_abandoned) == (4, 1, 0)
    assert report.details == (f"requeued {ids[3]}, which was staged",)
    for given in ids:
        stored = rig.driver.stored_input_state(given)
        assert stored is not None and stored.state.recovery_count == 2


@on_both_stores()
async def test_a_row_that_was_not_to_last_is_deleted(rig: Rig) -> None:
    given = await rig.accepted()
    entry = rig.driver._desk.image.entries[given]
    state = entry.stored.state
    passing = replace(entry, stored=replace(entry.stored, state=replace(state, input=rig.progress(id=given))))
    stored = passing.stored
    await rig.store.commit(Commit(runtime=RUNTIME, inputs=(msgspec.structs.replace(row_of(entry), key=None),)))
    policy = replace(stored.state.policy, lane="steer", apply="run_checkpoint", idle="none", coalesce=True)
    stored = replace(
        stored, state=replace(stored.state, policy=policy), seed=replace(stored.seed, recovery_lane="steer")
    )
    (row,) = await rig.store.inputs(RUNTIME)
    assert stored.state.input.durability is Durability.EPHEMERAL
    await rig.store.commit(Commit(runtime=RUNTIME, inputs=(row.next(body=encode(stored).decode(), kind="progress"),)))
    report = await rig.restart()
    assert (report.inputs_discarded, report.inputs_recovered) == (1, 0)
    assert await rig.rows() == [] and rig.driver.active_input_ids() == []


@on_both_stores()
async def test_what_another_process_destroyed_is_not_recovered(rig: Rig) -> None:
    other = rig.made()
    await other.register()
    await other.destroy()
    with pytest.raises(DriverDestroyed):
        await rig.driver.recover()
    await rig.restart()
    assert rig.driver.runtime_state() is RuntimeState.DESTROYED


@on_both_stores()
async def test_what_another_process_retired_stays_so(rig: Rig) -> None:
    given = await rig.accepted()
    other = rig.made()
    await other.register()
    await other.attach()
    await other.retire()
    assert rig.driver.runtime_state() is RuntimeState.IDLE
    await rig.driver.recover()
    assert rig.driver.runtime_state() is RuntimeState.RETIRED and rig.driver.active_input_ids() == [given]


@pytest.mark.parametrize("phase", ["running", "initializing", "attached"])
def test_no_process_leaves_these_states(phase: str, tmp_path: Path) -> None:
    async def main(kind: str) -> None:
        async with opened_rig(kind, tmp_path / kind) as rig:
            lifecycle = (await rig.store.snapshot(RUNTIME)).lifecycle
            assert lifecycle is not None
            body = encode(RuntimeRecord(state=RuntimeState(phase))).decode()  # type: ignore[call-arg]
            await rig.store.commit(Commit(runtime=RUNTIME, lifecycle=lifecycle.next(phase=phase, body=body)))
            with pytest.raises(DriverRecoveryCorruption, match=f"no process leaves it {phase}"):
                await rig.restart()

    for kind in KINDS:
        asyncio.run(main(kind))


def test_only_what_was_applied_needs_receipts() -> None:
    rows = tuple(
        InputRow(runtime=RUNTIME, id=str(number), phase=phase.value, run=run)
        for number, (phase, run) in enumerate(
            [
                (InputPhase.APPLIED, "a"),
                (InputPhase.APPLIED_PENDING_CONSUMPTION, "b"),
                (InputPhase.APPLIED, "a"),
                (InputPhase.STAGED, "c"),
                (InputPhase.APPLIED, None),
            ]
        )
    )
    assert runs_to_look_up(Snapshot(runtime=RUNTIME, inputs=rows)) == ("a", "b")
