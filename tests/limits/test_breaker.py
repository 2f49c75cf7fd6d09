"""The breaker in front of the store, on a clock of the test's own."""

from forebay.limits import Breaker, State
from hypothesis import given
from hypothesis import strategies as st


def test_it_opens_after_three_failures_in_a_row_and_says_so_once() -> None:
    breaker = Breaker()
    assert [breaker.failed(0.0), breaker.failed(0.1)] == [False, False]
    assert not breaker.succeeded()
    opened = [breaker.failed(t / 10) for t in range(5)]
    assert opened == [False, False, True, False, False]
    assert breaker.state is State.OPEN


def test_one_probe_a_second_while_it_is_open() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(10.0)
    assert not breaker.allows(10.9)
    assert breaker.wait_s(10.75) == 0.25
    assert breaker.allows(11.0)
    assert breaker.state is State.HALF_OPEN
    assert not breaker.allows(11.1), "the probe is out"
    assert not breaker.failed(11.3), "it was open before"
    assert not breaker.allows(12.2)
    assert breaker.allows(12.3)
    assert breaker.succeeded()
    assert breaker.state is State.CLOSED
    assert breaker.allows(12.3)
    assert breaker.wait_s(12.3) == 0.0


@given(st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), max_size=200))
def test_calls_go_out_freely_when_it_is_closed_and_once_a_second_otherwise(
    steps: list[tuple[float, bool]],
) -> None:
    breaker, now, probed, in_a_row = Breaker(), 0.0, -1.0, 0
    for wait, good in steps:
        now += wait
        closed = in_a_row < 3
        assert (breaker.state is State.CLOSED) == closed
        if not breaker.allows(now):
            assert not closed
            assert now - probed < 1.0
            continue
        if good:
            assert breaker.succeeded() == (not closed)
            in_a_row = 0
        else:
            in_a_row += 1
            assert breaker.failed(now) == (in_a_row == 3)
            probed = now
