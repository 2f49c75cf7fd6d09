"""`forebay-engine autoscale`, and `forebay-engine autoscale simulate`."""

import argparse
import asyncio
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forebay_engine.autoscale.config import Config

log = logging.getLogger("forebay_engine.autoscale")

DRIVERS = ("exec", "runpod", "modal", "baseten", "k8s", "pool")


def add(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration, YAML")
    parser.add_argument(
        "--driver", choices=DRIVERS, help="only models whose driver is of this kind are scaled"
    )
    parser.add_argument("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics here")
    parser.add_argument("--keda", metavar="HOST:PORT", help="serve KEDA's ExternalScaler here")
    parser.add_argument("--dry-run", action="store_true", help="write what drivers would be told")
    parser.add_argument("--once", action="store_true", help="two readings, one decision, then end")
    parser.add_argument("--check", action="store_true", help="read the configuration, then end")
    parser.set_defaults(what=None)
    commands = parser.add_subparsers(dest="what", metavar="simulate", required=False)
    simulate = commands.add_parser("simulate", help="compare rules on the same arrivals")
    simulate.add_argument("--out", type=Path, metavar="DIR", help="write plots to DIR/images")
    simulate.add_argument("--seeds", type=int, default=3, help="arrivals of so many seeds (3)")
    simulate.add_argument("--hours", type=float, default=3.0, help="length of bursty arrivals (3)")
    simulate.add_argument("--rate", type=float, default=6.0, help="requests a second at rest (6)")
    simulate.add_argument("--start", type=float, default=60.0, help="start of an engine, s (60)")
    simulate.add_argument(
        "--parked", type=float, help="start of a parked engine, s: compare it too"
    )
    simulate.add_argument("--spill-price", type=float, default=2.0, help="of the managed tier (2)")
    simulate.add_argument(
        "--trace", type=Path, metavar="CSV", help="at_s,prompt_tokens,output_tokens"
    )


def run(args: argparse.Namespace) -> int:
    """Run it. Raises: ValueError for wrong arguments or a wrong configuration."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if args.what == "simulate":
        from forebay_engine.autoscale.simulate.command import run as simulate

        return simulate(args)
    if args.config is None:
        raise ValueError("--config is needed (or: simulate)")
    try:
        import httpx
        import prometheus_client
    except ImportError as error:
        raise ValueError(
            f"{error.name} is missing: pip install 'forebay-engine[autoscale]'"
        ) from None
    del httpx, prometheus_client
    from forebay_engine.autoscale.config import load

    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config = load(args.config)
    except OSError as error:
        raise ValueError(f"{args.config}: {error.strerror}") from None
    if args.check:
        return 0
    try:
        asyncio.run(_serve(args, config))
    except OSError as error:
        print(f"forebay-engine autoscale: {error}", file=sys.stderr)
        return 1
    return 0


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`; an IPv6 host in brackets. Raises: ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


async def _serve(args: argparse.Namespace, config: "Config") -> None:
    import httpx

    from forebay_engine.autoscale.board import Board
    from forebay_engine.autoscale.drivers import Dry, make
    from forebay_engine.autoscale.exporter import Exporter
    from forebay_engine.autoscale.loop import Loop, Teller
    from forebay_engine.autoscale.sources import Sources

    board = Board()
    exporter = Exporter(board)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    # A driver's platform may be slow; readings may not.
    async with (
        httpx.AsyncClient(timeout=config.timeout_s) as reading,
        httpx.AsyncClient(timeout=30.0) as telling,
    ):
        tellers = {}
        for name, model in config.models.items():
            kind = None if model.driver is None else type(model.driver).__struct_config__.tag
            if model.driver is None or args.driver not in (None, kind):
                continue
            driver = Dry() if args.dry_run else make(model.driver, model.limits.max, telling)
            tellers[name] = Teller(
                name,
                driver,
                time.monotonic,
                lambda model, outcome: exporter.calls.labels(model, outcome).inc(),
            )
        if args.driver is not None and not tellers:
            raise OSError(f"no model has a driver of kind {args.driver}")
        keda = None
        if args.metrics:
            host, port = address(args.metrics)
            log.info("metrics at http://%s:%d/metrics", host, exporter.serve(host, port))
        if args.keda:
            from forebay_engine.autoscale.keda import serve

            address(args.keda)
            names = list(config.models)
            keda = await serve(
                board, names, args.keda, lambda port: log.info("KEDA's scaler at port %d", port)
            )
        sources = Sources(config, reading, time.monotonic)
        scaling = Loop(config, sources.read, board, tellers)
        try:
            if args.once:
                await scaling.once()
                await asyncio.sleep(config.interval_s)
                await scaling.once()
                await scaling.settled()
            else:
                await scaling.run(stop)
        finally:
            if keda is not None:
                await keda.stop(1.0)
