"""The one request that an engine answers before others come to it."""

import msgspec
import orjson

from forebay.config import Config
from forebay.upstreams import KINDS
from forebay.upstreams.unreadable import UNREADABLE

LIMIT_S = 60.0
"""Seconds that it may take: the first request compiles kernels."""


class _Info(msgspec.Struct):
    """What SGLang says that it runs (``/model_info``)."""

    is_generation: bool


def request(config: Config, upstream: str, discovered: list[str]) -> tuple[str, bytes] | None:
    """Path and body of a chat of one token with the first model that is served there.

    None: there is no model, or another protocol than OpenAI's is spoken there, which engines that
    have to be started do not.
    """
    settings = config.upstreams[upstream]
    kind = KINDS[settings.kind]
    path = kind.paths(settings).chat
    if path is None or kind.dialect_for(settings) != "open_ai":
        return None
    served = (
        target.model or name
        for name, model in config.models.items()
        for target in model.targets
        if target.upstream == upstream
    )
    model = next(served, None) or next(iter(discovered), None)
    if model is None:
        return None
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
        "stream": False,
    }
    return path.replace("{model}", model), orjson.dumps(body)


def generates(info: bytes) -> bool:
    """Whether an engine's ``info`` says that it makes text: a chat would end one of embeddings."""
    try:
        return msgspec.json.decode(info, type=_Info).is_generation
    except UNREADABLE:
        return False
