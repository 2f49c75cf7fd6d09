"""Metrics in the Prometheus text format, as numbers by name and labels."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Samples:
    """What one or several scrapes said; the same series of several are added up."""

    values: dict[str, dict[Labels, float]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, name: str, labels: dict[str, str], value: float) -> None:
        """Take in a sample; one that is no number says nothing."""
        if math.isnan(value):
            return
        series = self.values[name]
        key = tuple(sorted(labels.items()))
        series[key] = series.get(key, 0.0) + value

    def has(self, name: str) -> bool:
        """Whether there is a sample of the metric."""
        return bool(self.values.get(name))

    def sum(self, name: str, **labels: str) -> float:
        """The sum of the series with these labels; 0 where there is none."""
        return sum(value for _, value in self.where(name, **labels))

    def where(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """The series of a metric with these labels."""
        found = [(dict(key), value) for key, value in self.values.get(name, {}).items()]
        return [
            (key, value)
            for key, value in found
            if all(key.get(label) == wanted for label, wanted in labels.items())
        ]


def read(text: str, into: Samples | None = None) -> Samples:
    """Read a scrape. Raises: ValueError for what is no such text."""
    from prometheus_client.parser import text_string_to_metric_families

    samples = Samples() if into is None else into
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.add(sample.name, sample.labels, sample.value)
    return samples
