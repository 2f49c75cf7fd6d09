"""nginx with the settings that `deploy/nginx` has, in front of gateways that a test has started."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.ports import closed_port

CONF = Path(__file__).parents[2] / "deploy" / "nginx" / "forebay.conf"
BINARY = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

needs_nginx = pytest.mark.skipif(
    BINARY is None, reason="nginx is not installed (Debian: apt-get install nginx-light)"
)

MAIN = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{ worker_connections 4096; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    include {folder}/forebay.conf;
}}
"""


def rewritten(
    text: str, folder: Path, listen: tuple[int, int], http: Sequence[str], grpc: Sequence[str]
) -> str:
    """The settings with other addresses: nothing else of them changes."""

    def servers(name: str, addresses: Sequence[str]) -> None:
        nonlocal text
        block = re.search(rf"upstream {name} \{{\n(.*?)\n\}}", text, re.DOTALL)
        assert block is not None
        old = re.findall(r"^    server \S+ (.*);$", block[1], re.MULTILINE)
        assert len(set(old)) == 1, "the servers differ"
        body = re.sub(r"^    server .*\n", "", block[1], flags=re.MULTILINE)
        lines = "\n".join(f"    server {address} {old[0]};" for address in addresses)
        text = text.replace(block[0], f"upstream {name} {{\n{lines}\n{body}\n}}")

    servers("forebay_http", http)
    servers("forebay_grpc", grpc)
    for was, now in (
        ("listen 80;", f"listen 127.0.0.1:{listen[0]};"),
        ("listen 8090 http2;", f"listen 127.0.0.1:{listen[1]} http2;"),
        ("/var/log/nginx/forebay.log", f"{folder}/access.log"),
    ):
        assert was in text
        text = text.replace(was, now)
    return text


class Nginx:
    """nginx before these gateways. http, grpc: their addresses, HOST:PORT.

    replace: more of the settings to put otherwise, text by text.
    """

    def __init__(
        self,
        folder: Path,
        http: Sequence[str],
        grpc: Sequence[str] = ("127.0.0.1:9",),
        replace: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port, self.grpc_port = closed_port(), closed_port()
        text = rewritten(CONF.read_text(), folder, (self.port, self.grpc_port), http, grpc)
        for was, now in (replace or {}).items():
            assert was in text, was
            text = text.replace(was, now)
        (folder / "forebay.conf").write_text(text)
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def _command(self) -> list[str]:
        assert BINARY is not None
        return [BINARY, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    def check(self) -> str:
        """What nginx says of the settings. Raises: AssertionError where they are wrong."""
        done = subprocess.run(
            [*self._command, "-t"], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def __enter__(self) -> "Nginx":
        self.check()
        self._popen = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                assert self._popen.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.01)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._popen is not None
        self._popen.terminate()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def log(self) -> str:
        """Its error log."""
        path = self.folder / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def access(self) -> list[str]:
        """The lines of its access log."""
        return (self.folder / "access.log").read_text().splitlines()
