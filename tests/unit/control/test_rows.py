"""Rows: what comes back is what was written, and what makes no sense is said to be so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from posemesh.control.errors import DriverRecoveryCorruption
from posemesh.control.image import Image
from posemesh.control.policy import decide
from posemesh.control.records import (
    AbandonReason,
    Boundary,
    BoundaryReceipt,
    Durability,
    Input,
    InputId,
    InputKind,
    InputPhase,
    LogicalRuntimeId,
    Origin,
    RunId,
    RuntimeRecord,
    RuntimeState,
    StoredInputState,
    decode,
    encode,
)
from posemesh.control.rows import (
    Entry,
    entry_of,
    outbox_entry_of,
    receipt_of,
    record_of,
    row_of,
    seed_of,
    subject_of,
)
from posemesh.control.store import InputRow, OutboxRow, ReceiptRow, RuntimeRow
from posemesh.events import InputAbandoned, InputStaged, StagingRefused

RUNTIME = LogicalRuntimeId("rt:node:1")
RUN = RunId("run-1")


def image() -> tuple[Image, InputId]:
    made = Image(runtime_id=RUNTIME, now=5.0)
    given = Input(
        id=InputId("input-1"),
        kind=InputKind.TASK,
        at=4.0,
        origin=Origin.SERVICE,
        durability=Durability.DURABLE,
        idempotency_key="task-1",
        fence=7,
        capability="/c/v1",
        payload={"task": {"id": "task-1"}},
    )
    made.add(given, decide(given))
    return made, given.id


def test_a_row_shows_what_an_operator_looks_for() -> None:
    made, given = image()
    row = row_of(made.entries[given])
    assert (row.runtime, row.id, row.version, row.phase, row.open, row.position) == (
        RUNTIME,
        given,
        1,
        "queued",
        True,
        1,
    )
    assert (row.key, row.kind, row.task, row.capability, row.fence) == ("task-1", "task", "task-1", "/c/v1", 7)
    assert (row.run, row.reason, row.created, row.updated) == (None, "", 5.0, 5.0)
    assert entry_of(row) == replace(made.entries[given], version=1)


def test_no_token_is_in_a_row() -> None:
    made, given = image()
    entry = made.entries[given]
    payload = {**entry.stored.state.input.payload, "access_token": "very-secret"}
    told = replace(entry.stored.state, input=replace(entry.stored.state.input, payload=payload))
    row = row_of(replace(entry, stored=replace(entry.stored, state=told)))
    assert "very-secret" not in row.body
    assert entry_of(row).stored.state.input.payload == {"task": {"id": "task-1"}, "access_token": None}


def test_an_ended_row_has_a_reason_and_no_payload() -> None:
    made, given = image()
    made.move(given, InputStaged(run=RUN, current=frozenset({RUN})))
    made.move(given, InputAbandoned(reason=AbandonReason.LEASE_LOST))
    made.give_up_key(made.entries[given])
    row = row_of(made.entries[given])
    assert (row.phase, row.open, row.run, row.reason, row.key) == ("abandoned", False, RUN, "lease_lost", None)
    entry = entry_of(row)
    assert entry.stored.state.input.payload == {} and not entry.holds
    assert [(step.source, step.dest) for step in entry.stored.state.history] == [
        (InputPhase.ACCEPTED, InputPhase.QUEUED),
        (InputPhase.QUEUED, InputPhase.STAGED),
        (InputPhase.STAGED, InputPhase.ABANDONED),
    ]


def test_a_seed_is_all_that_the_machine_knows() -> None:
    made, given = image()
    for event in (StagingRefused(sequence=2), InputStaged(run=RUN, current=frozenset({RUN}))):
        seed = made.move(given, event).stored.seed
        assert seed_of(subject_of(seed)) == seed
    assert subject_of(seed).run == RUN and subject_of(seed).lane is None


def damaged(change: Callable[[StoredInputState], StoredInputState]) -> InputRow:
    made, given = image()
    row = row_of(made.entries[given])
    return msgspec.structs.replace(row, body=encode(change(made.entries[given].stored)).decode())


DAMAGES: dict[str, Callable[[StoredInputState], StoredInputState]] = {
    "its row is of": lambda s: replace(s, runtime_id=LogicalRuntimeId("another")),
    "in its row|its body": lambda s: replace(s, seed=replace(s.seed, phase=InputPhase.STAGED)),
    "holds the key": lambda s: replace(s, state=replace(s.state, input=replace(s.state.input, idempotency_key="x"))),
    "a policy of version 2": lambda s: replace(s, state=replace(s.state, policy=replace(s.state.policy, version=2))),
    "not what a steer gets": lambda s: replace(
        s, state=replace(s.state, input=replace(s.state.input, kind=InputKind.STEER))
    ),
    "it waits in lane None": lambda s: replace(s, seed=replace(s.seed, recovery_lane=None)),
    "no place in the order": lambda s: replace(s, seed=replace(s.seed, admission_sequence=None)),
    "its place is 9": lambda s: replace(s, seed=replace(s.seed, admission_sequence=9)),
    "without what is to be done": lambda s: replace(
        s, state=replace(s.state, input=replace(s.state.input, payload={}))
    ),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_a_damaged_row(problem: str) -> None:
    with pytest.raises(DriverRecoveryCorruption, match=problem):
        entry_of(damaged(DAMAGES[problem]))


def test_a_row_that_is_open_and_ended() -> None:
    made, given = image()
    made.move(given, InputAbandoned(reason=AbandonReason.RESET))
    row = row_of(made.entries[given])
    with pytest.raises(DriverRecoveryCorruption, match="it is abandoned and open"):
        entry_of(msgspec.structs.replace(row, open=True))
    stored = decode(StoredInputState, row.body)
    for seed, problem in (
        (replace(stored.seed, terminal_outcome=None), "with the end None"),
        (
            replace(stored.seed, terminal_outcome=replace(stored.seed.terminal_outcome, phase=InputPhase.CONSUMED)),  # type: ignore[type-var]
            "ended as consumed",
        ),
    ):
        with pytest.raises(DriverRecoveryCorruption, match=problem):
            entry_of(msgspec.structs.replace(row, body=encode(replace(stored, seed=seed)).decode()))


def test_other_rows() -> None:
    record = RuntimeRecord(state=RuntimeState.RETIRED, fence=3)
    row = RuntimeRow(runtime=RUNTIME, phase="retired", body=encode(record).decode())
    assert record_of(row) == record
    made = BoundaryReceipt(
        runtime_id=RUNTIME,
        run_id=RUN,
        boundary=Boundary.RUN_START,
        contributing_input_ids=(InputId("i"),),
        sequence=1,
    )
    receipt = ReceiptRow(runtime=RUNTIME, run=RUN, sequence=1, body=encode(made).decode())
    assert receipt_of(receipt) == made
    for found in (
        lambda: record_of(msgspec.structs.replace(row, phase="idle")),
        lambda: record_of(msgspec.structs.replace(row, body="{}")),
        lambda: receipt_of(msgspec.structs.replace(receipt, sequence=2)),
        lambda: receipt_of(msgspec.structs.replace(receipt, body="{}")),
        lambda: outbox_entry_of(OutboxRow(runtime=RUNTIME, id="o", input="i")),
        lambda: entry_of(InputRow(runtime=RUNTIME, id="i", phase="queued")),
    ):
        with pytest.raises(DriverRecoveryCorruption):
            found()


def test_what_does_not_last_has_no_key_of_its_own() -> None:
    made, given = image()
    entry = made.entries[given]
    assert entry.lasting and entry.key == "task-1" and Entry(stored=entry.stored, holds=False).key is None
