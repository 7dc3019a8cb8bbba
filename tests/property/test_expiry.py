"""From a service's wall-clock times to seconds that are left, with the wall clock frozen."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from freezegun import freeze_time
from hypothesis import given, settings
from hypothesis import strategies as st

from posemesh.policy import lease_ttl, service_time
from posemesh.wire.dms import parse_http_date

UNTIMED = settings(deadline=None)
NOWS = st.datetimes(datetime(2001, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
SECONDS = st.floats(-7200, 7200, allow_nan=False)


@UNTIMED
@given(NOWS, SECONDS)
def test_a_lease_lasts_until_its_expiry_and_a_past_one_says_nothing(now: datetime, left: float) -> None:
    expires = now + timedelta(seconds=left)
    with freeze_time(now):
        ttl = lease_ttl(expires.timestamp(), time.time())
    really = (expires - now).total_seconds()
    assert (ttl is None) == (really <= 0) or abs(really) < 1e-3
    assert ttl is None or abs(ttl - really) < 1e-3
    with freeze_time(now):
        assert lease_ttl(None, time.time()) is None


@UNTIMED
@given(NOWS, SECONDS)
def test_the_date_header_corrects_a_clock_that_is_off_by_more_than_five_seconds(now: datetime, skew: float) -> None:
    theirs = (now + timedelta(seconds=skew)).replace(microsecond=0)
    with freeze_time(now):
        ours = time.time()
        service_now = service_time(ours, parse_http_date(format_datetime(theirs, usegmt=True)))
        assert service_time(ours, None) == ours
    off = abs((theirs - now).total_seconds())
    assert service_now == (theirs.timestamp() if off > 5 else ours)


@UNTIMED
@given(NOWS, st.floats(1, 3600), st.sampled_from([0.0, 3.0, -3.0, 600.0, -600.0, 86_400.0]))
def test_a_skewed_clock_misses_the_expiry_by_seconds_at_most(now: datetime, ttl: float, skew: float) -> None:
    """Weakness 15 of the reference: an hour of skew makes heartbeats follow one another without a pause."""
    theirs = now + timedelta(seconds=skew)
    date = parse_http_date(format_datetime(theirs.replace(microsecond=0), usegmt=True))
    with freeze_time(now):
        left = lease_ttl((theirs + timedelta(seconds=ttl)).timestamp(), service_time(time.time(), date))
    assert (left is None and ttl < 5) or (left is not None and abs(left - ttl) <= 5.001)
