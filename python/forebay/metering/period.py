"""Months of a time zone, as half-open spans of instants."""

import re
from datetime import UTC, date, datetime, timedelta
from functools import total_ordering
from typing import NamedTuple
from zoneinfo import ZoneInfo

from forebay.store.terms import FIRST_YEAR, LAST_YEAR

_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


@total_ordering
class Month(NamedTuple):
    """A month of a calendar; as text YYYY-MM."""

    year: int
    month: int

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}"

    @property
    def first(self) -> date:
        """Its first day."""
        return date(self.year, self.month, 1)

    @property
    def next(self) -> "Month":
        """The month after it."""
        return Month(self.year + 1, 1) if self.month == 12 else Month(self.year, self.month + 1)

    @property
    def before(self) -> "Month":
        """The month before it."""
        return Month(self.year - 1, 12) if self.month == 1 else Month(self.year, self.month - 1)


class Span(NamedTuple):
    """From `start` to before `stop`, both UTC."""

    start: datetime
    stop: datetime


def parse_month(text: str) -> Month:
    """Read YYYY-MM, of the year 2000 to 9998.

    Raises: ValueError.
    """
    match = _MONTH.fullmatch(text)
    if match is None or not FIRST_YEAR <= int(match[1]) <= LAST_YEAR:
        raise ValueError(f"{text!r} is no month such as 2026-11")
    return Month(int(match[1]), int(match[2]))


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The instant, UTC, at which a day begins.

    Where clocks skip midnight, that is the instant of the skip.
    """
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def span_of(month: Month, zone: ZoneInfo) -> Span:
    """The month's first instant and the next one's."""
    return Span(midnight(month.first, zone), midnight(month.next.first, zone))


def month_of(instant: datetime, zone: ZoneInfo) -> Month:
    """The month in which an instant lies."""
    local = instant.astimezone(zone)
    return Month(local.year, local.month)


def months_between(since: datetime, until: datetime, zone: ZoneInfo) -> list[Month]:
    """The months that have an instant from `since` to before `until`."""
    if until <= since:
        return []
    months = [month_of(since, zone)]
    last = month_of(until - timedelta(microseconds=1), zone)
    while months[-1] < last:
        months.append(months[-1].next)
    return months


def held(starts: date, ends: date | None, span: Span, zone: ZoneInfo) -> Span | None:
    """The part of a span on days from `starts` to before `ends`; None without any."""
    start = max(span.start, midnight(starts, zone))
    stop = span.stop if ends is None else min(span.stop, midnight(ends, zone))
    return Span(start, stop) if start < stop else None


def seconds(span: Span) -> int:
    """How long a span is, whole seconds: midnights lie on them."""
    return int((span.stop - span.start).total_seconds())
