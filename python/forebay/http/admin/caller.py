"""Who sends a request to the admin API, as the audit log has it."""

import re
import uuid

from starlette.requests import Request

from forebay.config import Listen
from forebay.store.actor import Actor
from forebay.store.key_format import MalformedKey, parse

Headers = list[tuple[bytes, bytes]]

_NAME = b"x-request-id"
_PEER = b"x-forebay-peer"
_KEPT = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def own_request_id(headers: Headers) -> Headers:
    """The headers with one ``x-request-id``: the client's if it may be kept, else our own.

    The errors made with them, the answer and the audit log then name the same.
    """
    asked = next((value for name, value in headers if name == _NAME), b"")
    if _KEPT.fullmatch(asked) is None:
        asked = f"req_{uuid.uuid4().hex}".encode()
    return [*(pair for pair in headers if pair[0] != _NAME), (_NAME, asked)]


def actor(request: Request, headers: Headers, listen: Listen) -> Actor:
    """The holder of the admin key that the core has let in.

    headers: those of `own_request_id`. listen: by which the request came.
    """
    ours = dict(reversed(headers))  # the first of a name counts, as for the core
    secret = ours.get(b"authorization", b"")[len("bearer ") :].strip()
    try:
        name = f"key:{parse(secret.decode('latin-1')).id}"
    except MalformedKey:
        name = "key:unknown"
    return Actor(name, ours[_NAME].decode("ascii"), _remote(request, ours, listen))


def _remote(request: Request, ours: dict[bytes, bytes], listen: Listen) -> str | None:
    """The address of the client; a proxy's where one is between."""
    if listen.server == "core":
        # The other end is the core's listener, which tells its own and lets no client do so.
        return ours.get(_PEER, b"").decode("latin-1") or None
    return None if request.client is None else request.client.host or None
