"""The invoices of all accounts for a month: what a monthly job does."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

import msgspec

from forebay.metering import document as documents
from forebay.metering.invoicing import Books, read_month
from forebay.metering.period import Month, month_of
from forebay.store.accounts import AccountStore
from forebay.store.billing import billing_of
from forebay.store.errors import NotBillable

if TYPE_CHECKING:
    from forebay.store.database import Database

Result = Literal["finalised", "final", "draft", "empty", "refused"]

_PAGE = 500


class Billed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one account's month.

    result: finalised now, final before, a draft, empty (nothing to charge: it gets no number), or
    refused, with the reason. net to total: None where there is no document.
    """

    account: str
    month: str
    result: Result
    number: str | None = None
    currency: str | None = None
    net: str | None = None
    total: str | None = None
    reason: str | None = None


async def bill_all(
    database: "Database", month: str, *, finalize: bool, now: datetime | None = None
) -> list[Billed]:
    """Draft or finalise a month of every account, by account.

    month: YYYY-MM, or `last` for the last one that is over in each account's time zone. One that
    cannot be finalised holds up no other. Doing it again changes nothing that is final.

    Raises: BadValue on what is no month.
    """
    wanted = None if month == "last" else read_month(month)
    books, accounts = Books(database), AccountStore(database)
    moment = now or datetime.now(UTC)
    done: list[Billed] = []
    after: str | None = None
    while page := await accounts.list(after=after, limit=_PAGE):
        after = page[-1].id
        for account in page:
            done.append(await _bill(database, books, account.id, wanted, finalize, moment))
    return done


async def _bill(
    database: "Database",
    books: Books,
    account: str,
    wanted: Month | None,
    finalize: bool,
    moment: datetime,
) -> Billed:
    if wanted is None:
        async with database.pool.acquire() as connection:
            _, billing = await billing_of(connection, account)
        wanted = month_of(moment, ZoneInfo(billing.time_zone)).before
    month = str(wanted)
    document = documents.decode(await books.draft(account, month, now=moment))
    result: Result = "final" if document.status == "final" else "draft"
    if result == "draft" and not document.lines and not document.problems:
        return Billed(account=account, month=month, result="empty")
    if result == "draft" and finalize:
        try:
            final = await books.finalize(account, month, now=moment)
        except NotBillable as error:
            return Billed(account=account, month=month, result="refused", reason=str(error))
        document = documents.decode(final.document)
        result = "finalised" if final.new else "final"
    return Billed(
        account=account,
        month=month,
        result=result,
        number=document.number,
        currency=document.currency,
        net=document.net,
        total=document.total,
        reason="; ".join(document.problems) or None,
    )
