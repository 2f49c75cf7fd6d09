"""The queue model under a fake clock."""

from __future__ import annotations

import pytest
from forebay_engine.sim.scheduler import Limits, Scheduler, Sequence, State
from hypothesis import given
from hypothesis import strategies as st


def run(scheduler: Scheduler, until: float = float("inf")) -> list[tuple[float, Sequence, int]]:
    """Step to the end; (time, sequence, tokens it has) of each report."""
    seen = []
    while (due := scheduler.next_time()) is not None and due <= until:
        for sequence in scheduler.advance(due):
            sequence.touched = False
            seen.append((due, sequence, sequence.generated))
    return seen


def limits(**fields: float | None) -> Limits:
    """Prefill 1,000 tokens a second, decode 10, no slowdown."""
    base = {"prefill_rate": 1000.0, "decode_rate": 10.0, "batch_slowdown": 0.0}
    return Limits(**{**base, **fields})  # type: ignore[arg-type]


def test_one_request_takes_its_prefill_then_a_step_a_token() -> None:
    scheduler = Scheduler(limits())
    sequence = Sequence(prompt_tokens=500, target=4, stream=True)
    assert scheduler.submit(sequence, 1.0)
    times = [at for at, _, _ in run(scheduler)]
    assert times == pytest.approx([1.5, 1.6, 1.7, 1.8])
    assert sequence.state is State.DONE
    assert (sequence.first_token, sequence.finished) == pytest.approx((1.5, 1.8))
    assert (scheduler.used_tokens, scheduler.reserved_tokens, scheduler.next_time()) == (0, 0, None)


def test_what_does_not_stream_is_reported_once() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(Sequence(prompt_tokens=0, target=5), 0.0)
    assert [(pytest.approx(0.4), 5)] == [(at, made) for at, _, made in run(scheduler)]


def test_prefill_holds_back_the_decoding_of_others() -> None:
    scheduler = Scheduler(limits())
    first = Sequence(prompt_tokens=0, target=3, stream=True)
    scheduler.submit(first, 0.0)
    run(scheduler, until=0.0)
    scheduler.submit(Sequence(prompt_tokens=1000, target=1), 0.05)
    times = [at for at, sequence, _ in run(scheduler) if sequence is first]
    assert times == pytest.approx([1.1, 1.2])


def test_cached_tokens_cost_no_prefill() -> None:
    scheduler = Scheduler(limits())
    sequence = Sequence(prompt_tokens=1000, cached_tokens=900, target=1)
    scheduler.submit(sequence, 0.0)
    run(scheduler)
    assert sequence.first_token == pytest.approx(0.1)


def test_a_step_grows_with_the_batch() -> None:
    scheduler = Scheduler(limits(batch_slowdown=0.5, prefill_rate=0))
    one, other = (Sequence(prompt_tokens=1, target=n, stream=n == 5) for n in (5, 3))
    scheduler.submit(one, 0.0)
    scheduler.submit(other, 0.0)
    times = [at for at, sequence, _ in run(scheduler) if sequence is one]
    # The first step was under way when the other joined; the last one is alone again.
    assert times == pytest.approx([0.0, 0.1, 0.25, 0.35, 0.45])


def test_max_running_queues_the_rest_in_order() -> None:
    scheduler = Scheduler(limits(max_running=1, prefill_rate=0))
    first, second, third = (Sequence(prompt_tokens=1, target=2) for _ in range(3))
    for sequence in (first, second, third):
        scheduler.submit(sequence, 0.0)
    assert (scheduler.active, len(scheduler.queue)) == (1, 2)
    ended = [sequence for _, sequence, _ in run(scheduler)]
    assert ended == [first, second, third]
    assert third.started == pytest.approx(0.2)


def test_a_full_queue_refuses_and_changes_nothing() -> None:
    scheduler = Scheduler(limits(max_running=1, max_queued=1))
    assert scheduler.submit(Sequence(prompt_tokens=1, target=9), 0.0)
    assert scheduler.submit(Sequence(prompt_tokens=1, target=9), 0.0)
    refused = Sequence(prompt_tokens=1, target=9)
    assert not scheduler.submit(refused, 0.0)
    assert refused.state is State.NEW
    assert len(scheduler.queue) == 1


def test_kv_tokens_bound_admission_but_never_block_for_ever() -> None:
    scheduler = Scheduler(limits(kv_tokens=100, prefill_rate=0))
    first = Sequence(prompt_tokens=60, target=10)
    second = Sequence(prompt_tokens=60, target=10)
    huge = Sequence(prompt_tokens=500, target=10)
    for sequence in (first, second, huge):
        scheduler.submit(sequence, 0.0)
    assert scheduler.active == 1
    assert scheduler.used_tokens == 60
    assert [s for _, s, _ in run(scheduler)] == [first, second, huge]


def test_abort_in_each_state_frees_what_was_held() -> None:
    scheduler = Scheduler(limits(max_running=2))
    prefilling, queued = (Sequence(prompt_tokens=1000, target=5) for _ in range(2))
    running = Sequence(prompt_tokens=0, target=50)
    scheduler.submit(running, 0.0)
    run(scheduler, until=0.25)
    scheduler.submit(prefilling, 0.25)
    scheduler.submit(queued, 0.25)
    states = [s.state for s in (running, prefilling, queued)]
    assert states == [State.RUNNING, State.PREFILL, State.QUEUED]
    for sequence in (queued, running, prefilling):
        assert scheduler.abort(sequence, 0.3)
        assert not scheduler.abort(sequence, 0.3)
    assert running.generated == 3
    assert (scheduler.used_tokens, scheduler.reserved_tokens, scheduler.next_time()) == (0, 0, None)


def test_an_aborted_one_lets_the_next_in() -> None:
    scheduler = Scheduler(limits(max_running=1, prefill_rate=0))
    first, second = (Sequence(prompt_tokens=1, target=5) for _ in range(2))
    scheduler.submit(first, 0.0)
    scheduler.submit(second, 0.0)
    scheduler.abort(first, 0.15)
    run(scheduler)
    assert second.started == pytest.approx(0.15)
    assert second.state is State.DONE


def test_pause_holds_all_and_resume_goes_on() -> None:
    scheduler = Scheduler(limits(prefill_rate=0))
    sequence = Sequence(prompt_tokens=1, target=3)
    scheduler.submit(sequence, 0.0)
    run(scheduler, until=0.0)
    scheduler.pause()
    late = Sequence(prompt_tokens=1, target=1)
    scheduler.submit(late, 1.0)
    assert scheduler.next_time() is None
    scheduler.resume(5.0)
    run(scheduler)
    assert late.first_token == pytest.approx(5.0)
    assert sequence.finished == pytest.approx(5.2)


def test_extra_step_time_slows_every_step() -> None:
    scheduler = Scheduler(limits(prefill_rate=0))
    scheduler.extra_step_s = 0.4
    sequence = Sequence(prompt_tokens=1, target=3)
    scheduler.submit(sequence, 0.0)
    run(scheduler)
    assert sequence.finished == pytest.approx(0.4 + 2 * 0.5)


def test_no_tokens_asked_for_ends_with_the_prefill() -> None:
    scheduler = Scheduler(limits())
    sequence = Sequence(prompt_tokens=100, target=0)
    scheduler.submit(sequence, 0.0)
    assert [made for _, _, made in run(scheduler)] == [0]
    assert sequence.finished == pytest.approx(0.1)


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.integers(0, 300), st.integers(0, 40), st.booleans()),
        max_size=30,
    ),
    st.integers(1, 4),
    st.integers(50, 1000),
    st.sampled_from([0.0, 10.0]),
)
def test_every_sequence_ends_with_its_tokens_and_nothing_leaks(
    given_: list[tuple[float, int, int, bool]], max_running: int, kv: int, rate: float
) -> None:
    scheduler = Scheduler(limits(max_running=max_running, kv_tokens=kv, decode_rate=rate))
    made: list[Sequence] = []
    for at, prompt, target, stream in sorted(given_):
        run(scheduler, until=at)
        sequence = Sequence(prompt_tokens=prompt, target=target, stream=stream)
        assert scheduler.submit(sequence, at)
        assert scheduler.active <= max_running
        made.append(sequence)
    run(scheduler)
    for sequence in made:
        assert (sequence.state, sequence.generated) == (State.DONE, sequence.target)
        assert sequence.arrived <= sequence.started <= sequence.first_token <= sequence.finished
    assert (scheduler.used_tokens, scheduler.reserved_tokens, scheduler.active) == (0, 0, 0)
