"""Tables of what an account has for a while: sealed, asked for by name, gone when it expires."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from forebay.store.database import Connection
from forebay.store.prompt_cipher import PromptCipher

if TYPE_CHECKING:
    import asyncpg

    from forebay.store.database import Database

_SWEPT = 500
"""Rows that one step of `sweep` deletes: each may have megabytes."""


class ExpiringTable:
    """What such tables share.

    cipher: seals what is kept if it has an active key.
    clock: the time; None takes the database's own, which all gateways share.

    Every method raises StoreUnavailable while the database is away.
    """

    timeout_s: ClassVar[float]
    """Of a statement, seconds."""

    def __init__(
        self,
        database: "Database",
        cipher: PromptCipher,
        clock: Callable[[], datetime] | None = None,
    ):
        self._database = database
        self._cipher = cipher
        self._clock = clock

    def _now(self) -> datetime | None:
        return None if self._clock is None else self._clock()

    async def _ask(
        self, query: str, *arguments: object, upkeep: bool = False
    ) -> "list[asyncpg.Record]":
        return await self._database.ask(query, *arguments, timeout_s=self.timeout_s, upkeep=upkeep)


async def sweep(connection: Connection, statement: str, now: datetime) -> int:
    """Delete what has expired by a statement of a time and a number of rows; how many."""
    gone = 0
    while True:
        count = int((await connection.execute(statement, now, _SWEPT)).split()[-1])
        gone += count
        if count < _SWEPT:
            return gone
