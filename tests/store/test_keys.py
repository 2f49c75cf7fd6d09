"""API keys: the format by itself, then the table."""

import hashlib
import time

import msgspec
import pytest
from forebay.store import (
    Database,
    KeyNotFound,
    KeyRevoked,
    KeyStore,
    MalformedKey,
    StoreError,
    encode_records,
    generate,
    parse,
)
from forebay.store.key_format import ALPHABET, KEY_LENGTH
from hypothesis import assume, given
from hypothesis import strategies as st

kinds = st.sampled_from(["inference", "admin"])


@given(kinds)
def test_a_new_key_reads_back(kind) -> None:
    new = generate(kind)
    parsed = parse(new.key)
    assert (parsed.kind, parsed.id, parsed.digest) == (kind, new.id, new.digest)
    assert new.digest == hashlib.sha256(new.key.encode()).digest()
    assert len(new.key) == KEY_LENGTH == 54
    assert new.key.startswith(f"fb-{kind[0] if kind == 'admin' else 'k'}{new.id}")
    assert new.key.endswith(new.last4)


def test_a_fixed_key_so_that_the_format_cannot_drift() -> None:
    key = "fb-k0123456789ABabcdefghijklmnopqrstuvwxyz0123450094WG"
    assert parse(key).id == "0123456789AB"


def test_nothing_shows_the_secret() -> None:
    new = generate("inference")
    assert new.key not in repr(new)
    assert new.key[16:48] not in repr(parse(new.key))


@given(st.data())
def test_any_single_character_change_is_refused(data) -> None:
    key = generate(data.draw(kinds)).key
    at = data.draw(st.integers(0, len(key) - 1))
    other = data.draw(st.one_of(st.sampled_from(ALPHABET + "-_ "), st.characters()))
    assume(other != key[at])
    with pytest.raises(MalformedKey):
        parse(key[:at] + other + key[at + 1 :])


@given(st.data())
def test_swapped_neighbours_cuts_and_additions_are_refused(data) -> None:
    key = generate("inference").key
    at = data.draw(st.integers(0, len(key) - 2))
    assume(key[at] != key[at + 1])
    for wrong in (
        key[:at] + key[at + 1] + key[at] + key[at + 2 :],
        key[:at] + key[at + 1 :],
        key[:at] + "x" + key[at:],
    ):
        with pytest.raises(MalformedKey):
            parse(wrong)


@given(st.one_of(st.text(), st.text(st.sampled_from(ALPHABET), min_size=51, max_size=51)))
def test_noise_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(MalformedKey) as caught:
        parse("fb-" + text)
    assert len(text) < 5 or text not in str(caught.value)


@pytest.mark.asyncio
async def test_create_get_list(database: Database) -> None:
    store = KeyStore(database)
    record, key = await store.create(
        name="shop", account="acme", models=["a", "b"], rpm=60, tpm=9000, concurrency=4
    )
    assert parse(key).id == record.id
    assert record.digest == parse(key).digest.hex()
    assert (record.rpm, record.rpm_burst) == (60, 10)
    assert (record.tpm, record.tpm_burst) == (9000, 9000)
    assert (record.models, record.concurrency) == (("a", "b"), 4)
    small, _ = await store.create(name="small", rpm=3, rpm_burst=2, tpm=5, tpm_burst=50)
    tiny, _ = await store.create(name="tiny", rpm=1, kind="admin")
    assert (small.rpm_burst, small.tpm_burst, tiny.rpm_burst) == (2, 50, 1)
    assert await store.get(record.id) == record
    assert await store.list() == [record, small, tiny]
    assert await store.list(account="acme") == [record]
    with pytest.raises(KeyNotFound):
        await store.get("nosuchkey000")
    # The secret itself is nowhere in the database.
    text = await database.pool.fetchval("SELECT string_agg(k::text, ' ') FROM api_keys k")
    assert key not in text
    assert key[16:48] not in text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"account": ""},
        {"rpm": 0},
        {"tpm": -5},
        {"rpm_burst": 3},
        {"concurrency": 1 << 41},
        {"models": []},
        {"expires_in_s": 0},
        {"expires_in_s": float("nan")},
    ],
)
async def test_values_out_of_range(database: Database, wrong: dict) -> None:
    with pytest.raises(StoreError):
        await KeyStore(database).create(**{"name": "x", **wrong})


@pytest.mark.asyncio
async def test_rotation_overlaps_two_secrets(database: Database) -> None:
    store = KeyStore(database)
    first, old_key = await store.create(name="x")
    second, new_key = await store.rotate(first.id, overlap_s=3600)
    assert second.id == first.id == parse(new_key).id
    assert second.digest == parse(new_key).digest.hex()
    assert second.previous_digest == parse(old_key).digest.hex()
    assert second.previous_expires_at == pytest.approx(time.time() + 3600, abs=60)
    third, _ = await store.rotate(first.id)
    assert (third.previous_digest, third.previous_expires_at) == (None, None)
    await store.revoke(first.id)
    with pytest.raises(KeyRevoked):
        await store.rotate(first.id)
    with pytest.raises(KeyNotFound):
        await store.rotate("nosuchkey000")


@pytest.mark.asyncio
async def test_revocation_is_final_and_repeatable(database: Database) -> None:
    store = KeyStore(database)
    record, _ = await store.create(name="x")
    await store.rotate(record.id, overlap_s=60)
    revoked = await store.revoke(record.id)
    assert revoked.revoked
    assert revoked.previous_digest is None
    assert await store.revoke(record.id) == revoked
    assert await store.all_active() == []
    with pytest.raises(KeyNotFound):
        await store.revoke("nosuchkey000")


@pytest.mark.asyncio
async def test_changes_since_a_version(database: Database) -> None:
    store = KeyStore(database)
    a, _ = await store.create(name="a")
    b, _ = await store.create(name="b")
    assert [r.id for r in await store.changed_since(0)] == [a.id, b.id]
    assert await store.changed_since(b.version) == []
    revoked = await store.revoke(a.id)
    assert await store.changed_since(b.version) == [revoked]


@pytest.mark.asyncio
async def test_expired_keys_are_not_active(database: Database) -> None:
    store = KeyStore(database)
    gone, _ = await store.create(name="gone", expires_in_s=3600)
    later, _ = await store.create(name="later", expires_in_s=7200)
    await database.pool.execute(
        "UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE id = $1", gone.id
    )
    assert [record.id for record in await store.all_active()] == [later.id]


@pytest.mark.asyncio
async def test_a_live_key_cannot_be_deleted(database: Database) -> None:
    import asyncpg

    store = KeyStore(database)
    record, _ = await store.create(name="x")
    with pytest.raises(asyncpg.RaiseError, match="revoke"):
        await database.pool.execute("DELETE FROM api_keys")
    await store.revoke(record.id)
    await database.pool.execute("DELETE FROM api_keys")
    assert await store.list() == []


NO_LIMITS = {
    "rps": None,
    "rps_burst": None,
    "rpm": None,
    "rpm_burst": None,
    "tpm": None,
    "tpm_burst": None,
    "concurrency": None,
    "budget_nano": None,
    "budget_period": None,
    "on_store_loss": "share",
}


@pytest.mark.asyncio
async def test_records_for_the_core(database: Database) -> None:
    store = KeyStore(database)
    record, _ = await store.create(name="x", rpm=60, expires_in_s=90.5)
    assert record.expires_at is not None
    plain = {
        "id": record.id,
        "kind": "inference",
        "account": "default",
        "digest": record.digest,
        "models": None,
        "priority": "interactive",
        **NO_LIMITS,
        "rpm": 60,
        "rpm_burst": 10,
        "per_model": {},
        "log_level": None,
        "log_sample": None,
        "expires_at": int(record.expires_at),
        "revoked": False,
    }
    assert msgspec.json.decode(encode_records([record])) == [plain]
    rotated, _ = await store.rotate(record.id, overlap_s=60)
    (sent,) = msgspec.json.decode(encode_records([rotated]))
    assert sent["previous_digest"] == record.digest
    assert isinstance(sent["previous_expires_at"], int)
    assert encode_records([]) == b"[]"
    public = rotated.to_public()
    assert record.digest not in repr(public)
    assert rotated.digest not in repr(public)
