"""Vertex AI: https://cloud.google.com/vertex-ai. ``https://LOCATION-aiplatform.googleapis.com``,
for ``location: global`` without the prefix.

``api: openai`` (the default) is ``…/endpoints/openapi/chat/completions``: one path for Google's
models (``google/gemini-…``) and for those of partners (``meta/…``, ``deepseek-ai/…``), whose
answers pass through unchanged; thought signatures are in ``extra_content`` there. ``api: native``
is ``generateContent`` of ``publishers/google/models/MODEL``: Google's models only, with usage that
Google documents for streams.

An access token is sent as bearer. It comes from ``credentials.file`` (a service account's key, or
the configuration of workload identity federation) or from what google-auth finds by itself
(``GOOGLE_APPLICATION_CREDENTIALS``, gcloud, the metadata server), and lives for an hour.

Errors as the Gemini API's. On the compatible API usage is asked for with ``include_usage``, and an
error in a stream may have Gemini's form. Image ``detail`` and recursive schemas are not supported
there.

A client that leaves does not stop the answer, which is billed: it is read to its end. Nothing at
these addresses can be asked for nothing: requests tell how it is.

Sources: cloud.google.com "Call Vertex AI models by using the OpenAI library";
googleapis/python-genai; googleapis/google-auth-library-python; openrouter.ai/docs "Stream
cancellation".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forebay.upstreams.credentials.google import GoogleSource
from forebay.upstreams.gemini import GOOGLE_ERRORS
from forebay.upstreams.kind import Dialect, Kind, Paths

if TYPE_CHECKING:
    from forebay.config.schema import Upstream
    from forebay.upstreams.credentials import CredentialSource


class Vertex(Kind):
    """Project and location are in the address; the token changes."""

    __slots__ = ()

    def address(self, upstream: Upstream) -> str:
        """The location's."""
        if upstream.url is not None:
            return upstream.url
        region = "" if upstream.location == "global" else f"{upstream.location}-"
        return f"https://{region}aiplatform.googleapis.com"

    def dialect_for(self, upstream: Upstream) -> Dialect:
        """As ``api`` says."""
        return "gemini" if upstream.api == "native" else self.dialect

    def paths(self, upstream: Upstream) -> Paths:
        """Below project and location."""
        below = f"/v1/projects/{upstream.project}/locations/{upstream.location}"
        if upstream.api == "native":
            model = f"{below}/publishers/google/models/{{model}}"
            return Paths(
                chat=f"{model}:generateContent",
                chat_stream=f"{model}:streamGenerateContent?alt=sse",
                completions=None,
                embeddings=None,
            )
        return Paths(
            chat=f"{below}/endpoints/openapi/chat/completions", completions=None, embeddings=None
        )

    def credentials(self, upstream: Upstream) -> CredentialSource:
        """Access tokens."""
        return GoogleSource(None if upstream.credentials is None else upstream.credentials.file)


KIND = Vertex(name="vertex", bearer=False, drains=True, errors=GOOGLE_ERRORS)
