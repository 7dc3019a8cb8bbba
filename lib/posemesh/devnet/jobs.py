"""Jobs, their tasks and the leases on them: the bookkeeping of the task service, without time, network or disk.

A job is a list of tasks in named stages; an edge makes every task of one stage wait for all tasks of another.
A task is queued, leased (handed out), running (first heartbeat heard), and ends completed, failed or canceled.
A lease stands until it is ended or swept: a report under one that ran out but was not swept yet still counts,
a heartbeat under it does not.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from posemesh.devnet.records import HELD, TASK_STATES, Edge, Job, JobRequest, Lease, Receipt, State, Task

__all__ = ("Busy", "InvalidJob", "JobBook", "JobEnded", "LeaseGone", "NoSuchTask")

_EVENTS_MAX = 1000


class InvalidJob(ValueError):
    """Edges that name no stage or wait for each other."""


class JobEnded(Exception):
    """Asked to cancel what is completed or failed."""


class NoSuchTask(LookupError):
    """No task, or no job, has that id."""


class Busy(Exception):
    """The node holds as many leases as it may."""


class LeaseGone(Exception):
    """The node has no lease on the task. ``lease`` is the one it had, if any."""

    def __init__(self, reason: str, lease: Lease | None) -> None:
        self.lease = lease
        super().__init__(reason)


class JobBook:
    """All jobs of one network. ``save`` is called with every record that was added or changed."""

    def __init__(
        self,
        *,
        lease_ttl: float,
        new_id: Callable[[], str],
        save: Callable[[Job | Task | Receipt], None] = lambda record: None,
    ) -> None:
        self.jobs: dict[str, Job] = {}
        self.tasks: dict[str, Task] = {}
        self.receipts: dict[str, list[Receipt]] = defaultdict(list)
        self.leases: dict[tuple[str, str], Lease] = {}
        self.lease_ttl = lease_ttl
        self._new_id = new_id
        self._save = save
        self._of_job: dict[str, list[Task]] = defaultdict(list)
        self._counts: dict[str, Counter[State]] = defaultdict(Counter)
        self._ready: dict[str, list[tuple[int, int, int, str]]] = defaultdict(list)
        self._held: dict[str, set[str]] = defaultdict(set)

    def restore(self, jobs: Iterable[Job], tasks: Iterable[Task], receipts: Iterable[Receipt]) -> None:
        """Take over what an earlier book saved. Leases go on where their time has not run out."""
        self.jobs.update((job.id, job) for job in jobs)
        for task in tasks:
            self._adopt(task)
            if task.state in HELD:
                assert task.node_id is not None and task.lease_expires_at is not None
                self._held[task.node_id].add(task.id)
                self.leases[task.id, task.node_id] = Lease(
                    task_id=task.id, node_id=task.node_id, expires_at=task.lease_expires_at
                )
        for receipt in receipts:
            self.receipts[receipt.job_id].append(receipt)

    # What an app asks.

    def submit(self, request: JobRequest, now: float) -> Job:
        """Queue a job. Raises InvalidJob."""
        stages = Counter(spec.stage or spec.label for spec in request.tasks)
        waits = _waits(request.edges, stages)
        job = Job(id=self._new_id(), request=request, created_at=now, updated_at=now)
        self.jobs[job.id] = job
        self._save(job)
        for spec in request.tasks:
            task = Task(
                id=self._new_id(),
                job_id=job.id,
                number=len(self.tasks),
                spec=spec,
                created_at=now,
                updated_at=now,
                deps_remaining=sum(stages[source] for source in waits[spec.stage or spec.label]),
            )
            self._adopt(task)
            self._save(task)
        return job

    def cancel(self, job_id: str, now: float) -> Job:
        """Queued tasks end at once, held ones with their node's next heartbeat. Raises NoSuchTask, JobEnded."""
        job = self.job(job_id)
        if job.state in (State.COMPLETED, State.FAILED):
            raise JobEnded(f"job is {job.state}")
        if job.state is not State.CANCELED:
            self._move_job(job, State.CANCELED, now)
            self._cancel_queued(job, now)
            for task in self.tasks_of(job_id):
                if task.state in HELD:
                    task.cancel_requested_at = now
                    self._save(task)
        return job

    def job(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise NoSuchTask(f"no job {job_id}")
        return self.jobs[job_id]

    def tasks_of(self, job_id: str) -> list[Task]:
        return self._of_job[job_id]

    def summary(self, job_id: str) -> dict[str, int]:
        """How many tasks of the job are in each state."""
        return {state.value: self._counts[job_id][state] for state in TASK_STATES}

    # What a node asks.

    def lease(self, node_id: str, capabilities: Iterable[str], *, limit: int | None, now: float) -> Task | None:
        """Hand out the most urgent task the node can do, oldest first. Raises Busy above ``limit`` leases."""
        if limit is not None and len(self._held[node_id]) >= limit:
            raise Busy("node already holds an active lease")
        task = self._take(capabilities)
        if task is not None:
            task.attempts += 1
            task.node_id = node_id
            task.lease_expires_at = now + self.lease_ttl
            task.last_heartbeat_at = None
            self._held[node_id].add(task.id)
            self.leases[task.id, node_id] = Lease(task_id=task.id, node_id=node_id, expires_at=task.lease_expires_at)
            self._move(task, State.LEASED, now)
        return task

    def heartbeat(self, task_id: str, node_id: str, progress: Any, events: list[Any], now: float) -> Task:
        """Renew a lease; of a task to be canceled this is its end. Raises NoSuchTask, LeaseGone."""
        task, lease = self._standing(task_id, node_id)
        if now >= lease.expires_at:
            raise LeaseGone("lease expired", lease)
        task.last_heartbeat_at = now
        task.progress = progress
        task.events = (task.events + events)[-_EVENTS_MAX:]
        if task.cancel_requested_at is not None:
            self._end(task, "canceled", State.CANCELED, now)
            return task
        lease.expires_at = task.lease_expires_at = now + self.lease_ttl
        self._move(task, State.RUNNING, now)
        return task

    def complete(self, task_id: str, node_id: str, outputs: list[str], meta: Any, now: float) -> Receipt:
        """Take a result in. Raises NoSuchTask, and LeaseGone also for a task that was canceled meanwhile."""
        task, lease = self._standing(task_id, node_id)
        if task.cancel_requested_at is not None:
            self._end(task, "canceled", State.CANCELED, now)
            raise LeaseGone("task was canceled", lease)
        receipt = Receipt(
            id=self._new_id(),
            job_id=task.job_id,
            task_id=task_id,
            node_id=node_id,
            outputs=outputs,
            meta=meta,
            created_at=now,
        )
        self.receipts[task.job_id].append(receipt)
        self._save(receipt)
        self._end(task, "completed", State.COMPLETED, now)
        return receipt

    def fail(self, task_id: str, node_id: str, reason: str, details: Any, now: float) -> Task:
        """End an attempt; the task is queued again while it has some left. Raises NoSuchTask, LeaseGone."""
        task, _ = self._standing(task_id, node_id)
        self._end_attempt(task, "failed", {"reason": reason, "details": details}, now)
        return task

    def sweep(self, now: float) -> list[Task]:
        """Take back every lease that ran out."""
        held = [self.tasks[task_id] for task_ids in self._held.values() for task_id in task_ids]
        late = [task for task in held if task.lease_expires_at is not None and task.lease_expires_at <= now]
        for task in late:
            self._end_attempt(task, "expired", {"reason": "lease expired", "details": None}, now)
        return late

    def _standing(self, task_id: str, node_id: str) -> tuple[Task, Lease]:
        task = self.tasks.get(task_id)
        if task is None:
            raise NoSuchTask(f"no task {task_id}")
        lease = self.leases.get((task_id, node_id))
        if lease is None:
            raise LeaseGone("task is not leased to this node", None)
        if lease.ended:
            raise LeaseGone(f"lease ended: {lease.ended}", lease)
        return task, lease

    def _take(self, capabilities: Iterable[str]) -> Task | None:
        queues = [queue for name in set(capabilities) if (queue := self._ready.get(name))]
        for queue in queues:
            # A task canceled while it waited leaves its entry behind.
            while queue and self.tasks[queue[0][-1]].state is not State.QUEUED:
                heapq.heappop(queue)
        best = min((queue for queue in queues if queue), default=None)
        return None if best is None else self.tasks[heapq.heappop(best)[-1]]

    def _adopt(self, task: Task) -> None:
        self.tasks[task.id] = task
        self._of_job[task.job_id].append(task)
        self._counts[task.job_id][task.state] += 1
        self._offer(task)

    def _offer(self, task: Task) -> None:
        if task.state is State.QUEUED and task.deps_remaining == 0:
            urgency = (-self.jobs[task.job_id].request.priority, -task.spec.priority, task.number, task.id)
            heapq.heappush(self._ready[task.spec.capability], urgency)

    def _end_attempt(self, task: Task, how: str, failure: dict[str, Any], now: float) -> None:
        task.failure = failure
        if task.cancel_requested_at is not None:
            self._end(task, how, State.CANCELED, now)
        elif task.attempts >= task.spec.max_attempts or self.jobs[task.job_id].state is State.FAILED:
            self._end(task, how, State.FAILED, now)
        else:
            self._end(task, how, State.QUEUED, now)
            self._offer(task)

    def _end(self, task: Task, how: str, state: State, now: float) -> None:
        assert task.node_id is not None
        self._held[task.node_id].discard(task.id)
        lease = self.leases[task.id, task.node_id]
        lease.ended, lease.ended_at = how, now
        task.lease_expires_at = None
        if state is State.QUEUED:
            task.node_id = None
        self._move(task, state, now)

    def _move(self, task: Task, state: State, now: float) -> None:
        counts = self._counts[task.job_id]
        counts[task.state] -= 1
        counts[state] += 1
        task.state, task.updated_at = state, now
        self._save(task)
        job = self.jobs[task.job_id]
        if state is State.COMPLETED:
            self._release(job, task.stage, now)
        if job.state in (State.PENDING, State.RUNNING):
            self._settle(job, now)

    def _release(self, job: Job, stage: str, now: float) -> None:
        ahead = {edge.target for edge in job.request.edges if edge.source == stage}
        for task in self.tasks_of(job.id) if ahead else ():
            if task.stage in ahead:
                task.deps_remaining -= 1
                self._save(task)
                self._offer(task)

    def _settle(self, job: Job, now: float) -> None:
        counts = self._counts[job.id]
        if counts[State.FAILED]:
            self._move_job(job, State.FAILED, now)
            # What waits for a failed task can never run, and the job's outcome is decided.
            self._cancel_queued(job, now)
        elif counts[State.COMPLETED] == len(self.tasks_of(job.id)):
            self._move_job(job, State.COMPLETED, now)
        elif job.state is State.PENDING:
            self._move_job(job, State.RUNNING, now)

    def _cancel_queued(self, job: Job, now: float) -> None:
        for task in self.tasks_of(job.id):
            if task.state is State.QUEUED:
                self._move(task, State.CANCELED, now)

    def _move_job(self, job: Job, state: State, now: float) -> None:
        job.state, job.updated_at = state, now
        self._save(job)


def _waits(edges: Iterable[Edge], stages: Iterable[str]) -> dict[str, set[str]]:
    """Of each stage, the stages it waits for. Raises InvalidJob for an unknown one and for a circle."""
    waits: dict[str, set[str]] = {stage: set() for stage in stages}
    for edge in edges:
        for name in (edge.source, edge.target):
            if name not in waits:
                raise InvalidJob(f"edge names the stage {name!r}, which no task has")
        waits[edge.target].add(edge.source)
    left = {stage: set(sources) for stage, sources in waits.items()}
    while free := [stage for stage, sources in left.items() if not sources]:
        for stage in free:
            del left[stage]
        for sources in left.values():
            sources.difference_update(free)
    if left:
        raise InvalidJob(f"edges form a circle through {', '.join(sorted(left))}")
    return waits
