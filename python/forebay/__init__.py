"""Forebay, a gateway for LLM inference: authenticates, limits, routes, relays and meters."""

__version__ = "0.1.0"
