"""Queries for which requests wait: two at a time, and within their time."""

import asyncio

import pytest
from forebay.store import Database, StoreUnavailable


async def test_they_leave_connections_to_others(database: Database) -> None:
    slow = [
        asyncio.create_task(database.ask("SELECT pg_sleep(1.5)", timeout_s=5)) for _ in range(8)
    ]
    await asyncio.sleep(0.2)
    with pytest.raises(StoreUnavailable):
        await database.ask("SELECT 1", timeout_s=0.2)
    async with asyncio.timeout(0.5):
        assert await database.pool.fetchval("SELECT 1") == 1
        assert await database.ask("SELECT 1", timeout_s=5, upkeep=True)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
