"""What is logged of requests besides usage: settings of accounts, and of keys, which go first."""

from decimal import Decimal
from typing import Annotated, Any, Literal

from msgspec import Meta

from forebay.config.schema import PromptLogs
from forebay.store.errors import BadValue

PromptLogLevel = Literal["off", "metadata", "full"]
PromptLogSample = Annotated[float, Meta(ge=0, le=1)]
"""The part of the requests that is logged, 0 to 1, six decimal places."""


def core_log_settings(level: PromptLogLevel | None, sample: float | None) -> dict[str, Any]:
    """The settings of a key or an account as the core takes them.

    log_level: ``off``, ``metadata`` or ``full``. log_sample: 0 to 1. Of a key, null is what its
    account has.
    """
    return {"log_level": level, "log_sample": sample}


def check_sample(sample: float | None) -> None:
    """Raises: BadValue on what is no part of a whole."""
    if sample is not None and not 0 <= sample <= 1:
        raise BadValue("log_sample", "must be 0 to 1")


def to_numeric(sample: float | None) -> Decimal | None:
    """A sample as its column takes it."""
    return None if sample is None else Decimal(f"{sample:.6f}")


def from_numeric(column: Decimal | None) -> float | None:
    """A sample as its column has it."""
    return None if column is None else float(column)


def check_level(level: object, configured: PromptLogs | None) -> None:
    """Refuse ``full`` where contents could not be encrypted.

    configured: None where the gateways' configuration is not known: then they decide, and log
    metadata alone without a key.

    Raises: BadValue.
    """
    if level == "full" and configured is not None and configured.active is None:
        raise BadValue(
            "log_level",
            "full needs a key to encrypt with: set prompt_logs.keys and prompt_logs.active in the"
            " configuration",
        )
