"""Who sends a request to the admin API, as the audit log has it."""

from starlette.requests import Request

from forebay.config import Listen
from forebay.gateway.request_id import Headers, request_id
from forebay.store.actor import Actor
from forebay.store.key_format import MalformedKey, parse

_PEER = b"x-forebay-peer"


def holder(headers: Headers) -> str:
    """The admin key in the headers, as the audit log names it: the one that the core looked at."""
    ours = dict(reversed(headers))  # the first of a name counts, as for the core
    scheme, secret = ours.get(b"authorization", b"")[:7], ours.get(b"authorization", b"")[7:]
    if scheme.lower() != b"bearer ":
        # A header of any other scheme is none, whatever it says.
        secret = ours.get(b"x-api-key", b"")
    try:
        return f"key:{parse(secret.strip().decode('latin-1')).id}"
    except MalformedKey:
        return "key:unknown"


def actor(request: Request, headers: Headers, listen: Listen) -> Actor:
    """The holder of the admin key that the core has let in.

    headers: those of `own_request_id`. listen: by which the request came.
    """
    return Actor(holder(headers), request_id(headers), _remote(request, headers, listen))


def _remote(request: Request, headers: Headers, listen: Listen) -> str | None:
    """The address of the client; a proxy's where one is between."""
    if listen.server == "core":
        # The other end is the core's listener, which tells its own and lets no client do so.
        return dict(reversed(headers)).get(_PEER, b"").decode("latin-1") or None
    return None if request.client is None else request.client.host or None
