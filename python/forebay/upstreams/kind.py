"""What the gateway has to know of a kind of upstream."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of engine or provider.

    name: as in the configuration's ``kind``.
    include_usage, continuous_usage: knows ``stream_options.include_usage`` and
        ``stream_options.continuous_usage_stats``.
    rid: takes our request id in the body field ``rid``.
    abort_path: where ``{"rid": …}`` is posted to stop a request; None if closing the connection
        is the only way.
    models_path: lists the models it serves.
    ready_path: answers 200 when requests can be taken, without touching the model.
    drains: bills a whole answer even if its client leaves, so that it is read to its end.
    """

    name: str
    include_usage: bool
    continuous_usage: bool
    rid: bool
    abort_path: str | None
    models_path: str
    ready_path: str
    drains: bool = False
