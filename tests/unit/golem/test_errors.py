"""What becomes of what a handler raises."""

from __future__ import annotations

import errno

import pytest

from posemesh.errors import PosemeshError
from posemesh.golem.errors import CommandExit, HandlerError, NotSupported, SettingsError, as_error, report


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (HandlerError("no image", 7), "no image", 7),
        (HandlerError("no image"), "no image", 1),
        (NotSupported(), "Not supported", 1),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
            "No such file or directory (os error 2)",
            2,
        ),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied (os error 13)", 13),
        (OSError("of no number"), "of no number", 1),
        (TimeoutError(), "TimeoutError", 1),
        (ValueError("bad"), "bad", 1),
    ],
)
def test_errors_have_a_message_and_a_code(error: Exception, message: str, code: int) -> None:
    known = as_error(error)
    assert (known.message, known.code) == (message, code)


def test_what_was_raised_on_purpose_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    report(HandlerError("no image", 7))
    report(FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "Start: ")
    printed = capsys.readouterr()
    assert printed.err == "Error: no image (code: 7)\nError: Start: No such file or directory (os error 2) (code: 2)\n"
    assert printed.out == ""


def test_what_was_not_comes_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        report(error)
    printed = capsys.readouterr()
    assert printed.err.startswith("Traceback") and printed.err.endswith("\nError: 'x' (code: 1)\n")
    assert printed.out == ""


def test_a_configuration_that_cannot_be_used_tells_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    error = SettingsError("Unable to read the configuration file: a.json", "missing field")
    report(error)
    assert isinstance(error, PosemeshError)
    assert capsys.readouterr().err == (
        "Error: Unable to read the configuration file: a.json\n\nCaused by:\n    missing field\n"
    )


@pytest.mark.parametrize("code", [1 << 31, -(1 << 31) - 1])
def test_an_exit_code_that_cannot_travel_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        CommandExit(code)
