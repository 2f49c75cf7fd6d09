"""Checks of single values that a type cannot express, and how addresses are shown."""

import base64
import binascii
import re
from decimal import Context, Decimal, InvalidOperation
from urllib.parse import SplitResult, urlsplit, urlunsplit

from forebay.config.schema.base import MASK
from forebay.config.schema.service import Address


def mask_url(url: str) -> str:
    """The URL with its password replaced by ``***``, in the authority and in the query."""
    parts = urlsplit(url)
    netloc = parts.netloc
    user_info, at, host = netloc.rpartition("@")
    user, colon, password = user_info.partition(":")
    if at and colon and password:
        netloc = f"{user}:{MASK}@{host}"
    query = re.sub(r"(^|&)((?:ssl)?password)=[^&]*", rf"\1\2={MASK}", parts.query)
    return urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT``, ``[IPv6]:PORT`` or ``:PORT`` (every interface).

    Raises: ValueError, with a reason fit for the user.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise ValueError(f"expected HOST:PORT, got {text!r}")
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65_535:
        raise ValueError(f"port must be 0 to 65535, got {port_text!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address needs brackets: [{host}]:{port_text}")
    if any(c.isspace() or c in "/@[]" for c in host):
        raise ValueError(f"bad host {host!r}")
    return Address(host or "0.0.0.0", int(port_text))


def normal_url(text: str, key: str = "api_key") -> str:
    """Check an upstream's address and take off a trailing ``/`` and ``/v1``.

    key: the field that credentials belong into.

    Raises: ValueError, with a reason that does not repeat credentials.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"bad URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("URL must start with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError(f"URL must not carry credentials; use {key}")
    if not parts.hostname or any(c.isspace() or c == "\\" for c in text):
        raise ValueError("URL has no valid host")
    if port == 0:
        raise ValueError("URL has port 0")
    if parts.query or parts.fragment:
        raise ValueError("URL must not have a query or fragment")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


_MICRO = Decimal("0.000001")
_MAX_PRICE = Decimal(1_000_000)


def check_price(price: Decimal) -> None:
    """Accept 0 to 1,000,000 with at most six decimal places.

    Raises: ValueError, with a reason fit for the user.
    """
    if not (price.is_finite() and 0 <= price <= _MAX_PRICE):
        raise ValueError("must be 0 to 1000000 dollars for a million tokens")
    try:
        exact = price.quantize(_MICRO, context=Context(prec=20)) == price
    except InvalidOperation:
        exact = False
    if not exact:
        raise ValueError("must not have more than 6 decimal places")


_NANO = Decimal("0.000000001")


def check_cost(cost: Decimal) -> None:
    """Accept 0 to 1,000,000 US dollars with at most nine decimal places.

    Raises: ValueError, with a reason fit for the user.
    """
    if not (cost.is_finite() and 0 <= cost <= _MAX_PRICE):
        raise ValueError("must be 0 to 1000000 dollars")
    try:
        exact = cost.quantize(_NANO, context=Context(prec=20)) == cost
    except InvalidOperation:
        exact = False
    if not exact:
        raise ValueError("must not have more than 9 decimal places")


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that say how a request is sent, which is not for the configuration to say."""


def check_header(name: str, value: str) -> None:
    """Accept a header that may be sent with every request.

    Raises: ValueError, with a reason that does not repeat the value.
    """
    if not _TOKEN.fullmatch(name):
        raise ValueError("no valid header name")
    if name.lower() in _OURS:
        raise ValueError("the gateway sets this header itself")
    if not value or not all(" " <= c <= "~" for c in value) or value != value.strip():
        raise ValueError("the value must be printable ASCII without spaces around it")


LOG_KEY_BYTES = 32


def decode_log_key(text: str) -> bytes:
    """The bytes of one of ``prompt_logs.keys``.

    Raises: ValueError, with a reason that does not repeat the key.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be base64") from None
    if len(key) != LOG_KEY_BYTES:
        raise ValueError(f"must be base64 of {LOG_KEY_BYTES} bytes, has {len(key)}")
    return key


REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster")


def check_redis_url(text: str) -> None:
    """Accept ``redis://`` and ``rediss://`` (TLS), each with ``+cluster`` for a Redis Cluster.

    Raises: ValueError, with a reason that does not repeat credentials.
    """
    _check_host(text, REDIS_SCHEMES, ", ".join(f"{scheme}://" for scheme in REDIS_SCHEMES))


def check_otlp_endpoint(text: str) -> None:
    """Accept ``http://`` and ``https://`` addresses.

    Raises: ValueError, with a reason that does not repeat credentials.
    """
    _check_host(text, ("http", "https"), "http:// or https://")


def _check_host(text: str, schemes: tuple[str, ...], told: str) -> None:
    """Accept an address with a host and one of `schemes`; `told` is how these are named."""
    parts = _parts(text)
    if parts.scheme not in schemes:
        raise ValueError(f"must start with {told}")
    if not parts.hostname or any(c.isspace() for c in text):
        raise ValueError("URL has no valid host")


def _parts(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        # A port that is none is found only when it is looked at.
        _ = parts.port
    except ValueError:
        raise ValueError("bad URL") from None
    return parts


def check_database_url(text: str) -> None:
    """Accept ``postgresql://`` and ``postgres://`` addresses.

    Raises: ValueError, with a reason that does not repeat credentials.
    """
    parts = _parts(text)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("must start with postgresql://")
    if any(c.isspace() for c in text):
        raise ValueError("must not contain spaces")
