"""The id of a request that Python answers itself."""

import re
import uuid

Headers = list[tuple[bytes, bytes]]

NAME = b"x-request-id"
_KEPT = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def own_request_id(headers: Headers) -> Headers:
    """The headers with one ``x-request-id``: the client's if it may be kept, else our own.

    The errors made with them, the answer and the audit log then name the same.
    """
    asked = next((value for name, value in headers if name == NAME), b"")
    if _KEPT.fullmatch(asked) is None:
        asked = f"req_{uuid.uuid4().hex}".encode()
    return [*(pair for pair in headers if pair[0] != NAME), (NAME, asked)]


def request_id(headers: Headers) -> str:
    """The id in the headers of `own_request_id`."""
    return headers[-1][1].decode("ascii")
