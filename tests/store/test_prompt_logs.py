"""Prompt logs: found, shown, encrypted anew, and gone when they are old."""

import base64
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from forebay.config.schema import PromptLogs
from forebay.store import Database
from forebay.store.actor import Actor, acting
from forebay.store.audit import AuditStore
from forebay.store.errors import BadValue, LogKeyMissing, LogNotFound, LogUnreadable
from forebay.store.prompt_cipher import PromptCipher
from forebay.store.prompt_log_store import PromptLogFilter, PromptLogStore
from forebay.store.prompt_logs import AHEAD, maintain

from tests.support.prompt_logs import BOTH, NEW, OLD, event_id, insert, log

STREAM = b"".join(
    b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n' % word
    for word in (b"The pass", b"word is swor", b"dfish")
)


def store(database: Database, settings: PromptLogs = BOTH) -> PromptLogStore:
    return PromptLogStore(database, PromptCipher(settings))


async def found(database: Database, **wanted: Any) -> list[str]:
    page = await store(database).search(PromptLogFilter(**wanted))
    assert page.next is None
    return [entry.request_id for entry in page.data]


async def test_search_by_what_is_known_of_them(database: Database) -> None:
    now = time.time()
    await insert(
        database.url,
        log(request_id="a", at=now - 7200),
        log(request_id="b", at=now - 3600, account="other", key_id="k2", status=500),
        log(request_id="c", at=now - 60, model="large", request=None, answer=None),
    )
    assert await found(database) == ["c", "b", "a"]
    assert await found(database, account="acme") == ["c", "a"]
    assert await found(database, key="k2") == ["b"]
    assert await found(database, model="large") == ["c"]
    assert await found(database, status=500) == ["b"]
    assert await found(database, request_id="a") == ["a"]
    assert await found(database, since=now - 3700, until=now - 100) == ["b"]
    assert await found(database, account="acme", status=500) == []
    (metadata,) = (await store(database).search(PromptLogFilter(model="large"))).data
    assert (metadata.level, metadata.enc_key, metadata.at) == (
        "metadata",
        None,
        pytest.approx(now - 60, abs=0.01),
    )


async def test_pages(database: Database) -> None:
    now = time.time()
    await insert(database.url, *(log(request_id=f"{n}", at=now - n) for n in range(5)))
    for text in (None, "hello"):
        after, seen = None, []
        while True:
            page = await store(database).search(
                PromptLogFilter(contains=text), after=after, limit=2
            )
            seen += [entry.request_id for entry in page.data]
            after = page.next
            if after is None:
                break
        assert seen == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"messages": [{"content": "Howdy"}]}', "howdy"),
        (b'{"messages": [{"content": "two\\nlines \\u00e9t\\u00e9"}]}', "lines \u00e9t\u00c9"),
        (b'{"messages": [{"content": "two\\nlines"}]}', "two\nlines"),
        ('{"content": "gr\u00fc\u00df"}'.encode(), "GR\u00dcSS"),
        (STREAM, "password is swordfish"),
        (b'{"messages": [{"content": "cut o', "cut o"),
        (b"\xff\x00 raw", "raw"),
    ],
)
async def test_a_text_is_found(database: Database, body: bytes, text: str) -> None:
    await insert(
        database.url,
        log(request_id="asked", request=body),
        log(request_id="answered", answer=body),
        log(request_id="neither"),
        log(request_id="metadata", request=None, answer=None),
    )
    assert set(await found(database, contains=text)) == {"asked", "answered"}
    assert await found(database, contains="no such text") == []


async def test_answers_of_one_stream_are_not_mixed(database: Database) -> None:
    events = [(0, b"one "), (1, b"three "), (0, b"two"), (1, b"four")]
    body = b"".join(
        b'data: {"choices": [{"index": %d, "delta": {"content": "%s"}}]}\n\n' % event
        for event in events
    )
    await insert(database.url, log(answer=body))
    assert await found(database, contains="one two") == ["r-1"]
    assert await found(database, contains="three four") == ["r-1"]
    assert await found(database, contains="one three") == []


async def test_show(database: Database) -> None:
    wanted = log(request=b"asked \xff", answer=b"answered", redactions=2, answer_truncated=True)
    bare = log(request=None, answer=None)
    half = log(answer=None)
    await insert(database.url, wanted, bare, half)
    shown = await store(database).show(str(wanted["event_id"]))
    assert (shown.request, shown.answer) == ("asked \ufffd", "answered")
    assert (shown.redactions, shown.answer_truncated, shown.enc_key) == (2, True, "new")
    shown = await store(database, PromptLogs()).show(str(bare["event_id"]))
    assert (shown.request, shown.answer, shown.level) == (None, None, "metadata")
    shown = await store(database).show(str(half["event_id"]))
    assert shown.request is not None
    assert shown.answer is None
    for unknown in (str(event_id(time.time())), "no id", "\0"):
        with pytest.raises(LogNotFound, match="no prompt log"):
            await store(database).show(unknown)


async def test_what_does_not_open(database: Database) -> None:
    strange = log(key=("new", OLD))  # of that name, and another key
    lost = log(key=("lost", OLD))
    short = log()
    short["answer"] = short["answer"][:-1]
    moved = log()
    moved["answer"], moved["request"] = moved["request"], moved["answer"]
    other = log()
    other["request"] = log()["request"]
    await insert(database.url, strange, lost, short, moved, other)
    for wrong in (strange, short, moved, other):
        with pytest.raises(LogUnreadable, match=r"does not open with the key 'new'"):
            await store(database).show(str(wrong["event_id"]))
    with pytest.raises(LogKeyMissing, match=r"'lost' is needed .*known: old, new"):
        await store(database).show(str(lost["event_id"]))
    with pytest.raises(LogKeyMissing, match=r"known: none"):
        await store(database, PromptLogs()).show(str(strange["event_id"]))
    with pytest.raises(LogUnreadable, match="cut off: 27 bytes"):
        PromptCipher(BOTH).open("new", event_id(0), "request", b"x" * 27)
    page = await store(database).search(PromptLogFilter(contains="hello"))
    assert (page.data, page.unreadable) == ([], 5)
    with pytest.raises(LogKeyMissing, match=r"prompt_logs\.keys"):
        await store(database, PromptLogs()).search(PromptLogFilter(contains="hello"))


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("account", {"account": ""}),
        ("key", {"key": "\0"}),
        ("contains", {"contains": ""}),
        ("contains", {"contains": "x" * 1001}),
        ("status", {"status": 1 << 40}),
        ("since", {"since": -1.0}),
        ("until", {"until": 1e18}),
        ("until", {"since": 10.0, "until": 10.0}),
    ],
)
async def test_bad_filters(database: Database, field: str, wanted: dict[str, Any]) -> None:
    with pytest.raises(BadValue) as caught:
        await store(database).search(PromptLogFilter(**wanted))
    assert caught.value.field == field


async def test_bad_cursors(database: Database) -> None:
    with pytest.raises(BadValue, match="after"):
        await store(database).search(PromptLogFilter(), after="x")
    with pytest.raises(BadValue, match="after"):
        await store(database).rotate(after="x")


async def test_every_look_is_in_the_audit_log(database: Database) -> None:
    one = log(request_id="a")
    await insert(database.url, one, log(request_id="b", account="other"))
    with acting(Actor("key:auditor")):
        await store(database).search(PromptLogFilter(account="acme", contains="hello"))
        await store(database).show(str(one["event_id"]))
    shown, searched = await AuditStore(database).list()
    assert {shown.actor, searched.actor} == {"key:auditor"}
    assert searched.action == "logs.search"
    assert searched.after == {"account": "acme", "contains": {"characters": 5}, "found": 1}
    assert (shown.action, shown.subject_id) == ("logs.show", str(one["event_id"]))
    assert shown.after == {"account": "acme", "key_id": "k1", "request_id": "a"}


async def test_no_look_without_the_audit_log(database: Database) -> None:
    one = log()
    await insert(database.url, one)
    connection = await asyncpg.connect(database.url)
    await connection.execute("ALTER TABLE audit_log ADD CHECK (action NOT LIKE 'logs.%')")
    await connection.close()
    with pytest.raises(asyncpg.CheckViolationError):
        await store(database).show(str(one["event_id"]))
    with pytest.raises(asyncpg.CheckViolationError):
        await store(database).search(PromptLogFilter(contains="hello"))


async def test_rotate(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.store.prompt_log_store._AT_ONCE", 2)
    monkeypatch.setattr("forebay.store.prompt_log_store.ROTATED", 4)
    now = time.time()
    old = [log(request_id=f"{n}", key=("old", OLD), at=now - 60 + n) for n in range(7)]
    lost = log(request_id="lost", key=("lost", OLD))
    new = log(request_id="new")
    bare = log(request_id="bare", request=None, answer=None)
    await insert(database.url, *old, lost, new, bare)
    step = await store(database).rotate()
    assert (step.rotated, step.unreadable) == (4, {})
    # Cut off here, and begun again from the start.
    rotated, unreadable, after = step.rotated, 0, None
    while True:
        step = await store(database).rotate(after=after)
        rotated += step.rotated
        unreadable += step.unreadable.get("lost", 0)
        after = step.next
        if after is None:
            break
    assert (rotated, unreadable) == (7, 1)
    alone = msgspec.structs.replace(BOTH, keys={"new": base64.b64encode(NEW).decode()})
    for entry in (*old, new):
        shown = await store(database, alone).show(str(entry["event_id"]))
        assert shown.enc_key == "new"
        assert "hello" in (shown.request or "")
        assert "good day" in (shown.answer or "")
    assert (await store(database).rotate()).unreadable == {"lost": 1}
    actions = [e.action for e in await AuditStore(database).list(subject="logs")]
    assert set(actions) == {"logs.rotate"}
    with pytest.raises(LogKeyMissing, match=r"prompt_logs\.active"):
        await store(database, msgspec.structs.replace(BOTH, active=None)).rotate()


async def partitions(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, int]:
    rows = await connection.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'prompt_logs'::regclass ORDER BY 1"
    )
    return {
        row["relname"]: await connection.fetchval(f"SELECT count(*) FROM {row['relname']}")
        for row in rows
    }


async def test_days_are_made_filled_and_dropped(database: Database) -> None:
    now = datetime(2026, 11, 26, 13, tzinfo=UTC)
    today = now.timestamp()
    await insert(
        database.url,
        log(request_id="today", at=today),
        log(request_id="week", at=today - 7 * 86_400),
        log(request_id="last moment", at=datetime(2026, 11, 26, tzinfo=UTC).timestamp() - 0.001),
    )
    connection = await asyncpg.connect(database.url)
    try:
        assert await partitions(connection) == {"prompt_logs_default": 3}
        await maintain(connection, now, 30)
        made = await partitions(connection)
        assert len(made) == 1 + 1 + AHEAD + 1
        assert made["prompt_logs_20261126"] == 1
        assert made["prompt_logs_20261125"] == 1
        assert made["prompt_logs_default"] == 1
        await insert(database.url, log(request_id="tomorrow", at=today + 86_400))
        assert (await partitions(connection))["prompt_logs_20261127"] == 1
        await maintain(connection, now, 30)
        assert await partitions(connection) == {**made, "prompt_logs_20261127": 1}
        # The default partition too keeps nothing for longer.
        await maintain(connection, now, 6)
        assert await found(database) == ["tomorrow", "today", "last moment"]
        later = now + timedelta(days=3)
        await maintain(connection, later, 2)
        assert await found(database) == ["tomorrow"]
        assert "prompt_logs_20261126" not in await partitions(connection)
        assert "prompt_logs_20261127" in await partitions(connection)
        # A late one of a day that is gone is kept until the next time.
        await insert(database.url, log(request_id="late", at=today))
        assert await found(database) == ["tomorrow", "late"]
        await maintain(connection, later, 2)
        assert await found(database) == ["tomorrow"]
    finally:
        await connection.close()


async def test_only_the_days_asked_for_are_read(database: Database) -> None:
    connection = await asyncpg.connect(database.url)
    try:
        await maintain(connection, datetime(2026, 11, 26, 13, tzinfo=UTC), 30)
        plan = await connection.fetch(
            "EXPLAIN SELECT 1 FROM prompt_logs"
            " WHERE event_id >= event_floor('2026-11-26 10:00Z')"
            " AND event_id < event_floor('2026-11-26 11:00Z')"
        )
    finally:
        await connection.close()
    text = "\n".join(row[0] for row in plan)
    assert set(re.findall(r"prompt_logs_(\d+|default)\b", text)) == {"20261126"}
