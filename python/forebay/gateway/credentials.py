"""Upstreams whose credentials change: each has a refresher that hands them to the core."""

from functools import partial

from forebay._core import Core
from forebay.config import Config
from forebay.upstreams import KINDS
from forebay.upstreams.credentials import Refresher


def refreshers(config: Config, core: Core) -> dict[str, Refresher]:
    """One refresher for each upstream that needs one, by the upstream's name; none runs yet."""
    found: dict[str, Refresher] = {}
    for name, upstream in config.upstreams.items():
        source = KINDS[upstream.kind].credentials(upstream)
        if source is not None:
            found[name] = Refresher(name, source, partial(core.set_credentials, name))
    return found
