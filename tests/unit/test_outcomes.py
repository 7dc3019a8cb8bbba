"""The codes of failures and their labels."""

from __future__ import annotations

from posemesh.outcomes import OUTCOMES, FailureCode, TaskOutcome


def test_every_code_has_one_label() -> None:
    assert set(OUTCOMES) == set(FailureCode)


def test_the_labels_are_the_four_that_dashboards_know() -> None:
    assert [outcome.value for outcome in TaskOutcome] == ["success", "failure", "canceled", "timeout"]


def test_only_a_timeout_counts_as_one_and_only_a_stop_as_canceled() -> None:
    by_label = {label: {code.value for code, of in OUTCOMES.items() if of is label} for label in TaskOutcome}
    assert by_label[TaskOutcome.TIMEOUT] == {"timeout"}
    assert by_label[TaskOutcome.CANCELED] == {"cancelled", "node_shutdown"}
    assert by_label[TaskOutcome.SUCCESS] == set()
