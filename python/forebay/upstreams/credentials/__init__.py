"""Credentials that change: where they come from, and who keeps them fresh."""

from forebay.upstreams.credentials.source import Credentials, CredentialSource, SourceError

__all__ = ["CredentialSource", "Credentials", "SourceError"]
