"""US dollars as text, as exact decimals, and as whole nano-dollars; never as a float."""

import re
from decimal import Decimal
from typing import Annotated

from msgspec import Meta

NANO = 1_000_000_000
"""Nano-dollars in a dollar: the least step of anything that is charged."""

PATTERN = r"^[0-9]{1,8}(\.[0-9]{1,9})?$"
Usd = Annotated[str, Meta(pattern=PATTERN, description="US dollars, a decimal number.")]
"""Dollars as text, at most nine decimal places."""

_TEXT = re.compile(PATTERN)


def nano(usd: str) -> int:
    """Dollars as whole nano-dollars, exactly.

    Raises: ValueError on anything but digits and at most nine decimal places.
    """
    if _TEXT.fullmatch(usd) is None:
        raise ValueError(f"{usd!r} is no amount of dollars such as 25.00")
    whole, _, part = usd.partition(".")
    return int(whole) * NANO + int(part.ljust(9, "0"))


def text(nano_usd: int) -> str:
    """Nano-dollars as dollars, with two decimal places or as many more as it takes."""
    whole, part = divmod(abs(nano_usd), NANO)
    sign = "-" if nano_usd < 0 else ""
    return f"{sign}{whole}.{f'{part:09d}'.rstrip('0').ljust(2, '0')}"


def from_numeric(value: Decimal) -> int:
    """A column of type ``numeric`` as nano-dollars; what is less than one is left out."""
    return int(value.scaleb(9))


def to_numeric(nano_usd: int) -> Decimal:
    """Nano-dollars as a column of type ``numeric`` takes them."""
    return Decimal(nano_usd).scaleb(-9)


def exact(amount: Decimal) -> str:
    """An amount as text with two decimal places or as many more as it takes; never rounded."""
    whole, _, part = f"{amount:f}".partition(".")
    return f"{whole}.{part.rstrip('0').ljust(2, '0')}"
