"""What looks at an upstream come to."""

from typing import get_args

import pytest
from forebay.gateway import loads
from forebay.gateway.standing import WAKING_S, Found, Standing
from forebay.upstreams.kind import State
from hypothesis import given
from hypothesis import strategies as st

from tests.support.traces import TRACES

FOUND: tuple[Found, ...] = (*get_args(State), "refused", "closed", "silent")


def after(*found: Found, wakes: bool = False, holds: bool = True) -> State | None:
    """The state after these looks."""
    standing = Standing(wakes=wakes, holds=holds)
    for one in found:
        standing.look(one, 0.0)
    return standing.state


def test_an_engine_that_opens_its_port_late_is_loading_until_it_was_warm() -> None:
    assert after("closed") == "loading"
    assert after("closed", "loading") == "loading"
    assert after("closed", "loading", "warm") == "warm"
    assert after("warm", "closed") == "down"
    assert after("warm", "closed", "loading") == "loading", "it was started anew"
    assert after("warm", "closed", "loading", "warm", "closed") == "down"
    assert after("closed", holds=False) == "down"


def test_an_engine_that_ends_is_not_waited_for() -> None:
    standing = Standing(wakes=False, holds=True)
    standing.look("warm", 0.0)
    standing.served()
    assert standing.look("loading", 0.0) == "down"


def test_one_look_without_an_answer_is_no_proof() -> None:
    standing = Standing(wakes=False, holds=True)
    standing.look("warm", 0.0)
    assert standing.look("silent", 0.0) == "warm"
    assert standing.doubtful
    assert standing.look("warm", 0.0) == "warm"
    assert not standing.doubtful
    standing.look("silent", 0.0)
    assert standing.look("silent", 0.0) == "down"
    assert not standing.doubtful


def test_what_can_be_woken_is_cold_until_it_was_called() -> None:
    standing = Standing(wakes=True, holds=True)
    assert standing.look("closed", 0.0) == "cold"
    standing.woken(1.0)
    assert standing.look("closed", 2.0) == "loading"
    assert standing.look("cold", 3.0) == "loading"
    assert standing.look("silent", 1.0 + WAKING_S) == "cold"
    standing.woken(1000.0)
    assert standing.look("warm", 1001.0) == "warm"
    assert standing.fresh, "it has to warm up"
    standing.served()
    assert not standing.fresh
    standing.rested()
    assert (standing.state, standing.fresh) == ("cold", True)


def test_who_refuses_the_question_has_answered() -> None:
    assert after("refused") == "warm"
    assert after("warm", "down") == "down"
    assert after("warm", "down", "refused") == "warm"


@given(st.lists(st.sampled_from(FOUND)), st.booleans(), st.booleans())
def test_whatever_was_found_a_good_look_makes_it_warm(
    found: list[Found], wakes: bool, holds: bool
) -> None:
    standing = Standing(wakes=wakes, holds=holds)
    for at, one in enumerate(found):
        state = standing.look(one, float(at))
        assert state in get_args(State)
        assert not standing.doubtful or state == "warm"
        if not wakes:
            assert state != "cold" or "cold" in found
    assert standing.look("warm", float(len(found))) == "warm"


def test_the_load_of_sglang() -> None:
    def said(trace: str) -> bytes | None:
        answer = (TRACES / f"{trace}.resp").read_bytes()
        return loads.report(answer.partition(b"\r\n\r\n")[2])

    assert said("066-loads-core") == b'{"running":0,"waiting":0,"tokens":0}'
    assert said("410-loads-busy") == b'{"running":2,"waiting":3,"tokens":104}'


@pytest.mark.parametrize(
    ("body", "report"),
    [
        (
            b'{"loads":[{"num_running_reqs":1,"num_waiting_reqs":2,"num_used_tokens":3},'
            b'{"num_running_reqs":10,"num_waiting_reqs":20,"num_used_tokens":30}]}',
            b'{"running":11,"waiting":22,"tokens":33}',
        ),
        (b'{"server_load":4}', b'{"running":4,"waiting":0,"tokens":0}'),
        (
            b'{"loads":[{"num_running_reqs":-1,"num_waiting_reqs":99999999999}]}',
            b'{"running":0,"waiting":4294967295,"tokens":0}',
        ),
        (b'{"loads":[]}', None),
        (b'{"loads":[{}]}', None),
        (b"[]", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_loads_in_other_forms(body: bytes, report: bytes | None) -> None:
    assert loads.report(body) == report


@given(st.binary(max_size=200))
def test_no_answer_breaks_the_reader_of_loads(body: bytes) -> None:
    loads.report(body)
