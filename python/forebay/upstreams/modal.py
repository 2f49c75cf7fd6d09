"""Modal: https://modal.com/docs/guide/webhooks. An app of your own behind Modal's proxy.

Address ``https://WORKSPACE--LABEL.modal.run``; what is served there is the app's, usually vLLM or
SGLang. The proxy's credentials are ``Modal-Key`` (``wk-…``) and ``Modal-Secret`` (``ws-…``), where
the app wants them; ``api_key`` is the app's own bearer key.

A request waits for a container to start. After 150 s the answer is a 303 to an address that blocks
until the answer is there (the same origin, a GET, about 20 hops), and never runs the call again;
its body may be readable only once. The proxy refuses in plain text with a 401. Every request, a
look at its health too, starts a container or keeps one from stopping: so it is asked how it is only
while requests want it, and is taken to have stopped when none came for a while
(``scaledown_window``, at most 20 min).

A client that leaves does not stop the call, which is billed by the second: it is read to its end.
Errors, usage and end of a stream are the app's.

Sources: modal.com/docs/guide/webhook-urls, webhook-proxy-auth, webhook-timeouts, cold-start;
openrouter.ai/docs "Stream cancellation" for the hang-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forebay.upstreams.kind import Kind, Paths, Probe, Wake

if TYPE_CHECKING:
    from forebay.config.schema import Upstream


class Modal(Kind):
    """Modal's proxy tokens are two headers."""

    __slots__ = ()

    def headers(self, upstream: Upstream) -> list[tuple[str, str]]:
        """The proxy's token, in two parts."""
        login = upstream.credentials
        if login is None or login.key is None or login.secret is None:
            return []
        return [("modal-key", login.key), ("modal-secret", login.secret)]


KIND = Modal(
    name="modal",
    redirects=True,
    drains=True,
    cold=True,
    idle_s=300.0,
    default_paths=Paths().having("rerank", "score", "transcriptions", "translations"),
    probe=Probe(ready="/v1/models", models="/v1/models", wakes=True, timeout_s=150.0),
    wake=Wake("GET", "/v1/models"),
)
