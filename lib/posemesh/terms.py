"""The terms of a lease: how the service's later answers amend them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Final, TypeVar

from posemesh.types import HeartbeatAnswer, LeaseEnvelope, TaskSpec

__all__ = ("merge", "missing")

R = TypeVar("R", LeaseEnvelope, TaskSpec)
_TERMS: Final = tuple(field.name for field in fields(LeaseEnvelope) if field.name != "task")
_TASK: Final = tuple(field.name for field in fields(TaskSpec))
# What the answer to a heartbeat may say of the task besides (or instead of) the whole of it.
_TASK_FIELDS: Final = ("job_id", "attempts", "max_attempts", "deps_remaining")


def merge(lease: LeaseEnvelope, answer: HeartbeatAnswer) -> LeaseEnvelope:
    """The lease as the first heartbeat's answer amends it: what is present overwrites, null clears nothing.

    A lease stays a lease of its task: an answer about another task, job or capability changes the terms
    (tokens, expiry, domain, cancel) but nothing of the task.
    """
    terms = _present(answer, _TERMS)
    if answer.access_token is not None:
        terms["access_token_expires_at"] = answer.access_token_expires_at  # the old one's says nothing of the new one
    return _changed(lease, {**terms, "task": _merge_task(lease.task, answer)})


def missing(lease: LeaseEnvelope | None) -> str | None:
    """Why a task cannot be set up under these terms; None where it can."""
    if lease is None or not lease.domain_server_url:
        return "lease missing domain_server_url"
    return "lease missing domain_id" if lease.domain_id is None else None


def _merge_task(task: TaskSpec, answer: HeartbeatAnswer) -> TaskSpec:
    if not _same_task(task, answer):
        return task
    if answer.task is None:
        return _changed(task, _present(answer, _TASK_FIELDS))
    changes = _present(answer.task, _TASK)
    if not answer.task.inputs_cids:
        del changes["inputs_cids"]  # absent or empty: it says nothing about the inputs
    return replace(task, **changes)


def _same_task(task: TaskSpec, answer: HeartbeatAnswer) -> bool:
    said = [(answer.task_id, task.id), (answer.job_id, task.job_id)]
    if answer.task is not None:
        said += [(answer.task.id, task.id), (answer.task.job_id, task.job_id)]
        if answer.task.capability != task.capability:
            return False
    return all(theirs == ours for theirs, ours in said if theirs is not None and ours is not None)


def _present(record: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(record, name)) is not None}


def _changed(record: R, values: dict[str, Any]) -> R:
    """The record with ``values``, itself where it has them already: most answers say what is known."""
    changes = {name: value for name, value in values.items() if getattr(record, name) != value}
    return replace(record, **changes) if changes else record
