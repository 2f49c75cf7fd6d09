"""What engines say of their load, as the core takes it."""

import msgspec
import orjson

from forebay.upstreams.unreadable import UNREADABLE

_MOST = 2**32 - 1


class _Rank(msgspec.Struct):
    """One data-parallel rank of SGLang's."""

    num_running_reqs: int
    num_waiting_reqs: int
    num_used_tokens: int = 0


class _Loads(msgspec.Struct):
    """SGLang's ``/v1/loads`` (0.5.23): one entry a rank."""

    loads: list[_Rank]


class _ServerLoad(msgspec.Struct):
    """vLLM's ``/load``: requests that the server has."""

    server_load: int


def report(body: bytes) -> bytes | None:
    """The report in an engine's answer; None if there is none in it."""
    try:
        ranks = msgspec.json.decode(body, type=_Loads).loads
    except UNREADABLE:
        try:
            load = msgspec.json.decode(body, type=_ServerLoad).server_load
        except UNREADABLE:
            return None
        ranks = [_Rank(num_running_reqs=load, num_waiting_reqs=0)]
    if not ranks:
        return None
    return orjson.dumps(
        {
            "running": _bounded(sum(rank.num_running_reqs for rank in ranks)),
            "waiting": _bounded(sum(rank.num_waiting_reqs for rank in ranks)),
            "tokens": _bounded(sum(rank.num_used_tokens for rank in ranks)),
        }
    )


def _bounded(count: int) -> int:
    return min(max(count, 0), _MOST)
