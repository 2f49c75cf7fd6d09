"""Credit notes to invoices."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from forebay.metering import document as documents
from forebay.metering.document import Document, DocumentTax
from forebay.metering.invoice import Calculation, TaxAmount
from forebay.metering.invoicing import add_lines
from forebay.metering.lines import EXACT, Line, rounded
from forebay.store import invoices
from forebay.store.billing import lock_account, seller_of
from forebay.store.currency import MINOR_DIGITS
from forebay.store.errors import BadValue, InvoiceNotFound, NotBillable
from forebay.store.invoices import NewInvoice
from forebay.store.limits import check_name

if TYPE_CHECKING:
    from forebay.store.database import Database


async def credit(
    database: "Database",
    number: str,
    *,
    reason: str,
    line: int | None = None,
    amount: str | None = None,
    now: datetime | None = None,
) -> bytes:
    """Write a credit note to an invoice; returns its JSON.

    line: the position of a line to take back whole, with its taxes. amount: money to take back,
    taxes included, split as the invoice's total is. One of the two.

    Raises: InvoiceNotFound; BadValue; NotBillable where more would be credited than is invoiced.
    """
    check_name("reason", reason)
    if (line is None) == (amount is None):
        raise BadValue("amount", "or a line must be given, not both")
    row = await invoices.by_number(database.pool, number)
    if row is None:
        raise InvoiceNotFound(f"no invoice has the number {number!r}")
    original = documents.decode(row["document"])
    if original.kind != "invoice":
        raise NotBillable(f"{number} is a credit note and cannot be credited")
    async with database.pool.acquire() as connection, connection.transaction():
        await lock_account(connection, row["account"])
        notes = [
            documents.decode(note["document"])
            for note in await invoices.credits_of(connection, row["id"])
        ]
        if line is not None:
            calculation = of_line(original, notes, line, reason)
        else:
            calculation = of_amount(original, notes, amount or "", reason)
        moment = now or await connection.fetchval("SELECT now()")
        new = NewInvoice(
            series="credit_note",
            account=row["account"],
            month=row["month"],
            start=row["period_start"],
            stop=row["period_end"],
            currency=row["currency"],
            net=calculation.net,
            tax=calculation.total - calculation.net,
            total=calculation.total,
            watermark=row["watermark"],
            refers=row["id"],
            issued_on=moment.astimezone(ZoneInfo(original.period.time_zone)).date(),
            finalized_at=moment,
        )
        seller = await seller_of(connection)
        serial, credit_number = await invoices.take_number(connection, new.series)
        invoice = await invoices.new_id(connection)
        await add_lines(connection, invoice, calculation.lines)
        document = documents.encode(
            Document(
                number=credit_number,
                kind="credit_note",
                status="final",
                account=original.account,
                month=original.month,
                period=original.period,
                currency=original.currency,
                issued_on=str(new.issued_on),
                due_on=None,
                refers_to=number,
                reason=reason,
                watermark=None,
                seller=seller,
                customer=original.customer,
                lines=documents.document_lines(calculation.lines, original.currency),
                **documents.sums(calculation, original.currency),
                prices=[],
                problems=[],
            )
        )
        await invoices.add_invoice(
            connection, invoice, serial, credit_number, new, document.decode()
        )
        return document


def of_line(
    original: Document, notes: Sequence[Document], position: int, reason: str
) -> Calculation:
    """A credit note for one line.

    Raises: BadValue; NotBillable.
    """
    found = next((line for line in original.lines if line.position == position), None)
    if found is None:
        raise BadValue("line", f"must be 1 to {len(original.lines)}")
    net = Decimal(found.amount)
    if net <= 0:
        raise BadValue("line", f"{position} charges nothing that could be credited")
    if any(line.credits == position for note in notes for line in note.lines):
        raise NotBillable(f"line {position} of {original.number} is credited already")
    left = _Left(original, notes)
    digits = MINOR_DIGITS[original.currency]
    taxes = []
    for tax in original.taxes:
        if tax.on != "all" and (tax.on == "fees") != (found.kind == "fee"):
            continue
        share = rounded(Fraction(net) * Fraction(tax.rate) / 100, digits)
        # Rounded line by line, taxes may come to more than they were on the sum.
        whole = net == left.net
        key = (tax.name, tax.rate)
        amount = left.taxes[key] if whole else min(share, left.taxes[key])
        taxes.append(_tax(tax, net, amount))
    described = found.description if found.model is None else f"{found.model}: {found.description}"
    line = Line(
        kind="credit",
        month=found.month,
        description=f"{reason} ({described})",
        amount=-net,
        credits=position,
    )
    return _checked(original, left, line, taxes)


def of_amount(
    original: Document, notes: Sequence[Document], amount: str, reason: str
) -> Calculation:
    """A credit note for an amount, taxes included.

    Raises: BadValue; NotBillable.
    """
    digits = MINOR_DIGITS[original.currency]
    gross = _read_amount(amount, original.currency)
    left = _Left(original, notes)
    if gross > left.total:
        raise _too_much(original, left)
    total = Decimal(original.total)
    taxes = []
    for tax in original.taxes:
        key = (tax.name, tax.rate)
        share = rounded(Fraction(tax.amount) * Fraction(gross) / Fraction(total), digits)
        net = rounded(Fraction(tax.net) * Fraction(gross) / Fraction(total), digits)
        amount_left = left.taxes[key]
        taxes.append(
            _tax(tax, net, amount_left if gross == left.total else min(share, amount_left))
        )
    taken = sum((tax.amount for tax in taxes), Decimal(0))
    line = Line(kind="credit", month=original.month, description=reason, amount=-(gross + taken))
    return _checked(original, left, line, taxes)


def _read_amount(text: str, currency: str) -> Decimal:
    digits = MINOR_DIGITS[currency]
    whole, point, part = text.partition(".")
    plain = (whole + part).isascii() and (whole + part).isdigit() and whole != ""
    if not plain or len(whole) > 18 or len(part) > digits or (point and not part):
        raise BadValue("amount", f"must be an amount of {currency}, {digits} decimals at most")
    amount = Decimal(text)
    if amount <= 0:
        raise BadValue("amount", "must be above 0")
    return amount.quantize(Decimal(1).scaleb(-digits), context=EXACT)


class _Left:
    """What of an invoice is not credited yet."""

    def __init__(self, original: Document, notes: Sequence[Document]) -> None:
        with localcontext(EXACT):
            self.net = Decimal(original.net) + sum(Decimal(note.net) for note in notes)
            self.total = Decimal(original.total) + sum(Decimal(note.total) for note in notes)
            self.taxes: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
            for document in (original, *notes):
                for tax in document.taxes:
                    self.taxes[tax.name, tax.rate] += Decimal(tax.amount)


def _tax(tax: DocumentTax, net: Decimal, amount: Decimal) -> TaxAmount:
    return TaxAmount(name=tax.name, rate=tax.rate, on=tax.on, net=-net, amount=-amount)


def _checked(original: Document, left: _Left, line: Line, taxes: list[TaxAmount]) -> Calculation:
    with localcontext(EXACT):
        total = line.amount + sum((tax.amount for tax in taxes), Decimal(0))
    if -total > left.total:
        raise _too_much(original, left)
    return Calculation([line], taxes, line.amount, total)


def _too_much(original: Document, left: _Left) -> NotBillable:
    rest = documents.money(left.total, original.currency)
    return NotBillable(f"only {rest} {original.currency} of {original.number} are not credited yet")
