"""The task service: leases tasks to nodes, keeps them alive by heartbeats, takes outcomes in, and runs the job API."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from posemesh.devnet.context import GRACE_SECS, Context, Refused, Token, read_json, stamp
from posemesh.devnet.dds import Dds
from posemesh.devnet.jobs import Busy, InvalidJob, JobBook, JobEnded, LeaseGone, NoSuchTask
from posemesh.devnet.records import Body, Job, JobRequest, Lease, Receipt, State, Task

__all__ = ("Dms",)

_PAGE_MAX = 100


class HeartbeatBody(Body, kw_only=True, frozen=True):
    progress: Any
    events: list[Any]


class CompleteBody(Body, kw_only=True, frozen=True):
    output_cids: list[str]
    meta: dict[str, Any]


class FailBody(Body, kw_only=True, frozen=True):
    reason: str
    details: Any


class Dms:
    """The service over HTTP; the rules are in :class:`~posemesh.devnet.jobs.JobBook`."""

    def __init__(self, context: Context, dds: Dds, organization_id: str) -> None:
        self.context = context
        self.dds = dds
        self.organization_id = organization_id
        self.book = JobBook(lease_ttl=context.config.lease_ttl, new_id=context.new_id, save=self._save)
        store = context.store
        self.book.restore(store.load("job", Job), store.load("task", Task), store.load("receipt", Receipt))
        #: The domain token each held task has now.
        self._domain_tokens: dict[str, Token] = {}
        self._sweeper: asyncio.Task[None] | None = None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/tasks", self._lease),
            web.post("/v1/tasks/{task}/heartbeat", self._heartbeat),
            web.post("/v1/tasks/{task}/complete", self._complete),
            web.post("/v1/tasks/{task}/fail", self._fail),
            web.post("/v1/jobs", self._submit),
            web.get("/v1/jobs", self._list_jobs),
            web.get("/v1/jobs/{job}", self._get_job),
            web.post("/v1/jobs/{job}/cancel", self._cancel),
        ]

    def start(self) -> None:
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_forever())

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    def _save(self, record: Job | Task | Receipt) -> None:
        self.context.store.put(type(record).__name__.lower(), record.id, record)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self.context.config.sweep_interval)
            self.book.sweep(self.context.now())

    # What a node asks.

    async def _lease(self, request: web.Request) -> web.Response:
        token = self.context.authorize(request, "node")
        node = self.dds.nodes[token.subject]
        wanted = request.query.get("capability")
        capabilities = [name for name in node.capabilities if wanted in (None, name)]
        limit = {"max_concurrency": node.max_concurrency or 1, "one": 1, "unlimited": None}
        try:
            task = self.book.lease(
                node.id, capabilities, limit=limit[self.context.config.active_leases], now=self.context.now()
            )
        except Busy as exc:
            raise Refused(409, str(exc)) from None
        if task is None:
            return web.Response(status=204)
        self._domain_tokens[task.id] = self._new_domain_token(task)
        return web.json_response(self._terms(task) | {"task": self._task_fields(task)})

    async def _heartbeat(self, request: web.Request) -> web.Response:
        token = self.context.authorize(request, "node")
        body = await read_json(request, HeartbeatBody)
        task_id = request.match_info["task"]
        try:
            task = self.book.heartbeat(task_id, token.subject, body.progress, body.events, self.context.now())
        except (NoSuchTask, LeaseGone) as exc:
            raise self._gone(request, exc) from None
        self._renew_domain_token(task)
        moved = {
            "task_id": task.id,
            "job_id": task.job_id,
            "attempts": task.attempts,
            "max_attempts": task.spec.max_attempts,
            "deps_remaining": task.deps_remaining,
        }
        return web.json_response(self._terms(task) | moved)

    async def _complete(self, request: web.Request) -> web.Response:
        token = self.context.authorize(request, "node")
        body = await read_json(request, CompleteBody)
        task_id = request.match_info["task"]
        try:
            self.book.complete(task_id, token.subject, body.output_cids, body.meta, self.context.now())
        except (NoSuchTask, LeaseGone) as exc:
            raise self._gone(request, exc) from None
        return web.json_response({"status": State.COMPLETED})

    async def _fail(self, request: web.Request) -> web.Response:
        token = self.context.authorize(request, "node")
        body = await read_json(request, FailBody)
        task_id = request.match_info["task"]
        try:
            task = self.book.fail(task_id, token.subject, body.reason, body.details, self.context.now())
        except (NoSuchTask, LeaseGone) as exc:
            raise self._gone(request, exc) from None
        return web.json_response({"status": task.state})

    def _gone(self, request: web.Request, exc: NoSuchTask | LeaseGone) -> Refused:
        if isinstance(exc, NoSuchTask):
            return Refused(404, str(exc), violation=True)
        at_fault = exc.lease is None or self._knew(exc.lease, request)
        return Refused(409, str(exc), violation=at_fault)

    def _knew(self, lease: Lease, request: web.Request) -> bool:
        """Whether the node must have known, when it sent this, that the lease was over."""
        late = self.context.arrived()
        if lease.ended in ("", "expired"):
            # An outcome is offered also past the expiry: only the service knows whether the lease still stands.
            return request.path.endswith("/heartbeat") and late > lease.expires_at + GRACE_SECS
        return late > lease.ended_at + GRACE_SECS and lease.task_id not in self.context.unheard

    # Leases as a node sees them.

    def _terms(self, task: Task) -> dict[str, Any]:
        token = self._domain_tokens.get(task.id)
        return {
            "access_token": token and token.value,
            "access_token_expires_at": token and stamp(token.expires_at),
            "lease_expires_at": self._told_expiry(task),
            "cancel": task.state is State.CANCELED,
            "status": task.state,
            "domain_id": str(self.book.jobs[task.job_id].request.domain_id),
            "domain_server_url": self.context.url,
        }

    def _told_expiry(self, task: Task) -> str | None:
        expiry = task.lease_expires_at
        return None if expiry is None else stamp(expiry + self.context.config.told_expiry_shift)

    def _task_fields(self, task: Task) -> dict[str, Any]:
        spec = task.spec
        return {
            "id": task.id,
            "job_id": task.job_id,
            "capability": spec.capability,
            "capability_filters": spec.capability_filters,
            "inputs_cids": spec.inputs_cids,
            "outputs_prefix": spec.outputs_prefix,
            "label": spec.label,
            "stage": task.stage,
            "meta": spec.meta,
            "priority": spec.priority,
            "attempts": task.attempts,
            "max_attempts": spec.max_attempts,
            "deps_remaining": task.deps_remaining,
            "status": task.state,
            "mode": spec.mode,
            "organization_filter": spec.organization_filter,
            "billing_units": spec.billing_units,
            "estimated_credit_cost": "0",
            "debited_amount": None,
            "debited_at": None,
            "lease_expires_at": self._told_expiry(task),
        }

    def _new_domain_token(self, task: Task) -> Token:
        assert task.node_id is not None
        return self.context.issue("domain", task.id, self.context.config.domain_token_ttl, task.node_id)

    def _renew_domain_token(self, task: Task) -> None:
        config = self.context.config
        token = self._domain_tokens.get(task.id)
        left = 0.0 if token is None else token.expires_at - self.context.now()
        if task.state is State.RUNNING and (config.rotate_domain_token or left < config.domain_token_ttl / 2):
            self._domain_tokens[task.id] = self._new_domain_token(task)

    # The job API.

    async def _submit(self, request: web.Request) -> web.Response:
        token = self.context.authorize(request, "app")
        body = await read_json(request, JobRequest)
        if str(body.domain_id) != token.subject:
            raise Refused(403, "token is for another domain")
        try:
            job = self.book.submit(body, self.context.now())
        except InvalidJob as exc:
            raise Refused(400, str(exc)) from None
        return web.json_response({"job_id": job.id}, status=201)

    async def _list_jobs(self, request: web.Request) -> web.Response:
        token = self.context.authorize(request, "app")
        query = request.query
        try:
            limit, start = int(query.get("limit", "20")), int(query.get("cursor", "0"))
        except ValueError:
            raise Refused(400, "limit and cursor are whole numbers") from None
        if not 1 <= limit <= _PAGE_MAX or start < 0:
            raise Refused(400, f"limit is 1 to {_PAGE_MAX}")
        jobs = [
            job
            for job in reversed(self.book.jobs.values())
            if str(job.request.domain_id) == token.subject == query.get("domain_id", token.subject)
            and query.get("status", job.state) == job.state
        ]
        page = jobs[start : start + limit]
        items = [{"job": self._job_fields(job), "tasks_summary": self.book.summary(job.id)} for job in page]
        more = start + limit < len(jobs)
        return web.json_response({"items": items, "next_cursor": str(start + limit) if more else None})

    async def _get_job(self, request: web.Request) -> web.Response:
        job = self._job_of(request)
        return web.json_response(
            {
                "job": self._job_fields(job),
                "tasks_summary": self.book.summary(job.id),
                "tasks": [self._task_record(task) for task in self.book.tasks_of(job.id)],
                "receipts": [_receipt_fields(receipt) for receipt in self.book.receipts[job.id]],
            }
        )

    async def _cancel(self, request: web.Request) -> web.Response:
        try:
            job = self.book.cancel(self._job_of(request).id, self.context.now())
        except JobEnded as exc:
            raise Refused(409, str(exc)) from None
        return web.json_response({"id": job.id, "status": job.state, "updated_at": stamp(job.updated_at)})

    def _job_of(self, request: web.Request) -> Job:
        token = self.context.authorize(request, "app")
        try:
            job = self.book.job(request.match_info["job"])
        except NoSuchTask as exc:
            raise Refused(404, str(exc)) from None
        if str(job.request.domain_id) != token.subject:
            raise Refused(403, "token is for another domain")
        return job

    def _job_fields(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.id,
            "label": job.request.label,
            "domain_id": str(job.request.domain_id),
            "organization_id": self.organization_id,
            "priority": job.request.priority,
            "meta": job.request.meta,
            "status": job.state,
            "edges": [{"from": edge.source, "to": edge.target} for edge in job.request.edges],
            "created_at": stamp(job.created_at),
            "updated_at": stamp(job.updated_at),
        }

    def _task_record(self, task: Task) -> dict[str, Any]:
        """A task as the job API shows it: what its worker said is put into ``meta``."""
        worker = {"progress": task.progress, "events": task.events, "failure": task.failure}
        return self._task_fields(task) | {
            "meta": task.spec.meta | {key: value for key, value in worker.items() if value},
            "reserved_by": task.node_id,
            "cancel_requested_at": _stamp_or_none(task.cancel_requested_at),
            "last_heartbeat_at": _stamp_or_none(task.last_heartbeat_at),
            "created_at": stamp(task.created_at),
            "updated_at": stamp(task.updated_at),
        }


def _stamp_or_none(wall: float | None) -> str | None:
    return None if wall is None else stamp(wall)


def _receipt_fields(receipt: Receipt) -> dict[str, Any]:
    return {
        "id": receipt.id,
        "job_id": receipt.job_id,
        "task_id": receipt.task_id,
        "node_id": receipt.node_id,
        "outputs": receipt.outputs,
        "meta": receipt.meta,
        "created_at": stamp(receipt.created_at),
    }
