"""A real SGLang as a process of its own, and the model that it serves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]

from tests.support.ports import closed_port
from tests.support.wait import until
from tests.support.wire import Answer, Client, request

HERE = Path(__file__).parent
START_S = 600.0
"""A start takes half a minute on two idle cores, and many times that on busy ones."""
NAME = "tiny"
"""What the model is called, whichever it is."""
CAPACITY = ("--max-total-tokens", "4096")
"""For a tiny model's requests: no more memory than they need."""
SHARED = (
    "--sleep-on-idle",
    # Loads that are true at every step, for tests that look at them.
    *("--load-snapshot-publish-interval", "1", "--decode-log-interval", "1"),
)
FRACTION = 0.1
CPU = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--disable-overlap-schedule"),
    *("--mem-fraction-static", str(FRACTION)),
)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "0",
    # Threads of four processes on two cores would only wait for each other.
    "OMP_NUM_THREADS": "1",
}
PARSERS = ("--tool-call-parser", "qwen", "--reasoning-parser", "deepseek-v3")
"""deepseek-v3 takes for reasoning what stands in `<think>`, and nothing else unless asked to."""


@dataclass(frozen=True)
class Setup:
    """How engines are run.

    python: of the engine's environment. model: its folder or name. gpu: on a GPU, with SGLang's own
    command. known: its answers are those of `scripts.py`.
    """

    python: Path
    model: str
    gpu: bool
    known: bool

    def command(self, port: int, *options: str) -> list[str]:
        """The command of a server on 127.0.0.1."""
        start = ["-m", "sglang.launch_server"] if self.gpu else [str(HERE / "launch_cpu.py")]
        known = PARSERS if self.known else ()
        named = ["--model-path", self.model, "--served-model-name", NAME]
        address = ["--host", "127.0.0.1", "--port", str(port)]
        own = () if self.gpu else CPU
        return [
            str(self.python),
            *start,
            *named,
            *address,
            *CAPACITY,
            *SHARED,
            *own,
            *known,
            *options,
        ]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """For processes of the engine's own environment: nothing of the gateway's."""
    dropped = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, **QUIET, **(more or {})}


def make_model(python: Path, folder: Path) -> str:
    """Write the tiny model. Returns where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(HERE / "make_model.py"), str(folder)]
    made = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=START_S
    )
    assert made.returncode == 0, made.stderr
    return str(folder)


class RealEngine:
    """One server. It and its children are ended by their ids, at `stop` or `kill`."""

    def __init__(
        self, folder: Path, setup: Setup, *options: str, env: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = closed_port()
        self._command: Sequence[str] = setup.command(self.port, *options)
        self._folder = folder
        self._env = environment(env)
        self._log = folder / "engine.log"
        self.popen: subprocess.Popen[bytes] | None = None
        self.ready_s: float | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def launch(self) -> None:
        """Start without waiting."""
        self.ready_s = None
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._began = time.monotonic()

    def wait_ready(self) -> None:
        """Wait for its own word that it takes requests."""

        def ready() -> bool:
            assert self.popen is not None
            assert self.popen.poll() is None, f"ended at its start: {self.log()[-4000:]}"
            return self.status("/ready") == 200

        until(ready, f"SGLang on {self.url}", START_S, every_s=0.1)
        self.ready_s = time.monotonic() - self._began

    def start(self) -> None:
        """Start, and wait until it is ready."""
        self.launch()
        self.wait_ready()

    def call(self, path: str, body: Any = None) -> Answer:
        """One request to it, past the gateway."""
        with Client(self.port) as client:
            client.socket.settimeout(120)
            return client.send(request(path, body, close=True)).answer()

    def status(self, path: str) -> int:
        """The status that a path answers with; 0: none."""
        try:
            return self.call(path).status
        except OSError:
            return 0

    def load(self) -> dict[str, Any]:
        """What it says of its work at this moment."""
        answer = self.call("/v1/loads?include=core")
        assert answer.status == 200, answer.body
        loads: list[dict[str, Any]] = answer.json()["loads"]
        assert len(loads) == 1
        return loads[0]

    def running(self) -> int:
        """Requests that it works on, by its own word."""
        return int(self.load()["num_running_reqs"])

    def slow_down(self, seconds: float | None) -> None:
        """Take so long for each step; None: as fast as it can."""
        assert self.call("/slow_down", {"forward_sleep_time": seconds}).status == 200

    def processes(self) -> list[psutil.Process]:
        """It and its children, as far as they live."""
        assert self.popen is not None
        try:
            first = psutil.Process(self.popen.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def memory_bytes(self) -> int:
        """Memory of all its processes, shared pages counted once (PSS)."""
        return sum(int(process.memory_full_info().pss) for process in self.processes())

    def alive(self) -> bool:
        """Whether its first process lives."""
        return self.popen is not None and self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL to all its processes at once, as a machine that goes."""
        assert self.popen is not None
        left = self.processes()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(30)
        psutil.wait_procs(left, timeout=30)

    def terminate(self) -> None:
        """SIGTERM to its first process."""
        assert self.popen is not None
        self.popen.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = 60.0) -> None:
        """SIGTERM; SIGKILL to what is left."""
        if self.popen is None:
            return
        if self.alive():
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout_s)
        self.kill()


def versions(python: Path) -> dict[str, str]:
    """The versions in the engine's environment that matter for what it does."""
    code = (
        "import json, importlib.metadata as m, sys; "
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    names = ["sglang", "torch", "transformers", "uvicorn", "starlette"]
    told = subprocess.check_output([str(python), "-c", code, *names], env=environment(), text=True)
    found: dict[str, str] = json.loads(told)
    return {"python": sys.version.split()[0], **found}


def port_of(url: str) -> int:
    """The port of an address."""
    port = urlsplit(url).port
    assert port is not None
    return port
