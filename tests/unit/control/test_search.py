"""Two inputs, two leases of each, two runs: every order of operations to a stated depth, a crash after each of them.

The machines' own searches look at one input and at one runtime. This one looks at what operations make of them
together, and at what a process finds that begins anew where the one before died.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import msgspec

from posemesh.control import operations, recovery
from posemesh.control.errors import RuntimeDriverError
from posemesh.control.image import Image
from posemesh.control.operations import Disposition
from posemesh.control.records import (
    AbandonReason,
    Durability,
    Input,
    InputId,
    InputKind,
    InputPhase,
    LogicalRuntimeId,
    Origin,
    RunId,
    RuntimeState,
    encode,
)
from posemesh.control.rows import entry_of, row_of, subject_of
from posemesh.control.store import RuntimeRow, Snapshot
from posemesh.machines import driver as driver_machine
from posemesh.machines import input as input_machine
from posemesh.types import OutcomeKind

from .rig import draft, outcome

RUNTIME = LogicalRuntimeId("rt:node:1")
KEYS, FENCES, RUNS = ("a", "b"), (1, 2), (RunId("run-1"), RunId("run-2"))
DEPTH = 5

Operation = Callable[[Image], object]


def named(key: str, fence: int) -> InputId:
    return InputId(f"{key}-{fence}")


def a_task(key: str, fence: int) -> Input:
    return Input(
        id=named(key, fence),
        kind=InputKind.TASK,
        at=0.0,
        origin=Origin.SERVICE,
        durability=Durability.DURABLE,
        idempotency_key=key,
        fence=fence,
        payload={"task": key},
    )


def admitting(key: str, fence: int) -> Operation:
    return lambda image: operations.admit(image, a_task(key, fence), None)


def beginning(run: RunId) -> Operation:
    return lambda image: operations.begin(image, run, image.batch(), name="", drain=image.runtime.stored == "retired")


def completing(run: RunId) -> Operation:
    def complete(image: Image) -> None:
        ids = image.runs[run].inputs if run in image.runs else ()
        operations.complete(image, draft(run, *ids), {input_id: outcome() for input_id in ids})

    return complete


def failing(run: RunId, disposition: Disposition) -> Operation:
    def fail(image: Image) -> None:
        ids = image.runs[run].inputs if run in image.runs else ()
        said = {input_id: outcome(OutcomeKind.FAILED) for input_id in ids}
        operations.fail(image, run, "runner_error", disposition, said)

    return fail


def cancelling(run: RunId) -> Operation:
    return lambda image: operations.cancel(image, run, AbandonReason.LEASE_LOST, {})


def rolling_back(run: RunId) -> Operation:
    return lambda image: operations.roll_back(image, run)


OPERATIONS: dict[str, Operation] = {
    **{f"admit {key} {fence}": admitting(key, fence) for key in KEYS for fence in FENCES},
    **{f"begin {run}": beginning(run) for run in RUNS},
    **{f"complete {run}": completing(run) for run in RUNS},
    **{f"fail {run} {disposition}": failing(run, disposition) for run in RUNS for disposition in Disposition},
    **{f"cancel {run}": cancelling(run) for run in RUNS},
    **{f"roll back {run}": rolling_back(run) for run in RUNS},
    "attach": operations.attach,
    "exit": operations.executor_exited,
    "retire": operations.retire,
    "reset": operations.reset,
    "destroy": operations.destroy,
}


def begun() -> Image:
    image = Image(runtime_id=RUNTIME)
    image.runtime.slots = 2
    recovery.load(image, Snapshot(runtime=RUNTIME), "epoch-1")
    return image.difference(Image(runtime_id=RUNTIME))[1]


def facts(image: Image) -> Hashable:
    inputs = tuple((key, entry.holds, entry.stored.seed) for key, entry in sorted(image.entries.items()))
    runs = tuple(sorted((run, known.inputs) for run, known in image.runs.items()))
    told = tuple(sorted((row.input, row.sequence) for row in image.outbox.values()))
    return image.state, image.runtime.stored, image.loop, inputs, runs, image.sequence, told


def sound(image: Image) -> None:
    """What holds after every operation."""
    assert not list(driver_machine.invariants(image.runtime))
    assert set(image.runs) == set(image.runtime.runs)
    held = [entry.key for entry in image.entries.values() if entry.key is not None]
    assert len(held) == len(set(held)), "a key is held once"
    for entry in image.entries.values():
        seed = entry.stored.seed
        assert not list(input_machine.invariants(subject_of(seed)))
        if seed.phase is InputPhase.STAGED:
            assert seed.last_run_id in image.runs and entry.stored.input_id in image.runs[seed.last_run_id].inputs
        if seed.phase is InputPhase.SUPERSEDED:
            assert seed.terminal_outcome is not None and seed.terminal_outcome.by in image.entries
        assert entry_of(msgspec.structs.replace(row_of(entry), version=max(entry.version, 1))).stored == entry.stored
    if image.state is RuntimeState.DESTROYED:
        assert not list(image.open())


def kept(before: Image, after: Image) -> None:
    """What no operation takes back."""
    for key, entry in before.entries.items():
        if entry.stored.terminal:
            assert after.entries[key].stored.seed == entry.stored.seed
        assert after.entries[key].stored.seed.attempt_count >= entry.stored.seed.attempt_count
    assert set(before.outbox) <= set(after.outbox) and after.sequence in (before.sequence, before.sequence + 1)


def crashed(image: Image) -> None:
    """A process that begins anew finds every input that had not ended, and can go on with it."""
    lifecycle = RuntimeRow(
        runtime=RUNTIME, phase=image.record.state.value, version=image.version, body=record_text(image)
    )
    rows = tuple(msgspec.structs.replace(row_of(entry), version=entry.version) for entry in image.open())
    found = Snapshot(
        runtime=RUNTIME, lifecycle=lifecycle, inputs=rows, sequence=image.sequence, position=image.position
    )
    anew = Image(runtime_id=RUNTIME)
    recovery.load(anew, found, "epoch-2")
    assert (anew.state is RuntimeState.DESTROYED) == (image.state is RuntimeState.DESTROYED)
    if anew.state is RuntimeState.DESTROYED:
        return
    report = recovery.recover(anew, found, {})
    sound(anew)
    assert report.inputs_recovered + report.inputs_abandoned == len(rows)
    assert report.inputs_requeued == sum(row.phase == "staged" for row in rows) - report.inputs_abandoned
    assert {entry.stored.seed.phase for entry in anew.open()} <= {InputPhase.QUEUED}
    assert bool(anew.batch()) == bool(list(anew.open())), "nothing is left behind"
    assert (anew.state is RuntimeState.RETIRED) == (image.runtime.stored is RuntimeState.RETIRED)


def record_text(image: Image) -> str:
    return encode(image.record).decode()


def test_every_order_of_operations() -> None:
    """Five operations deep; each of them is done somewhere, and refused somewhere unless it is never wrong."""
    start = begun()
    frontier, seen = [start], {facts(start)}
    done: set[str] = set()
    refused: set[str] = set()
    for _ in range(DEPTH):
        following = []
        for image in frontier:
            for name, operation in OPERATIONS.items():
                trial = image.fork()
                try:
                    operation(trial)
                except RuntimeDriverError:
                    refused.add(name)
                    continue
                done.add(name)
                sound(trial)
                kept(image, trial)
                _, after = trial.difference(image)
                if facts(after) not in seen:
                    seen.add(facts(after))
                    crashed(after)
                    following.append(after)
        frontier = following
    assert done == set(OPERATIONS) == refused
    assert len(seen) > 1_000
