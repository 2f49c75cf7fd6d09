"""Kubernetes, where KEDA is not wanted: PATCH of a resource's scale subresource.

API: autoscaling/v1 Scale, https://kubernetes.io/docs/reference/kubernetes-api/. The pod's service
    account
needs the verb `patch` on `deployments/scale`.
"""

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from forebay_engine.autoscale.config import K8s
from forebay_engine.autoscale.drivers import DriverError
from forebay_engine.autoscale.drivers.http import send

if TYPE_CHECKING:
    import httpx

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class K8sDriver:
    """The API server is that of the pod, unless the settings name another."""

    def __init__(self, settings: K8s, http: "httpx.AsyncClient", account: Path = ACCOUNT) -> None:
        self._settings = settings
        self._http = http
        self._account = account
        self._own: httpx.AsyncClient | None = None

    async def scale(self, model: str, desired: int, current: int | None) -> None:
        """Set `spec.replicas`. Raises: DriverError."""
        settings = self._settings
        group = "api/v1" if settings.group == "v1" else f"apis/{settings.group}"
        namespace = settings.namespace or self._said("namespace")
        # Tokens of pods are renewed in place, so each call reads it.
        token = settings.token or self._said("token")
        of = f"namespaces/{namespace}/{settings.resource}/{settings.name}"
        url = f"{self._url()}/{group}/{of}/scale"
        headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/merge-patch+json",
            "accept": "application/json",
        }
        await send(self._client(), "PATCH", url, {"spec": {"replicas": desired}}, headers)

    def _url(self) -> str:
        if self._settings.url is not None:
            return self._settings.url.rstrip("/")
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        if not host:
            raise DriverError("k8s: not in a pod, and url is not given", transient=False)
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    def _client(self) -> "httpx.AsyncClient":
        """The API server's certificate is signed by the cluster's own authority."""
        ca = self._settings.ca or str(self._account / "ca.crt")
        if not self._url().startswith("https") or not Path(ca).exists():
            return self._http
        if self._own is None:
            import httpx

            context = ssl.create_default_context(cafile=ca)
            self._own = httpx.AsyncClient(verify=context, timeout=self._http.timeout)
        return self._own

    def _said(self, name: str) -> str:
        try:
            return (self._account / name).read_text().strip()
        except OSError:
            raise DriverError(
                f"k8s: {name} is not given, and no service account has it", transient=False
            ) from None
