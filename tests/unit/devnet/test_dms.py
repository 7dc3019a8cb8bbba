from __future__ import annotations

import uuid

import pytest

from posemesh.devnet.records import State

from .client import CAPABILITY, KEY_B, Client, with_net

LEASE_FIELDS = {
    "access_token",
    "access_token_expires_at",
    "cancel",
    "domain_id",
    "domain_server_url",
    "lease_expires_at",
    "status",
    "task",
}
TASK_FIELDS = {
    "attempts",
    "billing_units",
    "capability",
    "capability_filters",
    "debited_amount",
    "debited_at",
    "deps_remaining",
    "estimated_credit_cost",
    "id",
    "inputs_cids",
    "job_id",
    "label",
    "lease_expires_at",
    "max_attempts",
    "meta",
    "mode",
    "organization_filter",
    "outputs_prefix",
    "priority",
    "stage",
    "status",
}


def test_a_task_from_lease_to_receipt():
    async def test(client, clock):
        net = client.net
        job_id = net.submit(CAPABILITY, meta={"size": 1}, inputs_cids=["a"])
        lease = await client.lease()
        assert set(lease) == LEASE_FIELDS
        assert set(lease["task"]) == TASK_FIELDS
        assert (lease["status"], lease["cancel"]) == ("leased", False)
        assert (lease["domain_id"], lease["domain_server_url"]) == (net.domain_id, net.url)
        assert lease["lease_expires_at"] == "2026-01-01T00:00:30.000000Z"
        task_id = lease["task"]["id"]
        assert (lease["task"]["meta"], lease["task"]["inputs_cids"]) == ({"size": 1}, ["a"])
        clock.advance(10.0)
        status, beat = await client.report(task_id, "heartbeat", {"progress": {"pct": 1}, "events": ["x", 2]})
        assert (status, beat["status"], beat["cancel"], beat["task_id"]) == (200, "running", False, task_id)
        assert beat["lease_expires_at"] == "2026-01-01T00:00:40.000000Z"
        assert beat["access_token"] == lease["access_token"]
        assert (await client.report(task_id, "complete", {"output_cids": ["o"], "meta": {"m": 1}}))[0] == 200
        status, job = await client.call("GET", f"/v1/jobs/{job_id}", token=net.app_token())
        assert (status, job["job"]["status"], job["tasks_summary"]["completed"]) == (200, "completed", 1)
        assert job["tasks"][0]["meta"] == {"size": 1, "progress": {"pct": 1}, "events": ["x", 2]}
        (receipt,) = job["receipts"]
        assert (receipt["task_id"], receipt["outputs"], receipt["meta"]) == (task_id, ["o"], {"m": 1})
        assert net.violations == []
        assert [seen.status for seen in net.requests if seen.path.endswith("/complete")] == [200]
        assert {seen.service for seen in net.requests} == {"dds", "dms"}

    with_net(test, joined=True)


def test_only_what_the_node_offers_is_leased():
    async def test(client, clock):
        client.net.submit("/other/v1")
        client.net.submit("/cap/a/v1")
        client.net.submit("/cap/b/v1")
        await client.join(capabilities=["/cap/a/v1", "/cap/b/v1"], max_concurrency=9)
        assert (await client.call("GET", "/v1/tasks?capability=/other/v1"))[0] == 204
        _, lease = await client.call("GET", "/v1/tasks?capability=/cap/b/v1")
        assert lease["task"]["capability"] == "/cap/b/v1"
        assert (await client.lease())["task"]["capability"] == "/cap/a/v1"
        assert (await client.call("GET", "/v1/tasks")) == (204, "")

    with_net(test)


@pytest.mark.parametrize("rule, offered, allowed", [("max_concurrency", 2, 2), ("one", 2, 1), ("unlimited", 1, 4)])
def test_how_many_leases_a_node_may_hold(rule, offered, allowed):
    async def test(client, clock):
        client.net.submit(CAPABILITY, count=4)
        await client.join(max_concurrency=offered)
        statuses = [(await client.call("GET", "/v1/tasks"))[0] for _ in range(4)]
        assert statuses == [200] * allowed + [409] * (4 - allowed)
        assert client.net.violations == []

    with_net(test, active_leases=rule)


def test_tokens_are_asked_for_and_expire():
    async def test(client, clock):
        good, client.token = client.token, ""
        for token in ("", "made-up", client.net.app_token()):
            assert (await client.call("GET", "/v1/tasks", token=token))[0] == 401
            assert (await client.report("x", "heartbeat", token=token))[0] == 401
        assert len(client.net.violations) == 6
        clock.advance(3600.0)
        assert await client.call("GET", "/v1/tasks", token=good) == (401, "token expired")
        assert len(client.net.violations) == 6, "it may have been on its way when the token expired"
        clock.advance(1.0)
        assert await client.call("GET", "/v1/tasks", token=good) == (401, "token expired")
        assert client.net.violations[6:] == ["GET /v1/tasks: 401 token expired"]

    with_net(test, joined=True)


def test_revoked_tokens_are_no_fault_of_the_node():
    async def test(client, clock):
        client.net.revoke_tokens()
        assert await client.call("GET", "/v1/tasks") == (401, "token revoked")
        await client.sign_in()
        assert (await client.call("GET", "/v1/tasks"))[0] == 204
        assert client.net.violations == []

    with_net(test, joined=True)


@pytest.mark.parametrize(
    "what, body",
    [
        ("heartbeat", {}),
        ("heartbeat", {"progress": {}}),
        ("heartbeat", {"progress": {}, "events": {}}),
        ("heartbeat", {"progress": {}, "events": None}),
        ("heartbeat", {"progress": {}, "events": [], "more": 1}),
        ("complete", {}),
        ("complete", {"output_cids": [None], "meta": {}}),
        ("complete", {"output_cids": [], "meta": []}),
        ("fail", {}),
        ("fail", {"reason": None, "details": {}}),
        ("fail", {"reason": {}, "details": {}}),
        ("fail", []),
    ],
)
def test_reports_of_the_wrong_form_change_nothing(what, body):
    async def test(client, clock):
        client.net.submit(CAPABILITY)
        task_id = (await client.lease())["task"]["id"]
        assert (await client.report(task_id, what, body))[0] == 422
        assert client.net.jobs.tasks[task_id].state is State.LEASED
        assert len(client.net.violations) == 1

    with_net(test, joined=True)


@pytest.mark.parametrize("what", ["heartbeat", "complete", "fail"])
def test_reports_on_what_is_not_ones_own(what):
    async def test(client, clock):
        other = Client(client.net, client.http, KEY_B)
        await other.join(registration_credentials=client.net.provision())
        client.net.submit(CAPABILITY)
        task_id = (await client.lease())["task"]["id"]
        assert (await other.report(task_id, what))[0] == 409
        assert (await other.report(str(uuid.uuid4()), what))[0] == 404
        assert len(client.net.violations) == 2
        assert (await client.report(task_id, what))[0] == 200

    with_net(test, joined=True)


def test_a_heartbeat_under_an_expired_lease_is_a_violation_and_an_outcome_is_not():
    async def test(client, clock):
        client.net.submit(CAPABILITY)
        task_id = (await client.lease())["task"]["id"]
        clock.advance(30.0)
        assert (await client.report(task_id, "heartbeat"))[0] == 409
        assert client.net.violations == [], "it may have been on its way"
        clock.advance(1.0)
        assert (await client.report(task_id, "heartbeat"))[0] == 409
        assert len(client.net.violations) == 1
        client.net.jobs.sweep(clock.wall())
        assert (await client.report(task_id, "heartbeat"))[0] == 409
        assert len(client.net.violations) == 2
        for what in ("complete", "fail"):
            assert (await client.report(task_id, what))[0] == 409
        assert len(client.net.violations) == 2

    with_net(test, joined=True)


def test_an_outcome_may_come_late_until_the_lease_is_swept():
    async def test(client, clock):
        client.net.submit(CAPABILITY)
        task_id = (await client.lease())["task"]["id"]
        clock.advance(60.0)
        assert (await client.report(task_id, "complete"))[0] == 200
        assert client.net.violations == []

    with_net(test, joined=True)


@pytest.mark.parametrize("first, second", [("complete", "complete"), ("complete", "fail"), ("fail", "complete")])
def test_a_second_outcome_is_refused_and_noted(first, second):
    async def test(client, clock):
        client.net.submit(CAPABILITY)
        task_id = (await client.lease())["task"]["id"]
        assert (await client.report(task_id, first))[0] == 200
        clock.advance(1.0)
        assert (await client.report(task_id, second))[0] == 409
        assert len(client.net.violations) == 1

    with_net(test, joined=True)


def test_failures_are_tried_again_and_kept():
    async def test(client, clock):
        job_id = client.net.submit(CAPABILITY, max_attempts=2)
        for attempt in (1, 2):
            lease = await client.lease()
            assert (lease["task"]["attempts"], lease["task"]["max_attempts"]) == (attempt, 2)
            assert (await client.report(lease["task"]["id"], "fail", {"reason": "broken", "details": None}))[0] == 200
        _, job = await client.call("GET", f"/v1/jobs/{job_id}", token=client.net.app_token())
        assert (job["job"]["status"], job["tasks"][0]["status"]) == ("failed", "failed")
        assert job["tasks"][0]["meta"]["failure"] == {"reason": "broken", "details": None}

    with_net(test, joined=True)


def test_the_domain_token_is_renewed_in_time_or_with_every_heartbeat():
    async def tokens(client, clock):
        client.net.submit(CAPABILITY)
        lease = await client.lease()
        found = [lease["access_token"]]
        for _ in range(3):
            clock.advance(25.0)
            found.append((await client.report(lease["task"]["id"], "heartbeat"))[1]["access_token"])
        return found

    async def in_time(client, clock):
        first, second, third, fourth = await tokens(client, clock)
        assert first == second != third == fourth

    async def always(client, clock):
        assert len(set(await tokens(client, clock))) == 4

    with_net(in_time, joined=True, domain_token_ttl=80.0)
    with_net(always, joined=True, rotate_domain_token=True)


def test_a_service_with_a_wrong_clock_goes_on_accepting():
    async def test(client, clock):
        client.net.submit(CAPABILITY)
        lease = await client.lease()
        assert lease["lease_expires_at"] == "2025-12-31T23:00:30.000000Z"
        _, beat = await client.report(lease["task"]["id"], "heartbeat")
        assert beat["lease_expires_at"] == "2025-12-31T23:00:30.000000Z"
        assert (await client.report(lease["task"]["id"], "complete"))[0] == 200

    with_net(test, joined=True, told_expiry_shift=-3600.0)


# The job API.


def job(client, *tasks, **changes):
    tasks = tasks or ({},)
    return {
        "label": "demo",
        "domain_id": client.net.domain_id,
        "priority": 0,
        "meta": {},
        "tasks": [{"label": "t", "capability": CAPABILITY} | task for task in tasks],
        "edges": [],
    } | changes


def test_a_job_with_stages_runs_in_order():
    async def test(client, clock):
        app = client.net.app_token()
        body = job(
            client,
            {"stage": "last"},
            {"stage": "first", "capability_filters": {}, "mode": "dedicated", "outputs_prefix": "out/", "priority": -5},
            edges=[{"from": "first", "to": "last"}],
        )
        status, answer = await client.post("/v1/jobs", body, token=app)
        assert (status, list(answer)) == (201, ["job_id"])
        _, seen = await client.call("GET", f"/v1/jobs/{answer['job_id']}", token=app)
        assert (seen["job"]["status"], seen["job"]["edges"]) == ("pending", [{"from": "first", "to": "last"}])
        assert seen["tasks_summary"] == dict.fromkeys(seen["tasks_summary"], 0) | {"queued": 2}
        for stage in ("first", "last"):
            task = (await client.lease())["task"]
            assert (task["stage"], task["deps_remaining"]) == (stage, 0)
            await client.report(task["id"], "complete")
        _, seen = await client.call("GET", f"/v1/jobs/{answer['job_id']}", token=app)
        assert (seen["job"]["status"], len(seen["receipts"])) == ("completed", 2)

    with_net(test, joined=True)


@pytest.mark.parametrize(
    "tasks, changes, status",
    [
        ((), {"tasks": []}, 422),
        ((), {"label": ""}, 422),
        ((), {"priority": -1}, 422),
        ((), {"priority": 2**32}, 422),
        ((), {"priority": "high"}, 422),
        ((), {"meta": None}, 422),
        ((), {"domain_id": "x"}, 422),
        ((), {"domain_id": str(uuid.UUID(int=5))}, 403),
        ((), {"more": 1}, 422),
        ((), {"edges": [{"from": "t", "to": "t"}]}, 400),
        ((), {"edges": [{"from": "t", "to": "u"}]}, 400),
        ((), {"edges": [{"from": "t"}]}, 422),
        (({"max_attempts": 0},), {}, 422),
        (({"max_attempt": 1},), {}, 422),
        (({"mode": "secret"},), {}, 422),
        (({"capability": ""},), {}, 422),
        (({"inputs_cids": [1]},), {}, 422),
        (({"inputs_cids": None},), {}, 422),
        (({"priority": 2**31},), {}, 422),
        (({"meta": []},), {}, 422),
    ],
)
def test_jobs_that_are_refused(tasks, changes, status):
    async def test(client, clock):
        body = job(client, *tasks, **changes)
        assert (await client.post("/v1/jobs", body, token=client.net.app_token()))[0] == status
        assert client.net.jobs.jobs == {}

    with_net(test)


def test_jobs_need_an_app_token():
    async def test(client, clock):
        for token in ("", client.token):
            assert (await client.post("/v1/jobs", job(client), token=token))[0] == 401
            assert (await client.call("GET", "/v1/jobs", token=token))[0] == 401

    with_net(test, joined=True)


def test_jobs_are_listed_by_page():
    async def test(client, clock):
        client.token = client.net.app_token()
        ids = [client.net.submit(CAPABILITY) for _ in range(3)]
        _, page = await client.call("GET", "/v1/jobs?limit=2")
        assert [item["job"]["id"] for item in page["items"]] == [ids[2], ids[1]]
        assert page["items"][0]["tasks_summary"]["queued"] == 1
        _, rest = await client.call("GET", f"/v1/jobs?limit=2&cursor={page['next_cursor']}")
        assert ([item["job"]["id"] for item in rest["items"]], rest["next_cursor"]) == ([ids[0]], None)
        await client.post(f"/v1/jobs/{ids[1]}/cancel", {})
        _, page = await client.call("GET", "/v1/jobs?status=canceled")
        assert [item["job"]["id"] for item in page["items"]] == [ids[1]]
        for query in ("limit=0", "limit=101", "limit=x", "cursor=-1"):
            assert (await client.call("GET", f"/v1/jobs?{query}"))[0] == 400

    with_net(test)


def test_a_canceled_job_ends_its_task_with_the_next_heartbeat():
    async def test(client, clock):
        app = client.net.app_token()
        job_id = client.net.submit(CAPABILITY, count=2)
        task_id = (await client.lease())["task"]["id"]
        status, answer = await client.post(f"/v1/jobs/{job_id}/cancel", {}, token=app)
        assert (status, answer["id"], answer["status"]) == (200, job_id, "canceled")
        status, beat = await client.report(task_id, "heartbeat")
        assert (status, beat["cancel"], beat["status"]) == (200, True, "canceled")
        assert (await client.call("GET", "/v1/tasks"))[0] == 204
        assert client.net.violations == []
        clock.advance(1.0)
        assert (await client.report(task_id, "complete"))[0] == 409
        assert len(client.net.violations) == 1, "it was told"

    with_net(test, joined=True)


def test_what_cannot_be_canceled():
    async def test(client, clock):
        app = client.net.app_token()
        job_id = client.net.submit(CAPABILITY)
        await client.report((await client.lease())["task"]["id"], "complete")
        assert (await client.post(f"/v1/jobs/{job_id}/cancel", {}, token=app))[0] == 409
        assert (await client.post(f"/v1/jobs/{uuid.uuid4()}/cancel", {}, token=app))[0] == 404
        assert (await client.call("GET", f"/v1/jobs/{uuid.uuid4()}", token=app))[0] == 404

    with_net(test, joined=True)
