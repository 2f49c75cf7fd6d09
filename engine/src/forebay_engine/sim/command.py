"""`forebay-engine sim`."""

from __future__ import annotations

import argparse

from forebay_engine.sim import faults
from forebay_engine.sim.kinds import KINDS, starts_cold
from forebay_engine.sim.options import SimOptions
from forebay_engine.sim.scheduler import Limits


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Serve a simulated SGLang 0.5.23, or another kind of upstream: "
        "its HTTP surface and a queue model."
    )
    parser.epilog = faults.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until ended by a signal. Returns the exit status. Raises ValueError: wrong options."""
    options = _options(args)
    from forebay_engine.sim.server import run as serve

    return serve(options)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    base, limits = SimOptions(), Limits()
    add = parser.add_argument
    add("--kind", choices=sorted(KINDS), default=base.kind, help="what to simulate")
    add("--host", default=base.host)
    add("--port", type=int, default=base.port, help="0 picks a free one (default %(default)s)")
    add("--model", action="append", metavar="NAME", help="serve this name; repeatable")
    add("--embedding", action="append", metavar="NAME", help="an embedding model; repeatable")
    add("--embedding-dim", type=int, default=base.embedding_dim)
    add("--embed-any", action="store_true", help="generative models embed as well (unlike SGLang)")
    add("--ready-file", metavar="PATH", help='written once ready: {"url", "pid"}')
    add("--api-key", metavar="K", help="ask for it, as the kind takes it")
    add("--seed", type=int, default=base.seed)
    add("--prefill-rate", type=float, default=limits.prefill_rate, metavar="TOK/S")
    add(
        "--decode-rate",
        type=float,
        default=limits.decode_rate,
        metavar="TOK/S",
        help="of one request running alone; 0: without delay (default %(default)s)",
    )
    add("--batch-slowdown", type=float, default=limits.batch_slowdown, metavar="SHARE")
    add("--max-running", type=int, default=limits.max_running, metavar="N")
    add("--max-queued", type=int, default=None, metavar="N", help="default: no bound")
    add("--kv-tokens", type=int, default=limits.kv_tokens, metavar="N")
    add("--context-length", type=int, default=base.context_length, metavar="N")
    add("--bytes-per-token", type=int, default=base.bytes_per_token, metavar="N")
    add("--cache-report", action="store_true", help="report cached tokens in usage")
    add("--load-delay", type=float, default=0.0, metavar="S", help="refuse connections so long")
    add("--warmup", type=float, default=base.warmup_s, metavar="S", help="then not ready so long")
    add("--cold", type=float, default=None, metavar="S", help="not loaded yet; loading takes S")
    add("--enable-memory-saver", action="store_true", help="/server_info says that it is on")
    add("--gated-launch-port", type=int, metavar="PORT", help="wait there for POST /gate/activate")
    add("--wait", type=float, default=base.wait_s, metavar="S", help="for a worker that starts")
    add("--comment-every", type=float, default=None, metavar="S", help="comments in idle streams")
    add("--redirect-after", type=float, default=base.redirect_after_s, metavar="S")
    add("--redirect-hops", type=int, default=base.redirect_hops, metavar="N")
    add("--region", default=base.region, help="of signatures (default %(default)s)")
    add("--disconnect-poll", type=float, default=base.disconnect_poll_s, metavar="S")
    add("--health-delay", type=float, default=base.health_delay_s, metavar="S")
    add("--fault", action="append", default=[], metavar="SPEC", help="see below; repeatable")
    add("--exit-with-parent", action="store_true", help="end when the parent process does")
    add("--ignore-request-faults", action="store_true", help="heed only --fault")


def _options(args: argparse.Namespace) -> SimOptions:
    embedding = tuple(args.embedding or ())
    models = tuple(args.model or (() if embedding else ("tiny",)))
    for name in ("max_running", "kv_tokens", "context_length", "bytes_per_token", "embedding_dim"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    for name in (
        "load_delay",
        "warmup",
        "disconnect_poll",
        "health_delay",
        "batch_slowdown",
        "wait",
    ):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must not be negative")
    if args.cold is not None and not (args.cold >= 0 and starts_cold(args.kind)):
        raise ValueError(f"--cold: not for {args.kind}")
    parsed = tuple(faults.parse(item) for item in args.fault)
    if args.kind == "sglang" and any(fault.kind in faults.OF_PROVIDERS for fault in parsed):
        raise ValueError("--fault: SGLang has no such fault")
    return SimOptions(
        kind=args.kind,
        cold_s=args.cold,
        comment_s=args.comment_every,
        redirect_after_s=args.redirect_after,
        redirect_hops=args.redirect_hops,
        wait_s=args.wait,
        region=args.region,
        host=args.host,
        port=args.port,
        models=models,
        embedding_models=embedding,
        embedding_dim=args.embedding_dim,
        embed_any=args.embed_any,
        ready_file=args.ready_file,
        api_key=args.api_key,
        seed=args.seed,
        limits=Limits(
            prefill_rate=args.prefill_rate,
            decode_rate=args.decode_rate,
            batch_slowdown=args.batch_slowdown,
            max_running=args.max_running,
            max_queued=args.max_queued,
            kv_tokens=args.kv_tokens,
        ),
        context_length=args.context_length,
        bytes_per_token=args.bytes_per_token,
        cache_report=args.cache_report,
        load_delay_s=args.load_delay,
        warmup_s=args.warmup,
        disconnect_poll_s=args.disconnect_poll,
        health_delay_s=args.health_delay,
        faults=parsed,
        request_faults=not args.ignore_request_faults,
        exit_with_parent=args.exit_with_parent,
        memory_saver=args.enable_memory_saver,
        gate_port=args.gated_launch_port,
    )
