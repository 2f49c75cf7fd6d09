"""Sums over the metrics of several processes."""

from decimal import Decimal

import pytest
from forebay._core import Core
from forebay.workers.figures import LEAST, SAME, counters, merge, parse, render
from hypothesis import given
from hypothesis import strategies as st

ONE = """\
# HELP a_total Counted things.
# TYPE a_total counter
a_total{kind="x"} 1
a_total{kind="y"} 2
# HELP b Now.
# TYPE b gauge
b 5
# HELP c_seconds Durations.
# TYPE c_seconds histogram
c_seconds_bucket{le="0.1"} 1
c_seconds_bucket{le="+Inf"} 2
c_seconds_sum 0.1
c_seconds_count 2
"""


def test_every_kind_is_summed() -> None:
    two = ONE.replace("_sum 0.1", "_sum 0.2")
    assert render(merge([parse(ONE), parse(two)])) == (
        "# HELP a_total Counted things.\n# TYPE a_total counter\n"
        'a_total{kind="x"} 2\na_total{kind="y"} 4\n'
        "# HELP b Now.\n# TYPE b gauge\nb 10\n"
        "# HELP c_seconds Durations.\n# TYPE c_seconds histogram\n"
        'c_seconds_bucket{le="0.1"} 2\nc_seconds_bucket{le="+Inf"} 4\n'
        "c_seconds_sum 0.3\nc_seconds_count 4\n"
    ), "0.1 + 0.2 is 0.3"


def test_families_and_series_that_one_alone_has_keep_their_order() -> None:
    other = "# TYPE new gauge\nnew 1\n" + ONE.replace('kind="x"', 'kind="z"')
    merged = merge([parse(ONE), parse(other)])
    assert list(merged) == ["a_total", "b", "c_seconds", "new"]
    assert list(merged["a_total"].samples.items()) == [
        ('a_total{kind="x"}', 1),
        ('a_total{kind="y"}', 4),
        ('a_total{kind="z"}', 1),
    ]
    text = render(merged)
    assert text.count("# HELP a_total ") == text.count("# TYPE a_total ") == 1
    assert text.index("# TYPE new") < text.index("new 1")


@pytest.mark.parametrize("name", sorted(SAME))
def test_what_all_have_a_copy_of_is_not_summed(name: str) -> None:
    parts = [parse(f"# TYPE {name} gauge\n{name} {value}\n") for value in (3, 5, 4)]
    assert render(merge(parts)) == f"# TYPE {name} gauge\n{name} 5\n"


@pytest.mark.parametrize("name", sorted(LEAST))
def test_what_has_to_hold_for_all_is_the_least(name: str) -> None:
    parts = [parse(f"# TYPE {name} gauge\n{name} {value}\n") for value in (1, 0, 1)]
    assert render(merge(parts)) == f"# TYPE {name} gauge\n{name} 0\n"


def test_each_upstream_has_its_own_greatest() -> None:
    name = "forebay_upstream_concurrency_limit"
    parts = [
        parse(f'# TYPE {name} gauge\n{name}{{upstream="a"}} {a}\n{name}{{upstream="b"}} {b}\n')
        for a, b in ((8, 1), (7, 3))
    ]
    assert list(merge(parts)[name].samples.values()) == [8, 3]


def test_only_what_never_goes_down_outlives_a_process() -> None:
    assert list(counters(parse(ONE))) == ["a_total", "c_seconds"]


def test_label_values_may_hold_anything() -> None:
    odd = 'a_total{kind="} 7 {\\"\\\\ \u2028\x85\x0c#"}'
    text = f"# HELP a_total With  spaces, and \\n escapes. \n# TYPE a_total counter\n{odd} 1\n"
    assert parse(text)["a_total"].samples == {odd: Decimal(1)}
    assert render(parse(text)) == text
    assert render(merge([parse(text), parse(text)])) == text.replace(f"{odd} 1", f"{odd} 2")


def test_the_special_values() -> None:
    text = "# TYPE b gauge\nb NaN\n# TYPE c gauge\nc +Inf\n# TYPE d gauge\nd -Inf\n"
    assert render(parse(text)) == text
    assert render(parse("# TYPE b gauge\nb 1e3\n")) == "# TYPE b gauge\nb 1000\n"


@pytest.mark.parametrize("line", ["a", "a b", "a{b} ", "a 1 x"])
def test_what_is_no_sample_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a sample"):
        parse(line + "\n")


def test_the_sum_of_nothing_is_nothing() -> None:
    assert render(merge([])) == ""
    assert merge([{}, parse(ONE), {}]) == parse(ONE)


def test_our_own_text_comes_back_as_it_was() -> None:
    core = Core()
    try:
        text = core.metrics()
    finally:
        core.close()
    assert render(parse(text)) == text
    assert set(parse(text)) >= SAME | LEAST, "names that exist"
    twice = merge([parse(text), parse(text)])
    assert twice["forebay_workers"].samples == {"forebay_workers": 2}


NAMES = st.sampled_from(["a_total", "b_total"])
VALUES = st.dictionaries(st.sampled_from('uvwx"'), st.integers(0, 2**64), max_size=4)
PROCESSES = st.lists(st.dictionaries(NAMES, VALUES, max_size=2), max_size=5)


@given(PROCESSES)
def test_the_sum_does_not_depend_on_how_it_is_taken(
    processes: list[dict[str, dict[str, int]]],
) -> None:
    parts = [
        parse(
            "".join(
                f"# TYPE {name} counter\n"
                + "".join(f'{name}{{l="{label}"}} {n}\n' for label, n in values.items())
                for name, values in process.items()
            )
        )
        for process in processes
    ]
    before = [render(part) for part in parts]
    stepwise = merge([])
    for part in parts:
        stepwise = merge([stepwise, part])
    assert merge(parts) == stepwise
    assert [render(part) for part in parts] == before, "the parts stay as they are"
    expected: dict[str, int] = {}
    for process in processes:
        for name, values in process.items():
            for label, n in values.items():
                series = f'{name}{{l="{label}"}}'
                expected[series] = expected.get(series, 0) + n
    got = {s: v for family in merge(parts).values() for s, v in family.samples.items()}
    assert got == expected
