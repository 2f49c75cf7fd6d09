"""Files of prices, as CSV or JSON, and times as people write them."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from forebay.store.errors import StoreError

if TYPE_CHECKING:
    from forebay.store.price_records import NewPrice

_MAX_FILE_BYTES = 64 * 1024 * 1024
_TIMES = ("effective_from", "effective_to")


def moment(given: str) -> float:
    """Read ``2026-11-01``, ``2026-11-01T09:30+01:00`` (UTC unless it says) or Unix seconds.

    Returns Unix seconds. Raises: ValueError.
    """
    try:
        found = datetime.fromisoformat(given.strip())
    except ValueError:
        try:
            return float(given)
        except ValueError:
            raise ValueError(f"{given!r} is no time such as 2026-11-01T09:30Z") from None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def time_option(given: str | None, option: str) -> float | None:
    """The time that an option has. Raises: typer.BadParameter."""
    if given is None:
        return None
    try:
        return moment(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def read_prices(path: Path) -> "list[NewPrice]":
    """Read prices from a CSV file with a header or from a JSON list; fields as `NewPrice` has them.

    An empty cell and null are as if not given. Numbers in JSON are read exactly.

    Raises: StoreError, which names file, row (counted from 1) and field.
    """
    from forebay.store.price_records import NewPrice

    prices = []
    for number, fields in enumerate(_rows(path), 1):
        try:
            prices.append(_price(fields, NewPrice))
        except ValueError as error:
            raise StoreError(f"{path}: row {number}: {error}") from None
    if not prices:
        raise StoreError(f"{path}: has no prices")
    return prices


def _price(fields: dict[str, Any], kind: "type[NewPrice]") -> "NewPrice":
    values: dict[str, Any] = {}
    known = kind.__struct_fields__
    for name, given in fields.items():
        if name not in known:
            raise ValueError(f"unknown field {name!r} (known: {', '.join(known)})")
        if given is None or given == "":
            continue
        if not isinstance(given, str):
            raise ValueError(f"{name} must be text or a number")
        try:
            values[name] = moment(given) if name in _TIMES else given
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for name in ("model", "input", "output"):
        if name not in values:
            raise ValueError(f"{name} is required")
    return kind(**values)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise StoreError(f"{path}: larger than 64 MiB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StoreError(f"{path}: is not UTF-8 text") from None
    if text.lstrip().startswith(("[", "{")):
        yield from _json_rows(path, text)
    else:
        yield from _csv_rows(path, text)


def _json_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    try:
        found = json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: is no JSON: {error}") from None
    if not isinstance(found, list):
        raise StoreError(f"{path}: must be a list of prices")
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise StoreError(f"{path}: row {number}: must be an object")
        yield row


def _csv_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    import csv

    try:
        for number, row in enumerate(csv.DictReader(text.splitlines(), strict=True), 1):
            if None in row or None in row.values():
                raise StoreError(f"{path}: row {number}: has not as many cells as the header")
            yield {name.strip(): cell.strip() for name, cell in row.items()}
    except csv.Error as error:
        raise StoreError(f"{path}: is no CSV: {error}") from None
