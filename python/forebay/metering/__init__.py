"""Metering: finished requests become rows, and rows become reports."""

from forebay.metering.report import GROUPS, UsageRow, usage
from forebay.metering.writer import COLUMNS, UsageWriter

__all__ = ["COLUMNS", "GROUPS", "UsageRow", "UsageWriter", "usage"]
