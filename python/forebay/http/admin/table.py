"""The table of all operations: the routes and the OpenAPI document are made of it."""

import re
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from forebay.http.admin import (
    accounts,
    audit,
    invoices,
    keys,
    limits,
    logs,
    openapi,
    prices,
    upstreams,
    usage,
)
from forebay.http.admin.operation import PREFIX, Call, DatabaseSource, Desk, Endpoint, Operation
from forebay.metering.document import Document
from forebay.store.accounts import Account, AccountChanges
from forebay.store.billing import Billing, BillingChanges, Seller
from forebay.store.invoices import LONG_S
from forebay.store.keys import KeyChanges, PublicKey
from forebay.store.limits import Limits
from forebay.store.price_records import Correction, NewPrice, Price
from forebay.store.prompt_log_store import LogRotation, PromptLogContents, PromptLogPage
from forebay.store.terms import NewTerm, Term, TermEnd

if TYPE_CHECKING:
    from forebay.gateway import Gateway


def _limits_of(path: str, whom: str) -> list[Operation]:
    return [
        Operation("GET", path, f"Limits of {whom}", limits.get_limits, answer=Limits),
        Operation(
            "PUT", path, f"Set the limits of {whom}", limits.put_limits, body=Limits, answer=Limits
        ),
        Operation(
            "DELETE", path, f"Take away the limits of {whom}", limits.delete_limits, status=204
        ),
    ]


_UPSTREAMS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/upstreams",
        "How all upstreams stand",
        upstreams.list_upstreams,
        answer=upstreams.UpstreamList,
    ),
    Operation(
        "GET",
        "/upstreams/{upstream}",
        "How one upstream stands",
        upstreams.get_upstream,
        answer=upstreams.UpstreamStatus,
    ),
    Operation(
        "POST",
        "/upstreams/{upstream}/drain",
        "Let an upstream take no new requests",
        upstreams.drain_upstream,
        answer=upstreams.UpstreamStatus,
    ),
    Operation(
        "POST",
        "/upstreams/{upstream}/undrain",
        "Let an upstream take requests again",
        upstreams.undrain_upstream,
        answer=upstreams.UpstreamStatus,
    ),
)

_INVOICES: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/invoices",
        "List invoices and credit notes",
        invoices.list_invoices,
        query=invoices.InvoiceQuery,
        answer=invoices.InvoicePage,
    ),
    Operation(
        "POST",
        "/invoices",
        "Finalise an account's invoice of a month",
        invoices.finalize,
        body=invoices.Finalization,
        answer=Document,
        work_s=LONG_S,
    ),
    Operation(
        "GET",
        "/invoices/{number}",
        "One invoice or credit note",
        invoices.get_invoice,
        answer=Document,
    ),
    Operation("GET", "/invoices/{number}/pdf", "The same as PDF", invoices.get_pdf),
    Operation(
        "POST",
        "/invoices/{number}/credit",
        "Write a credit note to an invoice",
        invoices.credit_invoice,
        body=invoices.Credit,
        answer=Document,
        status=201,
    ),
    Operation(
        "POST",
        "/rerate",
        "Rate an account's usage by the prices in force now",
        invoices.rerate_account,
        body=invoices.Rerating,
        answer=invoices.Adjustments,
        work_s=LONG_S,
    ),
    Operation(
        "GET",
        "/accounts/{account}/invoices/{month}",
        "An account's invoice of a month, or its draft",
        invoices.draft,
        answer=Document,
        work_s=LONG_S,
    ),
    Operation(
        "GET",
        "/accounts/{account}/billing",
        "How an account is billed",
        invoices.get_billing,
        answer=Billing,
    ),
    Operation(
        "PATCH",
        "/accounts/{account}/billing",
        "Change how an account is billed",
        invoices.change_billing,
        body=BillingChanges,
        answer=Billing,
    ),
    Operation(
        "GET",
        "/accounts/{account}/terms",
        "Allowances, discounts and fees of an account",
        invoices.list_terms,
        answer=invoices.TermList,
    ),
    Operation(
        "POST",
        "/accounts/{account}/terms",
        "Agree on an allowance, a discount or a fee",
        invoices.add_term,
        body=NewTerm,
        answer=Term,
        status=201,
    ),
    Operation(
        "POST", "/terms/{term}/end", "End a term", invoices.end_term, body=TermEnd, answer=Term
    ),
    Operation(
        "GET", "/seller", "Who writes the invoices", invoices.get_seller, answer=Seller | None
    ),
    Operation(
        "PUT",
        "/seller",
        "Say who writes the invoices",
        invoices.put_seller,
        body=Seller,
        answer=Seller,
    ),
)


async def _document(_: Call) -> dict[str, Any]:
    return document()


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/keys",
        "List keys",
        keys.list_keys,
        query=keys.KeyQuery,
        answer=keys.KeyPage,
    ),
    Operation(
        "POST",
        "/keys",
        "Make a key",
        keys.create_key,
        body=keys.KeyCreation,
        answer=keys.SecretKey,
        status=201,
    ),
    Operation("GET", "/keys/{key_id}", "One key", keys.get_key, answer=PublicKey),
    Operation(
        "PATCH",
        "/keys/{key_id}",
        "Change a key",
        keys.change_key,
        body=KeyChanges,
        answer=PublicKey,
    ),
    Operation(
        "POST",
        "/keys/{key_id}/rotate",
        "Give a key a new secret",
        keys.rotate_key,
        body=keys.Rotation,
        answer=keys.SecretKey,
        bare=True,
    ),
    Operation(
        "POST", "/keys/{key_id}/revoke", "End a key for good", keys.revoke_key, answer=PublicKey
    ),
    Operation(
        "GET",
        "/keys/{key_id}/limits",
        "What remains of a key's limits",
        keys.live_limits,
        answer=keys.LiveLimits,
    ),
    *_limits_of("/keys/{key_id}/models/{model}/limits", "a key on one model"),
    Operation(
        "GET",
        "/accounts",
        "List accounts",
        accounts.list_accounts,
        query=accounts.AccountQuery,
        answer=accounts.AccountPage,
    ),
    Operation(
        "POST",
        "/accounts",
        "Make an account",
        accounts.create_account,
        body=accounts.AccountCreation,
        answer=Account,
        status=201,
    ),
    Operation("GET", "/accounts/{account}", "One account", accounts.get_account, answer=Account),
    Operation(
        "PATCH",
        "/accounts/{account}",
        "Change an account",
        accounts.change_account,
        body=AccountChanges,
        answer=Account,
    ),
    *_limits_of("/accounts/{account}/limits", "an account"),
    *_limits_of("/models/{model}/limits", "a model, for all clients together"),
    Operation(
        "GET",
        "/prices",
        "List prices",
        prices.list_prices,
        query=prices.PriceQuery,
        answer=prices.PricePage,
    ),
    Operation(
        "POST",
        "/prices",
        "Set a price from a time on",
        prices.set_price,
        body=NewPrice,
        answer=Price,
        status=201,
    ),
    Operation(
        "POST",
        "/prices/import",
        "Set many prices, all or none",
        prices.import_prices,
        body=prices.PriceImport,
        answer=prices.PriceList,
        status=201,
    ),
    Operation("GET", "/prices/{price_id}", "One price", prices.get_price, answer=Price),
    Operation(
        "POST",
        "/prices/{price_id}/correct",
        "Put right what a price was",
        prices.correct_price,
        body=Correction,
        answer=prices.PriceList,
    ),
    Operation(
        "POST",
        "/prices/{price_id}/end",
        "End a price, with none after it",
        prices.end_price,
        body=prices.Ending,
        answer=Price,
        bare=True,
    ),
    Operation(
        "GET",
        "/usage",
        "What was used",
        usage.get_usage,
        query=usage.UsageQuery,
        answer=usage.UsageReport,
    ),
    *_INVOICES,
    *_UPSTREAMS,
    Operation(
        "GET",
        "/audit",
        "Who changed what",
        audit.list_audit,
        query=audit.AuditQuery,
        answer=audit.AuditPage,
    ),
    Operation(
        "GET",
        "/logs",
        "Find prompt logs",
        logs.search_logs,
        query=logs.LogQuery,
        answer=PromptLogPage,
    ),
    Operation("GET", "/logs/{event_id}", "One log", logs.show_log, answer=PromptLogContents),
    Operation(
        "POST",
        "/logs/rotate",
        "Encrypt prompt logs with the active key",
        logs.rotate_logs,
        body=logs.RotationStep,
        answer=LogRotation,
        bare=True,
    ),
    Operation("GET", "/openapi.json", "This document", _document, answer=dict[str, Any]),
)
"""Every operation, in the order of the document."""


def document() -> dict[str, Any]:
    """The OpenAPI document of all operations."""
    return openapi.document(OPERATIONS)


def admin_routes(gateway: "Gateway", database: DatabaseSource) -> list[Route]:
    """The routes of the admin API."""
    by_path: dict[str, list[Operation]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, []).append(operation)
    routes = []
    desk = Desk(gateway, database)
    for path, operations in by_path.items():
        endpoint = Endpoint(operations, desk)
        # Names of models and upstreams may have slashes in them.
        pattern = PREFIX + re.sub(r"{(model|upstream)}", r"{\1:path}", path)
        routes.append(Route(pattern, endpoint.serve, methods=endpoint.methods))
    return routes
