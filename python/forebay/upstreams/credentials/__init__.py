"""Credentials that change: where they come from, and who keeps them fresh."""

from forebay.upstreams.credentials.refresh import Refresher
from forebay.upstreams.credentials.source import (
    Credentials,
    CredentialSource,
    SourceError,
    StaticSource,
)

__all__ = ["CredentialSource", "Credentials", "Refresher", "SourceError", "StaticSource"]
