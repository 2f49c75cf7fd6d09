"""Claims on requests, their answers, and what time makes of both."""

import base64
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from forebay.config.schema import PromptLogs
from forebay.store import Database, EmbeddedPostgres, StoreUnavailable
from forebay.store.errors import LogKeyMissing, LogUnreadable
from forebay.store.idempotency import Claim, IdempotencyStore, Replay, sweep
from forebay.store.prompt_cipher import PromptCipher
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.idempotency import MemoryStore, answer

LEASE_S, TTL_S = 10.0, 86_400.0
SEALED = PromptLogs(keys={"k": base64.b64encode(b"k" * 32).decode()}, active="k")
START = datetime(2026, 11, 26, tzinfo=UTC)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def at(self) -> datetime:
        return START + timedelta(seconds=self.now)

    def seconds(self) -> float:
        return self.now


def claim(
    key: str = "k-1", body: int = 1, account: str = "acme", owner: UUID | None = None
) -> Claim:
    return Claim(account, key, bytes([body]) * 32, owner or uuid4())


def store(
    database: Database, clock: Clock | None = None, sealed: PromptLogs = SEALED
) -> IdempotencyStore:
    return IdempotencyStore(database, PromptCipher(sealed), None if clock is None else clock.at)


async def take(store: IdempotencyStore | MemoryStore, wanted: Claim) -> object:
    return await store.claim(wanted, lease_s=LEASE_S, ttl_s=TTL_S)


async def test_who_comes_first_works_and_the_others_get_its_answer(database: Database) -> None:
    kept, first = store(database), claim()
    assert await take(kept, first) == "run"
    assert await take(kept, claim()) == "running"
    assert await kept.running([first.name, ("acme", "another")]) == {first.name}
    assert await take(kept, claim(body=2)) == "reused"
    assert await take(kept, claim(account="other")) == "run"
    assert await kept.finish(first, answer(), ttl_s=TTL_S)
    assert await kept.running([first.name]) == set()
    assert await take(kept, claim()) == answer()
    assert await take(kept, claim(body=2)) == "reused"
    assert not await kept.finish(first, answer("late"), ttl_s=TTL_S)
    await kept.release(first)
    assert await take(kept, claim()) == answer()


async def test_what_is_given_up_is_free_for_anything(database: Database) -> None:
    kept, first = store(database), claim()
    assert await take(kept, first) == "run"
    await kept.release(claim())  # not its own
    assert await take(kept, claim()) == "running"
    await kept.release(first)
    assert await take(kept, claim(body=2)) == "run"


async def test_an_answer_that_was_too_large(database: Database) -> None:
    kept, first = store(database), claim()
    assert await take(kept, first) == "run"
    assert await kept.finish(first, None, ttl_s=TTL_S)
    assert await take(kept, claim()) == "too_large"


async def test_a_lease_that_is_not_renewed_lapses(database: Database) -> None:
    clock = Clock()
    kept, dead, heir = store(database, clock), claim(), claim()
    assert await take(kept, dead) == "run"
    clock.now = 9
    await kept.renew([dead], lease_s=LEASE_S)
    clock.now = 18.9
    assert await take(kept, heir) == "running"
    clock.now = 19
    assert await kept.running([dead.name]) == set()
    assert await take(kept, claim(body=2)) == "reused"
    assert await take(kept, heir) == "run"
    await kept.renew([dead], lease_s=1000)
    assert not await kept.finish(dead, answer("dead"), ttl_s=TTL_S)
    assert await kept.finish(heir, answer("heir"), ttl_s=TTL_S)
    assert await take(kept, claim()) == answer("heir")


async def test_who_was_late_but_not_taken_over_still_ends_it(database: Database) -> None:
    clock = Clock()
    kept, late = store(database, clock), claim()
    assert await take(kept, late) == "run"
    clock.now = 60
    assert await kept.finish(late, answer(), ttl_s=TTL_S)


async def test_after_its_time_an_answer_is_as_if_it_had_never_been(database: Database) -> None:
    clock = Clock()
    kept, first = store(database, clock), claim()
    assert await take(kept, first) == "run"
    clock.now = 5
    assert await kept.finish(first, answer(), ttl_s=TTL_S)
    clock.now = 5 + TTL_S - 1
    assert await take(kept, claim()) == answer()
    clock.now = 5 + TTL_S
    assert await take(kept, claim(body=2)) == "run"


async def test_what_has_expired_is_deleted(database: Database) -> None:
    clock = Clock()
    kept = store(database, clock)
    for key, at in (("old", 0.0), ("new", 100.0)):
        clock.now = at
        wanted = claim(key)
        assert await take(kept, wanted) == "run"
        assert await kept.finish(wanted, answer(), ttl_s=TTL_S)
    clock.now = 0
    assert await kept.claim(claim("runs"), lease_s=2 * TTL_S, ttl_s=TTL_S) == "run"
    clock.now = TTL_S + 1
    async with database.pool.acquire() as connection:
        assert await sweep(connection, clock.at()) == 1
        assert await sweep(connection, clock.at()) == 0
    rows = await database.pool.fetch("SELECT key FROM idempotency_keys ORDER BY key")
    assert [row["key"] for row in rows] == ["new", "runs"]


async def test_answers_are_encrypted_where_there_is_a_key(database: Database) -> None:
    plain = store(database, sealed=PromptLogs())
    for kept, key in ((store(database), "sealed"), (plain, "plain")):
        wanted = claim(key)
        assert await take(kept, wanted) == "run"
        assert await kept.finish(wanted, answer("swordfish"), ttl_s=TTL_S)
    rows = {
        row["key"]: row
        for row in await database.pool.fetch("SELECT key, enc_key, answer FROM idempotency_keys")
    }
    assert rows["plain"]["answer"] == b"swordfish"
    assert rows["plain"]["enc_key"] is None
    assert rows["sealed"]["enc_key"] == "k"
    assert b"swordfish" not in rows["sealed"]["answer"]
    assert await take(store(database), claim("plain")) == answer("swordfish")
    assert await take(store(database), claim("sealed")) == answer("swordfish")
    with pytest.raises(LogKeyMissing):
        await take(plain, claim("sealed"))
    # An answer in another one's place does not open.
    await database.pool.execute("UPDATE idempotency_keys SET owner = $1", uuid4())
    with pytest.raises(LogUnreadable):
        await take(store(database), claim("sealed"))


async def test_bytes_and_headers_come_back_as_they_were(database: Database) -> None:
    given_ = answer(stream=True)
    given_ = Replay(given_.head, bytes(range(256)) * 1000)
    kept, first = store(database), claim(" ~\"'\\;--")
    assert await take(kept, first) == "run"
    assert await kept.finish(first, given_, ttl_s=TTL_S)
    assert await take(kept, claim(first.key)) == given_


async def test_without_the_database_it_says_so(
    database: Database, postgres: EmbeddedPostgres
) -> None:
    kept = store(database)
    postgres.stop()
    for work in (
        take(kept, claim()),
        kept.finish(claim(), answer(), ttl_s=1),
        kept.release(claim()),
        kept.renew([claim()], lease_s=1),
        kept.running([("a", "b")]),
    ):
        with pytest.raises(StoreUnavailable):
            await work


STEPS = st.one_of(
    st.tuples(st.just("claim"), st.integers(0, 3), st.integers(1, 2)),
    st.tuples(st.just("finish"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("release"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("renew"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([1, 6, 10, 25, 40]), st.just(0)),
)


@given(st.lists(STEPS, max_size=25))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_the_database_does_as_the_model(
    database: Database, steps: list[tuple[str, int, int]]
) -> None:
    """Four owners, one key; the database and the store in memory agree on everything."""
    clock = Clock()
    real, model = store(database, clock), MemoryStore(clock.seconds)
    key, owners = str(uuid4()), [uuid4() for _ in range(4)]
    bodies = [1] * 4
    for what, number, more in steps:
        if what == "wait":
            clock.now += number
            continue
        if what == "claim":
            bodies[number] = more
        wanted = claim(key, bodies[number], owner=owners[number])
        both = []
        for one in (real, model):
            match what:
                case "claim":
                    both.append(await one.claim(wanted, lease_s=10, ttl_s=40))
                case "finish":
                    kept = answer(f"{number}") if more else None
                    both.append(await one.finish(wanted, kept, ttl_s=40))
                case "release":
                    await one.release(wanted)
                case "renew":
                    await one.renew([wanted], lease_s=10)
            both.append(set(await one.running([wanted.name])))
        assert both[: len(both) // 2] == both[len(both) // 2 :], (what, number, more)
