"""posemesh.errors: what each of them carries besides its message."""

from __future__ import annotations

import pytest

from posemesh import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_all_are_of_one_family(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.PosemeshError)


def test_a_configuration_error_has_a_line_a_problem() -> None:
    error = errors.ConfigError(["A: expected b", "C: expected d"])
    assert error.problems == ("A: expected b", "C: expected d")
    assert str(error).splitlines()[1:] == ["  A: expected b", "  C: expected d"]


def test_an_illegal_transition_names_its_cell_and_tells_its_story() -> None:
    error = errors.IllegalTransition("lease", "running", "Offer", ["pending -> running"])
    assert (error.machine, error.state, error.trigger, error.story) == (
        "lease",
        "running",
        "Offer",
        ("pending -> running",),
    )
    assert str(error) == "lease in state 'running' has no edge for Offer; before it: pending -> running"
    assert "before it" not in str(errors.IllegalTransition("lease", "running", "Offer"))


def test_a_refused_operation_names_what_has_to_hold() -> None:
    error = errors.OperationRefused("driver", "running", "RunCommitted", "the run is in progress")
    assert (error.state, error.trigger, error.guard) == ("running", "RunCommitted", "the run is in progress")
    expected = "driver in state 'running' takes RunCommitted only where this holds: the run is in progress"
    assert str(error) == expected


def test_an_undecodable_lease_may_name_its_task() -> None:
    assert errors.UndecodableLease("no id").task_id is None
    assert errors.UndecodableLease("bad meta", "t").task_id == "t"


def test_a_storage_error_may_have_a_status() -> None:
    assert errors.StorageError("refused", 403).status == 403
    assert errors.StorageError("no answer").status is None


@pytest.mark.parametrize("kind", [errors.RegistrationRefused, errors.SignInRefused])
def test_a_refused_start_is_a_start_error(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.NodeStartError)


@pytest.mark.parametrize(
    ("error", "kind", "named"),
    [
        (errors.NoRunner("/x/v1"), "no_runner", "'/x/v1'"),
        (errors.UnsupportedKind("cpu", "/x/v1"), "unsupported_kind", "'/x/v1'"),
        (errors.MissingField("image", "/x/v1"), "missing_field", "'/x/v1'"),
        (errors.InvalidSpec("/x/v1: bad selector"), "invalid_spec", "/x/v1"),
        (errors.RunnerIo("/x/v1: no such program"), "io", "/x/v1"),
        (errors.RunnerInternal("/x/v1: no lane is left"), "internal", "/x/v1"),
        (errors.DuplicateRunner("cpu"), "duplicate_runner", "'cpu'"),
        (errors.RunnerError("x"), "other", "x"),
    ],
)
def test_a_runner_error_has_a_label_of_few_values_and_a_text_for_people(
    error: errors.RunnerError, kind: str, named: str
) -> None:
    assert isinstance(error, errors.RunnerError)
    assert error.kind == kind
    assert named in str(error)
