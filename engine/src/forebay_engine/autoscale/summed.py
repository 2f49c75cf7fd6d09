"""The sum of what several gateways count, as if none of them ever began anew. Pure.

A gateway that is started again counts from nothing. In a plain sum that looks like a fall, or like
a rise by all that the others have counted ever; so each gateway is followed by itself.
"""

from collections.abc import Iterator

from forebay_engine.autoscale.metrics_text import Labels, Samples

_COUNTERS = ("_total", "_bucket", "_count", "_sum")
"""Ends of the names of what only grows while a gateway lives."""

_Series = tuple[str, Labels]


class Summed:
    """What was counted since each gateway was first heard; gauges are what was heard last."""

    def __init__(self) -> None:
        self._last: dict[str, Samples] = {}
        self._offsets: dict[str, dict[_Series, float]] = {}

    def put(self, gateway: str, samples: Samples) -> None:
        """What a gateway says now.

        It has begun anew where any of its counters is smaller or gone: a gateway drops none.
        """
        last = self._last.get(gateway)
        offsets = self._offsets.setdefault(gateway, {})
        now = dict(_counters(samples))
        if last is None:
            offsets.update((series, -value) for series, value in now.items())
        else:
            before = dict(_counters(last))
            if any(now.get(series, -1.0) < value for series, value in before.items()):
                for series, value in before.items():
                    offsets[series] = offsets.get(series, 0.0) + value
        self._last[gateway] = samples

    def total(self) -> Samples:
        """Counters never fall, and rise by what was counted between two `put`s of a gateway."""
        total = Samples()
        for gateway, samples in self._last.items():
            for name, of in samples.values.items():
                if not name.endswith(_COUNTERS):
                    for labels, value in of.items():
                        total.add(name, dict(labels), value)
            counted = dict(self._offsets[gateway])
            for series, value in _counters(samples):
                counted[series] = counted.get(series, 0.0) + value
            for (name, labels), value in counted.items():
                total.add(name, dict(labels), value)
        return total


def _counters(samples: Samples) -> Iterator[tuple[_Series, float]]:
    for name, of in samples.values.items():
        if name.endswith(_COUNTERS):
            yield from (((name, labels), value) for labels, value in of.items())
