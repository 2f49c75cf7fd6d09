"""Baseten: https://docs.baseten.co.

Two things under one key (``Authorization: Api-Key KEY``):

- Model APIs, ``https://inference.baseten.co``: shared, always warm. Taken when there is no ``url``.
- A deployment of your own, ``https://model-ID.api.baseten.co/environments/production/sync`` (also
  ``/production/sync``, ``/development/sync``, ``/deployment/ID/sync``; ``/sync`` is added where it
  is missing). It runs your engine's ``/v1``; ``model`` is a placeholder there.

A deployment that was scaled to zero parks requests until it is up (sync limit 1,200 s), and ``POST
…/wake`` beside ``/sync`` starts it early. Only a development deployment at zero refuses, with a
404. A look at its models counts as a request, so it is asked only while requests want it, and is
taken to have stopped after 15 min without any (the default scale-down delay).

A refused key is a 401 before anything is started. Errors, usage and streams are the engine's; those
of the Model APIs are OpenAI's. Whether a hang-up stops a request is not documented, so it is
closed.

Sources: docs.baseten.co: inference/calling-your-model, deployment/autoscaling, "Request lifecycle";
basetenlabs/baseten-skills inference-api.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from forebay.upstreams.kind import ErrorRule, Kind, Paths, Probe, Wake

if TYPE_CHECKING:
    from forebay.config.schema import Upstream

_ASLEEP = ErrorRule(404, "unavailable", retry=True, reason="loading")


class Baseten(Kind):
    """Addresses below a deployment, and its wake call beside them."""

    __slots__ = ()

    def address(self, upstream: Upstream) -> str:
        """Without the deployment, which `paths` and `own_wake` have."""
        url = super().address(upstream)
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc}"

    def paths(self, upstream: Upstream) -> Paths:
        """Below the deployment's ``/sync``."""
        below = self._deployment(upstream)
        if below is None:
            return Paths(completions=None, embeddings=None)
        return Paths(
            chat=f"{below}/sync/v1/chat/completions",
            completions=f"{below}/sync/v1/completions",
            embeddings=f"{below}/sync/v1/embeddings",
        )

    def headers(self, upstream: Upstream) -> list[tuple[str, str]]:
        """The key, by Baseten's own scheme."""
        if upstream.api_key is None:
            return []
        return [("authorization", f"Api-Key {upstream.api_key}")]

    def errors_for(self, upstream: Upstream) -> tuple[ErrorRule, ...]:
        """A development deployment that sleeps is not there."""
        if self._deployment(upstream) == "/development":
            return (_ASLEEP, *self.errors)
        return self.errors

    def probe_for(self, upstream: Upstream) -> Probe | None:
        """The Model APIs cost nothing to ask; a deployment wakes."""
        below = self._deployment(upstream)
        if below is None:
            return self._as_set(self.probe, upstream)
        path = f"{below}/sync/v1/models"
        return self._as_set(Probe(ready=path, models=path, wakes=True, timeout_s=30.0), upstream)

    def own_wake(self, upstream: Upstream) -> Wake | None:
        """Of a deployment."""
        below = self._deployment(upstream)
        return None if below is None else Wake("POST", f"{below}/wake")

    def can_be_cold(self, upstream: Upstream) -> bool:
        """A deployment; the Model APIs are always warm."""
        return self._deployment(upstream) is not None

    def _deployment(self, upstream: Upstream) -> str | None:
        """The path of a deployment, without ``/sync``; None for the Model APIs."""
        path = urlsplit(super().address(upstream)).path
        return path.removesuffix("/sync").rstrip("/") or None


KIND = Baseten(
    name="baseten",
    default_url="https://inference.baseten.co",
    bearer=False,
    any_model=True,
    cold=True,
    idle_s=900.0,
    probe=Probe(ready="/v1/models", models="/v1/models", interval_s=30.0, timeout_s=10.0),
)
