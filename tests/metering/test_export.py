"""Exports: every row once, every amount exact, in each of the forms."""

import csv
import io
import json
import os
import sys
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from forebay.metering import export as module
from forebay.metering.export import ROLLUPS, USAGE, Format, What, export, whole_file
from forebay.metering.export_formats import MissingExtra
from forebay.metering.shipper import Shipper
from forebay.store import Database

from tests.support.ledger import DAY_US, NOW_US, Event, Spool, event

SINCE = datetime(2023, 11, 14, tzinfo=UTC)
UNTIL = datetime(2023, 11, 15, tzinfo=UTC)
LEAST = "0.000000000001"


async def ship(database: Database, *events: Event) -> None:
    spool = Spool()
    spool.events = list(events)
    shipper = Shipper(database, spool)
    assert await shipper.flush(10)
    await shipper.stop()


async def written(database: Database, what: What, format: Format, **options: Any) -> bytes:
    out = io.BytesIO()
    options = {"since": SINCE, "until": UNTIL, **options}
    await export(database, what, format, out, **options)
    return out.getvalue()


async def lines(database: Database, what: What, format: Format) -> list[dict[str, Any]]:
    text = (await written(database, what, format)).decode()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.asyncio
async def test_csv(database: Database) -> None:
    odd = 'a,"b"\nc'
    await ship(
        database,
        event(number=1, account=odd, cost_pico=1, tags=None),
        event(number=2, upstream=None, cost_pico=None, first_byte_at=None),
        event(NOW_US + DAY_US),
        event(NOW_US - DAY_US),
    )
    text = (await written(database, "usage", "csv")).decode()
    first, second = csv.DictReader(io.StringIO(text))
    assert tuple(first) == tuple(USAGE)
    assert (first["account"], first["cost"], first["tags"]) == (odd, LEAST, "")
    assert (first["stream"], first["duration_ms"]) == ("true", "12.5")
    assert first["admitted_at"] == "2023-11-14T22:13:20.123456Z"
    assert first["event_id"] == str(uuid.UUID(bytes=event(number=1)["event_id"]))
    assert (second["upstream"], second["cost"], second["first_byte_at"]) == ("", "", "")
    assert json.loads(second["tags"]) == {"team": "blue"}
    text = (await written(database, "usage", "csv", account=odd)).decode()
    assert len(list(csv.DictReader(io.StringIO(text)))) == 1
    text = (await written(database, "rollups", "csv", until=UNTIL + timedelta(days=7))).decode()
    hours = list(csv.DictReader(io.StringIO(text)))
    assert tuple(hours[0]) == tuple(ROLLUPS)
    assert [row["requests"] for row in hours] == ["1", "1", "1"]


@pytest.mark.asyncio
@pytest.mark.parametrize("what", ["usage", "rollups"])
async def test_parquet(
    database: Database, tmp_path: Path, what: What, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr("forebay.metering.export_formats.ParquetWriter._GROUP", 20)
    await ship(
        database,
        *(event(NOW_US + n * 1000, account=f"a{n}", cost_pico=n or None) for n in range(50)),
    )
    path = tmp_path / "usage.parquet"
    with whole_file(path) as out:
        count = await export(database, what, "parquet", out, since=SINCE, until=UNTIL)
    assert count == 50
    assert os.listdir(tmp_path) == ["usage.parquet"]
    table = parquet.read_table(path)
    assert parquet.ParquetFile(path).num_row_groups == 3
    assert table.column_names == list(USAGE if what == "usage" else ROLLUPS)
    rows = {row["account"]: row for row in table.to_pylist()}
    assert len(rows) == 50
    assert rows["a1"]["cost"] == Decimal(LEAST)
    assert sum(row["cost"] or 0 for row in rows.values()) == sum(range(50)) * Decimal(LEAST)
    if what == "usage":
        assert rows["a0"]["cost"] is None
        assert rows["a0"]["admitted_at"].timestamp() * 1e6 == pytest.approx(NOW_US)
    else:
        assert rows["a0"]["hour"] == datetime(2023, 11, 14, 22, tzinfo=UTC)


@pytest.mark.asyncio
async def test_parquet_of_nothing_and_without_pyarrow(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as parquet

    path = tmp_path / "none.parquet"
    path.write_bytes(await written(database, "rollups", "parquet"))
    assert parquet.read_table(path).num_rows == 0
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        pytest.raises(MissingExtra, match=r"pip install 'forebay\[parquet\]'"),
        whole_file(tmp_path / "f") as out,
    ):
        await export(database, "usage", "parquet", out, since=SINCE, until=UNTIL)
    assert not (tmp_path / "f").exists()


@pytest.mark.asyncio
async def test_openmeter(database: Database) -> None:
    item = event(number=1, cost_pico=1)
    await ship(database, item, event(number=2, price_id=None, cost_pico=None, tags=None))
    first, second = await lines(database, "usage", "openmeter")
    assert first == {
        "specversion": "1.0",
        "type": "forebay.request",
        "id": str(uuid.UUID(bytes=item["event_id"])),
        "time": "2023-11-14T22:13:20.123000Z",
        "source": "forebay",
        "subject": "default",
        "data": {
            "key_id": "k1",
            "model": "served",
            "upstream": "gpu-a",
            "requests": 1,
            "input_tokens": 7,
            "cached_tokens": 2,
            "cache_write_tokens": 1,
            "output_tokens": 2,
            "reasoning_tokens": 3,
            "price_id": 4,
            "cost": LEAST,
            "front": "http",
            "endpoint": "chat",
            "outcome": "ok",
            "source": "reported",
            "duration_us": 12_500,
            "tags": {"team": "blue"},
        },
    }
    assert (second["data"]["price_id"], second["data"]["cost"]) == (None, None)
    assert "tags" not in second["data"]
    hours = await lines(database, "rollups", "openmeter")
    assert {hour["type"] for hour in hours} == {"forebay.hour"}
    assert sum(hour["data"]["input_tokens"] for hour in hours) == 14
    assert await lines(database, "rollups", "openmeter") == hours, "the same ids again"
    assert len({hour["id"] for hour in hours}) == len(hours) == 2


@pytest.mark.asyncio
async def test_stripe(database: Database) -> None:
    item = event(number=1, cached_tokens=0)
    await ship(database, item)
    found = await lines(database, "usage", "stripe")
    identity = str(uuid.UUID(bytes=item["event_id"]))
    assert found[0] == {
        "event_name": "forebay_requests",
        "timestamp": NOW_US // 1_000_000,
        "identifier": f"{identity}:requests",
        "payload": {"stripe_customer_id": "default", "value": "1", "model": "served"},
    }
    assert {line["event_name"]: line["payload"]["value"] for line in found} == {
        "forebay_requests": "1",
        "forebay_input_tokens": "9",
        "forebay_cache_write_tokens": "1",
        "forebay_output_tokens": "2",
        "forebay_reasoning_tokens": "3",
    }
    assert max(len(line["identifier"]) for line in found) <= 100
    hours = await lines(database, "rollups", "stripe")
    assert [line["payload"] for line in hours] == [line["payload"] for line in found]
    assert hours[0]["timestamp"] == NOW_US // 3_600_000_000 * 3600
    assert await lines(database, "rollups", "stripe") == hours
