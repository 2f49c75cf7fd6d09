"""`forebay upstreams` against a gateway's admin API."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest
from forebay.cli import main

Run = Callable[..., tuple[int, str, str]]

UPSTREAM = {
    "name": "gpu/a",
    "kind": "sglang",
    "state": "warm",
    "availability": "open",
    "share": 0.25,
    "draining": False,
    "in_flight": 7,
    "waiting": 0,
    "limit": 64,
    "load": None,
    "first_token_ms": 41.7,
    "successes": 100,
    "failures": 1,
    "backs_off_s": None,
    "ejections": 1,
    "ejection": {"reason": "consecutive", "until": 1.0, "streak": 1},
}


class Asked(BaseHTTPRequestHandler):
    """An admin API of one upstream."""

    seen: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self._answer({"data": [UPSTREAM]})

    def do_POST(self) -> None:
        self._answer({**UPSTREAM, "availability": "draining", "draining": True})

    def _answer(self, body: dict[str, Any]) -> None:
        self.seen.append((self.command, self.path))
        status = 200
        if "missing" in self.path:
            status, body = 404, {"error": {"message": "There is no upstream 'missing'."}}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Asked.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("FOREBAY_ADMIN_KEY", "fb-admin")
    monkeypatch.setenv("FOREBAY_URL", url)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["upstreams", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_the_list(run: Run) -> None:
    code, out, _ = run("list")
    head, row = out.splitlines()
    assert code == 0
    assert head.split()[:3] == ["NAME", "KIND", "STATE"]
    for text in ("gpu/a", "sglang", "warm", "open, 25%", "7/64", "42 ms", "ejected: consecutive"):
        assert text in row
    code, out, _ = run("list", "--json")
    assert json.loads(out) == [UPSTREAM]


def test_draining(run: Run) -> None:
    code, out, _ = run("drain", "gpu/a")
    assert (code, out) == (0, "gpu/a: draining, 7 in flight\n")
    code, out, _ = run("undrain", "gpu/a", "--json")
    assert json.loads(out)["name"] == "gpu/a"
    assert Asked.seen == [
        ("POST", "/admin/v1/upstreams/gpu%2Fa/drain"),
        ("POST", "/admin/v1/upstreams/gpu%2Fa/undrain"),
    ]


def test_what_goes_wrong_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run("drain", "missing")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "There is no upstream" in err
    monkeypatch.delenv("FOREBAY_ADMIN_KEY")
    code, out, err = run("list")
    assert (code, out, "FOREBAY_ADMIN_KEY" in err) == (1, "", True)
