"""Microsoft Entra's tokens by azure-identity: of an application, or of the surroundings."""

from dataclasses import dataclass, field
from typing import Any

from forebay.upstreams.credentials.source import Credentials, SourceError


@dataclass(slots=True)
class AzureSource:
    """azure-identity's credentials.

    scope: what the token is for. With `client_secret`: an application's. Else what azure-identity
        finds by itself, `client_id` choosing among managed identities.
    authority: the login server, where that is not the public cloud's.
    Source: Azure/azure-sdk-for-python, sdk/identity/azure-identity.
    """

    scope: str
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    authority: str | None = None
    _found: Any = field(default=None, repr=False)

    def fetch(self) -> Credentials:
        """A token; azure-identity keeps one until shortly before its end. Raises: SourceError."""
        try:
            from azure.core.exceptions import AzureError
        except ImportError:
            raise SourceError(
                "azure-identity is not installed: pip install 'forebay[azure]'"
            ) from None
        try:
            if self._found is None:
                self._found = self._load()
            token = self._found.get_token(self.scope)
        except (AzureError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise SourceError(f"no Entra token: {reason}") from None
        return Credentials(
            headers=(("authorization", f"Bearer {token.token}"),),
            expires_at=float(token.expires_on),
        )

    def _load(self) -> Any:
        from azure.identity import ClientSecretCredential, DefaultAzureCredential

        where: dict[str, Any] = {}
        if self.authority is not None:
            # A login server of one's own is none that the public directory knows.
            where = {"authority": self.authority, "disable_instance_discovery": True}
        if self.tenant_id and self.client_id and self.client_secret:
            return ClientSecretCredential(
                self.tenant_id, self.client_id, self.client_secret, **where
            )
        if self.client_id is not None:
            where["managed_identity_client_id"] = self.client_id
        return DefaultAzureCredential(**where)
