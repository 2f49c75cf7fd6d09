"""An invoice as it is stored and shown: one document, whose JSON is kept to the byte."""

import csv
import io
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec

from forebay.metering.invoice import Calculation
from forebay.metering.lines import Line, LineKind, Price, Problem, price_text
from forebay.store.billing import Billing, Seller
from forebay.store.currency import MINOR_DIGITS
from forebay.store.terms import plain_decimal

Kind = Literal["invoice", "credit_note"]


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the invoice is for."""

    account: str
    name: str
    address: tuple[str, ...]
    tax_id: str | None
    email: str | None


class DocumentPeriod(msgspec.Struct, frozen=True, kw_only=True):
    """From `start` to before `end`: RFC 3339, with the time zone's offset."""

    start: str
    end: str
    time_zone: str


class DocumentLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line. quantity times unit_price over per, rounded once, is the amount, if they are given.

    month: whose usage or fee it is. old_price_id: of an adjustment, the price row before; its
    unit_price is the difference. term: the allowance, discount or fee. credits: the position of
    the line that a credit note takes back.
    """

    position: int
    kind: LineKind
    month: str
    description: str
    model: str | None
    token_kind: str | None
    price_id: int | None
    old_price_id: int | None
    quantity: str | None
    unit_price: str | None
    per: int | None
    amount: str
    term: int | None
    credits: int | None


class DocumentTax(msgspec.Struct, frozen=True, kw_only=True):
    """A tax. rate: percent. on: which lines it is taken of. net: their sum."""

    name: str
    rate: str
    on: Literal["all", "usage", "fees"]
    net: str
    amount: str


class DocumentPrice(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the price book that a line names, as it was; times are RFC 3339, UTC."""

    id: int
    model: str
    upstream: str | None
    account: str | None
    currency: str
    input: str
    cached: str
    cache_write: str
    output: str
    reasoning: str
    request: str
    second: str
    effective_from: str
    effective_to: str | None


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """An invoice, a credit note, or the draft of one. Money is decimal text in `currency`.

    watermark: usage is in it up to this ingest number. refers_to, reason: of a credit note to an
    invoice. subtotal: lines that charge or correct; deductions: allowances and discounts; net:
    their sum. problems: of a draft, why it cannot be finalised.
    """

    number: str | None
    kind: Kind
    status: Literal["draft", "final"]
    account: str
    month: str
    period: DocumentPeriod
    currency: str
    issued_on: str | None
    due_on: str | None
    refers_to: str | None
    reason: str | None
    watermark: int | None
    seller: Seller | None
    customer: Customer
    lines: list[DocumentLine]
    subtotal: str
    deductions: str
    net: str
    taxes: list[DocumentTax]
    total: str
    prices: list[DocumentPrice]
    problems: list[str]


DEDUCTIONS = ("free_tokens", "free_money", "discount")


def encode(document: Document) -> bytes:
    """The document's JSON."""
    return msgspec.json.encode(document)


def decode(text: str | bytes) -> Document:
    """A document from its JSON."""
    return msgspec.json.decode(text, type=Document)


def customer_of(account: str, name: str, billing: Billing) -> Customer:
    """The customer as the account's settings say."""
    return Customer(
        account=account,
        name=billing.legal_name or name,
        address=billing.address,
        tax_id=billing.tax_id,
        email=billing.email,
    )


def money(amount: Decimal, currency: str) -> str:
    """An amount with the currency's decimal places."""
    digits = MINOR_DIGITS[currency]
    return f"{amount:.{digits}f}" if amount else f"{Decimal(0):.{digits}f}"


def document_lines(lines: Iterable[Line], currency: str) -> list[DocumentLine]:
    """Lines as a document has them."""
    return [
        DocumentLine(
            position=position,
            kind=line.kind,
            month=line.month,
            description=line.description,
            model=line.model,
            token_kind=line.token_kind,
            price_id=line.price_id,
            old_price_id=line.old_price_id,
            quantity=None if line.quantity is None else plain_decimal(line.quantity),
            unit_price=None if line.unit_price is None else price_text(line.unit_price),
            per=line.per,
            amount=money(line.amount, currency),
            term=line.term,
            credits=line.credits,
        )
        for position, line in enumerate(lines, 1)
    ]


def sums(calculation: Calculation, currency: str) -> dict[str, Any]:
    """The totals as a document has them."""
    deductions = sum(
        (line.amount for line in calculation.lines if line.kind in DEDUCTIONS), Decimal(0)
    )
    return {
        "subtotal": money(calculation.net - deductions, currency),
        "deductions": money(deductions, currency),
        "net": money(calculation.net, currency),
        "taxes": [
            DocumentTax(
                name=tax.name,
                rate=tax.rate,
                on=tax.on,
                net=money(tax.net, currency),
                amount=money(tax.amount, currency),
            )
            for tax in calculation.taxes
        ],
        "total": money(calculation.total, currency),
    }


def document_prices(lines: Iterable[Line], prices: dict[int, Price]) -> list[DocumentPrice]:
    """The price rows that lines name."""
    named = {
        price_id
        for line in lines
        for price_id in (line.price_id, line.old_price_id)
        if price_id is not None
    }
    return [_document_price(prices[price_id]) for price_id in sorted(named)]


def _document_price(price: Price) -> DocumentPrice:
    values: dict[str, Any] = {
        name: price_text(value) if isinstance(value := getattr(price, name), Decimal) else value
        for name in DocumentPrice.__struct_fields__
    }
    for name in ("effective_from", "effective_to"):
        if values[name] is not None:
            values[name] = rfc3339(values[name])
    return DocumentPrice(**values)


def rfc3339(instant: datetime) -> str:
    """An instant in UTC."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def explained(problems: Iterable[Problem], currency: str) -> list[str]:
    """Each problem in one clause, models and counts named."""
    return [_explained(problem, currency) for problem in problems]


def _explained(problem: Problem, currency: str) -> str:
    one = problem.requests == 1
    model = problem.model or "an unnamed model"
    which = f"{problem.requests} request{'' if one else 's'} of {model} in {problem.month}"
    if problem.currency is None:
        return f"{which} {'has' if one else 'have'} no price"
    return f"{which} {'is' if one else 'are'} rated in {problem.currency}, not {currency}"


def day(text: str) -> date:
    """A document's date."""
    return date.fromisoformat(text)


def to_csv(document: Document) -> str:
    """Lines, taxes and total as CSV with a header; a row's kind tells which it is."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [name for name in DocumentLine.__struct_fields__ if name not in ("term", "credits")]
    writer.writerow(("number", "account", *columns, "currency"))
    start = (document.number or "", document.account)
    for line in document.lines:
        values = (getattr(line, name) for name in columns)
        cells = ["" if value is None else value for value in values]
        writer.writerow((*start, *cells, document.currency))
    extra = [("tax", f"{tax.name} {tax.rate} %", tax.amount) for tax in document.taxes]
    for kind, described, amount in [*extra, ("total", "Total", document.total)]:
        row = {"kind": kind, "month": document.month, "description": described, "amount": amount}
        writer.writerow((*start, *(row.get(name, "") for name in columns), document.currency))
    return out.getvalue()
