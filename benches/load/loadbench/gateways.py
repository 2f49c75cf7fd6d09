"""The gateways to measure: presets, and any other as a start command and an address."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from loadbench.procs import Process

ROOT = Path(__file__).resolve().parents[3]
MODEL = "load-model"
START_LIMIT_S = 120.0


class SetupError(Exception):
    """A gateway is missing or did not start; the message says which and why."""


@dataclass
class Gateway:
    """One thing to measure.

    ``command`` and ``env`` values may hold ``{port}``, ``{port2}`` (a second free port),
    ``{upstream_port}``, ``{dir}`` (an empty directory) and ``{ready_file}``; ``url`` may hold
    ``{port}``. An empty command means that nothing is started: the upstream itself.
    ``workloads`` names those it can do, all when None. ``own_folder`` starts it in its empty
    directory, for what keeps its state where it is started.
    """

    name: str
    command: str
    url: str
    model: str = MODEL
    key: str = ""
    ready: str = "/health"
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    version: Callable[[], str] | None = None
    uses_ready_file: bool = False
    own_folder: bool = False
    workloads: frozenset[str] | None = None
    process: Process | None = None
    leftovers: set[Path] = field(default_factory=set)

    def start(self, directory: Path, upstream_port: int) -> None:
        """Start it and wait until it is ready. Raises SetupError when it is not in 120 s."""
        directory.mkdir(parents=True, exist_ok=True)
        ready_file = directory / "ready.json"
        places = {
            "port": str(free_port()),
            "port2": str(free_port()),
            "upstream_port": str(upstream_port),
            "dir": str(directory),
            "ready_file": str(ready_file),
        }
        self.url = fill(self.url, places)
        for name, text in self.files.items():
            (directory / name).write_text(fill(text, places))
        if self.command:
            words = [fill(word, places) for word in shlex.split(self.command)]
            env = {name: fill(value, places) for name, value in self.env.items()}
            try:
                self.process = Process(
                    words, directory / "log.txt", env, directory if self.own_folder else None
                )
            except OSError as error:
                raise SetupError(f"{self.name}: cannot start {words[0]}: {error}") from error
        deadline = time.monotonic() + START_LIMIT_S
        while not self._is_ready(ready_file):
            code = None if self.process is None else self.process.exit_code()
            if code is not None or time.monotonic() > deadline:
                why = "not ready in time" if code is None else f"ended with status {code}"
                tail = "" if self.process is None else self.process.log_tail()
                raise SetupError(f"{self.name}: {why}\n{tail}")
            time.sleep(0.1)
        if self.own_folder and self.process is not None:
            self.leftovers = database_folders(self.process)

    def _is_ready(self, ready_file: Path) -> bool:
        if not self.uses_ready_file:
            return get_status(self.url, self.ready) == 200
        try:
            told = json.loads(ready_file.read_text())
        except (OSError, ValueError):
            return False
        self.url = str(told["http"]).rstrip("/")
        self.key = str(told["key"])
        return True

    def stop(self) -> None:
        """End it and all that it started."""
        if self.process is not None:
            self.process.stop()
        for folder in self.leftovers:
            shutil.rmtree(folder, ignore_errors=True)


def database_folders(process: Process) -> set[Path]:
    """Data folders that a ``forebay dev`` run by root made outside its own folder for this run.

    PostgreSQL refuses to run as root, so they lie where another user can reach them.
    """
    found = set()
    for pid in process.members():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except OSError:
            continue
        for flag, value in itertools.pairwise(words):
            if flag == "-D" and value.startswith("/var/tmp/forebay-data-"):
                folder = Path(value)
                found.add(folder.parent if folder.name == "data" else folder)
    return found


def fill(text: str, places: dict[str, str]) -> str:
    """Put the values in their places; other braces stay (nginx's configuration has many)."""
    for name, value in places.items():
        text = text.replace("{" + name + "}", value)
    return text


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get_status(url: str, path: str) -> int:
    """Status of one GET, or 0 when there is no answer."""
    address = urlsplit(url).netloc
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def parse(text: str, peer_dir: Path | None) -> Gateway:
    """A preset's name, or ``name|command|url|model|key|ready path`` (the last three may lack).

    Raises SetupError for an unknown or missing preset and for a malformed text.
    """
    if "|" not in text:
        preset = PRESETS.get(text)
        if preset is None:
            raise SetupError(f"unknown gateway {text!r}: one of {', '.join(PRESETS)}, or name|…")
        return preset(peer_dir)
    parts = [part.strip() for part in text.split("|")]
    if not 3 <= len(parts) <= 6 or not parts[0] or not parts[2].startswith("http://"):
        raise SetupError(f"expected name|command|http://…|model|key|ready path, got {text!r}")
    name, command, url, model, key, ready = [*parts, "", "", ""][:6]
    return Gateway(name, command, url, model or MODEL, key, ready or "/health")


def _find(program: str, peer_dir: Path | None, *more: Path) -> str:
    places = [peer_dir, *more] if peer_dir else list(more)
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", os.defpath), "/usr/sbin"])
    found = shutil.which(program, path=path)
    if found is None:
        raise SetupError(f"{program} is not installed (looked in --peer-dir, .venv/bin and PATH)")
    return found


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1].strip() if lines else "unknown"


def _distribution(python: Path, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return f"{name} {_output(str(python), '-c', code)}"


def direct(_: Path | None) -> Gateway:
    """The upstream without a gateway: what the others are compared with."""
    return Gateway("direct", "", "http://127.0.0.1:{upstream_port}")


def forebay(_: Path | None) -> Gateway:
    """``forebay dev`` with everything on: key, request and token limits, metering."""
    program = _find("forebay", None, ROOT / ".venv" / "bin")
    return Gateway(
        "forebay",
        f"{shlex.quote(program)} dev --http 127.0.0.1:{{port}} --ready-file {{ready_file}}",
        "http://127.0.0.1:{port}",
        env={"INFERENCE_URL": "http://127.0.0.1:{upstream_port}"},
        uses_ready_file=True,
        own_folder=True,
        version=lambda: _output(program, "--version"),
    )


def forebay_granian(peer_dir: Path | None) -> Gateway:
    """The same with Granian as its listener and everything in the Starlette application."""
    gateway = forebay(peer_dir)
    gateway.name = "forebay-granian"
    gateway.env["FOREBAY_SERVER"] = "granian"
    return gateway


def sglang_router(peer_dir: Path | None) -> Gateway:
    """PyPI ``sglang-router``, round robin over its one worker."""
    program = _find("sglang-router", peer_dir, ROOT / ".venv" / "bin")
    python = Path(program).parent / "python"
    return Gateway(
        "sglang-router",
        f"{shlex.quote(str(python))} -m sglang_router.launch_router --host 127.0.0.1"
        " --port {port} --policy round_robin --worker-urls http://127.0.0.1:{upstream_port}"
        " --log-level warn --prometheus-port {port2}",
        "http://127.0.0.1:{port}",
        version=lambda: _distribution(python, "sglang-router"),
    )


def vllm_router(peer_dir: Path | None) -> Gateway:
    """PyPI ``vllm-router``, round robin over its one worker, logging warnings only."""
    program = _find("vllm-router", peer_dir, ROOT / ".venv" / "bin")
    return Gateway(
        "vllm-router",
        f"{shlex.quote(program)} --host 127.0.0.1 --port {{port}} --policy round_robin"
        " --worker-urls http://127.0.0.1:{upstream_port} --log-level warning"
        " --prometheus-port {port2}",
        "http://127.0.0.1:{port}",
        version=lambda: _distribution(Path(program).parent / "python", "vllm-router"),
    )


NGINX_CONF = """\
daemon off; worker_processes auto; worker_rlimit_nofile 16384; pid {dir}/nginx.pid;
error_log stderr warn; {user}
events { worker_connections 8192; }
http {
  access_log off; keepalive_requests 1000000; client_max_body_size 20m;
  client_body_buffer_size 1m; tcp_nodelay on;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  upstream engine {
    server 127.0.0.1:{upstream_port}; keepalive 1024; keepalive_requests 1000000;
  }
  server {
    listen 127.0.0.1:{port} backlog=4096;
    location / {
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 300s;
    }
  }
}
"""


def nginx(peer_dir: Path | None) -> Gateway:
    """Plain reverse proxy by nginx: no buffering of answers, kept-alive upstream connections."""
    program = _find("nginx", peer_dir)
    user = "user root;" if os.getuid() == 0 else ""
    return Gateway(
        "nginx",
        f"{shlex.quote(program)} -c {{dir}}/nginx.conf -p {{dir}} -e stderr",
        "http://127.0.0.1:{port}",
        files={"nginx.conf": NGINX_CONF.replace("{user}", user)},
        version=lambda: _output(program, "-v"),
    )


def granian_bare(_: Path | None) -> Gateway:
    """Granian's ASGI with an app that answers from memory: the floor of our front end.

    It has no upstream behind it and does not stream.
    """
    program = _find("granian", None, ROOT / ".venv" / "bin")
    return Gateway(
        "granian-bare",
        f"{shlex.quote(program)} --interface asgi --loop uvloop --host 127.0.0.1 --port {{port}}"
        " --no-access-log --log-level warning --backlog 4096 loadbench.bare:app",
        "http://127.0.0.1:{port}",
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        version=lambda: _distribution(Path(program).parent / "python", "granian"),
        workloads=frozenset({"unary-c64", "unary-c1", "unary-rate", "prompt200k-c16"}),
    )


PRESETS: dict[str, Callable[[Path | None], Gateway]] = {
    "direct": direct,
    "forebay": forebay,
    "forebay-granian": forebay_granian,
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "nginx": nginx,
    "granian-bare": granian_bare,
}


def installed(peer_dir: Path | None) -> list[Gateway]:
    """The presets found on this machine, without the bare ones."""
    found = []
    for name in ("forebay", "vllm-router", "sglang-router", "nginx"):
        try:
            found.append(PRESETS[name](peer_dir))
        except SetupError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found
