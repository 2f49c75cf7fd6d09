"""`forebay health`: is a gateway alive, for containers that have no curl?"""

import os
from pathlib import Path
from typing import Annotated

import typer

from forebay.cli.common import DEFAULT_CONFIG
from forebay.cli.live import GatewayError, UrlOption

_TIMEOUT_S = 3.0
_DEFAULT_PORT = 8080


def health(
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask whether requests may come, not only for life.")
    ] = False,
    url: UrlOption = None,
) -> None:
    """Ask a gateway for /healthz, or /readyz; exit 1 when it does not answer 200.

    Without --url or FOREBAY_URL it is asked on this machine, at the port of FOREBAY_HTTP, else of
    listen.http in the configuration file (FOREBAY_CONFIG, ./forebay.yaml), else 8080.
    """
    import urllib.error
    import urllib.request

    base = (url or _here()).rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise typer.BadParameter("must start with http:// or https://", param_hint="--url")
    path = "/readyz" if ready else "/healthz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(base + path, timeout=_TIMEOUT_S) as answer:
            text = answer.read(65536).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        told = error.read(65536).decode(errors="replace")
        raise GatewayError(f"{base}{path} answered {error.code}: {told}") from None
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        raise GatewayError(f"{base}{path} does not answer: {cause}") from None
    typer.echo(text)


def _here() -> str:
    from forebay.config.schema import parse_address

    given = os.environ.get("FOREBAY_HTTP") or _of_file()
    try:
        port = _DEFAULT_PORT if not given else parse_address(given)[1]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FOREBAY_HTTP or listen.http") from None
    return f"http://127.0.0.1:{port}"


def _of_file() -> str | None:
    """`listen.http` as it stands in the file; None where the file does not say.

    Only this field is looked at: a running gateway goes on where a changed file is refused.
    """
    from forebay.config import ConfigError
    from forebay.config.document import Document

    file = Path(os.environ.get("FOREBAY_CONFIG") or DEFAULT_CONFIG)
    try:
        listen = Document(file.read_text(), source=str(file), env=os.environ).data.get("listen")
    except (OSError, ValueError, ConfigError):
        return None
    address = listen.get("http") if isinstance(listen, dict) else None
    return address if isinstance(address, str) else None
