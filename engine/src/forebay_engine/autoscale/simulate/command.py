"""`forebay-engine autoscale simulate`: a table of all rules, and plots."""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from forebay_engine.autoscale.simulate import arrivals
from forebay_engine.autoscale.simulate.arrivals import Request, Shape, poisson
from forebay_engine.autoscale.simulate.compare import Result, compare
from forebay_engine.autoscale.simulate.engine import EngineModel
from forebay_engine.autoscale.simulate.fleet import World


def run(args: argparse.Namespace) -> int:
    """Run it. Raises: ValueError for wrong arguments."""
    if args.seeds < 1 or args.hours <= 0 or args.rate <= 0 or args.start < 0:
        raise ValueError("--seeds, --hours and --rate are above 0, --start at least 0")
    if args.spill_price < 1:
        raise ValueError("--spill-price is at least 1: below that, no replica is worth having")
    world = World(engine=EngineModel(start_s=args.start), warm=2)
    results: dict[str, list[Result]] = defaultdict(list)
    for name, seed, requests in _cases(args):
        results[name] += compare(requests, world, args.spill_price, seed)
        if name == "bursts" and args.parked is not None:
            parked = replace(world, engine=replace(world.engine, start_s=args.parked))
            results["bursts, parked"] += compare(requests, parked, args.spill_price, seed)
    # No cell is cut: a terminal that is narrower wraps the lines.
    console = Console()
    console.width = max(console.width, 120)
    for name, found in results.items():
        console.print(table(name, found, world.engine.gpus))
    if args.out is not None:
        from forebay_engine.autoscale.simulate.plots import draw

        for path in draw(results, args.out / "images", world):
            console.print(f"wrote {path}", highlight=False)
    return 0


def _cases(args: argparse.Namespace) -> Iterator[tuple[str, int, list[Request]]]:
    if args.trace is not None:
        try:
            yield "trace", 0, arrivals.read(args.trace)
        except OSError as error:
            raise ValueError(f"{args.trace}: {error.strerror}") from None
        return
    for seed in range(args.seeds):
        bursts = arrivals.bursts(args.rate, seed, horizon_s=args.hours * 3600)
        yield "bursts", seed, list(poisson(bursts, Shape(), seed))
    yield "diurnal", 0, list(poisson(arrivals.diurnal(args.rate), Shape(), 0))
    yield "ramp", 0, list(poisson(arrivals.ramp(args.rate), Shape(), 0))


def table(name: str, results: list[Result], gpus: int) -> Table:
    """One line for each rule, its worst seed where there are several."""
    seeds = len(results) // len({result.rule for result in results})
    title = f"{name}, worst of {seeds} seeds" if seeds > 1 else name
    out = Table("rule", title=title)
    for column in (
        "in time", "spilled", "GPU-hours", "of the best plan", "of its bound", "of alone",
        "cost of the least", "starts",
    ):  # fmt: skip
        out.add_column(column, justify="right")
    by_rule: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_rule[result.rule].append(result)
    for rule, found in by_rule.items():
        outcomes = [result.outcome for result in found]
        out.add_row(
            rule,
            f"{min(outcome.met for outcome in outcomes):.2%}",
            f"{max(outcome.spilled / outcome.requests for outcome in outcomes):.1%}",
            f"{sum(outcome.gpu_hours(gpus) for outcome in outcomes) / len(outcomes):.1f}",
            f"{max(result.over_same for result in found):.2f}",
            f"{max(result.over_bound for result in found):.2f}",
            f"{max(result.over_alone for result in found):.2f}",
            f"{max(result.over_cheapest for result in found):.2f}",
            f"{sum(outcome.starts for outcome in outcomes) / len(outcomes):.0f}",
        )
    return out
