"""The arithmetic of time, at its bounds."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from posemesh import policy


class Low(Random):
    """Always the lowest value."""

    def uniform(self, a: float, b: float) -> float:
        return min(a, b)


class High(Random):
    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def bounds(function: Callable[[Random], float]) -> tuple[float, float]:
    low, high = function(Low(0)), function(High(0))
    for seed in range(20):
        assert low <= function(Random(seed)) <= high
    return low, high


@pytest.mark.parametrize(
    ("failures", "base"), [(1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (6, 60), (7, 60), (10_000, 60)]
)
def test_registration_backoff(failures: int, base: float) -> None:
    assert bounds(lambda rng: policy.registration_backoff(failures, rng)) == pytest.approx((0.8 * base, 1.2 * base))


@pytest.mark.parametrize(
    ("tries", "low", "high", "least", "most"),
    [
        (0, 1000, 30_000, 1, 1),
        (1, 1000, 30_000, 1, 2),
        (2, 1000, 30_000, 2, 4),
        (5, 1000, 30_000, 15, 30),
        (100_000, 1000, 30_000, 15, 30),
        (3, 1000, 1000, 1, 1),
        (0, 1, 3, 0.001, 0.001),
        (9, 1, 3, 0.0015, 0.003),
        (1, 4_000_000_000, 4_000_000_000, 4e6, 4e6),
    ],
)
def test_poll_delay(tries: int, low: int, high: int, least: float, most: float) -> None:
    assert bounds(lambda rng: policy.poll_delay(tries, low, high, rng)) == pytest.approx((least, most))


@pytest.mark.parametrize(
    ("expires", "now", "ttl"), [(None, 5.0, None), (5.0, 5.0, None), (4.0, 5.0, None), (9.5, 5.0, 4.5)]
)
def test_lease_ttl(expires: float | None, now: float, ttl: float | None) -> None:
    assert policy.lease_ttl(expires, now) == ttl


@pytest.mark.parametrize(
    ("date", "now"),
    [(None, 1000), (1000, 1000), (1005, 1000), (995, 1000), (1005.5, 1005.5), (994.5, 994.5), (5000, 5000)],
)
def test_service_time(date: float | None, now: float) -> None:
    assert policy.service_time(1000, date) == now


def test_heartbeat_delay() -> None:
    assert bounds(lambda rng: policy.heartbeat_delay(60, 0.25, 0.35, rng)) == pytest.approx((15, 21))


@pytest.mark.parametrize(
    ("failures", "left", "retry_after", "least", "most"),
    [
        (1, 1000, None, 0.4, 0.6),
        (3, 1000, None, 1.6, 2.4),
        (1, 1000, 5.0, 5.0, 5.0),
        (9999, 3000, None, 409.6, 614.4),
        (5, 6, None, 2, 2),
        (5, 6, 100.0, 2, 2),
        (1, 0.01, None, 0.05, 0.05),
        (1, -3, None, 0.05, 0.05),
    ],
)
def test_heartbeat_retry_delay(
    failures: int, left: float, retry_after: float | None, least: float, most: float
) -> None:
    found = bounds(lambda rng: policy.heartbeat_retry_delay(failures, left, retry_after, rng))
    assert found == pytest.approx((least, most))


@pytest.mark.parametrize(("left", "timeout"), [(600, 60), (180, 60), (30, 10), (0.01, 0.05), (-1, 0.05)])
def test_heartbeat_timeout(left: float, timeout: float) -> None:
    assert policy.heartbeat_timeout(60, left) == timeout


@pytest.mark.parametrize(
    ("tries", "retry_after", "least", "most"),
    [
        (1, None, 0.8, 1.2),
        (2, None, 1.6, 2.4),
        (7, None, 48, 72),
        (9999, None, 48, 72),
        (1, 30.0, 30, 30),
        (1, 1e9, 300, 300),
    ],
)
def test_offer_delay(tries: int, retry_after: float | None, least: float, most: float) -> None:
    assert bounds(lambda rng: policy.offer_delay(tries, retry_after, rng)) == pytest.approx((least, most))


@pytest.mark.parametrize(("ttl", "margin"), [(3600, 1), (20, 1), (10, 0.5), (0.001, 0.00005)])
def test_token_margin(ttl: float, margin: float) -> None:
    assert policy.token_margin(ttl) == pytest.approx(margin)


@pytest.mark.parametrize(
    ("ttl", "ratio", "jitter", "least", "most"),
    [
        (3600, 0.75, 500, 2699.5, 2700.5),
        (3600, 0.75, 0, 2700, 2700),
        (1, 0.75, 5000, 0.25, 0.95),
        (100, 0.999, 500, 99, 99),
    ],
)
def test_token_refresh_delay(ttl: float, ratio: float, jitter: int, least: float, most: float) -> None:
    found = bounds(lambda rng: policy.token_refresh_delay(ttl, ratio, jitter, rng))
    assert found == pytest.approx((least, most))
    assert 0 < found[0] <= found[1] < ttl


def test_a_token_that_hardly_lives_is_renewed_four_times_a_second_at_most() -> None:
    """DDS was asked 35 times a second for tokens of a few milliseconds."""
    assert bounds(lambda rng: policy.token_refresh_delay(0.001, 0.5, 0, rng)) == (0.25, 0.25)


def test_token_attempt_delay() -> None:
    assert bounds(lambda rng: policy.token_attempt_delay(500, rng)) == (0, 0.5)
    assert bounds(lambda rng: policy.token_attempt_delay(0, rng)) == (0, 0)


@pytest.mark.parametrize(("rounds", "base"), [(1, 10), (2, 20), (5, 160), (6, 300), (9999, 300)])
def test_token_round_delay(rounds: int, base: float) -> None:
    assert bounds(lambda rng: policy.token_round_delay(rounds, rng)) == pytest.approx((base, base * 1.2))


def test_patience_is_graded() -> None:
    """A child is killed before its task is called unstoppable, and that is told before the node leaves."""
    assert policy.CHILD_GRACE_SECS < policy.STOP_GRACE_SECS < policy.LEAVE_SECS
