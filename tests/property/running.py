"""How long the rule machines run."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

__all__ = ("RARELY", "SELDOM", "at_length", "briefly")

# Integers would not do: Hypothesis loves their bounds.
SELDOM = st.sampled_from([False] * 8 + [True])
RARELY = st.sampled_from([False] * 40 + [True])


def briefly(machine: type[RuleBasedStateMachine], examples: int, steps: int = 50) -> None:
    """The same examples at every run."""
    _run(machine, settings(max_examples=examples, stateful_step_count=steps, derandomize=True, database=None))


def at_length(machine: type[RuleBasedStateMachine], examples: int, steps: int = 80) -> None:
    """Other examples at every run; a failure prints the program that shows it."""
    _run(machine, settings(max_examples=examples, stateful_step_count=steps, print_blob=True))


def _run(machine: type[RuleBasedStateMachine], how: settings) -> None:
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(machine, settings=settings(how, deadline=None, suppress_health_check=slow))  # type: ignore[no-untyped-call]
