"""Anthropic: https://platform.claude.com/docs. ``https://api.anthropic.com``, Messages.

``x-api-key`` and ``anthropic-version`` (2023-06-01 unless ``api_version`` says otherwise); betas go
into ``headers`` as ``anthropic-beta``. Chat is turned into ``POST /v1/messages`` and back; there
are no completions and no embeddings. ``max_tokens`` is required there: ``max_output_tokens`` stands
in. ``POST /v1/messages/count_tokens`` takes the same body and is free.

Errors are ``{"type": "error", "error": {type, message}, "request_id"}``: 402 billing, 409 conflict,
413 over 32 MB, 429 rate, 529 overloaded. An empty balance is a 400. In a stream: ``event: error``;
a good one ends with ``message_stop``. Waits: ``retry-after``, ``anthropic-ratelimit-*-reset`` (RFC
3339).

Usage comes always: input with ``message_start``, output with ``message_delta``. Closing the
connection stops a stream.

Sources: platform.claude.com: api/errors, api/messages; anthropics/anthropic-sdk-python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forebay.upstreams.kind import ErrorRule, Kind, Paths, Probe

if TYPE_CHECKING:
    from forebay.config.schema import Upstream

VERSION = "2023-06-01"


class Anthropic(Kind):
    """The key and the version are headers of their own."""

    __slots__ = ()

    def headers(self, upstream: Upstream) -> list[tuple[str, str]]:
        """Version and key."""
        headers = [("anthropic-version", upstream.api_version or VERSION)]
        if upstream.api_key is not None:
            headers.append(("x-api-key", upstream.api_key))
        return headers


KIND = Anthropic(
    name="anthropic",
    dialect="anthropic",
    default_url="https://api.anthropic.com",
    bearer=False,
    default_paths=Paths(
        chat="/v1/messages",
        completions=None,
        embeddings=None,
        count_tokens="/v1/messages/count_tokens",
    ),
    errors=(ErrorRule(409, "upstream_error", retry=True),),
    probe=Probe(
        ready="/v1/models", models="/v1/models?limit=1000", interval_s=30.0, timeout_s=10.0
    ),
)
