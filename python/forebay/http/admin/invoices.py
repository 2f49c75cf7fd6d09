"""Operations on invoices, and on what they are made by."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.responses import Response

from forebay.http.admin.operation import Call, Refused
from forebay.metering.credit import credit
from forebay.metering.document import decode
from forebay.metering.invoicing import Books, InvoiceSummary
from forebay.metering.rerating import Adjustment, rerate
from forebay.store.billing import Billing, BillingChanges, BillingStore, Seller
from forebay.store.errors import TermNotFound
from forebay.store.terms import NewTerm, Term, TermEnd, TermStore

MAX_PAGE = 1000

Instant = Annotated[datetime, Meta(tz=True)]


class InvoiceQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which invoices to list. after: the id of the last one of the page before."""

    account: str | None = None
    after: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100


class InvoicePage(msgspec.Struct, frozen=True, kw_only=True):
    """Invoices and credit notes as they were finalised. next: `after` of the next page."""

    data: list[InvoiceSummary]
    next: int | None


class Finalization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to finalise. month: YYYY-MM, in the account's time zone."""

    account: str
    month: str


class Credit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to credit: a line, by its position, or an amount, taxes included."""

    reason: str
    line: int | None = None
    amount: str | None = None


class Rerating(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which months to rate anew: those of the account with an instant from since to before until.

    RFC 3339. model: only this one.
    """

    account: str
    since: Instant
    until: Instant
    model: str | None = None


class Adjustments(msgspec.Struct, frozen=True, kw_only=True):
    """What rating anew has changed."""

    data: list[Adjustment]


class TermList(msgspec.Struct, frozen=True, kw_only=True):
    """An account's terms, those that have ended too."""

    data: list[Term]


async def list_invoices(call: Call) -> InvoicePage:
    """In the order of finalising."""
    query: InvoiceQuery = call.query
    found = await Books(call.database).list(
        account=query.account, after=query.after, limit=query.limit + 1
    )
    page = found[: query.limit]
    return InvoicePage(data=page, next=page[-1].id if len(found) > query.limit else None)


async def finalize(call: Call) -> bytes:
    """For good; one that is final already stays as it is."""
    body: Finalization = call.body
    return (await Books(call.database).finalize(body.account, body.month)).document


async def get_invoice(call: Call) -> bytes:
    """As it was finalised."""
    return await Books(call.database).get(call.path["number"])


async def get_pdf(call: Call) -> Response:
    """To send to the customer."""
    from forebay.metering.pdf import MissingGlyph, to_pdf

    document = decode(await Books(call.database).get(call.path["number"]))
    try:
        content = to_pdf(document)
    except MissingGlyph as error:
        raise Refused("invalid_request", f"The PDF's font is not enough: {error}.") from None
    headers = {
        "cache-control": "no-store",
        "content-disposition": f'attachment; filename="{document.number}.pdf"',
    }
    return Response(content, headers=headers, media_type="application/pdf")


async def credit_invoice(call: Call) -> bytes:
    """A credit note, never over more than the invoice."""
    body: Credit = call.body
    return await credit(
        call.database,
        call.path["number"],
        reason=body.reason,
        line=body.line,
        amount=body.amount,
    )


async def draft(call: Call) -> bytes:
    """As it would be now; finalised, as it is."""
    return await Books(call.database).draft(call.path["account"], call.path["month"])


async def rerate_account(call: Call) -> Adjustments:
    """The difference goes to the account's next invoice. Doing it twice changes nothing."""
    body: Rerating = call.body
    found = await rerate(
        call.database,
        since=body.since,
        until=body.until,
        model=body.model,
        account=body.account,
    )
    return Adjustments(data=found)


async def get_billing(call: Call) -> Billing:
    """Defaults where nothing was set."""
    return await BillingStore(call.database).get(call.path["account"])


async def change_billing(call: Call) -> Billing:
    """A field that is not given stays."""
    changes: BillingChanges = call.body
    return await BillingStore(call.database).update(call.path["account"], changes)


async def list_terms(call: Call) -> TermList:
    """By id."""
    return TermList(data=await TermStore(call.database).list(call.path["account"]))


async def add_term(call: Call) -> Term:
    """An allowance, a discount or a fee."""
    term: NewTerm = call.body
    return await TermStore(call.database).add(call.path["account"], term)


async def end_term(call: Call) -> Term:
    """Terms are ended, not deleted: invoices name them."""
    body: TermEnd = call.body
    number = call.path["term"]
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise TermNotFound(f"no term has the id {number!r}")
    return await TermStore(call.database).end(int(number), body.ends)


async def get_seller(call: Call) -> Seller | None:
    """Null while nobody said."""
    return await BillingStore(call.database).seller()


async def put_seller(call: Call) -> Seller:
    """On the invoices finalised from now on."""
    seller: Seller = call.body
    return await BillingStore(call.database).set_seller(seller)
