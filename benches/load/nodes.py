"""Several gateways, one Valkey, one key: does its limit hold, and what do the store's faults cost?

``python benches/load/nodes.py --help``. One key is driven through all gateways at once, without a
pause, while Valkey works, is killed, is paused (SIGSTOP) and is slowed by 200 ms. For each phase a
row tells what was admitted beside the limit and the stated bound, how many requests waited for the
store, and how long decisions took: in the core, and as clients of the key and of one without limits
see it. The last lines say what does not hold; the exit status is then 1.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from forebay.store import EmbeddedPostgres  # noqa: E402

from tests.support.processes import Engine, Gateway  # noqa: E402
from tests.support.valkey import SlowWay, Valkey  # noqa: E402

BODY = json.dumps(
    {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
).encode()
PROBES_PER_S = 20.0
"""Requests a second to each gateway with the key that has no limits."""
SLOW_S = 0.1
"""Each way."""
RETURN_S = 5.0
"""Within which the limit is exact again."""
STEADY = 1.01
"""Of the limit, at most, at steady load."""
DECIDED = 0.99
"""Of the admissions, at least, without the store."""
ADMISSION_MS = 5.0
"""99 % of decisions, at most."""


class Asked(NamedTuple):
    """One request: when it was sent and answered, monotonic seconds, through which gateway."""

    sent: float
    answered: float
    gateway: int
    status: int


@dataclass
class Phase:
    """From one mark to the next, with what the gateways counted in between."""

    name: str
    began: float
    ended: float
    counted: dict[str, float]
    asked: list[Asked] = field(default_factory=list)
    probed: list[Asked] = field(default_factory=list)

    @property
    def admitted(self) -> list[Asked]:
        """Those that were."""
        return [one for one in self.asked if one.status == 200]


def excess(admitted: list[Asked], per_s: float) -> float:
    """The most by which any window had more than ``per_s`` allows: the burst that was seen.

    A window is from the sending of its first request to the answer of its last.
    """
    most, least = 0.0, float("inf")
    for count, one in enumerate(sorted(admitted, key=lambda one: one.answered)):
        least = min(least, count - per_s * one.sent)
        most = max(most, count + 1 - per_s * one.answered - least)
    return most


def quantile_ms(asked: list[Asked], q: float) -> float:
    """Milliseconds."""
    took = sorted(one.answered - one.sent for one in asked)
    return took[min(len(took) - 1, int(q * len(took)))] * 1e3 if took else 0.0


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, gateways: list[Gateway]) -> None:
        self._ports = [gateway.port for gateway in gateways]
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """After their present requests."""
        self._stop.set()

    async def run(self, secret: str, per_s: float, connections: int, into: list[Asked]) -> None:
        """Ask through each gateway on so many connections, ``per_s`` in all, until `stop`."""
        pause_s = len(self._ports) * connections / per_s
        async with asyncio.TaskGroup() as group:
            for i in range(connections):
                for gateway in range(len(self._ports)):
                    place = (i * len(self._ports) + gateway) / (connections * len(self._ports))
                    group.create_task(self._client(gateway, secret, pause_s, place, into))

    async def _client(
        self, gateway: int, secret: str, pause_s: float, place: float, into: list[Asked]
    ) -> None:
        data = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
        ).encode() + BODY
        reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[gateway])
        due = time.monotonic() + place * pause_s
        try:
            while not self._stop.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                sent = time.monotonic()
                writer.write(data)
                status = await answer(reader)
                into.append(Asked(sent, time.monotonic(), gateway, status))
                due = max(due + pause_s, time.monotonic())
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


def figures(gateways: list[Gateway]) -> dict[str, float]:
    """All series of all gateways, added up."""
    total: dict[str, float] = {}
    for gateway in gateways:
        text = gateway.call("/metrics").body.decode()
        for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE):
            total[name] = total.get(name, 0.0) + float(value)
    return total


def decided_ms(counted: dict[str, float], q: float) -> str:
    """Below which of the histogram's bounds so many decisions of the core are."""
    bounds = {}
    for name, value in counted.items():
        if found := re.fullmatch(r'forebay_admission_seconds_bucket\{le="(\S+)"\}', name):
            bounds[float(found.group(1))] = value
    least = q * max(bounds.values(), default=0.0)
    ms = min((le for le, count in bounds.items() if count >= least), default=0.0) * 1e3
    return f"≤ {ms:g}"


@contextmanager
def stack(options: argparse.Namespace) -> Iterator[tuple[list[Gateway], Valkey, SlowWay]]:
    """Everything that runs."""
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
        engine = Engine(folder / "engine", "--model", "sim", "--decode-rate", "0")
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
        yield gateways, valkey, way


async def measure(options: argparse.Namespace) -> list[Phase]:
    """All phases."""
    phases: list[Phase] = []
    with stack(options) as (gateways, valkey, way):
        per_s = options.rpm / 60
        limited = await asyncio.to_thread(
            gateways[0].new_key, rpm=options.rpm, rpm_burst=options.burst
        )
        free = await asyncio.to_thread(gateways[0].new_key)
        await asyncio.sleep(2.0)  # a key reaches every gateway within a second
        asked: list[Asked] = []
        probed: list[Asked] = []
        load = Load(gateways)

        async def phase(name: str, seconds: float) -> None:
            before, began = await asyncio.to_thread(figures, gateways), time.monotonic()
            await asyncio.sleep(seconds)
            ended, after = time.monotonic(), await asyncio.to_thread(figures, gateways)
            counted = {series: value - before.get(series, 0.0) for series, value in after.items()}
            phases.append(Phase(name, began, ended, counted))

        async def all_phases() -> None:
            await phase("burst", options.seconds)
            await phase("steady", options.seconds)
            faults: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
                ("killed", valkey.kill, valkey.start),
                ("paused", valkey.pause, valkey.resume),
                ("slowed", lambda: set_delay(way, SLOW_S), lambda: set_delay(way, 0.0)),
            ]
            for fault, begin, end in faults:
                await asyncio.to_thread(begin)
                await phase(fault, options.seconds)
                await asyncio.to_thread(end)
                await phase("returning", RETURN_S)
                await phase(f"after {fault}", options.seconds)
            load.stop()

        async with asyncio.TaskGroup() as group:
            group.create_task(
                load.run(limited.secret, options.times * per_s, options.connections, asked)
            )
            group.create_task(load.run(free.secret, PROBES_PER_S * len(gateways), 1, probed))
            group.create_task(all_phases())
        logs = "".join(gateway.log() for gateway in gateways)
        assert "Traceback" not in logs, logs
    for one in phases:
        one.asked = [a for a in asked if one.began <= a.answered < one.ended]
        one.probed = [a for a in probed if one.began <= a.answered < one.ended]
    return phases


def set_delay(way: SlowWay, delay_s: float) -> None:
    """For all that is sent from now on."""
    way.delay_s = delay_s


def row(phase: Phase, options: argparse.Namespace) -> dict[str, Any]:
    """A phase's figures."""
    per_s = options.rpm / 60
    seconds = phase.ended - phase.began
    admitted = phase.admitted
    waits = phase.counted.get("forebay_lease_waits_total", 0.0)
    shares = phase.counted.get('forebay_lease_takes_total{from="share"}', 0.0)
    calls = phase.counted.get('forebay_lease_calls_total{outcome="ok"}', 0.0)
    each = [sum(a.gateway == i for a in admitted) for i in range(options.nodes)]
    return {
        "phase": phase.name,
        "asked": len(phase.asked),
        "admitted": len(admitted),
        "of the limit": round(len(admitted) / (per_s * seconds), 3),
        "by node": " ".join(map(str, each)),
        "burst seen": round(excess(admitted, per_s), 1),
        "from shares": round(shares),
        "waited": round(waits),
        "core p99, ms": decided_ms(phase.counted, 0.99),
        "core p99.9, ms": decided_ms(phase.counted, 0.999),
        "429 p50, ms": round(quantile_ms([a for a in phase.asked if a.status == 429], 0.5), 2),
        "429 p99, ms": round(quantile_ms([a for a in phase.asked if a.status == 429], 0.99), 2),
        "free p50, ms": round(quantile_ms(phase.probed, 0.5), 2),
        "free p99, ms": round(quantile_ms(phase.probed, 0.99), 2),
        "calls/s": round(calls / seconds, 1),
        "others": sum(a.status not in (200, 429) for a in phase.asked)
        + sum(a.status != 200 for a in phase.probed),
    }


def failures(phases: list[Phase], options: argparse.Namespace) -> list[str]:
    """What does not hold."""
    per_s, nodes, burst = options.rpm / 60, options.nodes, options.burst
    # L and c of docs/shared-limits.md.
    lease = max(min(burst / 20, burst / nodes), 1.0)
    bound = burst + nodes * (lease + min(max(burst / 20, 1.0), burst / nodes))
    found = []
    for phase in phases:
        shown = row(phase, options)
        seconds = phase.ended - phase.began
        if shown["burst seen"] > bound:
            found.append(f"{phase.name}: a burst of {shown['burst seen']}, allowed {bound:g}")
        exact = phase.name == "steady" or phase.name.startswith("after")
        if exact and len(phase.admitted) > STEADY * per_s * seconds + 1:
            found.append(f"{phase.name}: {shown['of the limit']} of the limit")
        if exact and shown["waited"] > (1 - DECIDED) * len(phase.admitted):
            found.append(f"{phase.name}: {shown['waited']} of {len(phase.admitted)} waited")
        if exact and shown["from shares"] > (STEADY - 1) * len(phase.admitted):
            found.append(f"{phase.name}: {shown['from shares']} from shares")
        if float(shown["core p99, ms"].split()[-1]) > ADMISSION_MS:
            found.append(f"{phase.name}: p99 of admission {shown['core p99, ms']} ms")
        if shown["others"]:
            found.append(f"{phase.name}: {shown['others']} other answers")
        if phase.name in ("killed", "paused", "slowed"):
            # Each its part of the rate, and its part of the burst at once.
            for i in range(nodes):
                mine = [a for a in phase.admitted if a.gateway == i]
                seen, part = excess(mine, per_s / nodes), (burst / nodes + 2 * lease)
                if seen > part:
                    found.append(f"{phase.name}: node {i} had a burst of {seen:.1f} of {part:.1f}")
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, one.values()) for one in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rpm", type=int, default=600)
    parser.add_argument("--burst", type=int, default=100)
    parser.add_argument("--times", type=float, default=10.0, help="offered, of the limit")
    parser.add_argument("--connections", type=int, default=8, help="to each gateway")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    parser.add_argument("--out", type=Path, help="a file for the figures, JSON")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    phases = asyncio.run(measure(options))
    rows = [row(phase, options) for phase in phases]
    print(table(rows))
    print(f"load average before {before:.1f}, after {os.getloadavg()[0]:.1f}")
    found = failures(phases, options)
    print("\n".join(found) or "all of it holds")
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
