from __future__ import annotations

import itertools
import uuid

import msgspec
import pytest

from posemesh.devnet.jobs import Busy, InvalidJob, JobBook, JobEnded, LeaseGone, NoSuchTask
from posemesh.devnet.records import Job, JobRequest, Receipt, State, Task

DOMAIN = str(uuid.UUID(int=1))
TTL = 30.0


def book_of(*tasks, edges=(), priority=0):
    """A book with one job; each task is (stage, fields)."""
    numbers = itertools.count(1)
    book = JobBook(lease_ttl=TTL, new_id=lambda: str(uuid.UUID(int=next(numbers))))
    return book, book.submit(request(*tasks, edges=edges, priority=priority), 0.0)


def request(*tasks, edges=(), priority=0):
    body = {
        "label": "job",
        "domain_id": DOMAIN,
        "priority": priority,
        "tasks": [{"label": "t", "stage": stage, "capability": "/cap/v1"} | fields for stage, fields in tasks],
        "edges": [{"from": source, "to": target} for source, target in edges],
    }
    return msgspec.convert(body, JobRequest)


def lease(book, node="n", now=0.0, limit=None, capabilities=("/cap/v1",)):
    return book.lease(node, capabilities, limit=limit, now=now)


def test_a_task_runs_through_its_states():
    book, job = book_of(("a", {}))
    assert job.state is State.PENDING
    task = lease(book)
    assert (task.state, task.attempts, task.lease_expires_at, job.state) == (State.LEASED, 1, TTL, State.RUNNING)
    book.heartbeat(task.id, "n", {"pct": 1}, ["began"], 10.0)
    book.heartbeat(task.id, "n", {"pct": 2}, ["went on"], 20.0)
    assert (task.state, task.lease_expires_at) == (State.RUNNING, 20.0 + TTL)
    assert (task.progress, task.events) == ({"pct": 2}, ["began", "went on"])
    receipt = book.complete(task.id, "n", ["x"], {"m": 1}, 21.0)
    assert (task.state, job.state, task.lease_expires_at) == (State.COMPLETED, State.COMPLETED, None)
    assert book.receipts[job.id] == [receipt]
    assert book.summary(job.id)["completed"] == 1


def test_nothing_to_do_is_none():
    book, _ = book_of(("a", {}))
    assert lease(book, capabilities=["/other/v1"]) is None
    assert lease(book, capabilities=[]) is None
    assert lease(book) is not None
    assert lease(book) is None


def test_urgent_first_then_oldest():
    book, _ = book_of(("a", {"label": "1"}), ("a", {"label": "2", "priority": 5}), ("a", {"label": "3"}))
    book.submit(request(("a", {"label": "4", "priority": -1}), priority=1), 0.0)
    assert [lease(book).spec.label for _ in range(4)] == ["4", "2", "1", "3"]


def test_a_node_holds_no_more_than_its_limit():
    book, _ = book_of(("a", {}), ("a", {}), ("a", {}))
    first = lease(book, limit=2)
    lease(book, limit=2)
    with pytest.raises(Busy):
        lease(book, limit=2)
    assert lease(book, node="other", limit=1) is not None
    book.complete(first.id, "n", [], {}, 1.0)
    assert lease(book, limit=2) is None


def test_a_failed_task_is_tried_again_until_its_attempts_are_used_up():
    book, job = book_of(("a", {"max_attempts": 2}))
    task = lease(book)
    book.fail(task.id, "n", "first", None, 1.0)
    assert (task.state, job.state, task.node_id) == (State.QUEUED, State.RUNNING, None)
    assert lease(book, node="m") is task
    assert task.attempts == 2
    book.fail(task.id, "m", "second", {"x": 1}, 2.0)
    assert (task.state, job.state) == (State.FAILED, State.FAILED)
    assert task.failure == {"reason": "second", "details": {"x": 1}}
    assert lease(book) is None


def test_a_lease_that_ran_out_takes_no_heartbeat_but_an_outcome_until_it_is_swept():
    book, _ = book_of(("a", {}), ("a", {}))
    first, second = lease(book), lease(book)
    with pytest.raises(LeaseGone, match="expired"):
        book.heartbeat(first.id, "n", {}, [], TTL)
    book.complete(first.id, "n", [], {}, TTL + 1)
    assert book.sweep(TTL - 0.001) == []
    assert book.sweep(TTL) == [second]
    assert second.state is State.QUEUED
    with pytest.raises(LeaseGone):
        book.complete(second.id, "n", [], {}, TTL + 2)
    assert lease(book, node="m", now=TTL + 3) is second


def test_sweeping_uses_attempts_up_too():
    book, job = book_of(("a", {"max_attempts": 1}))
    task = lease(book)
    book.sweep(TTL)
    assert (task.state, job.state, task.failure["reason"]) == (State.FAILED, State.FAILED, "lease expired")


@pytest.mark.parametrize(
    "report, arguments", [("heartbeat", ({}, [])), ("complete", (["x"], {})), ("fail", ("why", None))]
)
def test_reports_without_a_lease_are_refused(report, arguments):
    book, _ = book_of(("a", {}))
    task = lease(book)

    def send(task_id, node):
        getattr(book, report)(task_id, node, *arguments, 1.0)

    with pytest.raises(NoSuchTask):
        send("nothing", "n")
    with pytest.raises(LeaseGone):
        send(task.id, "m")
    book.complete(task.id, "n", [], {}, 1.0)
    with pytest.raises(LeaseGone, match="completed") as gone:
        send(task.id, "n")
    assert gone.value.lease.ended == "completed"
    assert task.state is State.COMPLETED


def test_a_stage_waits_for_all_tasks_of_the_stages_before_it():
    book, job = book_of(("a", {}), ("a", {}), ("b", {}), ("c", {}), edges=[("a", "c"), ("b", "c"), ("a", "c")])
    last = book.tasks_of(job.id)[-1]
    assert last.deps_remaining == 3
    early = [lease(book) for _ in range(3)]
    assert lease(book) is None
    for left, task in zip((2, 1, 0), early, strict=True):
        book.complete(task.id, "n", [], {}, 1.0)
        assert last.deps_remaining == left
    assert lease(book) is last


def test_when_a_task_fails_the_waiting_ones_are_canceled_and_the_running_ones_go_on():
    book, job = book_of(("a", {"max_attempts": 1}), ("a", {}), ("b", {}), edges=[("a", "b")])
    first, second = lease(book), lease(book)
    book.fail(first.id, "n", "broken", None, 1.0)
    assert (job.state, book.tasks_of(job.id)[-1].state) == (State.FAILED, State.CANCELED)
    book.heartbeat(second.id, "n", {}, [], 2.0)
    book.fail(second.id, "n", "broken as well", None, 3.0)
    assert second.state is State.FAILED, "not tried again: the job is decided"
    assert lease(book) is None


@pytest.mark.parametrize("edges", [[("a", "nowhere")], [("nowhere", "a")], [("a", "a")], [("a", "b"), ("b", "a")]])
def test_edges_that_cannot_be_followed_are_refused(edges):
    with pytest.raises(InvalidJob):
        book_of(("a", {}), ("b", {}), edges=edges)


def test_cancel_ends_queued_tasks_at_once_and_held_ones_at_their_heartbeat():
    book, job = book_of(("a", {}), ("a", {}), ("a", {}))
    held, reported = lease(book), lease(book)
    book.cancel(job.id, 1.0)
    assert book.cancel(job.id, 1.5).state is State.CANCELED, "asking again changes nothing"
    assert [task.state for task in book.tasks_of(job.id)] == [State.LEASED, State.LEASED, State.CANCELED]
    assert book.heartbeat(held.id, "n", {}, [], 2.0).state is State.CANCELED
    with pytest.raises(LeaseGone, match="canceled"):
        book.complete(reported.id, "n", [], {}, 2.0)
    assert book.summary(job.id)["canceled"] == 3
    assert lease(book) is None
    assert book.receipts[job.id] == []


def test_a_canceled_task_whose_node_is_silent_or_fails_ends_canceled():
    book, job = book_of(("a", {}), ("a", {}))
    silent, failing = lease(book), lease(book)
    book.cancel(job.id, 1.0)
    book.fail(failing.id, "n", "stopped", None, 2.0)
    book.sweep(TTL)
    assert (silent.state, failing.state) == (State.CANCELED, State.CANCELED)


def test_what_is_over_cannot_be_canceled():
    book, job = book_of(("a", {}))
    book.complete(lease(book).id, "n", [], {}, 1.0)
    with pytest.raises(JobEnded):
        book.cancel(job.id, 2.0)
    with pytest.raises(NoSuchTask):
        book.cancel("nothing", 2.0)


def test_events_kept_are_bounded():
    book, _ = book_of(("a", {}))
    task = lease(book)
    for start in range(0, 1200, 100):
        book.heartbeat(task.id, "n", {}, list(range(start, start + 100)), 1.0)
    assert (len(task.events), task.events[-1]) == (1000, 1199)


def test_a_book_goes_on_from_what_another_saved():
    saved = {}
    book = JobBook(
        lease_ttl=TTL, new_id=lambda: str(uuid.uuid4()), save=lambda record: saved.update({record.id: copy(record)})
    )
    job = book.submit(request(("a", {}), ("a", {}), ("b", {}), edges=[("a", "b")]), 0.0)
    first, second = lease(book), lease(book)
    book.complete(first.id, "n", ["x"], {}, 1.0)
    again = JobBook(lease_ttl=TTL, new_id=book._new_id)
    again.restore(*([r for r in saved.values() if isinstance(r, kind)] for kind in (Job, Task, Receipt)))
    assert again.summary(job.id) == book.summary(job.id)
    assert again.receipts[job.id][0].outputs == ["x"]
    with pytest.raises(Busy):
        lease(again, limit=1)
    again.complete(second.id, "n", [], {}, 2.0)
    assert lease(again, now=3.0).stage == "b"


def copy(record):
    return msgspec.json.decode(msgspec.json.encode(record), type=type(record))
