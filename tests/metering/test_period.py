"""Months of a time zone."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from forebay.metering.period import (
    Month,
    held,
    midnight,
    month_of,
    months_between,
    parse_month,
    seconds,
    span_of,
)
from hypothesis import given
from hypothesis import strategies as st

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kathmandu",
    "Pacific/Apia",  # left out 30 December 2011
    "America/Sao_Paulo",  # skipped midnight until 2018
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Kiritimati",
]
zones = st.sampled_from(ZONES).map(ZoneInfo)
months = st.builds(Month, st.integers(2000, 2036), st.integers(1, 12))


@given(zones, months)
def test_months_touch_and_do_not_overlap(zone: ZoneInfo, month: Month) -> None:
    assert span_of(month, zone).stop == span_of(month.next, zone).start
    assert span_of(month, zone).start < span_of(month, zone).stop


@given(zones, st.datetimes(datetime(2000, 2, 1), datetime(2036, 12, 1), timezones=st.just(UTC)))
def test_an_instant_lies_in_its_month(zone: ZoneInfo, instant: datetime) -> None:
    month = month_of(instant, zone)
    span = span_of(month, zone)
    assert span.start <= instant < span.stop
    assert months_between(instant, instant + timedelta(microseconds=1), zone) == [month]


def test_months_have_the_seconds_that_clocks_have() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert seconds(span_of(Month(2026, 3), berlin)) == 31 * 86_400 - 3600
    assert seconds(span_of(Month(2026, 10), berlin)) == 31 * 86_400 + 3600
    assert seconds(span_of(Month(2026, 4), berlin)) == 30 * 86_400
    assert seconds(span_of(Month(2011, 12), ZoneInfo("Pacific/Apia"))) == 30 * 86_400


def test_a_skipped_midnight_is_the_instant_of_the_skip() -> None:
    sao_paulo = ZoneInfo("America/Sao_Paulo")
    assert midnight(date(2018, 11, 4), sao_paulo) == datetime(2018, 11, 4, 3, tzinfo=UTC)


def test_parts_of_a_month() -> None:
    zone = ZoneInfo("Europe/Berlin")
    span = span_of(Month(2026, 3), zone)
    assert held(date(2026, 1, 1), None, span, zone) == span
    assert held(date(2026, 3, 1), date(2026, 4, 1), span, zone) == span
    assert held(date(2026, 4, 1), None, span, zone) is None
    assert held(date(2026, 2, 1), date(2026, 3, 1), span, zone) is None
    part = held(date(2026, 3, 29), date(2026, 3, 30), span, zone)
    assert part is not None
    assert seconds(part) == 23 * 3600


@pytest.mark.parametrize(
    "text", ["2026-13", "2026-00", "2026-1", "26-11", "2026-11-01", "", "9999-12", "1999-12"]
)
def test_what_is_no_month(text: str) -> None:
    with pytest.raises(ValueError, match="no month"):
        parse_month(text)


def test_months_as_text() -> None:
    assert str(parse_month("2026-11")) == "2026-11"
    assert str(Month(2026, 12).next) == "2027-01"
    assert months_between(
        datetime(2026, 11, 30, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), ZoneInfo("UTC")
    ) == [Month(2026, 11), Month(2026, 12)]
    now = datetime(2026, 11, 30, tzinfo=UTC)
    assert months_between(now, now, ZoneInfo("UTC")) == []
