"""Counters of several gateways, of which any may begin anew."""

from collections import Counter

from forebay_engine.autoscale.metrics_text import Samples
from forebay_engine.autoscale.summed import Summed
from hypothesis import given, settings
from hypothesis import strategies as st

MODELS = ("llama", "qwen", "phi")
NAMES = ("requests_total", "ttft_bucket", "ttft_count", "ttft_sum")

Series = tuple[str, str]

series = st.tuples(st.sampled_from(NAMES), st.sampled_from(MODELS))
counts = st.dictionaries(series, st.integers(0, 10**9), max_size=6)
turns = st.tuples(
    st.sampled_from(("one", "two", "three")), st.booleans(), counts, st.integers(0, 50)
)
"""Of a gateway: whether it begins anew, what it counts then, and a gauge."""


def scrape(counted: Counter[Series], there: int) -> Samples:
    samples = Samples()
    for (name, model), value in counted.items():
        samples.add(name, {"model": model}, float(value))
    samples.add("in_flight", {"model": "llama"}, float(there))
    return samples


@given(st.lists(turns, max_size=40))
@settings(max_examples=200, deadline=None)
def test_counters_rise_by_what_was_counted(
    steps: list[tuple[str, bool, dict[Series, int], int]],
) -> None:
    summed = Summed()
    alive: dict[str, Counter[Series]] = {}
    there: dict[str, int] = {}
    expected: Counter[Series] = Counter()
    for gateway, anew, more, now in steps:
        first = gateway not in alive
        before = Counter() if first or anew else alive[gateway]
        counted = Counter(before)
        counted.update(more)
        if anew and not first:
            # One that has counted as much as before at once would look as if it had gone on.
            seen = alive[gateway]
            if all(key in counted and counted[key] >= seen[key] for key in seen):
                continue
        if not first:
            expected.update(more)
        alive[gateway], there[gateway] = counted, now
        summed.put(gateway, scrape(counted, now))
        total = summed.total()
        for name in NAMES:
            for model in MODELS:
                assert total.sum(name, model=model) == expected[name, model]
        assert total.sum("in_flight", model="llama") == sum(there.values())
