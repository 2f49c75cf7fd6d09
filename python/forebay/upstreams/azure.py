"""Azure OpenAI: https://learn.microsoft.com/azure. ``https://RESOURCE.openai.azure.com``.

- v1 (the default): ``/openai/v1/…``, ``model`` is the deployment's name; ``api_version`` is sent
  only if it is set (``preview``).
- Classic (``deployments: true``): ``/openai/deployments/DEPLOYMENT/…?api-version=DATE``.

``api_key`` is sent as ``api-key``. Without one, Microsoft Entra's tokens are sent as bearer: of an
application (``tenant_id``, ``client_id``, ``client_secret``), or of what azure-identity finds by
itself (environment, workload identity, managed identity, ``az login``; ``client_id`` chooses one).

Errors are OpenAI's. The filter of prompts is a 400 with ``code: content_filter``, that of answers a
finish reason; a stream may begin with a chunk without choices, and filter results come late. 404
``DeploymentNotFound``. ``retry-after-ms`` says how long to wait.

Realtime sessions are WebSockets at ``/openai/v1/realtime?model=DEPLOYMENT``; in the classic form at
``/openai/realtime?deployment=DEPLOYMENT&api-version=DATE``.

Usage with ``include_usage``. Closing the connection stops a stream, per OpenRouter's list.

Sources: MicrosoftDocs/azure-ai-docs api-version-lifecycle; openai/openai-python lib/azure.py;
learn.microsoft.com content streaming, quota; Azure/azure-sdk-for-python azure-identity.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from forebay.upstreams.credentials.azure import AzureSource
from forebay.upstreams.kind import Endpoint, Kind, Paths, Probe

if TYPE_CHECKING:
    from forebay.config.schema import Upstream
    from forebay.upstreams.credentials import CredentialSource

V1_SCOPE = "https://ai.azure.com/.default"
CLASSIC_SCOPE = "https://cognitiveservices.azure.com/.default"


_OF_MODEL: tuple[Endpoint, ...] = (
    "images",
    "image_edits",
    "speech",
    "transcriptions",
    "translations",
)


class Azure(Kind):
    """Two forms of address, two of credentials."""

    __slots__ = ()

    def address(self, upstream: Upstream) -> str:
        """The resource's; ``/openai`` at its end is left out, as all paths have it."""
        return super().address(upstream).removesuffix("/openai")

    def paths(self, upstream: Upstream) -> Paths:
        """With the deployment in the path, or not."""
        below = "/openai/deployments/{model}" if upstream.deployments else "/openai/v1"
        version = self._version(upstream)
        paths = Paths(
            chat=f"{below}/chat/completions{version}",
            completions=f"{below}/completions{version}",
            embeddings=f"{below}/embeddings{version}",
            responses=None if upstream.deployments else f"{below}/responses{version}",
            realtime=self._realtime(upstream),
        ).having(*_OF_MODEL, below=below, query=version)
        return paths.having("files", "batches", below="/openai/v1", query=version)

    def headers(self, upstream: Upstream) -> list[tuple[str, str]]:
        """The key, if there is one."""
        return [] if upstream.api_key is None else [("api-key", upstream.api_key)]

    def credentials(self, upstream: Upstream) -> CredentialSource | None:
        """Tokens of Microsoft Entra, where there is no key."""
        if upstream.api_key is not None:
            return None
        scope = CLASSIC_SCOPE if upstream.deployments else V1_SCOPE
        login = upstream.credentials
        if login is None:
            return AzureSource(scope)
        return AzureSource(
            scope,
            tenant_id=login.tenant_id,
            client_id=login.client_id,
            client_secret=login.client_secret,
            authority=login.authority,
        )

    def probe_for(self, upstream: Upstream) -> Probe | None:
        """The models that the resource may deploy: it needs the key, and costs nothing."""
        below = "/openai" if upstream.deployments else "/openai/v1"
        path = f"{below}/models{self._version(upstream)}"
        probe = self.probe
        return self._as_set(None if probe is None else replace(probe, ready=path), upstream)

    @classmethod
    def _realtime(cls, upstream: Upstream) -> str:
        """Sessions: the classic form has the deployment in the query."""
        version = cls._version(upstream).replace("?", "&")
        if upstream.deployments:
            return f"/openai/realtime?deployment={{model}}{version}"
        return f"/openai/v1/realtime?model={{model}}{version}"

    @staticmethod
    def _version(upstream: Upstream) -> str:
        return "" if upstream.api_version is None else f"?api-version={upstream.api_version}"


KIND = Azure(
    name="azure",
    bearer=False,
    responses=True,
    probe=Probe(ready="/openai/v1/models", interval_s=30.0, timeout_s=10.0),
)
