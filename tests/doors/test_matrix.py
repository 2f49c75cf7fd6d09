"""Whatever the door: the same decision, the same tokens billed, errors in the door's own shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.doors.cells import ABSENT, CELLS, DOORS, Cell, door_of
from tests.doors.conftest import Stage
from tests.support.doors.door import Api, Ask, Door, Told
from tests.support.doors.engine import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    VECTOR,
    WORDS,
    dead,
    dies,
    silent,
    two_pieces,
)
from tests.support.processes import Key
from tests.support.upstream import ScriptedUpstream
from tests.support.wait import until

ALL = pytest.mark.parametrize("cell", CELLS, ids=str)
TEXT = "".join(WORDS)
FRAIL = {"model_asked": "frail", "model_served": "frail"}
"""A model that never reports: what is estimated of it does not depend on what came before."""
ESTIMATED_PROMPT = {Api.CHAT: 5, Api.COMPLETION: 4, Api.EMBEDDING: 4}
ESTIMATED_HALF = {Api.CHAT: 9, Api.COMPLETION: 8, Api.EMBEDDING: 0}
"""Tokens of what is asked, and of half an answer, by their size."""


@dataclass
class Case:
    """One cell of the matrix, and what was billed for its key."""

    stage: Stage
    cell: Cell
    door: Door
    key: Key

    def request(self, model: str = "tiny", **fields: Any) -> Ask:
        return Ask(self.cell.api, model, self.key.secret, **fields)

    def ask(self, model: str = "tiny", **fields: Any) -> Told:
        return self.door.ask(self.request(model, **fields))

    def rows(self, count: int) -> list[dict[str, Any]]:
        """The key's usage rows: exactly so many."""
        self.stage.billed[self.key.id] = count
        return self.stage.gateway.usage(count, key_id=self.key.id)

    def row(self) -> dict[str, Any]:
        """The one usage row, which says how its request came in."""
        (row,) = self.rows(1)
        assert (row["front"], row["endpoint"]) == (self.door.front, str(self.cell.api))
        return row

    def completion(self, tokens: int) -> int:
        """So many tokens of an answer; an embedding has none."""
        return 0 if self.cell.api is Api.EMBEDDING else tokens


@pytest.fixture
def case(stage: Stage, engine: ScriptedUpstream, cell: Cell) -> Case:
    """A cell with a key that has no limits."""
    return with_key(stage, cell)


def with_key(stage: Stage, cell: Cell, **settings: Any) -> Case:
    return Case(stage, cell, door_of(stage, cell), stage.admin.make(**settings))


@pytest.fixture(scope="module", autouse=True)
def nothing_more_is_billed(stage: Stage) -> Iterator[None]:
    """After all: what was refused has no row, and nothing has two."""
    yield
    stage.gateway.wait_idle()
    for key, count in stage.billed.items():
        stage.gateway.usage(count, key_id=key)


def brief(row: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on the door."""
    names = ("outcome", "prompt_tokens", "completion_tokens", "model_asked", "model_served")
    return {name: row[name] for name in (*names, "upstream", "attempts", "source", "error_kind")}


def billed(outcome: str, prompt: int, completion: int, **changes: Any) -> dict[str, Any]:
    """The row of a request for `tiny`."""
    base = {
        "outcome": outcome,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "model_asked": "tiny",
        "model_served": "tiny",
        "upstream": "raw",
        "attempts": 1,
        "source": "reported",
        "error_kind": None,
    }
    return {**base, **changes}


def is_good(case: Case, told: Told) -> None:
    """All that the engine said has come, and the end of it."""
    assert told.trouble is None, told.trouble
    assert told.ended
    if case.cell.api is Api.EMBEDDING:
        assert told.vector == VECTOR
    else:
        assert told.text == TEXT
        assert told.finish == "stop"
    assert told.usage == (PROMPT_TOKENS, case.completion(COMPLETION_TOKENS))


def blames(case: Case, told: Told, param: str) -> None:
    """The error names the field."""
    assert told.trouble is not None
    if case.door.param_in_message:
        assert told.trouble.param is None
        assert param in told.trouble.message
    else:
        assert told.trouble.param == param


def is_clean(told: Told, case: Case) -> None:
    """An error tells nothing of what is inside."""
    assert told.trouble is not None
    text = f"{told.trouble} {told.headers}"
    for secret in ("Traceback", ".rs", ".py", "127.0.0.1", "http://", case.key.secret):
        assert secret not in text, text


@ALL
def test_ok(stage: Stage, engine: ScriptedUpstream, cell: Cell) -> None:
    case = with_key(stage, cell, rpm=6000, rpm_burst=50, tpm=60_000, tpm_burst=900)
    told = case.ask()
    is_good(case, told)
    assert brief(case.row()) == billed("ok", PROMPT_TOKENS, case.completion(COMPLETION_TOKENS))
    if case.door.limit_headers:
        assert set(case.door.limit_headers) <= set(told.headers), told.headers
        assert told.headers["x-ratelimit-limit-requests"] == "6000"
        assert told.headers["x-ratelimit-remaining-requests"] == "49"
        assert told.headers["x-ratelimit-limit-tokens"] == "60000"


@ALL
def test_unauthenticated(case: Case, engine: ScriptedUpstream) -> None:
    for secret in ("fb-of-nobody", None):
        told = case.door.ask(Ask(case.cell.api, "tiny", secret))
        assert told.trouble is not None, told
        assert told.trouble.kind == "unauthenticated"
        is_clean(told, case)
    assert engine.requests == []
    case.rows(0)


@ALL
def test_forbidden_model(stage: Stage, engine: ScriptedUpstream, cell: Cell) -> None:
    case = with_key(stage, cell, models=["other"])
    told = case.ask("tiny")
    assert told.trouble is not None, told
    assert told.trouble.kind == "forbidden"
    blames(case, told, "model")
    is_clean(told, case)
    assert engine.requests == []
    case.rows(0)


@ALL
def test_rate_limited(stage: Stage, engine: ScriptedUpstream, cell: Cell) -> None:
    case = with_key(stage, cell, rpm=6, rpm_burst=1)
    is_good(case, case.ask())
    told = case.ask()
    assert told.trouble is not None, told
    assert told.trouble.kind == "rate_limited"
    assert told.trouble.retry_s is not None
    assert 8 < told.trouble.retry_s <= 10
    assert told.trouble.retry is not False
    is_clean(told, case)
    if case.door.limit_headers:
        assert told.headers["x-ratelimit-limit-requests"] == "6"
        assert told.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(engine.requests) == 1
    case.row()


@ALL
def test_budget_out(stage: Stage, engine: ScriptedUpstream, cell: Cell) -> None:
    case = with_key(stage, cell, budget="0.000000001", budget_period="month")
    told = case.ask("priced")
    assert told.trouble is not None, told
    assert told.trouble.kind == "budget_exhausted"
    assert told.trouble.retry_s is None
    assert told.trouble.retry is False
    is_clean(told, case)
    assert engine.requests == []
    case.rows(0)


@ALL
def test_bad_request(case: Case, engine: ScriptedUpstream) -> None:
    told = case.ask(wrong=True)
    assert told.trouble is not None, told
    assert told.trouble.kind == "invalid_request"
    blames(case, told, case.door.wrong_param[case.cell.api])
    is_clean(told, case)
    assert engine.requests == []
    case.rows(0)


@ALL
def test_fallback(case: Case) -> None:
    """The first engine is down; the client cannot tell, and pays once."""
    case.stage.down.script = dead
    is_good(case, case.ask("covered"))
    assert len(case.stage.down.requests) == 1
    row = case.row()
    assert brief(row) == billed(
        "ok",
        PROMPT_TOKENS,
        case.completion(COMPLETION_TOKENS),
        model_asked="covered",
        model_served="covered",
        attempts=2,
    )


@ALL
def test_engine_dies_midway(case: Case, engine: ScriptedUpstream) -> None:
    engine.script = dies
    told = case.ask("frail")
    assert told.trouble is not None, told
    assert told.trouble.kind == "upstream_error"
    assert not told.ended
    is_clean(told, case)
    if case.door.streams:
        assert told.text == "".join(WORDS[:2])
        expected = billed("upstream_cut", PROMPT_TOKENS, 2, source="counted")
    else:
        assert told.text == ""
        used = ESTIMATED_PROMPT[case.cell.api], ESTIMATED_HALF[case.cell.api]
        expected = billed("error", *used, source="estimated")
    assert brief(case.row()) == {**expected, **FRAIL, "error_kind": "upstream_error"}


@ALL
def test_client_hangs_up(case: Case, engine: ScriptedUpstream) -> None:
    engine.script = two_pieces
    with case.door.start(case.request("frail")) as call:
        if case.door.streams:
            assert call.text(2) == "".join(WORDS[:2])
            expected = billed("client_closed", PROMPT_TOKENS, 2, source="counted")
        else:
            until(lambda: engine.active == 1, "the engine is asked")
            prompt = ESTIMATED_PROMPT[case.cell.api]
            expected = billed("client_closed", prompt, 0, source="estimated")
        call.hang_up()
        engine.wait_idle()  # once the gateway has hung up
    assert brief(case.row()) == {**expected, **FRAIL, "error_kind": "client_closed"}
    case.stage.gateway.wait_idle()


@ALL
def test_deadline(case: Case, engine: ScriptedUpstream) -> None:
    engine.script = silent
    told = case.ask("hurried")
    assert told.trouble is not None, told
    assert told.trouble.kind == "upstream_timeout"
    is_clean(told, case)
    row = brief(case.row())
    names = {"model_asked": "hurried", "model_served": "hurried", "error_kind": "upstream_timeout"}
    assert row == billed("error", 0, 0, source=row["source"], **names)


def test_every_door_is_asked_all_it_can_be() -> None:
    """A cell is there, or the table says why not."""
    for door in DOORS:
        for api in Api:
            there = Cell(door, api) in CELLS
            assert there != ((door, api) in ABSENT), f"{door.name} {api}"
