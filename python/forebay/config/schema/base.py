"""What all sections are made of: the base, and types with a range."""

from decimal import Decimal
from typing import Annotated

import msgspec
from msgspec import Meta

MIB = 1024 * 1024
MASK = "***"
"""Stands for a secret in what is shown."""

Name = Annotated[
    str,
    Meta(min_length=1, max_length=200, description="A name without spaces."),
]
UsdPerMillion = Annotated[
    Decimal,
    Meta(description="US dollars for a million tokens, at most 1000000 and 6 decimal places."),
]
Usd = Annotated[Decimal, Meta(description="US dollars, at most 1000000 and 9 decimal places.")]
Concurrency = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400, description="Seconds.")]
SecondsOrNone = Annotated[float, Meta(ge=0, le=86_400, description="Seconds; 0 switches it off.")]
Percent = Annotated[float, Meta(ge=0, le=100, description="Per cent.")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: immutable, and a field it does not know is an error."""
