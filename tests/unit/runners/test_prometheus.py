"""What ``/metrics`` shows, read back by Prometheus' own parser."""

from __future__ import annotations

import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from posemesh.errors import PosemeshError
from posemesh.runners.metrics import MetricsBackend, NodeMetrics, RunnerType, TaskOutcome
from posemesh.runners.prometheus import LABELS_MAX, RUN_SECS, PrometheusMetrics


def shown(metrics: PrometheusMetrics) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels: runner, outcome, le, error."""
    content_type, body = metrics.render()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items(), reverse=True))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_it_counts_runs_and_the_node() -> None:
    assert isinstance(PrometheusMetrics(), MetricsBackend) and isinstance(PrometheusMetrics(), NodeMetrics)


def test_runs() -> None:
    metrics = PrometheusMetrics()
    for outcome in (TaskOutcome.SUCCESS, TaskOutcome.SUCCESS, TaskOutcome.TIMEOUT):
        metrics.task_started(RunnerType.PROCESS)
        metrics.task_completed(RunnerType.PROCESS, outcome, 1500)
    metrics.runner_error(RunnerType.OTHER, "no_runner")
    samples = shown(metrics)
    assert samples["posemesh_runner_tasks_started_total", "process"] == 3
    assert samples["posemesh_runner_tasks_completed_total", "process", "success"] == 2
    assert samples["posemesh_runner_tasks_completed_total", "process", "timeout"] == 1
    assert samples["posemesh_runner_task_duration_seconds_sum", "process", "success"] == 3.0
    assert samples["posemesh_runner_task_duration_seconds_count", "process", "timeout"] == 1
    assert samples["posemesh_runner_errors_total", "other", "no_runner"] == 1


def test_buckets_of_a_run() -> None:
    metrics = PrometheusMetrics()
    metrics.task_completed(RunnerType.INLINE, TaskOutcome.SUCCESS, 2_000_000)
    metrics.run_latency(2_000_000)
    samples = shown(metrics)
    seconds = {
        float(labels[-1]): samples[name, *labels]
        for name, *labels in samples
        if name == "posemesh_runner_task_duration_seconds_bucket"
    }
    milliseconds = {
        float(labels[-1]): samples[name, *labels] for name, *labels in samples if name == "runner_run_latency_ms_bucket"
    }
    assert set(seconds) == {*RUN_SECS, float("inf")}
    assert (seconds[1800], seconds[3600]) == (milliseconds[1_800_000], milliseconds[3_600_000]) == (0, 1)


def test_the_node_under_the_names_that_its_dashboards_know() -> None:
    metrics = PrometheusMetrics()
    metrics.poll_latency(30)
    metrics.active_tasks(3)
    metrics.active_tasks(-1)
    metrics.run_latency(250)
    metrics.token_rotated()
    metrics.bytes_uploaded(10)
    metrics.bytes_uploaded(-10)
    metrics.bytes_downloaded(7)
    text = metrics.render()[1].decode()
    for name, kind in {
        "dms_poll_latency_ms": "histogram",
        "dms_active_task": "gauge",
        "runner_run_latency_ms": "histogram",
        "token_rotate_count": "counter",
        "storage_bytes_uploaded": "counter",
        "storage_bytes_downloaded": "counter",
    }.items():
        assert text.count(f"# TYPE {name} {kind}\n") == text.count(f"# HELP {name} ") == 1
    for line in ("token_rotate_count 1", "storage_bytes_uploaded 10", "storage_bytes_downloaded 7"):
        assert f"\n{line}\n" in text, "a counter never falls, and its name has no ending"
    samples = shown(metrics)
    assert samples["dms_poll_latency_ms_sum",] == 30
    assert samples["dms_active_task",] == 0, "never below nothing"
    assert samples["runner_run_latency_ms_sum",] == 250


def test_a_clock_that_went_back_counts_as_no_time() -> None:
    metrics = PrometheusMetrics()
    metrics.task_completed(RunnerType.INLINE, TaskOutcome.SUCCESS, -5)
    assert shown(metrics)["posemesh_runner_task_duration_seconds_sum", "inline", "success"] == 0


def test_labels_take_a_bounded_number_of_values() -> None:
    metrics = PrometheusMetrics()
    for at in range(LABELS_MAX + 50):
        metrics.runner_error(RunnerType.OTHER, f"kind_{at}")
        metrics.task_started(f"runner-{at}")  # type: ignore[arg-type]
        metrics.task_completed(RunnerType.INLINE, f"outcome-{at}", 1)  # type: ignore[arg-type]
    samples = shown(metrics)
    kinds = {labels[1] for name, *labels in samples if name == "posemesh_runner_errors_total"}
    runners = {labels[0] for name, *labels in samples if name == "posemesh_runner_tasks_started_total"}
    outcomes = {labels[1] for name, *labels in samples if name == "posemesh_runner_tasks_completed_total"}
    assert len(kinds) == LABELS_MAX + 1 and "other" in kinds
    assert len(runners) <= LABELS_MAX and "other" in runners
    assert outcomes == {"failure"}
    assert samples["posemesh_runner_errors_total", "other", "other"] == 50


def test_two_nodes_in_a_process_do_not_mix() -> None:
    first, second = PrometheusMetrics(), PrometheusMetrics()
    first.active_tasks(1)
    first.token_rotated()
    assert b"\ndms_active_task 0" in second.render()[1]
    assert b"\ntoken_rotate_count 0\n" in second.render()[1]


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(PosemeshError, match=r"pip install 'posemesh\[prometheus\]'"):
        PrometheusMetrics()
