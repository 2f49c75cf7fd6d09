"""Does a client notice when engines die? ``python benches/load/chaos.py --help``.

Three simulated engines, a simulated provider behind them, requests at a constant rate, half of them
streams. First a calm run, then one while engines are killed, stopped, stalled and slowed, cut
streams off, say garbage and 503, at most two at a time. Every answer is compared with what the
simulator says for its prompt, every usage row with what its client got.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import asyncpg  # noqa: E402
from forebay.store import EmbeddedPostgres  # noqa: E402
from loadbench.monkey import Engine, Monkey  # noqa: E402
from loadbench.procs import raise_file_limit  # noqa: E402
from loadbench.storm import Outcome, Storm, p99_ttft_s  # noqa: E402
from run import end_on_sigterm  # noqa: E402

from tests.support.admin import Admin  # noqa: E402
from tests.support.processes import Gateway, Key  # noqa: E402

MODEL = "sim"
ENGINES = ("gpu-a", "gpu-b", "gpu-c")
MANAGED = "managed"
AFTER_TOKEN_SHARE = 0.001
"""Of requests may fail once a part is delivered."""
TTFT_FACTOR = 3.0
"""Of the calm run's 99th percentile."""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Load a gateway while its engines are hurt, and check every answer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--rate", type=float, default=200.0, help="requests a second")
    add("--seconds", type=float, default=600.0, help="length of the run with faults")
    add("--calm", type=float, default=60.0, help="length of the run before it")
    add("--seed", type=int, default=1, help="of prompts and faults")
    add("--at-once", type=int, default=2, help="engines that are hurt at a time, at most")
    add("--hurt", type=float, nargs=2, default=(1.0, 4.0), help="seconds, least and most")
    add("--decode-rate", type=float, default=400.0, help="tokens a second of one answer")
    add("--first-byte", type=float, default=1.0, help="seconds, the model's timeout")
    add("--idle", type=float, default=1.0, help="seconds, the model's timeout")
    add("--hedge-after", type=float, default=0.03, help="seconds; 0: no hedging")
    add("--hedge-percent", type=float, default=20.0, help="requests that may be hedged")
    add("--policy", default="least_load", help="of the model")
    add("--no-resume", action="store_true", help="streams are not carried on")
    add("--ttft-factor", type=float, default=TTFT_FACTOR, help="that the 99th percentile may grow")
    add("--database-url", help="a database of its own is made when not given")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def config(options: argparse.Namespace, engines: list[Engine], managed: Engine) -> dict[str, Any]:
    """The gateway's configuration."""
    upstreams: dict[str, Any] = {
        engine.name: {
            "kind": "sglang",
            "url": engine.url,
            "probe": {"interval": 0.5, "timeout": 0.5},
            "outlier": {"consecutive": 3, "base_ejection": 1, "max_ejection": 5},
            "slow_start": 1,
        }
        for engine in engines
    }
    upstreams[MANAGED] = {"kind": "openai", "url": managed.url, "api_key": "sk-sim"}
    targets: list[dict[str, Any]] = [{"upstream": e.name, "model": MODEL} for e in engines]
    targets.append({"upstream": MANAGED, "model": MODEL, "tier": 1})
    model: dict[str, Any] = {
        "targets": targets,
        "policy": options.policy,
        "timeouts": {"first_byte": options.first_byte, "idle": options.idle, "total": 30},
        "retry": {"attempts": 5, "budget": 1.0, "min_per_second": 100, "backoff": 0.01},
        "resume": not options.no_resume,
    }
    if options.hedge_after > 0:
        model["hedge"] = {"after": options.hedge_after, "max_percent": options.hedge_percent}
    return {"upstreams": upstreams, "models": {MODEL: model}}


@dataclass
class Result:
    """What was seen. Times in milliseconds; `wrong` says of some rows what they should be."""

    calm_p99_ms: float = 0.0
    chaos_p99_ms: float = 0.0
    calm_failures: int = 0
    requests: int = 0
    before_token: list[Outcome] = field(default_factory=list)
    after_token: list[Outcome] = field(default_factory=list)
    dishonest: list[Outcome] = field(default_factory=list)
    acts: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    wrong: list[str] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)

    def failures(self, options: argparse.Namespace) -> list[str]:
        """What does not hold."""
        found = []
        if self.calm_failures:
            found.append(f"{self.calm_failures} requests failed in the calm")
        if self.before_token:
            found.append(f"{len(self.before_token)} failed before their first token")
        allowed = 1.0 if options.no_resume else AFTER_TOKEN_SHARE
        if len(self.after_token) > allowed * self.requests:
            found.append(f"{len(self.after_token)} of {self.requests} failed after it")
        if self.dishonest:
            found.append(f"{len(self.dishonest)} failed and did not say so")
        if self.chaos_p99_ms > options.ttft_factor * self.calm_p99_ms:
            found.append(
                f"p99 time to first token {self.chaos_p99_ms:.0f} ms, "
                f"{self.calm_p99_ms:.0f} ms in the calm"
            )
        if self.wrong:
            found.append(f"{len(self.wrong)} usage rows are wrong: {'; '.join(self.wrong[:5])}")
        if any(self.held.values()):
            found.append(f"permits are held: {self.held}")
        return found

    def shown(self) -> dict[str, Any]:
        """For JSON and people."""
        return {
            "requests": self.requests,
            "failed before first token": len(self.before_token),
            "failed after it": len(self.after_token),
            "of them without a word": len(self.dishonest),
            "p99 time to first token, calm, ms": round(self.calm_p99_ms, 1),
            "p99 time to first token, chaos, ms": round(self.chaos_p99_ms, 1),
            "done to engines": dict(self.acts),
            "usage rows": self.rows,
            "wrong usage rows": len(self.wrong),
            "attempts": dict(sorted(self.attempts.items())),
            "served by": self.served,
            "permits held": sum(self.held.values()),
        }


async def rows_of(url: str, count: int) -> dict[str, list[dict[str, Any]]]:
    """Usage rows by request id, once there are `count` or 30 s have passed."""
    connection = await asyncpg.connect(url)
    try:
        deadline = time.monotonic() + 30
        while True:
            found = await connection.fetch("SELECT * FROM usage_events")
            if len(found) >= count or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
    finally:
        await connection.close()
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        rows.setdefault(row["request_id"], []).append(dict(row))
    return rows


def compare(outcome: Outcome, rows: list[dict[str, Any]]) -> str | None:
    """What is wrong with a request's rows, if anything."""
    if len(rows) != 1:
        return f"{outcome.request_id}: {len(rows)} rows"
    (row,) = rows
    counted = row["completion_tokens"]
    if outcome.good:
        # An engine that died between its last words and its final count has not counted the end.
        whole = {outcome.tokens, outcome.tokens - (row["source"] == "counted")}
        if row["outcome"] != "ok" or counted not in whole:
            return f"{outcome.request_id}: {row['outcome']}, {counted} of {outcome.tokens} tokens"
        told = (outcome.usage or {}).get("completion_tokens")
        if told not in (counted, None if row["source"] == "counted" else counted):
            return f"{outcome.request_id}: {told} tokens told, {counted} counted"
    else:
        delivered = outcome.text.count(" ")
        if row["outcome"] == "ok" or not delivered <= counted <= outcome.tokens:
            return f"{outcome.request_id}: {row['outcome']}, {counted} tokens, {delivered} came"
    return None


def held(admin: Admin) -> dict[str, int]:
    """Requests in flight by upstream, as the gateway has them."""
    data = admin.send("GET", "/upstreams")["data"]
    return {entry["name"]: entry["in_flight"] + entry["waiting"] for entry in data}


async def storm(options: argparse.Namespace, gateway: Gateway, key: Key, monkey: Monkey) -> Result:
    """The calm, and the storm after it."""
    load = Storm(gateway.url, key.secret, MODEL, seed=options.seed)
    await load.run(options.rate, min(3.0, options.calm))  # connections, caches
    calm = await load.run(options.rate, options.calm)
    hurting = asyncio.create_task(monkey.run())
    chaos = await load.run(options.rate, options.seconds)
    hurting.cancel()
    await asyncio.gather(hurting, return_exceptions=True)
    result = Result(
        calm_p99_ms=p99_ttft_s(calm) * 1000,
        chaos_p99_ms=p99_ttft_s(chaos) * 1000,
        calm_failures=sum(not outcome.good for outcome in calm),
        requests=len(chaos),
        before_token=[o for o in chaos if o.failed_before_token],
        after_token=[o for o in chaos if o.failed_after_token],
        dishonest=[o for o in chaos if not o.honest],
        acts=dict(monkey.done),
    )
    rows = await rows_of(gateway.database_url, len(load.outcomes))
    result.rows = sum(map(len, rows.values()))
    wrongs = [compare(outcome, rows.get(outcome.request_id, [])) for outcome in load.outcomes]
    result.wrong = [wrong for wrong in wrongs if wrong is not None]
    asked = {outcome.request_id for outcome in load.outcomes}
    result.wrong += [f"{name}: nobody asked" for name in rows.keys() - asked]
    every = [row for found in rows.values() for row in found]
    result.attempts = dict(Counter(row["attempts"] for row in every))
    result.served = dict(Counter(row["upstream"] or "none" for row in every))
    return result


def measure(options: argparse.Namespace, folder: Path, database_url: str) -> Result:
    """Start all of it, and run."""
    common = ("--model", MODEL, "--decode-rate", str(options.decode_rate), "--cache-report")
    own = ("--ignore-request-faults", "--health-delay", "0")
    engines = [Engine(name, folder, *common, *own) for name in ENGINES]
    managed = Engine(MANAGED, folder, *common, "--kind", "openai", "--api-key", "sk-sim")
    gateway = Gateway(folder / "gateway", config(options, engines, managed), database_url)
    everyone = [*engines, managed]
    try:
        for engine in everyone:
            engine.start()
        for engine in everyone:
            asyncio.run(engine.wait_ready())
        gateway.start()
        key, admin = gateway.key(), Admin(gateway)
        monkey = Monkey(engines, options.seed, options.at_once, tuple(options.hurt))
        result = asyncio.run(storm(options, gateway, key, monkey))
        gateway.wait_idle()
        result.held = held(admin)
        return result
    finally:
        if gateway.popen is not None:
            gateway.stop()
        for engine in everyone:
            engine.stop()


def main(arguments: list[str]) -> int:
    """Run, print, and say by the status whether it holds."""
    options = parse_arguments(arguments)
    raise_file_limit()
    signal.signal(signal.SIGTERM, end_on_sigterm)
    with tempfile.TemporaryDirectory(prefix="forebay-chaos-") as name:
        folder = Path(name)
        if options.database_url:
            result = measure(options, folder, options.database_url)
        else:
            with EmbeddedPostgres(folder / "postgres", durable=False) as postgres:
                result = measure(options, folder, postgres.url)
    shown, failures = result.shown(), result.failures(options)
    if options.json:
        samples = [vars(o) for o in (result.before_token + result.after_token)[:10]]
        print(json.dumps({**shown, "failures": failures, "samples": samples}, indent=2))
    else:
        print("\n".join(["| what | |", "|---|---|", *(f"| {k} | {v} |" for k, v in shown.items())]))
        for outcome in (result.before_token + result.after_token)[:10]:
            print(f"  {outcome.status} {outcome.error} after {len(outcome.text)} characters")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
