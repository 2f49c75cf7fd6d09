"""The forms in which the ledger is exported. Money and counts are exact in all of them."""

import csv
import io
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from typing import IO, Any, Protocol

from forebay.store.errors import StoreError
from forebay.store.money import exact

Row = Mapping[str, Any]


class MissingExtra(StoreError):
    """A package that only this needs is not installed."""


class Writer(Protocol):
    """Takes rows in portions; what it has not written it writes when it is closed."""

    def write(self, rows: Sequence[Row]) -> None: ...
    def close(self) -> None: ...


def _time(at: datetime) -> str:
    """RFC 3339 in UTC, microseconds where there are any."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


class CsvWriter:
    """RFC 4180 with a header; an empty field is null, times are RFC 3339 in UTC."""

    def __init__(self, out: IO[bytes], columns: Mapping[str, str]) -> None:
        self._out = out
        self._columns = tuple(columns)
        self._put([self._columns])

    def write(self, rows: Sequence[Row]) -> None:
        self._put([[_cell(row[name]) for name in self._columns] for row in rows])

    def close(self) -> None:
        self._out.flush()

    def _put(self, rows: Sequence[Sequence[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._out.write(text.getvalue().encode())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return _time(value)
    if isinstance(value, Decimal):
        return exact(value)
    return str(value)


class ParquetWriter:
    """Parquet, one row group for 50,000 rows or so; money is decimal(38, 12), times are UTC."""

    _GROUP = 50_000

    def __init__(self, out: IO[bytes], columns: Mapping[str, str]) -> None:
        try:
            self._arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError:
            raise MissingExtra(
                "Parquet needs pyarrow: pip install 'forebay[parquet]', or take --format csv"
            ) from None
        arrow = self._arrow
        types = {
            "text": arrow.string(),
            "integer": arrow.int64(),
            "real": arrow.float64(),
            "boolean": arrow.bool_(),
            "time": arrow.timestamp("us", tz="UTC"),
            "money": arrow.decimal128(38, 12),
        }
        self._schema = arrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._writer = parquet.ParquetWriter(out, self._schema, compression="zstd")
        self._batches: list[Any] = []
        self._rows = 0

    def write(self, rows: Sequence[Row]) -> None:
        columns = [[row[name] for row in rows] for name in self._schema.names]
        arrays = [
            self._arrow.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._batches.append(self._arrow.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows += len(rows)
        if self._rows >= self._GROUP:
            self._put()

    def close(self) -> None:
        self._put()
        self._writer.close()

    def _put(self) -> None:
        if self._batches:
            self._writer.write_table(
                self._arrow.Table.from_batches(self._batches, schema=self._schema)
            )
        self._batches = []
        self._rows = 0


class JsonLines:
    """One JSON object a line, of which a row may make several."""

    def __init__(self, out: IO[bytes], make: Callable[[Row], Iterator[dict[str, Any]]]) -> None:
        self._out = out
        self._make = make

    def write(self, rows: Sequence[Row]) -> None:
        lines = (
            json.dumps(item, ensure_ascii=False, separators=(",", ":"))
            for row in rows
            for item in self._make(row)
        )
        self._out.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        self._out.flush()


SOURCE = "forebay"
_HOURS = uuid.UUID("c1a7d1f0-6b0e-5d5e-9f49-6d0b5f3c9a11")


def _hour_id(row: Row) -> str:
    """The same for the same hour and keys, always."""
    keys = ("account", "key_id", "model", "upstream", "price_id")
    text = json.dumps([_time(row["hour"]), *(row[key] for key in keys)])
    return str(uuid.uuid5(_HOURS, text))


def _admitted(row: Row) -> datetime:
    """The time in the event's id, by which it is accounted for."""
    return datetime.fromtimestamp((uuid.UUID(row["event_id"]).int >> 80) / 1000, UTC)


def _model(row: Row) -> str:
    return next((row[n] for n in ("model_served", "model_asked") if row[n] is not None), "")


# https://openmeter.io/docs/concepts/usage-events: CloudEvents 1.0 as JSON. An event is taken once
# for its source and id, so that a repeat changes nothing.
def openmeter_event(row: Row) -> Iterator[dict[str, Any]]:
    """A request as an event of OpenMeter."""
    tags = {} if row["tags"] is None else {"tags": json.loads(row["tags"])}
    yield _cloud_event(
        "forebay.request",
        row["event_id"],
        _admitted(row),
        row["account"],
        {
            **_data(row, _model(row), 1),
            **{name: row[name] for name in ("front", "endpoint", "outcome", "source")},
            "duration_us": round((row["duration_ms"] or 0) * 1000),
            **tags,
        },
    )


def openmeter_hour(row: Row) -> Iterator[dict[str, Any]]:
    """The sums of an hour as an event of OpenMeter."""
    data = _data(row, row["model"], row["requests"])
    more = {name: row[name] for name in ("errors", "estimated", "duration_us")}
    yield _cloud_event("forebay.hour", _hour_id(row), row["hour"], row["account"], {**data, **more})


def _cloud_event(
    kind: str, identity: str, at: datetime, subject: str, data: dict[str, Any]
) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "type": kind,
        "id": identity,
        "time": _time(at),
        "source": SOURCE,
        "subject": subject,
        "data": data,
    }


def _data(row: Row, model: str, requests: int) -> dict[str, Any]:
    return {
        "key_id": row["key_id"],
        "model": model,
        "upstream": row["upstream"] or "",
        "requests": requests,
        **_kinds(row),
        "price_id": row["price_id"] or None,
        "cost": None if row["cost"] is None else exact(row["cost"]),
    }


def _kinds(row: Row) -> dict[str, int]:
    """Tokens by kind, none in two of them."""
    prompt, cached, written, completion, reasoning = (
        row[name] or 0
        for name in (
            "prompt_tokens",
            "cached_tokens",
            "cache_write_tokens",
            "completion_tokens",
            "reasoning_tokens",
        )
    )
    return {
        "input_tokens": prompt - cached - written,
        "cached_tokens": cached,
        "cache_write_tokens": written,
        "output_tokens": completion - reasoning,
        "reasoning_tokens": reasoning,
    }


# https://docs.stripe.com/api/billing/meter-event: the value is text, and an identifier (up to 100
# characters) is taken once.
def stripe_event(row: Row) -> Iterator[dict[str, Any]]:
    """A request as Stripe's meter events: one for itself and for each kind of token it used."""
    at = int(_admitted(row).timestamp())
    yield from _meter_events(row, row["event_id"], at, _model(row), 1)


def stripe_hour(row: Row) -> Iterator[dict[str, Any]]:
    """The sums of an hour as Stripe's meter events."""
    at = int(row["hour"].timestamp())
    yield from _meter_events(row, _hour_id(row), at, row["model"], row["requests"])


def _meter_events(
    row: Row, identity: str, at: int, model: str, requests: int
) -> Iterator[dict[str, Any]]:
    for kind, value in {"requests": requests, **_kinds(row)}.items():
        if value:
            yield {
                "event_name": f"forebay_{kind}",
                "timestamp": at,
                "identifier": f"{identity}:{kind}",
                "payload": {
                    "stripe_customer_id": row["account"],
                    "value": str(value),
                    "model": model,
                },
            }
