"""Measure gateways beside each other: ``python benches/load/run.py --help``.

Starts the upstream and each gateway, puts the same load on each in interleaved rounds, and prints
medians and spreads. See ``benches/load/README.md`` for what each figure means.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from loadbench import gateways, report
from loadbench.gateways import ROOT, Gateway, SetupError
from loadbench.procs import Process, raise_file_limit
from loadbench.workloads import OPTIONAL, WORKLOADS, Bench, Workload

LATE_WARNING_US = 5000.0


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measure gateways beside each other on one machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--gateway",
        action="append",
        metavar="SPEC",
        help=f"a preset ({', '.join(gateways.PRESETS)}) or 'name|command|url|model|key|ready "
        "path' with {port}, {port2}, {upstream_port} and {dir} in command and url; repeatable; "
        "all presets that are installed when not given. direct is always measured",
    )
    parser.add_argument(
        "--workload",
        action="append",
        choices=[workload.name for workload in WORKLOADS],
        help="only this one; repeatable",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each workload")
    parser.add_argument("--quick", action="store_true", help="short runs, to see that all works")
    parser.add_argument("--out", type=Path, help="folder for results.md and results.json")
    parser.add_argument(
        "--peer-dir",
        type=Path,
        default=os.environ.get("FOREBAY_LOAD_PEER_DIR"),
        help="folder with the peers' programs, such as a virtual environment's bin",
    )
    parser.add_argument("--against", default="vllm-router", help="gateway to divide CPU by")
    parser.add_argument("--binary", type=Path, help="forebay-load; built with cargo if not given")
    parser.add_argument("--client-threads", type=int, default=1, help="threads of the client")
    parser.add_argument("--upstream-threads", type=int, default=1, help="threads of the upstream")
    parser.add_argument(
        "--quantum-us",
        type=int,
        default=0,
        help="send paced events only at multiples of this, as an engine's decode steps do",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def load_binary(given: Path | None) -> Path:
    """The load program's path, built first when not given. Raises SetupError."""
    if given is not None:
        if not given.is_file():
            raise SetupError(f"--binary {given} does not exist")
        return given.resolve()
    cargo = shutil.which("cargo")
    if cargo is None:
        raise SetupError("cargo is missing: install Rust (https://rustup.rs) or give --binary")
    command = [cargo, "build", "--quiet", "--release", "--package", "forebay-load"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SetupError("cargo could not build forebay-load")
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return ROOT / target / "release" / "forebay-load"


def start_upstream(binary: Path, options: argparse.Namespace, directory: Path) -> Gateway:
    """Start the upstream; it is handled as a gateway without an upstream."""
    command = f"{shlex.quote(str(binary))} upstream --listen 127.0.0.1:{{port}}"
    command += f" --threads {options.upstream_threads} --quantum-us {options.quantum_us}"
    upstream = Gateway("upstream", command, "http://127.0.0.1:{port}", ready="/ready")
    try:
        upstream.start(directory / "upstream", 0)
    except BaseException:
        upstream.stop()
        raise
    return upstream


def measure(
    bench: Bench, chosen: list[Gateway], workloads: list[Workload], rounds: int
) -> report.Runs:
    """All runs: for each workload, rounds over all gateways in turn."""
    runs: report.Runs = {workload.name: {} for workload in workloads}
    for workload in workloads:
        able = [g for g in chosen if g.workloads is None or workload.name in g.workloads]
        for number in range(rounds):
            for gateway in able:
                result = bench.run(gateway, workload)
                runs[workload.name].setdefault(gateway.name, []).append(result)
                tell(workload, gateway, number, result.client)
    return runs


def tell(workload: Workload, gateway: Gateway, number: int, client: dict[str, Any]) -> None:
    """Progress on standard error, and what makes a figure doubtful."""
    rate = client["events_per_s_steady"] or client["requests_per_s"]
    print(f"{workload.name} round {number + 1} {gateway.name}: {rate:,.0f}/s", file=sys.stderr)
    if client["errors"]:
        print(f"  {client['errors']} errors, such as {client['error_samples']}", file=sys.stderr)
    late = client["upstream_late_us"]
    if workload.name == "paced-20" and late and late["p99"] > LATE_WARNING_US:
        print(
            f"  the upstream itself was {late['p99'] / 1000:.0f} ms late (p99): this machine was "
            "busy, so read gaps and delays with care",
            file=sys.stderr,
        )


def write(options: argparse.Namespace, text: str, about: dict[str, Any], runs: report.Runs) -> None:
    """Print the tables; keep both forms when ``--out`` is given."""
    print(text)
    if options.out is None:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text(text + "\n")
    plain = {
        workload: {name: [r.as_json() for r in results] for name, results in by_name.items()}
        for workload, by_name in runs.items()
    }
    whole = json.dumps({**about, "runs": plain}, indent=1) + "\n"
    (options.out / "results.json").write_text(whole)


def end_on_sigterm(_: int, __: FrameType | None) -> None:
    """Leave through the ``finally`` that ends what was started."""
    raise SystemExit(143)


def main(arguments: list[str]) -> int:
    """Run the bench; the exit status: 0, 1 when a part is missing or failed, 130 on Ctrl-C."""
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, end_on_sigterm)
    raise_file_limit()
    started: list[Gateway] = []
    with tempfile.TemporaryDirectory(prefix="forebay-load-") as name:
        directory = Path(name)
        # A database server that a gateway runs as another user must reach its folder in here.
        directory.chmod(0o711)
        try:
            bench_all(options, directory, started)
        except SetupError as error:
            print(f"load bench: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("load bench: interrupted", file=sys.stderr)
            return 130
        finally:
            for gateway in reversed(started):
                gateway.stop()
    return 0


def bench_all(options: argparse.Namespace, directory: Path, started: list[Gateway]) -> None:
    """Start everything, measure, report. What is started is appended to ``started`` first."""
    peer_dir: Path | None = options.peer_dir
    if options.gateway:
        chosen = [gateways.parse(text, peer_dir) for text in options.gateway]
    else:
        chosen = gateways.installed(peer_dir)
    chosen = [gateways.direct(None), *(g for g in chosen if g.name != "direct")]
    if len({gateway.name for gateway in chosen}) < len(chosen):
        raise SetupError("two gateways have the same name")
    asked = options.workload or [w.name for w in WORKLOADS if w.name not in OPTIONAL]
    workloads = [workload for workload in WORKLOADS if workload.name in asked]
    about = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["run.py", *sys.argv[1:]]),
        "rounds": options.rounds,
        "machine": report.machine(),
        "versions": {g.name: g.version() for g in chosen if g.version is not None},
    }
    binary = load_binary(options.binary)
    upstream = start_upstream(binary, options, directory)
    started.append(upstream)
    process = upstream.process
    if not isinstance(process, Process):
        raise SetupError("the upstream did not start")
    port = int(upstream.url.rpartition(":")[2])
    bench = Bench(binary, process, directory, options.quick, options.client_threads)
    for gateway in chosen:
        started.append(gateway)
        gateway.start(directory / gateway.name, port)
        bench.check(gateway)
    runs = measure(bench, chosen, workloads, options.rounds)
    write(options, report.markdown(workloads, runs, about, options.against), about, runs)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
