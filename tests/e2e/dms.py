"""The independent network's DMS: a queue of tasks, their leases, and what it takes to keep one."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .checks import UUID, Bad, json_body, typed
from .dds import stamp

if TYPE_CHECKING:
    from .network import Answer, Network, Request

__all__ = ("Dms", "Task")

LATE_SECS = 0.3
"""A request may arrive this much after the answer that forbids it: the two passed each other."""
REPORT_SECS = 1.5
"""Between the end of user code, which frees its slot, and the report of it, a last heartbeat may take a second."""
PATH = re.compile(rf"/v1/tasks/({UUID.pattern})/(heartbeat|complete|fail)")


@dataclass(slots=True, eq=False)
class Task:
    """One task; the upper half is the plan."""

    capability: str
    inputs: list[str] = field(default_factory=list)
    outputs_prefix: str | None = None
    meta: Any = field(default_factory=lambda: {"note": "é"})
    max_attempts: int = 3
    ttl: float | None = None
    cancel_at: int | None = None
    """The heartbeat, from 1, whose answer cancels."""
    mangle: Callable[[dict[str, Any]], Any] = lambda lease: lease
    """Makes what is sent of the lease."""
    mangle_beat: Callable[[dict[str, Any]], Any] = lambda answer: answer
    honest: bool = True
    """Whether the expiries that are told are the true ones."""
    sticky: bool = False
    """It is offered again and again, whatever was told of it."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    job_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    state: str = "queued"
    attempts: int = 0
    holder: str = ""
    expires: float = 0.0
    known_until: float | None = None
    leased_at: float = 0.0
    delivered: bool = False
    reported: bool = False
    left: bool = False
    """It was leased to a process that has ended, and the next one has not said that it knows of it."""
    former: set[str] = field(default_factory=set)
    """Wallets that had it before it was given elsewhere."""
    beats: list[float] = field(default_factory=list)
    """When the heartbeats of this attempt arrived; monotonic, the lease first."""
    accepted_beats: list[float] = field(default_factory=list)
    tokens: dict[str, float] = field(default_factory=dict)
    """Domain tokens in the order of their issue, and when they expire."""
    handed: list[str] = field(default_factory=list)
    """Those that an answer brought to the node."""
    known: list[tuple[float, str]] = field(default_factory=list)
    """Since when (monotonic) it is sure that the node has read that token: it went on to its next heartbeat."""
    closed_at: float | None = None
    cancelled_at: float | None = None
    outcomes: list[tuple[str, Any]] = field(default_factory=list)
    progress: Any = None
    events: list[Any] = field(default_factory=list)

    @property
    def active(self) -> bool:
        return self.state in ("leased", "running")

    @property
    def reason(self) -> str:
        """Of the last fail that was accepted."""
        found = [body["reason"] for kind, body in self.outcomes if kind == "fail"]
        return str(found[-1]) if found else ""

    @property
    def longest_gap(self) -> float:
        """Between two accepted signs of life, the lease and the report included."""
        times = [self.leased_at, *self.accepted_beats, *([self.closed_at] if self.closed_at else [])]
        return max(b - a for a, b in zip(times, times[1:], strict=False))


class Dms:
    """Attributes are the plan."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.ttl = 30.0
        self.token_ttl = 600.0
        self.one_active = True
        self.any_capability = False
        """Whether it offers tasks of capabilities the node never told DDS of."""
        self.idempotent = False
        """Whether a second complete of a completed task is answered 200; else 409."""
        self.judge_slots = True
        """Whether an ask beyond the node's slots, as far as they can be seen from here, is a violation."""
        self.domain_id = str(uuid.uuid4())
        self.tasks: list[Task] = []

    # -- for tests

    def add(self, capability: str, count: int = 1, **plan: Any) -> list[Task]:
        made = [Task(capability, **plan) for _ in range(count)]
        self.tasks += made
        return made

    def in_state(self, *states: str) -> list[Task]:
        return [task for task in self.tasks if task.state in states]

    def cancel(self, task: Task) -> None:
        """As a user cancels a job: the next heartbeat's answer says so."""
        task.cancel_at = 0

    def release(self, task: Task) -> None:
        """Its lease runs out now."""
        task.expires = 0.0
        self._sweep()

    def give_elsewhere(self, task: Task) -> None:
        """Its lease has run out, and another node holds it."""
        task.former.add(task.holder)
        task.holder, task.expires = f"0x{0:040}", self.net.now() + 3600
        task.attempts += 1

    def restarted(self) -> None:
        """The nodes are other processes from here on. What the ones before were told, these need not know."""
        for task in self.tasks:
            task.known_until = task.closed_at = task.cancelled_at = None
            task.left = True

    # -- for the server

    def name(self, request: Request) -> None:
        match = PATH.fullmatch(request.path)
        if match:
            request.task, request.kind = match[1], match[2]
            for task in self.tasks:  # whatever becomes of the request, the node has a result
                task.reported = task.reported or (task.id == request.task and request.kind != "heartbeat")
        else:
            request.kind = "ask" if request.path == "/v1/tasks" else "unknown"

    async def answer(self, request: Request) -> Answer:
        from .network import Answer

        try:
            if request.kind == "unknown":
                raise Bad(404, "no such path")
            wallet = self.net.dds.bearer(request).wallet
            self._sweep()
            if request.kind == "ask":
                return self._ask(request, wallet)
            task = next((task for task in self.tasks if task.id == request.task), None)
            body = json_body(self.net, request)
            if task is None or task.holder != wallet:
                raise Bad(404, "a task of somebody else", fair=task is not None and wallet in task.former)
            if request.kind == "heartbeat":
                return self._heartbeat(request, task, body)
            return self._report(request, task, body)
        except Bad as bad:
            if not bad.fair:
                self.net.wrong(request, bad.text)
            return Answer(bad.status, bad.text)

    def _sweep(self) -> None:
        for task in self.tasks:
            if task.active and task.expires < self.net.now():
                task.state = "queued" if task.attempts < task.max_attempts else "failed"

    def _ask(self, request: Request, wallet: str) -> Answer:
        from .network import Answer

        if request.method != "GET" or request.body or set(request.query) - {"capability"}:
            raise Bad(400, f"an ask with query {request.query} and {len(request.body)} bytes")
        held = [task for task in self.tasks if task.active and not task.sticky]
        seen = [task for task in held if task.delivered and not task.left]
        running = [task for task in seen if not task.reported and task.cancelled_at is None]
        if self.judge_slots and len(running) >= self.net.dds.max_concurrency:
            asyncio.get_running_loop().call_later(REPORT_SECS, self._judge, request, running)
        if self.one_active and len(held) >= self.net.dds.max_concurrency:
            return Answer(409, "an active lease exists")
        offered = self.net.dds.offers.get(wallet, self.net.dds.capabilities)
        task = next(
            (
                task
                for task in self.tasks
                if (task.state == "queued" or task.sticky)
                and (self.any_capability or task.capability in offered)
                and request.query.get("capability", task.capability) == task.capability
            ),
            None,
        )
        if task is None:
            return Answer(204)
        lease = task.mangle(self._lease(task, wallet))
        return Answer(body=lease, then=lambda: self._delivered(task, lease))

    def _judge(self, request: Request, running: list[Task]) -> None:
        """A slot is free before the service has heard of it, but not for long."""
        if not any(task.reported or not task.active for task in running):
            self.net.wrong(request, f"asks with {len(running)} tasks running, of {self.net.dds.max_concurrency}")

    def _lease(self, task: Task, wallet: str) -> dict[str, Any]:
        task.state, task.holder = "leased", wallet
        task.attempts += 1
        task.leased_at, task.delivered, task.reported, task.left = time.monotonic(), False, False, False
        task.beats, task.accepted_beats, task.known_until = [], [], None
        task.closed_at = task.cancelled_at = None
        return {
            **self._renewed(task),
            "cancel": False,
            "status": "leased",
            "domain_id": self.domain_id,
            "domain_server_url": self.net.urls["domain"],
            "a_field_of_tomorrow": [1],
            "task": self._spec(task),
        }

    def _spec(self, task: Task) -> dict[str, Any]:
        spec: dict[str, Any] = {"id": task.id, "job_id": task.job_id, "capability": task.capability}
        spec |= {"capability_filters": {}, "meta": task.meta, "inputs_cids": task.inputs, "priority": -3}
        spec |= {"label": "l", "stage": "s", "status": "leased", "mode": "dedicated", "billing_units": "1.5"}
        return spec | {
            "outputs_prefix": task.outputs_prefix,
            "attempts": task.attempts,
            "max_attempts": task.max_attempts,
            "deps_remaining": 0,
            "organization_filter": None,
        }

    def _renewed(self, task: Task) -> dict[str, Any]:
        """A new expiry and a new domain token."""
        now = self.net.now()
        task.expires = now + (task.ttl or self.ttl)
        text = self.net.secret("domaintoken" + secrets.token_hex(16))
        task.tokens[text] = now + self.token_ttl
        return {
            "access_token": text,
            "access_token_expires_at": stamp(task.tokens[text]),
            "lease_expires_at": stamp(task.expires),
        }

    def _delivered(self, task: Task, lease: Any) -> None:
        task.delivered = True
        task.known_until = task.expires
        self._hand(task, lease)

    def _hand(self, task: Task, answer: Any) -> None:
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if isinstance(token, str) and token in task.tokens:
            task.handed.append(token)

    def _heartbeat(self, request: Request, task: Task, body: dict[str, Any]) -> Answer:
        from .network import Answer

        task.beats.append(request.at)
        task.left = False
        if task.handed:
            task.known.append((request.at, task.handed[-1]))
        typed(body, {"progress": object, "events": list})
        if not task.delivered:
            self.net.wrong(request, "heartbeat for a lease that was never delivered")
        self._not_after(request, "was reported", task.closed_at)
        self._not_after(request, "was cancelled", task.cancelled_at)
        if task.honest and task.known_until is not None and self.net.now() > task.known_until + LATE_SECS:
            self.net.wrong(request, f"heartbeat {self.net.now() - task.known_until:.2f} s after the last known expiry")
        if not task.active:
            raise Bad(409, f"task is {task.state}", fair=True)
        task.state, task.progress = "running", body["progress"]
        task.events += body["events"]
        task.accepted_beats.append(request.at)
        answer = self._renewed(task)
        cancelled = task.cancel_at is not None and len(task.beats) >= task.cancel_at
        if cancelled:
            task.state = "canceled"
        answer |= {"cancel": cancelled, "status": task.state, "task_id": task.id, "attempts": task.attempts}
        told = task.mangle_beat(answer)
        return Answer(body=told, then=lambda: self._beaten(task, told, cancelled))

    def _beaten(self, task: Task, told: Any, cancelled: bool) -> None:
        task.known_until = task.expires
        self._hand(task, told)
        if cancelled:
            task.cancelled_at = task.cancelled_at or time.monotonic()

    def _not_after(self, request: Request, what: str, at: float | None) -> None:
        if at is not None and request.at > at + LATE_SECS:
            self.net.wrong(request, f"{request.kind} {request.at - at:.2f} s after the task {what}")

    def _report(self, request: Request, task: Task, body: dict[str, Any]) -> Answer:
        from .network import Answer

        if request.kind == "complete":
            self._check_complete(task, body)
        else:
            typed(body, {"reason": str, "details": object})
            if not body["reason"].strip():
                raise Bad(422, "no reason")
        leaked = [name for name in self.net.secrets if name.encode() in request.body]
        if leaked:
            self.net.wrong(request, f"the report holds secrets: {leaked}")
        self._not_after(request, "was reported", task.closed_at)
        self._not_after(request, "was cancelled", task.cancelled_at)
        if not task.active:
            again = self.idempotent and request.kind == "complete" and task.state == "completed"
            if again:
                return Answer(200, b"", then=lambda: self._closed(task))
            raise Bad(409, f"task is {task.state}", fair=True)
        task.outcomes.append((request.kind, body))
        if request.kind == "complete":
            task.state = "completed"
        else:
            task.state = "queued" if task.attempts < task.max_attempts else "failed"
        return Answer(200, b"", then=lambda: self._closed(task))

    def _closed(self, task: Task) -> None:
        task.closed_at = time.monotonic()

    def _check_complete(self, task: Task, body: dict[str, Any]) -> None:
        typed(body, {"output_cids": list, "meta": dict})
        typed(body["meta"], {"job": dict, "artifacts": list})
        job = {"task_id": task.id, "job_id": task.job_id, "domain_id": self.domain_id, "capability": task.capability}
        if body["meta"]["job"] != job:
            raise Bad(422, f"meta.job is {body['meta']['job']}")
        for artifact in body["meta"]["artifacts"]:
            typed(artifact, {"logical_path": str, "name": str, "data_type": str, "id": str | None})
        ids = [artifact["id"] for artifact in body["meta"]["artifacts"] if artifact["id"] is not None]
        if body["output_cids"] != ids:
            raise Bad(422, f"output_cids {body['output_cids']} beside artifacts {ids}")
