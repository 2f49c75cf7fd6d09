"""`forebay-engine serve` with a real engine: stages of its start, its agent, and its end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_real.asking import Http
from tests.engine_real.conftest import Pair, wait_open
from tests.engine_real.engines import (
    CPU,
    FRACTION,
    HERE,
    NAME,
    PARSERS,
    QUIET,
    SHARED,
    START_S,
    Setup,
)
from tests.engine_real.scripts import HELLO, NUMBERS
from tests.support.ports import closed_port
from tests.support.processes import Gateway, Process
from tests.support.wait import until
from tests.support.wire import CHAT, Answer, call, chat, request

STEP_S = 0.05
AGENT_KEY = "of-the-agent"
SETTLE_S = 2.5

Record = Callable[[str, object], None]


class Served(Process):
    """The command, its agent and its engine."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.agent_port = closed_port(), closed_port()
        start = ["-m", "sglang.launch_server"] if setup.gpu else [str(HERE / "launch_cpu.py")]
        own = () if setup.gpu else CPU
        profile = {
            "kind": "sglang",
            "model": setup.model,
            "name": NAME,
            "port": self.port,
            "launcher": [str(setup.python), *start],
            "args": [*SHARED, *own, *(PARSERS if setup.known else ())],
            "env": dict(QUIET),
            "load_timeout_s": START_S,
            "drain": {"settle_s": SETTLE_S, "grace_s": 120},
            "warmup": {"prompts": ["hi"], "max_tokens": 4},
        }
        path = folder / "profile.yaml"
        path.write_text(json.dumps(profile))  # JSON is YAML
        command = [sys.executable, "-m", "forebay_engine", "serve", "--profile", str(path)]
        command += ["--agent", f"127.0.0.1:{self.agent_port}", "--agent-key", AGENT_KEY]
        super().__init__(command, folder, {})

    def agent(self, path: str, method: str | None = None) -> Answer:
        """Ask the agent."""
        return call(self.agent_port, request(path, key=AGENT_KEY, method=method, close=True))

    def state(self) -> dict[str, Any]:
        """What the agent says."""
        found: dict[str, Any] = self.agent("/state").json()
        return found


@pytest.fixture
def served(tmp_path: Path, engine_setup: Setup, pair: Pair) -> Iterator[Served]:
    """Launched, not waited for. One of the pair makes room for it."""
    pair.b.stop()
    made = Served(tmp_path / "serve", engine_setup)
    made.launch()
    yield made
    made.stop(timeout_s=60)


def sized(model: str, free_gib: float) -> dict[str, Any]:
    """What `forebay-engine size` expects of the model on this machine, set as the engine is."""
    command = [sys.executable, "-m", "forebay_engine", "size", model, "--json"]
    # fp16 is what SGLang loads a model of 32 bits as. The rates do not matter here.
    command += ["--weights", "fp16", "--kv-dtype", "fp16", "--mem-fraction", str(FRACTION)]
    command += ["--free-gib", str(free_gib)]
    command += ["--device", "name=this,memory-mib=24576,bandwidth-gbs=20,bf16-tflops=1"]
    told = json.loads(subprocess.check_output(command, text=True, timeout=60))
    found: dict[str, Any] = next(gpu for gpu in told["gpus"] if gpu["gpu"] == "this")
    return found


def capacity(log: str, model: str, record: Record) -> None:
    """Compare the engine's own words about its cache with what was expected."""
    free = float(re.search(r"Load weight begin\. avail mem=([\d.]+) GB", log)[1])  # type: ignore[index]
    tokens = int(re.search(r"max_total_num_tokens=(\d+)", log)[1])  # type: ignore[index]
    pool = re.search(r"K size: ([\d.]+) GB, V size: ([\d.]+) GB", log)
    assert pool is not None
    expected = sized(model, free)
    cache_gib = tokens * expected["kv_bytes_per_token_per_gpu"] / 2**30
    told_gib = float(pool[1]) + float(pool[2])
    record("cache of SGLang, tokens", tokens)
    record("cache by forebay-engine size, tokens", expected["max_total_num_tokens"])
    record("cache of SGLang, GiB by its log / by size's bytes", f"{told_gib:.2f} / {cache_gib:.2f}")
    assert abs(told_gib - cache_gib) <= 0.02, "bytes a token; the log rounds to 0.01"
    # Memory of the whole machine: what other processes take or free meanwhile is in it.
    assert abs(expected["max_total_num_tokens"] / tokens - 1) < 0.15


@pytest.mark.usefixtures("known")
def test_a_start_and_an_end(
    served: Served,
    engine_setup: Setup,
    tmp_path: Path,
    database_url: str,
    record_property: Record,
) -> None:
    config = {
        "upstreams": {
            "gpu": {
                "kind": "sglang",
                "url": f"http://127.0.0.1:{served.port}",
                "slow_start": 0,
                "cold": {"hold": 600},
            }
        },
        "models": {"tiny": {"targets": [{"upstream": "gpu"}]}},
    }
    gateway = Gateway(tmp_path / "gateway", config, database_url)
    gateway.start()
    try:
        door = Http(gateway.port, gateway.key().secret)

        def listens() -> bool:
            try:
                return served.agent("/ready").status == 503
            except OSError:
                return False

        until(listens, "the agent", 30)
        assert served.agent("/state").status == 200
        assert call(served.agent_port, request("/state", close=True)).status == 401
        first = served.state()
        assert (first["state"], first["parked"]) == ("loading", False)
        assert first["engine"]["model"] == NAME
        until(lambda: served.state()["state"] == "warm", "warm", START_S, every_s=0.2)
        assert served.agent("/ready").status == 200
        phases = served.state()["phases"]
        for stage in ("process", "import", "weights", "ready", "first_token"):
            assert phases[stage] is not None, f"{stage}: {served.log()[-4000:]}"
            record_property(f"forebay-engine serve: {stage}, s", round(phases[stage], 2))
        assert phases["import"] + phases["weights"] < phases["ready"] < phases["first_token"]
        if not engine_setup.gpu:
            capacity(served.log(), engine_setup.model, record_property)
        wait_open(gateway, "gpu")
        assert door.whole("tiny", "hi", temperature=0).text == HELLO.text
        figures = served.agent("/metrics").body.decode()
        assert "forebay_engine_" in figures

        slower = {"forward_sleep_time": STEP_S}
        assert call(served.port, request("/slow_down", slower, close=True)).status == 200
        with door.stream("tiny", f"/{NUMBERS.name}", temperature=0) as stream:
            stream.read(5)
            until(lambda: served.state()["load"]["running"] == 1, "its load", 10)
            assert served.agent("/drain", "POST").json() == {"state": "draining"}
            assert served.agent("/ready").status == 503
            assert stream.rest().text == NUMBERS.text, "what runs goes on to its end"
        until(lambda: served.state()["state"] in ("cold", "down"), "it ends", 60)
        assert served.state()["engine"]["pid"] is None
        until(lambda: refused(served.port), "its port is closed", 10)
    finally:
        assert gateway.stop() == 0
    assert served.stop() == 0


def refused(port: int) -> bool:
    """Whether nothing answers there."""
    try:
        call(port, request(CHAT, chat(), close=True))
    except OSError:
        return True
    return False
