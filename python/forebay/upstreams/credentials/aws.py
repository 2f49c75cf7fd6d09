"""AWS credentials by botocore's chain: environment, files, web identity, container, instance."""

from dataclasses import dataclass, field
from typing import Any

from forebay.upstreams.credentials.source import Credentials, SourceError

AGAIN_S = 300.0
"""botocore renews by itself 15 minutes before the end, when asked: so it is asked more often."""


@dataclass(slots=True)
class AwsSource:
    """botocore's chain, for a profile or for none.

    region: where a role is taken on, if the surroundings do not say.
    Source: botocore/credentials.py (`RefreshableCredentials`).
    """

    profile: str | None
    region: str | None = None
    _found: Any = field(default=None, repr=False)

    def fetch(self) -> Credentials:
        """What the chain has now. Raises: SourceError."""
        try:
            from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
            from botocore.session import Session  # type: ignore[import-untyped]
        except ImportError:
            raise SourceError("botocore is not installed: pip install 'forebay[bedrock]'") from None
        try:
            if self._found is None:
                session = Session(profile=self.profile)
                if session.get_config_variable("region") is None:
                    session.set_config_variable("region", self.region)
                self._found = session.get_credentials()
            if self._found is None:
                raise SourceError("no AWS credentials: none of botocore's sources has any")
            now = self._found.get_frozen_credentials()
        except BotoCoreError as error:
            raise SourceError(f"no AWS credentials: {error}") from None
        return Credentials(
            access_key=now.access_key,
            secret_key=now.secret_key,
            session_token=now.token,
            again_s=AGAIN_S,
        )
