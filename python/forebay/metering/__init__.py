"""Metering: finished requests become rows, and rows become reports."""

from forebay.metering.report import GROUPS, UsageRow, usage

__all__ = ["GROUPS", "UsageRow", "usage"]
