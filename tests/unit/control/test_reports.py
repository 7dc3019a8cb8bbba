"""Reports: their JSON is what others read."""

from __future__ import annotations

from typing import Any

import pytest

from posemesh.control.reports import DestroyReport, RecoveryReport, RecycleReport, ResetReport, RetireReport
from posemesh.errors import WireError


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (
            RecoveryReport(
                inputs_recovered=5, inputs_abandoned=1, inputs_requeued=3, details=("requeued 3 staged inputs",)
            ),
            '{"inputs_recovered":5,"inputs_abandoned":1,"inputs_requeued":3,"details":["requeued 3 staged inputs"]}',
        ),
        (
            RecoveryReport(inputs_recovered=0, inputs_abandoned=0, inputs_requeued=0),
            '{"inputs_recovered":0,"inputs_abandoned":0,"inputs_requeued":0}',
        ),
        (
            RecoveryReport(inputs_recovered=0, inputs_abandoned=0, inputs_requeued=0, inputs_discarded=2),
            '{"inputs_recovered":0,"inputs_abandoned":0,"inputs_requeued":0,"inputs_discarded":2}',
        ),
        (RetireReport(inputs_abandoned=1), '{"inputs_abandoned":1,"inputs_pending_drain":0}'),
        (
            RetireReport(inputs_abandoned=0, inputs_pending_drain=4),
            '{"inputs_abandoned":0,"inputs_pending_drain":4}',
        ),
        (ResetReport(inputs_abandoned=2), '{"inputs_abandoned":2}'),
        (RecycleReport(inputs_transferred=3), '{"inputs_transferred":3}'),
        (DestroyReport(inputs_abandoned=4), '{"inputs_abandoned":4}'),
    ],
)
def test_there_and_back(report: Any, text: str) -> None:
    assert report.to_json() == text
    assert type(report).from_json(text) == report


def test_what_is_absent_and_what_is_unknown() -> None:
    assert RetireReport.from_json('{"inputs_abandoned":1}') == RetireReport(inputs_abandoned=1, inputs_pending_drain=0)
    assert ResetReport.from_json('{"inputs_abandoned":1,"later":true}') == ResetReport(inputs_abandoned=1)


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"inputs_abandoned":"1"}', '{"inputs_abandoned":-1}', b"\xff"])
def test_what_is_no_report(text: str | bytes) -> None:
    with pytest.raises(WireError, match="ResetReport cannot be read"):
        ResetReport.from_json(text)
