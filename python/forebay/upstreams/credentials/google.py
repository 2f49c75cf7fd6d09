"""Google access tokens by google-auth: a file of credentials, or what the surroundings have."""

import calendar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from forebay.upstreams.credentials.source import Credentials, SourceError

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TIMEOUT_S = 10.0
"""Longest wait for the token server in one attempt."""


@dataclass(slots=True)
class GoogleSource:
    """google-auth's credentials, of a file or of the surroundings.

    file: a service account's key, workload identity federation (``external_account``), or gcloud's
        own (``authorized_user``); None leaves it to ``GOOGLE_APPLICATION_CREDENTIALS``, gcloud, or
        the metadata server.
    Source: googleapis/google-auth-library-python, google/auth/_default.py.
    """

    file: str | None
    _found: Any = field(default=None, repr=False)

    def fetch(self) -> Credentials:
        """A new token. Raises: SourceError."""
        try:
            import google.auth
            import google.auth.transport.requests
            from google.auth.exceptions import GoogleAuthError
        except ImportError:
            raise SourceError(
                "google-auth is not installed: pip install 'forebay[vertex]'"
            ) from None
        try:
            if self._found is None:
                self._found = self._load()
            request = google.auth.transport.requests.Request()
            self._found.refresh(partial(request, timeout=TIMEOUT_S))
        except (GoogleAuthError, OSError, ValueError) as error:
            # Of the token server's answer the first line says what is wrong; the rest is its body.
            reason = str(error.args[0] if error.args else error).splitlines()[0][:200]
            raise SourceError(f"no Google token: {reason}") from None
        expiry = self._found.expiry
        return Credentials(
            headers=(("authorization", f"Bearer {self._found.token}"),),
            expires_at=None if expiry is None else float(calendar.timegm(expiry.utctimetuple())),
            again_s=1800.0,
        )

    def _load(self) -> Any:
        import google.auth

        if self.file is None:
            return google.auth.default(scopes=[SCOPE])[0]
        info: Any = orjson.loads(Path(self.file).read_bytes())
        # By type, as google-auth asks for: a file of another type could name any address.
        match info.get("type") if isinstance(info, dict) else None:
            case "service_account":
                from google.oauth2 import service_account

                load: Any = service_account.Credentials.from_service_account_info
            case "external_account":
                from google.auth import identity_pool

                load = identity_pool.Credentials.from_info
            case "authorized_user":
                from google.oauth2 import credentials

                load = credentials.Credentials.from_authorized_user_info
            case other:
                raise ValueError(
                    f"the file's type is {other!r}, not service_account, external_account or "
                    "authorized_user"
                )
        return load(info, scopes=[SCOPE])
