"""The SQL that makes events of staged rows, and sums of events."""

from collections.abc import Mapping

KEYS: tuple[str, ...] = ("account", "key_id", "model", "upstream", "price_id")
"""What sums are kept by, besides the hour or the day; in the order in which locks are taken."""

SUMS: dict[str, str] = {
    "requests": "count(*)",
    "errors": "count(*) FILTER (WHERE outcome <> 'ok')",
    "estimated": "count(*) FILTER (WHERE source = 'estimated')",
    "prompt_tokens": "coalesce(sum(prompt_tokens), 0)::bigint",
    "cached_tokens": "coalesce(sum(cached_tokens), 0)::bigint",
    "cache_write_tokens": "coalesce(sum(cache_write_tokens), 0)::bigint",
    "completion_tokens": "coalesce(sum(completion_tokens), 0)::bigint",
    "reasoning_tokens": "coalesce(sum(reasoning_tokens), 0)::bigint",
    "duration_us": "coalesce(sum(round(duration_ms * 1000)::bigint), 0)::bigint",
    "cost": "coalesce(sum(cost), 0)",
}
"""Columns of `usage_hourly` and `usage_daily` and how they come from events."""

_READ = (
    "event_id, account, key_id, model_served, model_asked, upstream, price_id, outcome, source,"
    " prompt_tokens, cached_tokens, cache_write_tokens, completion_tokens, reasoning_tokens,"
    " duration_ms, cost"
)
_BY_KEYS = "2, 3, 4, 5, 6"


_HOUR = "date_trunc('hour', event_time(event_id), 'UTC')"


def hourly(events: str, hour: str = _HOUR, **other: str) -> str:
    """The rows of `usage_hourly` that belong to the rows of `events`, a FROM clause's item.

    hour: how an event's hour is found. other: how these sums are, in place of what `SUMS` says.
    """
    sums = ", ".join(f"{how} AS {name}" for name, how in {**SUMS, **other}.items())
    return (
        f"SELECT {hour} AS hour, account, key_id,"
        " coalesce(model_served, model_asked, '') AS model, coalesce(upstream, '') AS upstream,"
        f" coalesce(price_id, 0) AS price_id, {sums} FROM {events} GROUP BY 1, {_BY_KEYS}"
    )


def daily(hours: str) -> str:
    """The rows of `usage_daily` that belong to these of `usage_hourly`."""
    sums = ", ".join(
        f"sum({name}){'' if name == 'cost' else '::bigint'} AS {name}" for name in SUMS
    )
    return (
        f"SELECT (hour AT TIME ZONE 'UTC')::date AS day, {', '.join(KEYS)}, {sums}"
        f" FROM {hours} GROUP BY 1, {_BY_KEYS}"
    )


def _add(table: str, time: str, rows: str) -> str:
    # In order: two transactions that add to the same sums wait for each other only one way.
    changes = ", ".join(f"{name} = r.{name} + EXCLUDED.{name}" for name in SUMS)
    return (
        f"INSERT INTO {table} AS r ({time}, {', '.join((*KEYS, *SUMS))}) {rows}"
        f" ORDER BY 1, {_BY_KEYS} ON CONFLICT ({time}, {', '.join(KEYS)}) DO UPDATE SET {changes}"
    )


# Nearly all events of a batch are of one hour, and two comparisons tell so for a twentieth of what
# it costs to take the time out of an id.
_HOUR_OF_BATCH = (
    "CASE WHEN event_id >= (SELECT lower FROM span) AND event_id < (SELECT upper FROM span)"
    f" THEN (SELECT hour FROM span) ELSE {_HOUR} END"
)


def _add_sums(events: str, **other: str) -> str:
    """The end of a WITH clause: sums are grouped once, by hour, and days are made of the hours."""
    return (
        "span AS MATERIALIZED (SELECT hour, event_floor(hour) AS lower,"
        " event_floor(hour + interval '1 hour') AS upper"
        f" FROM (SELECT {_HOUR} AS hour FROM {events} LIMIT 1) i),"
        f" hours AS MATERIALIZED ({hourly(events, _HOUR_OF_BATCH, **other)}),"
        f" by_hour AS ({_add('usage_hourly', 'hour', 'SELECT * FROM hours')}),"
        f" by_day AS ({_add('usage_daily', 'day', daily('hours'))})"
    )


def _insert(staging: str, columns: Mapping[str, str]) -> str:
    # The batch's number is taken while the statement holds its lock on usage_events.
    return (
        f"INSERT INTO usage_events ({', '.join(columns)}, batch)"
        f" SELECT {', '.join(columns.values())}, (SELECT batch FROM number) FROM {staging}"
    )


_NUMBER = "number AS MATERIALIZED (SELECT nextval('usage_batches') AS batch)"


def merge(staging: str, columns: Mapping[str, str]) -> str:
    """The statement that inserts what is new in `staging` and gives the number of new events.

    columns: of usage_events, each with its expression over a staged row; ``event_id`` first.

    Rows that are there already are not returned by the INSERT, so nothing is added twice. Events
    are inserted in the order of their ids, before any sum is touched: writers of the same events
    or sums never deadlock.
    """
    return (
        f"WITH {_NUMBER}, inserted AS ({_insert(staging, columns)}"
        f" ORDER BY 1 ON CONFLICT (event_id) DO NOTHING RETURNING {_READ}),"
        f" {_add_sums('inserted')} SELECT count(*) FROM inserted"
    )


def append(staging: str, columns: Mapping[str, str], **other: str) -> tuple[str, str]:
    """The same in two statements that take a quarter less, for rows that are all new.

    The first fails with a unique violation where one is not, and then nothing has happened.

    columns: as `merge` takes them. other: how sums are of staged rows, where not as of events.
    """
    return (
        f"WITH {_NUMBER} {_insert(staging, columns)}",
        f"WITH {_add_sums(staging, **other)} SELECT count(*) FROM hours",
    )
