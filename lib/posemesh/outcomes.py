"""What a task ends with: the codes of failures, and the label each counts under in metrics."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = ("OUTCOMES", "FailureCode", "TaskOutcome")


class FailureCode(StrEnum):
    """Why a task failed: the word before the colon of a failed task's ``reason``, and ``details.code``."""

    NO_RUNNER = "no_runner"
    SETUP_FAILED = "setup_failed"
    RUNNER_ERROR = "runner_error"
    TIMEOUT = "timeout"
    KILLED = "killed"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED = "cancelled"
    BAD_INPUT = "bad_input"
    UPLOAD_FAILED = "upload_failed"
    DISK_FULL = "disk_full"
    NODE_SHUTDOWN = "node_shutdown"
    REPORT_REJECTED = "report_rejected"


class TaskOutcome(StrEnum):
    """The metric label of a run that ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    CANCELED = "canceled"
    TIMEOUT = "timeout"


OUTCOMES: Final = MappingProxyType(
    {
        FailureCode.NO_RUNNER: TaskOutcome.FAILURE,
        FailureCode.SETUP_FAILED: TaskOutcome.FAILURE,
        FailureCode.RUNNER_ERROR: TaskOutcome.FAILURE,
        FailureCode.TIMEOUT: TaskOutcome.TIMEOUT,
        FailureCode.KILLED: TaskOutcome.FAILURE,
        FailureCode.OUT_OF_MEMORY: TaskOutcome.FAILURE,
        FailureCode.CANCELLED: TaskOutcome.CANCELED,
        FailureCode.BAD_INPUT: TaskOutcome.FAILURE,
        FailureCode.UPLOAD_FAILED: TaskOutcome.FAILURE,
        FailureCode.DISK_FULL: TaskOutcome.FAILURE,
        FailureCode.NODE_SHUTDOWN: TaskOutcome.CANCELED,
        FailureCode.REPORT_REJECTED: TaskOutcome.FAILURE,
    }
)
"""The label of each code. A lost lease reports nothing; its run counts as canceled."""
