"""Who acts on the database: what the audit log says of every change.

Whoever takes a connection from a `Database` inside `acting` is known on it until it goes back to
the pool, and whoever opens one is known on it for good, so that no statement can forget to say who
it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncpg


class Actor(NamedTuple):
    """name: ``key:ID`` or ``cli:USER@HOST``. request_id, remote: of a request."""

    name: str
    request_id: str | None = None
    remote: str | None = None


_actor: ContextVar[Actor | None] = ContextVar("forebay_actor", default=None)


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Let what is done inside count as the actor's; outside it is the gateway's own."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


_INTRODUCE = (
    "SELECT set_config('forebay.actor', $1, false), set_config('forebay.request_id', $2, false),"
    " set_config('forebay.remote', $3, false)"
)


async def introduce(
    connection: "asyncpg.Connection[asyncpg.Record]"
    " | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
) -> None:
    """Tell a connection who has it. A pool resets what comes back to it."""
    actor = _actor.get()
    if actor is not None:
        await connection.execute(_INTRODUCE, *(part or "" for part in actor))
