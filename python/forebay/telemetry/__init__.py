"""Logs: structlog set up once, for our own lines and for those of the libraries below."""

from forebay.telemetry.logs import setup_logging

__all__ = ["setup_logging"]
