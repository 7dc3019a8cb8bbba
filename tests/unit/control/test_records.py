"""What is known of runtimes and inputs: names that sort by time, and one strict JSON form."""

from __future__ import annotations

from random import Random
from typing import Any
from uuid import UUID

import pytest

from posemesh.control.records import (
    Boundary,
    BoundaryReceipt,
    EventCategory,
    Ids,
    InputId,
    LogicalRuntimeId,
    RunId,
    RuntimeEvent,
    RuntimeEventEnvelope,
    Signal,
    decode,
    digest_of,
    encode,
)
from posemesh.errors import WireError
from posemesh.testing import EPOCH, ManualClock
from posemesh.types import Artifact

RUNTIME = LogicalRuntimeId("rt:node:1")


def test_names_rise_whatever_the_clock_does() -> None:
    clock = ManualClock()
    ids = Ids(clock.wall, Random(1))
    made = [ids() for _ in range(1000)]
    clock.set_wall(EPOCH - 3600)
    made += [ids() for _ in range(1000)]
    clock.set_wall(EPOCH + 1)
    made.append(ids())
    assert made == sorted(set(made))
    found = UUID(made[-1])
    assert (found.version, found.variant) == (7, "specified in RFC 4122")
    assert found.int >> 80 == int((EPOCH + 1) * 1000), "the time can be read off"


def test_names_of_two_processes_differ() -> None:
    assert Ids(lambda: EPOCH, Random(1))() != Ids(lambda: EPOCH, Random(2))()
    assert Ids(lambda: EPOCH, Random(1))() == Ids(lambda: EPOCH, Random(1))()


def receipt(**changes: Any) -> BoundaryReceipt:
    given: dict[str, Any] = {
        "runtime_id": RUNTIME,
        "run_id": RunId("r"),
        "run_name": "runner-0-1",
        "boundary": Boundary.RUN_START,
        "contributing_input_ids": (InputId("i"),),
        "sequence": 1,
    }
    return BoundaryReceipt(**given | changes)


def test_a_record_comes_back_as_it_was() -> None:
    assert decode(BoundaryReceipt, encode(receipt())) == receipt()
    with pytest.raises(WireError, match="sequence"):
        decode(BoundaryReceipt, encode(receipt()).replace(b'"sequence":1', b'"sequence":"1"'))
    with pytest.raises(WireError, match="BoundaryReceipt cannot be read"):
        decode(BoundaryReceipt, b"\xff")
    with pytest.raises(WireError, match="no JSON form"):
        encode({"x": object()})


def test_the_digest_is_of_the_list_and_its_order() -> None:
    one, two = (Artifact(logical_path=name, name=name, data_type="binary", id=name) for name in "ab")
    assert digest_of((one, two)) != digest_of((two, one)) != digest_of((one,))
    assert digest_of(()) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


def test_an_event_has_a_code_and_an_envelope() -> None:
    event = RuntimeEvent(category=EventCategory.INPUT, name="staged")
    envelope = RuntimeEventEnvelope(id="e", timestamp=1.0, runtime_id=RUNTIME, event=event, causation="c")
    assert event.code == "input.staged" and decode(RuntimeEventEnvelope, encode(envelope)) == envelope


def test_signals_are_ordered() -> None:
    assert [signal.rank for signal in Signal] == [0, 1, 2, 3]
