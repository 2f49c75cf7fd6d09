"""What only a running gateway knows, asked of its admin API: limits as they stand, upstreams."""

import os
from typing import Annotated, Any

import typer

from forebay.cli.common import print_table
from forebay.store.errors import StoreError

_TIMEOUT_S = 10.0

UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", envvar="FOREBAY_URL", help="A running gateway to ask."),
]


class GatewayError(StoreError):
    """The gateway cannot be asked."""


def live_limits(url: str, key_id: str) -> list[dict[str, Any]]:
    """The answer of ``GET /admin/v1/keys/{id}/limits``.

    Raises: GatewayError.
    """
    from urllib.parse import quote

    found = ask(url, f"/keys/{quote(key_id, safe='')}/limits")
    entries = found.get("data")
    if not isinstance(entries, list):
        raise GatewayError(f"the gateway {url} cannot be asked: its answer has no data")
    return entries


def ask(url: str, path: str, method: str = "GET") -> dict[str, Any]:
    """The answer to a request without a body to a path below ``/admin/v1``.

    Raises: GatewayError.
    """
    import json
    import urllib.error
    import urllib.request

    admin_key = os.environ.get("FOREBAY_ADMIN_KEY")
    if not admin_key:
        raise GatewayError("set FOREBAY_ADMIN_KEY to a key of the kind admin to ask a gateway")
    base = url.rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise GatewayError("the gateway's URL must start with http:// or https://")
    asked = urllib.request.Request(
        f"{base}/admin/v1{path}",
        headers={"authorization": f"Bearer {admin_key.strip()}"},
        method=method,
    )
    try:
        # The key goes to the gateway alone, past any proxy of the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
            if not isinstance(found, dict):
                raise TypeError("its answer is no object")
            return found
    except urllib.error.HTTPError as error:
        try:
            reason = str(json.load(error)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            reason = f"it answered {error.code}"
        raise GatewayError(f"the gateway {base}: {reason}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = getattr(error, "reason", None) or error
        raise GatewayError(f"the gateway {base} cannot be asked: {cause}") from None


def print_live(entries: list[dict[str, Any]]) -> None:
    """A table of what remains."""
    if not entries:
        typer.echo("no limit applies")
        return
    print_table(
        ("WHO", "NAME", "MODEL", "OF", "PER", "LIMIT", "REMAINING", "FULL IN"),
        [
            (
                *(entry["scope"].replace("_", " on "), entry["subject"], entry["model"]),
                *(entry["dimension"], entry["period"], entry["limit"], entry["remaining"]),
                None if entry["reset_s"] is None else f"{entry['reset_s']:.3g} s",
            )
            for entry in entries
        ],
        {"LIMIT", "REMAINING", "FULL IN"},
    )
