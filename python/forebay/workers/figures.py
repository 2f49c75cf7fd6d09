"""Sums over what several processes say in the Prometheus text format 0.0.4.

Text as our own registry writes it: every sample below the lines of its family, no timestamps, the
labels of one series always in the same order.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

SAME = frozenset(
    {
        "forebay_keys",
        "forebay_lease_participants",
        "forebay_limit_rows",
        "forebay_limit_rows_private",
        "forebay_upstream_concurrency_limit",
        "forebay_upstream_first_token_milliseconds",
        "forebay_upstream_requests_in_flight",
        "forebay_usage_lag_seconds",
    }
)
"""Gauges of what all processes share or have a copy of, and ages: the greatest is that of all."""
LEAST = frozenset({"forebay_lease_store_up"})
"""Gauges that are 1 only where they are 1 in every process."""


@dataclass(slots=True)
class Family:
    """One metric. samples: values by name and labels as they are written."""

    name: str
    kind: str = "untyped"
    help: str | None = None
    samples: dict[str, Decimal] = field(default_factory=dict)


Figures = dict[str, Family]
"""All metrics of a process by name, in the order of its text."""


def parse(text: str) -> Figures:
    """Read the text. Raises: ValueError for what is no sample."""
    found: Figures = {}
    family: Family | None = None
    # Not splitlines: a label's value may hold characters that it takes for an end of line.
    for line in text.split("\n"):
        if line.startswith("# "):
            _, what, name, rest = (line + "   ").split(" ", 3)
            if what not in ("HELP", "TYPE"):
                continue
            family = found.setdefault(name, Family(name))
            if what == "TYPE":
                family.kind = rest.strip()
            else:
                family.help = rest.removesuffix("   ")
        elif line:
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            if family is None or not _belongs(name, family):
                family = found.setdefault(name, Family(name))
            try:
                family.samples[series] = Decimal(value)
            except ArithmeticError:
                raise ValueError(f"not a sample: {line!r}") from None
    return found


def _belongs(name: str, family: Family) -> bool:
    if name == family.name:
        return True
    return family.kind == "histogram" and name in {
        f"{family.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")
    }


def merge(parts: Iterable[Figures]) -> Figures:
    """The sums, series by series; the parts stay as they are.

    Families and series are in the order in which they first come. Of gauges that are the `SAME` in
    every process the greatest value counts, and of some the `LEAST`.
    """
    total: Figures = {}
    for part in parts:
        for name, family in part.items():
            into = total.setdefault(name, Family(name, family.kind, family.help))
            for series, value in family.samples.items():
                before = into.samples.get(series)
                if before is None:
                    into.samples[series] = value
                elif name in SAME:
                    into.samples[series] = max(before, value)
                elif name in LEAST:
                    into.samples[series] = min(before, value)
                else:
                    into.samples[series] = before + value
    return total


def counters(figures: Figures) -> Figures:
    """Only what never goes down: counters and histograms."""
    return {n: family for n, family in figures.items() if family.kind in ("counter", "histogram")}


def render(figures: Figures) -> str:
    """The text; each family's HELP and TYPE once."""
    lines = []
    for family in figures.values():
        if family.help is not None:
            lines.append(f"# HELP {family.name} {family.help}\n")
        lines.append(f"# TYPE {family.name} {family.kind}\n")
        lines.extend(f"{series} {_number(value)}\n" for series, value in family.samples.items())
    return "".join(lines)


def _number(value: Decimal) -> str:
    if not value.is_finite():
        return "NaN" if value.is_nan() else "+Inf" if value > 0 else "-Inf"
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
