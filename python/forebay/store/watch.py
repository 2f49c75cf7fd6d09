"""Follow keys, limits, prices and spend, so that a change reaches the gateway within a second."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog

from forebay.store.database import UNREACHABLE, open_connection
from forebay.store.errors import StoreUnavailable
from forebay.store.keys import CHANGED_SINCE, KeyRecord, to_record
from forebay.store.limits import ALL_SUBJECTS, SubjectLimits, to_subject
from forebay.store.price_records import Price, to_price
from forebay.store.prices import ALL_PRICES
from forebay.store.spend import SPENT, Spent, to_spent

if TYPE_CHECKING:
    import asyncpg

    from forebay.store.database import Database

CHANNEL = "forebay_keys"
_POLL_S = 0.5
_SPENT_S = 5.0
_QUERY_TIMEOUT_S = 2.0
_LOAD_TIMEOUT_S = 60.0
_BACKOFF_S = (0.05, 2.0)

_VERSIONS = (
    "SELECT l.version AS limits, p.version AS prices FROM limits_version l, prices_version p"
)

_log = structlog.stdlib.get_logger(__name__)


class KeyWatcher:
    """Feeds changes of keys, limits and prices to callbacks, on a connection of its own.

    Spend is read beside that, over the database's pool: a slow sum keeps no change waiting.

    on_change: called with key records to insert or replace by id. The first call has every
        active key; later calls have what changed, with ``revoked`` set where a key ended. After
        a lost connection every active key comes again, and keys that are gone come as revoked.
    on_limits: called with the limits of all accounts and models, the complete list each time.
    on_prices: called with every price that is not superseded, the complete list each time.
    on_spent: called with what every subject with a budget has spent in its current period: at
        the start, when a budget has changed, and every 5 s; never with an empty list.
    on_health: called when `healthy` changes.

    All are called on the event loop and must not block. Of one change limits come first, then
    prices, then keys, with nothing in between, and then, as soon as it is summed, spend.

    While the database is away nothing is called, so what the callbacks keep stays the last
    snapshot. A lost notification is made good by polling every 0.5 s.

    last_sync: Unix seconds of the last moment the snapshot was known to be current; 0 before.
    """

    def __init__(
        self,
        database: "Database",
        on_change: Callable[[list[KeyRecord]], None],
        on_health: Callable[[bool], None] | None = None,
        *,
        on_limits: Callable[[list[SubjectLimits]], None] | None = None,
        on_prices: Callable[[list[Price]], None] | None = None,
        on_spent: Callable[[list[Spent]], None] | None = None,
    ):
        self._url = database.url
        self._pool = database.pool
        self._on_change = on_change
        self._on_health = on_health
        self._on_limits = on_limits
        self._on_prices = on_prices
        self._on_spent = on_spent
        self._known: dict[str, str] = {}
        self._version = 0
        self._limits_version = 0
        self._prices_version = 0
        self._loaded = asyncio.Event()
        self._summed = asyncio.Event()
        self._wake = asyncio.Event()
        self._spend_due = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._healthy = False
        self.last_sync = 0.0

    @property
    def healthy(self) -> bool:
        """The last exchange with the database succeeded."""
        return self._healthy

    def _set_healthy(self, healthy: bool) -> None:
        changed = healthy != self._healthy
        self._healthy = healthy
        if changed and self._on_health is not None:
            self._on_health(healthy)

    @property
    def loaded(self) -> bool:
        """Whether the first full load has been handed on."""
        return self._loaded.is_set()

    async def start(self, timeout_s: float = 10.0) -> bool:
        """Begin, and wait up to `timeout_s` for the first full load and the spend with it.

        Returns whether the load came; the watcher keeps trying in the background for what did not.
        """
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._run(), name="forebay-key-watcher"))
            if self._on_spent is not None:
                follows = self._follow_spend(self._on_spent)
                self._tasks.append(asyncio.create_task(follows, name="forebay-spend-watcher"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._loaded.wait()
                if self._on_spent is not None:
                    await self._summed.wait()
        return self.loaded

    async def stop(self) -> None:
        """End the watch and close its connection."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._set_healthy(False)

    async def _run(self) -> None:
        backoff_s = _BACKOFF_S[0]
        while True:
            synced = self.last_sync
            try:
                await self._session()
            except (StoreUnavailable, *UNREACHABLE) as error:
                _log.warning("key_watch_interrupted", error=str(error) or type(error).__name__)
            except Exception:
                # A fault of ours or a schema that is not there yet: the watch must outlive it.
                _log.exception("key_watch_failed")
            self._set_healthy(False)
            if self.last_sync != synced:
                backoff_s = _BACKOFF_S[0]
            # Jitter keeps many gateways from coming back in one instant.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.5))
            backoff_s = min(backoff_s * 2, _BACKOFF_S[1])

    async def _session(self) -> None:
        connection = await open_connection(self._url)
        try:
            connection.add_termination_listener(self._on_event)
            await connection.add_listener(CHANNEL, self._on_event)
            await self._load(connection)
            while True:
                self._set_healthy(True)
                self.last_sync = time.time()
                self._loaded.set()
                # Not wait_for: before 3.12 it loses a cancellation that meets a result.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await self._wake.wait()
                self._wake.clear()
                await self._follow(connection)
        finally:
            # Not a polite close: the peer may be gone, and nothing is lost.
            connection.terminate()

    async def _load(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Hand on everything; a restored or replaced database cannot be told by versions."""
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            version = await connection.fetchval(
                "SELECT coalesce(max(version), 0) FROM api_keys", timeout=_LOAD_TIMEOUT_S
            )
            rows = await connection.fetch(CHANGED_SINCE, 0, timeout=_LOAD_TIMEOUT_S)
            limits_version, prices_version = await _versions(connection)
            limits = await connection.fetch(ALL_SUBJECTS, False, timeout=_LOAD_TIMEOUT_S)
            prices = await connection.fetch(ALL_PRICES, timeout=_LOAD_TIMEOUT_S)
        records = [record for record in map(to_record, rows) if not record.revoked]
        alive = {record.id for record in records}
        gone = [
            _ended(key_id, digest) for key_id, digest in self._known.items() if key_id not in alive
        ]
        self._hand_on_limits(limits, limits_version)
        self._hand_on_prices(prices, prices_version)
        self._hand_on(records + gone, version)
        self._spend_due.set()

    async def _follow(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Hand on what has changed since the last time."""
        limits_version, prices_version = await _versions(connection)
        limits = prices = None
        if limits_version != self._limits_version:
            limits = await connection.fetch(ALL_SUBJECTS, False, timeout=_LOAD_TIMEOUT_S)
        if prices_version != self._prices_version:
            prices = await connection.fetch(ALL_PRICES, timeout=_LOAD_TIMEOUT_S)
        rows = await connection.fetch(CHANGED_SINCE, self._version, timeout=_QUERY_TIMEOUT_S)
        records = [to_record(row) for row in rows]
        if limits is not None:
            self._hand_on_limits(limits, limits_version)
        if prices is not None:
            self._hand_on_prices(prices, prices_version)
        if records:
            self._hand_on(records, records[-1].version)
        if limits is not None or any(map(_has_budget, records)):
            self._spend_due.set()

    def _hand_on(self, records: list[KeyRecord], version: int) -> None:
        self._on_change(records)
        self._version = version
        for record in records:
            if record.revoked:
                self._known.pop(record.id, None)
            else:
                self._known[record.id] = record.digest

    def _hand_on_limits(self, rows: "list[asyncpg.Record]", version: int) -> None:
        if self._on_limits is not None:
            self._on_limits([to_subject(row) for row in rows])
        self._limits_version = version

    def _hand_on_prices(self, rows: "list[asyncpg.Record]", version: int) -> None:
        if self._on_prices is not None:
            self._on_prices([to_price(row) for row in rows])
        self._prices_version = version

    async def _follow_spend(self, on_spent: Callable[[list[Spent]], None]) -> None:
        """Hand on what was spent when it is due, and every `_SPENT_S`."""
        await self._loaded.wait()
        while True:
            self._spend_due.clear()
            try:
                rows = await self._pool.fetch(SPENT, timeout=_LOAD_TIMEOUT_S)
                if rows:
                    on_spent([to_spent(row) for row in rows])
                self._summed.set()
            except UNREACHABLE as error:
                _log.warning("spend_not_read", error=str(error) or type(error).__name__)
            except Exception:
                # A fault of ours: the watch must outlive it.
                _log.exception("spend_watch_failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SPENT_S):
                    await self._spend_due.wait()

    def _on_event(self, *_: Any) -> None:
        self._wake.set()


async def _versions(connection: "asyncpg.Connection[asyncpg.Record]") -> tuple[int, int]:
    """Of the limits, and of the prices."""
    rows = await connection.fetch(_VERSIONS, timeout=_QUERY_TIMEOUT_S)
    return rows[0]["limits"], rows[0]["prices"]


def _has_budget(record: KeyRecord) -> bool:
    return record.budget is not None or any(
        limits.budget is not None for limits in record.per_model.values()
    )


def _ended(key_id: str, digest: str) -> KeyRecord:
    return KeyRecord(
        id=key_id,
        kind="inference",
        account="",
        name="",
        digest=digest,
        last4="",
        version=0,
        created_at=0.0,
        revoked=True,
    )
