"""Three gateways, one Valkey, one key: how well one limit holds, and what its store's faults cost.

Run it as `python benches/load/nodes.py`; `--help` has the options. It drives one key at several
times its limit through all gateways at once and prints, phase by phase: what was admitted against
the bound, the share of requests decided without asking the store, and how long a refusal takes.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from forebay.store import EmbeddedPostgres  # noqa: E402

from tests.support.processes import Engine, Gateway  # noqa: E402
from tests.support.valkey import SlowWay, Valkey  # noqa: E402

BODY = json.dumps(
    {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
).encode()


@dataclass
class Seen:
    """Answers of one phase: when each came, its status and the seconds it took."""

    answers: list[tuple[float, int, float]] = field(default_factory=list)

    def admitted(self) -> list[float]:
        return [at for at, status, _ in self.answers if status == 200]

    def refused_s(self) -> list[float]:
        return sorted(took for _, status, took in self.answers if status == 429)

    def others(self) -> int:
        return sum(status not in (200, 429) for _, status, _ in self.answers)


async def client(port: int, secret: str, seen: Seen, pause_s: float, until: float) -> None:
    """One connection that asks every `pause_s` seconds."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.monotonic() < until:
            began = time.monotonic()
            writer.write(head + BODY)
            status = await answer(reader)
            now = time.monotonic()
            seen.answers.append((now, status, now - began))
            await asyncio.sleep(max(0.0, pause_s - (now - began)))
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> int:
    """Read one answer with a content-length; its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(None, 2)[1])
    lines = head.lower().split(b"\r\n")
    length = next(int(x[15:]) for x in lines if x.startswith(b"content-length:"))
    await reader.readexactly(length)
    return status


async def load(gateways: list[Gateway], secret: str, options: argparse.Namespace, s: float) -> Seen:
    """Ask all gateways for `s` seconds."""
    seen = Seen()
    connections = options.connections
    pause_s = len(gateways) * connections / (options.times * options.rpm / 60)
    until = time.monotonic() + s
    async with asyncio.TaskGroup() as group:
        for gateway in gateways:
            for _ in range(connections):
                group.create_task(client(gateway.port, secret, seen, pause_s, until))
                await asyncio.sleep(min(0.01, pause_s / connections))
    return seen


def worst(admitted: list[float], span_s: float) -> int:
    """The most that were admitted within `span_s` seconds."""
    most, first = 0, 0
    for i, at in enumerate(admitted):
        while at - admitted[first] > span_s:
            first += 1
        most = max(most, i - first + 1)
    return most


def quantile(values: list[float], q: float) -> float:
    return values[min(len(values) - 1, int(q * len(values)))] * 1e3 if values else 0.0


def counters(gateways: list[Gateway]) -> dict[str, float]:
    names: dict[str, Callable[[Gateway], float]] = {
        "lease": lambda g: g.metric("forebay_lease_takes_total", **{"from": "lease"}),
        "share": lambda g: g.metric("forebay_lease_takes_total", **{"from": "share"}),
        "waits": lambda g: g.metric("forebay_lease_waits_total"),
        "calls": lambda g: g.metric("forebay_lease_calls_total", outcome="ok"),
    }
    return {name: sum(map(read, gateways)) for name, read in names.items()}


@contextmanager
def stack(options: argparse.Namespace) -> Iterator[tuple[list[Gateway], Valkey, SlowWay, str]]:
    """Everything that runs, and the key's secret."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="forebay-nodes-")))
        folder.chmod(0o711)
        database = EmbeddedPostgres(folder / "pg", durable=False)
        database.start()
        running.callback(database.stop)
        valkey = Valkey(folder / "valkey")
        valkey.start()
        running.callback(valkey.stop)
        way = SlowWay(valkey.port)
        way.start()
        running.callback(way.stop)
        engine = Engine(folder / "engine", "--model", "sim", "--decode-rate", "100000")
        engine.start()
        running.callback(engine.stop)
        config: dict[str, Any] = {
            "upstreams": {"sim": {"kind": "sglang", "url": engine.url}},
            "models": {"sim": {"targets": [{"upstream": "sim"}]}},
            "redis_url": f"redis://127.0.0.1:{way.port}",
            "expected_nodes": options.nodes,
        }
        gateways = []
        for i in range(options.nodes):
            gateway = Gateway(folder / f"gateway{i}", config, database.url)
            gateway.start()
            running.callback(gateway.stop)
            gateways.append(gateway)
        key = gateways[0].new_key(rpm=options.rpm, rpm_burst=options.burst)
        time.sleep(2.0)  # a key reaches every gateway within a second
        yield gateways, valkey, way, key.secret


def tell(
    name: str,
    seen: Seen,
    before: dict[str, float],
    gateways: list[Gateway],
    s: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One phase's figures, printed and returned."""
    after = counters(gateways)
    delta = {key: after[key] - before[key] for key in after}
    admitted = seen.admitted()
    row = {
        "phase": name,
        "asked": len(seen.answers),
        "admitted": len(admitted),
        "limit": round(options.rpm / 60 * s),
        "worst_second": worst(admitted, 1.0),
        "other_answers": seen.others(),
        "refused_p50_ms": round(quantile(seen.refused_s(), 0.5), 2),
        "refused_p99_ms": round(quantile(seen.refused_s(), 0.99), 2),
        "without_store_pct": round(100 * (1 - delta["waits"] / max(1, len(seen.answers))), 2),
        "calls_per_s": round(delta["calls"] / s, 1),
        "from_share": int(delta["share"]),
    }
    print(json.dumps(row), flush=True)
    return row


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All phases."""
    rows = []
    with stack(options) as (gateways, valkey, way, secret):

        async def phase(name: str, s: float) -> None:
            before = counters(gateways)
            seen = await load(gateways, secret, options, s)
            rows.append(tell(name, seen, before, gateways, s, options))

        await phase("burst and steady", options.seconds)
        await phase("steady", options.seconds)
        for fault, begin, end in (
            ("killed", valkey.kill, valkey.start),
            ("paused", valkey.pause, valkey.resume),
            ("slowed", lambda: setattr(way, "delay_s", 0.1), lambda: setattr(way, "delay_s", 0.0)),
        ):
            begin()
            await phase(fault, options.seconds)
            end()
            await phase(f"5 s after {fault}", 5.0)
            health = [g.health()["checks"].get("limits") for g in gateways]
            assert health == ["ok"] * len(gateways), health
            await phase(f"then, after {fault}", options.seconds)
    return rows


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rpm", type=int, default=600)
    parser.add_argument("--burst", type=int, default=100)
    parser.add_argument("--times", type=float, default=10.0, help="offered, of the limit")
    parser.add_argument("--connections", type=int, default=8, help="to each gateway")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase")
    parser.add_argument("--out", type=Path, help="a file for the figures, JSON")
    options = parser.parse_args()
    rows = asyncio.run(run(options))
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
