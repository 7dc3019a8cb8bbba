"""The arithmetic of time: when to try, renew, retry and give up. Seconds everywhere unless a name says otherwise.

Every function takes what it needs (the time now, a ``Random``), so that a test can hold it to its bounds.
"""

from __future__ import annotations

from random import Random

__all__ = (
    "ASK_AFTER_OFFER_SECS",
    "ASK_GRACE_SECS",
    "ATTEMPTS_MAX",
    "BACKLOG_MAX",
    "CHILD_GRACE_SECS",
    "DOUBT_SECS",
    "EVENTS_MAX",
    "FIRST_ANSWER_SECS",
    "FLUSH_SECS",
    "GOOD_TTL_SECS",
    "LEAVE_SECS",
    "REFUSALS_MAX",
    "RETRY_AFTER_MAX_SECS",
    "STOP_GRACE_SECS",
    "TEARDOWN_SECS",
    "TRANSFERS_MAX",
    "UNKNOWN_TTL_SECS",
    "WARN_EVERY_SECS",
    "heartbeat_delay",
    "heartbeat_retry_delay",
    "heartbeat_timeout",
    "lease_ttl",
    "offer_delay",
    "poll_delay",
    "registration_backoff",
    "service_time",
    "token_attempt_delay",
    "token_margin",
    "token_refresh_delay",
    "token_round_delay",
)

ATTEMPTS_MAX = 3
"""A task under which the node ended this often is not run again: it may be what ends the node."""
REFUSALS_MAX = 3
"""Registrations answered 400, 401 or 403 in a row, before the first success, after which the node gives up."""
WARN_EVERY_SECS = 180.0
"""A standing conflict or refusal is told to the operator this often (the reference's rate)."""
UNKNOWN_TTL_SECS = 6.0
"""A lease whose expiry nobody knows is taken to last this long after each accepted heartbeat."""
DOUBT_SECS = 3.0
"""A token that met a 401 is held back this long for its successor."""
FIRST_ANSWER_SECS = 1.0
"""A task does not wait longer than this for the answer to its first heartbeat."""
GOOD_TTL_SECS = 1.0
"""A lease's term shorter than this is not remembered for when its expiry is unknown."""
FLUSH_SECS = 1.0
"""A finished task does not wait longer than this for its last progress to arrive."""
ASK_AFTER_OFFER_SECS = 1.0
"""After a task that ran, the next ask waits this long at most for the answer to its completion: a service that counts
leases would answer 409 before."""
RETRY_AFTER_MAX_SECS = 300.0
"""A service's Retry-After is believed up to this."""
BACKLOG_MAX = 64
"""Undelivered outcomes at which the node stops asking for work."""
STOP_GRACE_SECS = 3.0
"""User code that was told to stop has this long before it is called unstoppable."""
CHILD_GRACE_SECS = 2.0
"""Between SIGTERM and SIGKILL of a child: below STOP_GRACE_SECS, so that a killed child is no unstoppable one."""
TEARDOWN_SECS = 2.0
"""A runner's ``teardown()`` has this long when the node ends."""
ASK_GRACE_SECS = 0.4
"""A node told to stop waits this long for an ask in flight: the answer may hold a lease that must be failed back."""
LEAVE_SECS = 5.0
"""After the drain, what is left is cancelled and reported within this."""
EVENTS_MAX = 256
"""Unacknowledged events a session keeps; the oldest go first."""
TRANSFERS_MAX = 16
"""Transfers of a task that are told of; the ones that moved last."""
SKEW_TOLERATED_SECS = 5.0
"""The Date header has a resolution of a second and a delay: a smaller difference is no skew."""
HEARTBEAT_RETRY_SECS = 0.5
BACKOFF_MAX_SECS = 60.0
TOKEN_ROUND_SECS = 10.0
TOKEN_REFRESH_MIN_SECS = 0.25
"""A token of a shorter life than this is not worth a sign-in for each: DDS is asked four times a second at most."""
TOKEN_ROUND_MAX_SECS = 300.0


def _spread(seconds: float, rng: Random) -> float:
    return seconds * rng.uniform(0.8, 1.2)


def registration_backoff(failures: int, rng: Random) -> float:
    """2, 4, 8 … 60 s times U[0.8, 1.2]; ``failures`` counts from 1 (DDS registration loop)."""
    return _spread(min(BACKOFF_MAX_SECS, 2.0 ** min(failures, 6)), rng)


def poll_delay(tries: int, min_ms: int, max_ms: int, rng: Random) -> float:
    """The pause before an ask, in [max(MIN, b/2), b] with b = min(MAX, MIN·2ⁿ)."""
    bound = min(float(max_ms), min_ms * 2.0 ** min(tries, 40))
    return rng.uniform(max(float(min_ms), bound / 2), bound) / 1000


def lease_ttl(expires: float | None, service_now: float) -> float | None:
    """What is left until the wall time ``expires``; None where it is absent or already past, which says nothing."""
    left = None if expires is None else expires - service_now
    return left if left is not None and left > 0 else None


def service_time(wall_now: float, date: float | None) -> float:
    """The service's time: our own, corrected by its Date header only where they differ by more than 5 s."""
    return wall_now if date is None or abs(date - wall_now) <= SKEW_TOLERATED_SECS else date


def heartbeat_delay(ttl: float, min_ratio: float, max_ratio: float, rng: Random) -> float:
    """The pause after an accepted heartbeat: ttl × U[HEARTBEAT_MIN_RATIO, HEARTBEAT_MAX_RATIO]."""
    return ttl * rng.uniform(min_ratio, max_ratio)


def heartbeat_retry_delay(failures: int, left: float, retry_after: float | None, rng: Random) -> float:
    """The pause after a failed heartbeat; never more than a third of what is left of the lease."""
    wanted = max(_spread(HEARTBEAT_RETRY_SECS * 2.0 ** min(failures - 1, 10), rng), retry_after or 0.0)
    return min(wanted, max(left / 3, 0.05))


def heartbeat_timeout(request_timeout: float, left: float) -> float:
    """How long a heartbeat may take: REQUEST_TIMEOUT_SECS, or a third of what is left of the lease."""
    return min(request_timeout, max(left / 3, 0.05))


def offer_delay(tries: int, retry_after: float | None, rng: Random) -> float:
    """The pause before an outcome is offered again: 1, 2, 4 … 60 s times U[0.8, 1.2]; ``tries`` counts from 1."""
    delay = _spread(min(BACKOFF_MAX_SECS, 2.0 ** min(tries - 1, 6)), rng)
    return max(delay, min(retry_after or 0.0, RETRY_AFTER_MAX_SECS))


def token_margin(ttl: float) -> float:
    """How long before its expiry a token is no longer sent, so that it does not expire under way."""
    return min(1.0, ttl * 0.05)


def token_refresh_delay(ttl: float, safety_ratio: float, jitter_ms: int, rng: Random) -> float:
    """From the token's arrival to its refresh: ttl × TOKEN_SAFETY_RATIO ± jitter, before it ends."""
    jitter = rng.uniform(-jitter_ms, jitter_ms) / 1000
    return max(min(max(ttl * safety_ratio + jitter, 0.0), ttl - token_margin(ttl)), TOKEN_REFRESH_MIN_SECS)


def token_attempt_delay(jitter_ms: int, rng: Random) -> float:
    """Between two attempts of one round: U[0, TOKEN_REAUTH_JITTER_MS]."""
    return rng.uniform(0, jitter_ms) / 1000


def token_round_delay(rounds: int, rng: Random) -> float:
    """Between two failed rounds: 10, 20, 40 … 300 s times U[1, 1.2]; ``rounds`` counts from 1."""
    return min(TOKEN_ROUND_MAX_SECS, TOKEN_ROUND_SECS * 2.0 ** min(rounds - 1, 10)) * rng.uniform(1.0, 1.2)
