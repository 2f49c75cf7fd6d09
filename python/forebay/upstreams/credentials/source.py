"""What a source of credentials gives."""

from dataclasses import dataclass, field
from typing import Protocol

import orjson


class SourceError(Exception):
    """A source gave no credentials; the text says why, without a secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is handed to the core for one upstream.

    headers: sent with each request. access_key, secret_key, session_token: what requests are
        signed with.
    expires_at: when they stop working, seconds since 1970 (UTC); None: never, or it is not told.
    again_s: when to ask again where no end is told, seconds; None: never.
    """

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires_at: float | None = None
    again_s: float | None = None

    def document(self) -> bytes:
        """As JSON, in the form that the core takes."""
        if self.access_key is not None:
            return orjson.dumps(
                {
                    "access_key": self.access_key,
                    "secret_key": self.secret_key,
                    "session_token": self.session_token,
                }
            )
        return orjson.dumps({"headers": self.headers})


class CredentialSource(Protocol):
    """Something that can be asked for credentials, as often as they are needed anew."""

    def fetch(self) -> Credentials:
        """Get credentials, new ones where the last were about to expire. Blocks; any thread.

        Raises: SourceError.
        """
        ...


@dataclass(frozen=True, slots=True)
class StaticSource:
    """Credentials that are in the configuration and stay as they are."""

    credentials: Credentials = field(repr=False)

    def fetch(self) -> Credentials:
        """Always the same."""
        return self.credentials
