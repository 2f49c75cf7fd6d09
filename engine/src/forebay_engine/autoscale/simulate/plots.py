"""Plots of a comparison, as SVG: needs matplotlib (`forebay-engine[plots]`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forebay_engine.autoscale.simulate.compare import Result
from forebay_engine.autoscale.simulate.fleet import World
from forebay_engine.autoscale.simulate.plan import STEP_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "target": "#0b6e99",
    "forecast": "#6a4c93",
    "target, no spill price": "#7fb3c8",
    "concurrency (Knative)": "#c77d1e",
    "HPA (KEDA)": "#8a8a8a",
}
PLAN, DEMAND = "#2f2f2f", "#d8d8d8"


def draw(results: Mapping[str, Sequence[Result]], folder: Path, world: World) -> list[Path]:
    """Write `autoscale-*.svg`. Returns their paths. Raises: ValueError without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise ValueError("matplotlib is missing: pip install 'forebay-engine[plots]'") from None
    mpl.use("svg")
    # Text stays text, and the same data give the same file.
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "forebay",
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, found in results.items():
        slug = name.replace(", ", "-").replace(" ", "-")
        first = [result for result in found if result.rule == found[0].rule][:1]
        rules = list(dict.fromkeys(result.rule for result in found))
        one = [next(result for result in found if result.rule == rule) for rule in rules]
        paths.append(_save(_replicas(one, first[0], world, name), folder / f"autoscale-{slug}.svg"))
    paths.append(_save(_costs(results), folder / "autoscale-cost.svg"))
    return paths


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    # Trailing blanks are matplotlib's.
    text = "\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n"
    path.write_text(text)
    return path


def _replicas(results: Sequence[Result], first: Result, world: World, name: str) -> Any:
    """Replicas over time, one panel for each rule, before the load and the best plan."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(results), 1, figsize=(8, 1.5 * len(results)), sharex=True, sharey=True
    )
    end = first.outcome.history[-1][0] / 60
    for axes, result in zip(panels, results, strict=True):
        _panel(axes, result, world)
        axes.set_xlim(0, end)
    panels[0].set_title(f"{name}: replicas that are paid for", loc="left")
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=8)
    panels[0].set_ylim(top=panels[0].get_ylim()[1] * 1.25)
    panels[-1].set_xlabel("minutes")
    return figure


def _panel(axes: "Axes", result: Result, world: World) -> None:
    history = result.outcome.history
    every = max(len(history) // 360, 1)
    work = world.engine.work_s(500, 400)
    minutes = [entry[0] / 60 for entry in history[::every]]
    load = [
        sum(entry[1] for entry in history[at : at + every]) / len(history[at : at + every]) * work
        for at in range(0, len(history), every)
    ]
    axes.fill_between(minutes, load, color=DEMAND, step="post", linewidth=0, label="load")
    plan = result.same.replicas
    thin = max(len(plan) // 360, 1)
    axes.step(
        [at * STEP_S / 60 for at in range(0, len(plan), thin)],
        plan[::thin],
        color=PLAN,
        linewidth=0.7,
        linestyle="--",
        where="post",
        label="best plan of the same spill",
    )
    axes.step(
        minutes,
        [entry[2] for entry in history[::every]],
        color=COLOURS[result.rule],
        linewidth=1.3,
        where="post",
        label="the rule",
    )
    spilled = result.outcome.spilled / result.outcome.requests
    axes.text(
        0.005,
        0.97,
        f"{result.rule}: {result.outcome.met:.1%} in time, {spilled:.0%} spilled, "
        f"{result.over_same:.2f} times the best plan",
        transform=axes.transAxes,
        va="top",
        fontsize=8,
        color=COLOURS[result.rule],
        weight="bold",
    )
    axes.set_ylim(bottom=0)


def _costs(results: Mapping[str, Sequence[Result]]) -> Any:
    """What GPUs and the managed tier cost together, over the least: a group for each arrivals."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3))
    names = list(results)
    rules = list(dict.fromkeys(result.rule for found in results.values() for result in found))
    width = 0.8 / len(rules)
    for number, rule in enumerate(rules):
        heights = []
        for name in names:
            ratios = [result.over_cheapest for result in results[name] if result.rule == rule]
            heights.append(sum(ratios) / len(ratios))
        at = [group + number * width for group in range(len(names))]
        bars = axes.bar(at, heights, width * 0.92, color=COLOURS[rule], label=rule)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
    axes.axhline(1, color=PLAN, linewidth=0.7)
    axes.set_xticks([group + 0.4 - width / 2 for group in range(len(names))], names)
    axes.set_ylabel("cost over the least")
    axes.set_title("GPUs and managed tier together", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
