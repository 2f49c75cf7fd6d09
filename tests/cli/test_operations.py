"""`forebay migrate` and `forebay health`: what containers and their orchestrators call."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from forebay.store.database import migrations

from tests.cli.test_commands import Forebay, elsewhere, forebay

__all__ = ["elsewhere", "forebay"]


def test_migrate_says_what_it_did(forebay: Forebay, database_url: str) -> None:
    done = forebay("migrate", "--database-url", database_url)
    assert done.code == 0
    assert "the schema is at" in done.out
    again = forebay("migrate", "--database-url", database_url, "--json").json()
    assert again["applied"] == []
    assert again["version"] == len(migrations())


def test_migrate_without_a_database(forebay: Forebay) -> None:
    refused = forebay("migrate", "--database-url", "postgresql://127.0.0.1:1/none")
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert forebay("migrate", "--database-url", "http://x").code == 1


def test_sigterm_ends_a_containers_first_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        program = (
            "import os, sys; os.getpid = lambda: 1; from forebay.cli import main;"
            f"sys.exit(main(['health', '--url', {url!r}]))"
        )
        process = subprocess.Popen([sys.executable, "-c", program])
        try:
            connection, _ = silent.accept()
            process.terminate()
            # Not by the signal, which a first process without a handler would not get.
            assert process.wait(30) == 143
            connection.close()
        finally:
            process.kill()


class _Probes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        well = self.path == "/healthz"
        body = b"ok\n" if well else b'{"status": "not ready"}'
        self.send_response(200 if well else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), _Probes)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_health_asks_for_life_and_for_readiness(
    forebay: Forebay,
    elsewhere: object,
    port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"http://127.0.0.1:{port}"
    assert forebay("health", "--url", url) == (0, "ok\n", "")
    refused = forebay("health", "--ready", "--url", url)
    assert (refused.code, refused.out) == (1, "")
    assert 'answered 503: {"status": "not ready"}' in refused.err
    monkeypatch.setenv("FOREBAY_HTTP", f"0.0.0.0:{port}")
    assert forebay("health").out == "ok\n"
    monkeypatch.delenv("FOREBAY_HTTP")
    file = tmp_path / "mounted.yaml"
    file.write_text(f'listen: {{http: "0.0.0.0:{port}"}}\nunknown: 1\n')
    monkeypatch.setenv("FOREBAY_CONFIG", str(file))
    assert forebay("health").out == "ok\n"
    monkeypatch.setenv("FOREBAY_HTTP", "127.0.0.1:1")
    away = forebay("health")
    assert (away.code, away.err.count("\n")) == (1, 1)
    assert "does not answer" in away.err
    assert forebay("health", "--url", "ftp://x").code == 2
