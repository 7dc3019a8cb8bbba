"""What runners are built with."""

from __future__ import annotations

import dataclasses

import pytest

from posemesh.runners.context import BuildContext, merge_env
from posemesh.runners.metrics import noop_metrics


def test_the_runner_beats_the_context_and_that_beats_the_task() -> None:
    merged = merge_env(
        task={"A": "task", "B": "task", "C": "task"}, context=[("B", "context"), ("C", "context")], runner={"C": "mine"}
    )
    assert merged == {"A": "task", "B": "context", "C": "mine"}


def test_the_last_of_two_with_one_name_counts_and_names_are_sorted() -> None:
    merged = merge_env(runner=[("Z", "1"), ("A", "1"), ("Z", "2")], task=[("M", "1")])
    assert list(merged.items()) == [("A", "1"), ("M", "1"), ("Z", "2")]


def test_nothing_of_it_shows_a_value() -> None:
    context = BuildContext(env=(("TOKEN", "very-secret"), ("OTHER", "also-secret")))
    for text in (repr(context), str(context), f"{context}"):
        assert "2 environment variables" in text
        assert "secret" not in text


def test_it_cannot_be_changed_and_counts_nothing_by_default() -> None:
    context = BuildContext()
    assert (context.env, context.slot, context.metrics) == ((), "0", noop_metrics())
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.slot = "1"  # type: ignore[misc]
