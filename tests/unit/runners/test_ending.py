"""How user code ended, in words that can be reported."""

from __future__ import annotations

import asyncio
import errno

import pytest

from posemesh.errors import BadInput, DiskFull, InvalidCid, StorageError, UploadFailed
from posemesh.outcomes import FailureCode
from posemesh.runners.ending import Ending, ending_of
from posemesh.secret import Secret
from posemesh.telemetry import register_secret


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), "runner_error"),
        (StorageError("x"), "runner_error"),
        (BadInput("x"), "bad_input"),
        (InvalidCid("x"), "bad_input"),
        (UploadFailed("x"), "upload_failed"),
        (DiskFull("x"), "disk_full"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (MemoryError(), "out_of_memory"),
        (SystemExit(3), "runner_error"),
        (KeyboardInterrupt(), "runner_error"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_each_error_has_a_code(error: BaseException, code: str) -> None:
    assert ending_of(error).code == FailureCode(code)


def test_returning_is_no_failure() -> None:
    assert ending_of(None) == Ending(code=None, message="", details={})


def test_the_chain_goes_from_the_outermost_error_to_its_causes() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        ending = ending_of(error, ["last words"])
    assert ending.message == "ValueError: outer"
    assert ending.details == {"chain": ["ValueError: outer", "KeyError: 'inner'"], "output": ["last words"]}


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert ending_of(first).details["chain"] == ["ValueError: a", "ValueError: b"]


def test_a_secret_is_not_told_nor_a_part_of_it() -> None:
    register_secret(Secret("hunter2hunter2"))
    assert ending_of(ValueError("with hunter2hunter2")).message == "ValueError: with ***"
    assert "hunter2" not in ending_of(ValueError("x" * 3_992 + "hunter2hunter2")).message


def test_a_long_text_is_cut_and_one_that_is_no_text_is_escaped() -> None:
    assert len(ending_of(ValueError("x" * 10_000)).message) < 4_100
    assert ending_of(ValueError("\udcff")).message == "ValueError: \\udcff"
    assert ending_of(ValueError("\0 \x1b[31m\nred")).message == "ValueError: \\x00 \\x1b[31m\nred"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_whose_own_text_raises_is_told_all_the_same() -> None:
    """It was not, and its task went on for ever: nobody was told that it had ended."""
    assert ending_of(Mute()).message == "Mute: (its text raised RuntimeError)"


def test_what_a_group_holds_is_told_with_it() -> None:
    """`TaskGroup` raises groups, whose own text says only how many there are."""
    cause, inner = KeyError("k"), ValueError("b")
    inner.__cause__ = cause
    ending = ending_of(ExceptionGroup("two", [TypeError("a"), ExceptionGroup("one", [inner])]))
    assert ending.details["chain"] == [
        "ExceptionGroup: two (2 sub-exceptions)",
        "TypeError: a",
        "ExceptionGroup: one (1 sub-exception)",
        "ValueError: b",
        "KeyError: 'k'",
    ]
    assert len(ending_of(ExceptionGroup("many", [ValueError(str(at)) for at in range(100)])).details["chain"]) == 8  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([BadInput("x"), InvalidCid("y")], "bad_input"),
        ([ExceptionGroup("inner", [MemoryError()])], "out_of_memory"),
        ([BadInput("x"), UploadFailed("y")], "runner_error"),
    ],
)
def test_a_group_has_the_code_that_its_errors_agree_on(errors: list[Exception], code: str) -> None:
    assert ending_of(ExceptionGroup("some", errors)).code == FailureCode(code)
