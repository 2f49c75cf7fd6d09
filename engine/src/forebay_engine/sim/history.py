"""What the server remembers of requests, for tests: `GET /sim/requests`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

MAX_RECORDS = 10_000
MAX_BODY = 64 * 1024
MAX_BODIES = 64 * 1024 * 1024


@dataclass(slots=True)
class Record:
    """One request for inference.

    outcome: queued, running, then stop, length, tool_calls, content_filter, abort, disconnected,
        error:STATUS or fault:KIND.
    delivered_tokens: those handed to the socket while the client was there.
    started_at, finished_at: Unix seconds.
    """

    path: str
    headers: list[tuple[str, str]]
    body: bytes
    started_at: float
    rid: str | None = None
    model: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    delivered_tokens: int = 0
    outcome: str = "queued"
    fault: str | None = None
    finished_at: float | None = None

    def shown(self) -> dict[str, Any]:
        """As JSON shows it."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["body"] = self.body.decode(errors="replace")
        return fields


class History:
    """The last 10,000 requests, with at most 64 KiB of each body and 64 MiB of all."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._bodies = 0

    def add(self, record: Record) -> None:
        """Remember a request, forgetting the oldest where there are too many."""
        self._records.append(record)
        self._bodies += len(record.body)
        while len(self._records) > MAX_RECORDS or self._bodies > MAX_BODIES:
            self._bodies -= len(self._records.popleft().body)

    def clear(self) -> None:
        """Forget all."""
        self._records.clear()
        self._bodies = 0

    def shown(self, rid: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """The last `limit` of them, oldest first; only those of `rid` where given."""
        found = [r for r in self._records if rid is None or r.rid == rid]
        return [record.shown() for record in (found[-limit:] if limit else found)]
