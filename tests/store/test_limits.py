"""Limits: how they are completed and changed, money, and the tables."""

import asyncio
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import pytest
from forebay.store import (
    AccountChanges,
    AccountExists,
    AccountNotFound,
    AccountStore,
    BadValue,
    Database,
    KeyChanges,
    KeyNotFound,
    KeyRevoked,
    KeyStore,
    LimitChanges,
    Limits,
    LimitStore,
    Subject,
    SubjectLimits,
    encode_limits,
    encode_records,
)
from forebay.store.limits import FIELDS, changed, completed
from forebay.store.money import from_numeric, nano, text, to_numeric
from hypothesis import given
from hypothesis import strategies as st

from tests.store.test_keys import NO_LIMITS


@given(st.integers(0, 10**17 - 1))
def test_money_reads_back(amount: int) -> None:
    shown = text(amount)
    assert nano(shown) == amount
    assert Decimal(shown) == to_numeric(amount)
    assert from_numeric(to_numeric(amount)) == amount
    assert len(shown.partition(".")[2]) >= 2


@pytest.mark.parametrize(
    "usd",
    ["", "1.", ".5", "-1", "+1", "1e3", "1.0000000001", " 1", "1\n", "123456789", "\u0661"],
)
def test_what_is_no_money(usd: str) -> None:
    with pytest.raises(ValueError, match="no amount"):
        nano(usd)


rates = st.one_of(st.none(), st.integers(1, 10**6))
some_limits = st.builds(
    lambda **fields: fields,
    rps=rates,
    rpm=rates,
    tpm=rates,
    concurrency=rates,
    on_store_loss=st.sampled_from(["share", "deny"]),
)


@given(some_limits)
def test_completing_fills_in_bursts_and_is_done_once(fields: dict[str, Any]) -> None:
    whole = completed(Limits(**fields))
    assert completed(whole) == whole
    assert whole.rps_burst == whole.rps
    assert whole.tpm_burst == whole.tpm
    assert whole.rpm_burst == (None if whole.rpm is None else max(1, whole.rpm // 6))
    for name, value in fields.items():
        assert getattr(whole, name) == value


@given(some_limits, some_limits)
def test_changes_change_what_they_name_and_nothing_else(
    before: dict[str, Any], given_: dict[str, Any]
) -> None:
    old = completed(Limits(**before))
    assert changed(old, LimitChanges()) == old
    for name, value in given_.items():
        new = changed(old, LimitChanges(**{name: value}))
        assert getattr(new, name) == value
        for other in FIELDS:
            if other not in (name, f"{name}_burst"):
                assert getattr(new, other) == getattr(old, other)
    everything = changed(old, LimitChanges(**{name: None for name in FIELDS}))
    assert everything == Limits()


def test_bursts_and_budgets_follow_what_they_belong_to() -> None:
    limits = completed(Limits(rpm=600, rpm_burst=7, budget="5", budget_period="day"))
    assert limits.budget == "5.00"
    assert changed(limits, LimitChanges(rpm=60)).rpm_burst == 10
    assert changed(limits, LimitChanges(rpm=60, rpm_burst=3)).rpm_burst == 3
    assert changed(limits, LimitChanges(rpm_burst=9)).rpm == 600
    assert changed(limits, LimitChanges(rpm_burst=None)).rpm_burst == 100
    assert changed(limits, LimitChanges(rpm=None)).rpm_burst is None
    assert changed(limits, LimitChanges(budget="0.000000001")).budget_period == "day"
    assert changed(limits, LimitChanges(budget_period="month")).budget == "5.00"
    assert changed(limits, LimitChanges(budget=None)).budget_period is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rps": 0}, "rps"),
        ({"rps": 10**9 + 1}, "rps"),
        ({"rpm": 1 << 40}, "rpm"),
        ({"tpm_burst": 5}, "tpm_burst"),
        ({"concurrency": 1 << 31}, "concurrency"),
        ({"budget": "5"}, "budget_period"),
        ({"budget_period": "day"}, "budget_period"),
        ({"budget": "0.0", "budget_period": "day"}, "budget"),
        ({"budget": "10000000.000000001", "budget_period": "day"}, "budget"),
        ({"budget": "five", "budget_period": "day"}, "budget"),
    ],
)
def test_what_is_refused_names_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadValue) as caught:
        completed(Limits(**fields))
    assert caught.value.field == field


def test_the_most_that_is_taken() -> None:
    most = Limits(rps=10**9, rpm=(1 << 40) - 1, tpm=1, concurrency=(1 << 31) - 1)
    assert completed(most).rps == 10**9
    budget = completed(Limits(budget="10000000", budget_period="total")).budget
    assert budget == "10000000.00"


@pytest.mark.asyncio
async def test_the_table(database: Database) -> None:
    limits, keys = LimitStore(database), KeyStore(database)
    key, _ = await keys.create(name="x", account="acme")
    subjects = [
        Subject("account", "acme"),
        Subject("model", "llama"),
        Subject("key_model", key.id, "llama"),
        Subject("key_model", key.id, "tiny"),
    ]
    for number, subject in enumerate(subjects, 1):
        assert await limits.get(subject) == Limits()
        put = await limits.put(subject, Limits(rpm=number * 6, budget="2.5", budget_period="day"))
        assert put == Limits(rpm=number * 6, rpm_burst=number, budget="2.50", budget_period="day")
        assert await limits.get(subject) == put
        whole = await limits.change(subject, LimitChanges(rpm=None, tpm=9))
        assert whole == Limits(tpm=9, tpm_burst=9, budget="2.50", budget_period="day")
        assert await limits.get(subject) == whole
    assert {(s.scope, s.id, s.model) for s in await limits.list()} == set(subjects)
    record = await keys.get(key.id)
    assert set(record.per_model) == {"llama", "tiny"}
    assert record.per_model["tiny"].budget == "2.50"
    (sent,) = msgspec.json.decode(encode_records([record]))
    assert sent["per_model"]["tiny"] == {
        **NO_LIMITS,
        "tpm": 9,
        "tpm_burst": 9,
        "budget_nano": 2_500_000_000,
        "budget_period": "day",
    }
    for subject in subjects:
        await limits.put(subject, Limits())
    assert await limits.list() == []
    assert (await keys.get(key.id)).per_model == {}


@pytest.mark.asyncio
async def test_changes_at_once_all_hold(database: Database) -> None:
    limits = LimitStore(database)
    subject = Subject("model", "m")
    await asyncio.gather(
        *(limits.change(subject, LimitChanges(**{name: 5})) for name in ("rps", "rpm", "tpm")),
        limits.change(subject, LimitChanges(concurrency=5)),
    )
    found = await limits.get(subject)
    assert (found.rps, found.rpm, found.tpm, found.concurrency) == (5, 5, 5, 5)


@pytest.mark.asyncio
async def test_subjects_that_are_not_there(database: Database) -> None:
    limits = LimitStore(database)
    for subject in (Subject("account", "nobody"), Subject("account", "a\0b")):
        for work in (limits.get(subject), limits.put(subject, Limits(rpm=1))):
            with pytest.raises(AccountNotFound):
                await work
    for subject in (Subject("key_model", "nosuchkey000", "m"), Subject("key_model", "x", "m")):
        for work in (limits.get(subject), limits.change(subject, LimitChanges(rpm=1))):
            with pytest.raises(KeyNotFound):
                await work
    for name in ("", "a\0b", "x" * 201):
        with pytest.raises(BadValue):
            await limits.put(Subject("model", name), Limits(rpm=1))


@pytest.mark.asyncio
async def test_the_table_takes_no_other_subjects(database: Database) -> None:
    await AccountStore(database).create("acme")
    key, _ = await KeyStore(database).create(name="x")
    for account, key_id, model in (
        (None, None, None),
        (None, key.id, None),
        ("acme", None, "m"),
        ("acme", key.id, None),
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await database.pool.execute(
                "INSERT INTO limits (account, key_id, model) VALUES ($1, $2, $3)",
                *(account, key_id, model),
            )


def test_limits_for_the_core() -> None:
    subjects = [
        SubjectLimits(scope="account", id="a", model=None, limits=Limits(), weight=2.5),
        SubjectLimits(
            scope="model",
            id="m",
            model=None,
            limits=completed(Limits(rps=2, budget="1.25", budget_period="month")),
        ),
        SubjectLimits(scope="key_model", id="k", model="m", limits=Limits(concurrency=1)),
    ]
    assert msgspec.json.decode(encode_limits(subjects)) == [
        {
            "scope": "account",
            "id": "a",
            **NO_LIMITS,
            "weight": 2.5,
            "log_level": "off",
            "log_sample": 1.0,
        },
        {
            "scope": "model",
            "id": "m",
            **NO_LIMITS,
            "rps": 2,
            "rps_burst": 2,
            "budget_nano": 1_250_000_000,
            "budget_period": "month",
        },
    ]


@pytest.mark.asyncio
async def test_a_key_is_changed(database: Database) -> None:
    store = KeyStore(database)
    record, _ = await store.create(name="x", rpm=60, models=["a"], expires_in_s=3600)
    new = await store.update(
        record.id, KeyChanges(name="y", tpm=100, budget="3", budget_period="total")
    )
    assert new.version > record.version
    assert (new.name, new.rpm, new.tpm, new.tpm_burst) == ("y", 60, 100, 100)
    assert (new.budget, new.budget_period, new.models) == ("3.00", "total", ("a",))
    assert new.expires_at == record.expires_at
    assert new == await store.get(record.id)
    last = await store.update(
        record.id, KeyChanges(models=None, expires_at=None, priority="batch", rpm=None)
    )
    assert (last.models, last.expires_at, last.priority, last.rpm) == (None, None, "batch", None)
    assert last.budget == "3.00"
    with pytest.raises(KeyNotFound):
        await store.update("nosuchkey000", KeyChanges(name="x"))
    await store.revoke(record.id)
    with pytest.raises(KeyRevoked):
        await store.update(record.id, KeyChanges(name="x"))


@pytest.mark.asyncio
async def test_accounts(database: Database) -> None:
    store = AccountStore(database)
    made = await store.create("b", weight=0.5)
    assert (made.id, made.name, made.weight, made.keys) == ("b", "b", 0.5, 0)
    await store.create("a", name="Alpha")
    key, _ = await KeyStore(database).create(name="x", account="c")
    await KeyStore(database).create(name="y", account="c")
    await KeyStore(database).revoke(key.id)
    assert [(a.id, a.name, a.keys) for a in await store.list()] == [
        ("a", "Alpha", 0),
        ("b", "b", 0),
        ("c", "c", 1),
    ]
    assert [a.id for a in await store.list(after="a", limit=1)] == ["b"]
    changed_ = await store.update("b", AccountChanges(weight=7))
    assert (changed_.name, changed_.weight) == ("b", 7)
    with pytest.raises(AccountExists):
        await store.create("b")
    with pytest.raises(AccountNotFound):
        await store.update("nobody", AccountChanges(weight=7))
    for account, weight in (("", 1.0), ("a/b", 1.0), ("d", 0.0), ("d", float("nan"))):
        with pytest.raises(BadValue):
            await store.create(account, weight=weight)


@pytest.mark.asyncio
async def test_writers_of_one_subject_take_turns(database: Database) -> None:
    limits, subject = LimitStore(database), Subject("model", "m")
    await limits.put(subject, Limits(rpm=6))
    await asyncio.gather(
        *(limits.put(subject, Limits(rpm=60 + i)) for i in range(40)),
        *(limits.change(subject, LimitChanges(tpm=60 + i)) for i in range(40)),
    )
