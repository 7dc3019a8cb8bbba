"""How user code ended, in words that can be reported."""

from __future__ import annotations

import asyncio
import errno

import pytest

from posemesh.errors import BadInput, DiskFull, InvalidCid, StorageError, UploadFailed
from posemesh.outcomes import FailureCode
from posemesh.runners.ending import Ending, ending_of


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


def test_a_long_text_is_cut_and_one_that_is_no_text_is_escaped() -> None:
    assert len(ending_of(ValueError("x" * 10_000)).message) < 4_100
    assert ending_of(ValueError("\udcff")).message == "ValueError: \\udcff"
