"""Gemini API: https://ai.google.dev. ``https://generativelanguage.googleapis.com/v1beta``.

``api: native`` (the default) speaks ``models/MODEL:generateContent`` and
``:streamGenerateContent?alt=sse`` with ``x-goog-api-key``: usage always comes, and thought
signatures are kept. ``api: openai`` speaks the compatible ``/v1beta/openai/`` with the key as
bearer, which has embeddings besides.

Errors are ``{"error": {code, message, status, details}}``: 400 also for a bad key or an address
that is not served (``FAILED_PRECONDITION``), 429 ``RESOURCE_EXHAUSTED`` for a rate as for a day's
quota, which no wait cures. The wait is in the body (``RetryInfo.retryDelay``), not in a header. In
a stream an error may come as JSON without ``data:``. A native stream ends with a finish reason,
without ``[DONE]``.

A client that leaves does not stop the answer, which is billed: it is read to its end.

Sources: ai.google.dev: api/generate-content, openai, troubleshooting; googleapis/python-genai;
openrouter.ai/docs "Stream cancellation".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from forebay.upstreams.kind import Dialect, ErrorRule, Kind, Paths, Probe

if TYPE_CHECKING:
    from forebay.config.schema import Upstream

GOOGLE_ERRORS = (
    ErrorRule(400, "upstream_error", contains='"api_key_invalid"', retry=True),
    ErrorRule(400, "upstream_error", contains="api key not valid", retry=True),
    ErrorRule(400, "upstream_error", code="FAILED_PRECONDITION", retry=True),
    ErrorRule(499, "upstream_error", retry=True),
)
"""What Google's statuses mean; Vertex AI answers with the same."""

_NATIVE = Paths(
    chat="/v1beta/models/{model}:generateContent",
    chat_stream="/v1beta/models/{model}:streamGenerateContent?alt=sse",
    completions=None,
    embeddings=None,
)
_OPENAI = Paths(
    chat="/v1beta/openai/chat/completions",
    completions=None,
    embeddings="/v1beta/openai/embeddings",
)


class Gemini(Kind):
    """Two APIs with one key."""

    __slots__ = ()

    def dialect_for(self, upstream: Upstream) -> Dialect:
        """As ``api`` says."""
        return "open_ai" if upstream.api == "openai" else self.dialect

    def paths(self, upstream: Upstream) -> Paths:
        """Of the API that is used."""
        return _OPENAI if upstream.api == "openai" else self.default_paths

    def bearer_token(self, upstream: Upstream) -> str | None:
        """The compatible API takes the key so."""
        return upstream.api_key if upstream.api == "openai" else None

    def headers(self, upstream: Upstream) -> list[tuple[str, str]]:
        """The native API takes the key so."""
        if upstream.api == "openai" or upstream.api_key is None:
            return []
        return [("x-goog-api-key", upstream.api_key)]

    def probe_for(self, upstream: Upstream) -> Probe | None:
        """The models of the API that is used."""
        probe = self.probe
        if probe is not None and upstream.api == "openai":
            path = "/v1beta/openai/models"
            probe = replace(probe, ready=path, models=path)
        return self._as_set(probe, upstream)


KIND = Gemini(
    name="gemini",
    dialect="gemini",
    default_url="https://generativelanguage.googleapis.com",
    bearer=False,
    drains=True,
    default_paths=_NATIVE,
    errors=GOOGLE_ERRORS,
    probe=Probe(
        ready="/v1beta/models?pageSize=1",
        models="/v1beta/models?pageSize=1000",
        interval_s=30.0,
        timeout_s=10.0,
    ),
)
