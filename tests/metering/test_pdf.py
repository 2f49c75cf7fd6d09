"""The PDF: its text, its pages, its bytes."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from forebay.metering.document import Document, DocumentLine, decode
from forebay.metering.pdf import MissingGlyph, to_pdf
from forebay.metering.plain_text import to_text
from forebay.store.billing import Seller

FONTS = Path(__file__).parents[2] / "python" / "forebay" / "metering" / "fonts"


def line(position: int, **given: Any) -> DocumentLine:
    values: dict[str, Any] = {
        "kind": "usage",
        "month": "2026-10",
        "description": "Input tokens",
        "model": f"model-{position // 5}",
        "token_kind": "input",
        "price_id": 1,
        "old_price_id": None,
        "quantity": "1234567",
        "unit_price": "0.50",
        "per": 1_000_000,
        "amount": "0.62",
        "term": None,
        "credits": None,
    }
    return DocumentLine(position=position, **{**values, **given})


def document(count: int = 3, **given: Any) -> Document:
    values: dict[str, Any] = {
        "number": "INV-000042",
        "kind": "invoice",
        "status": "final",
        "account": "acme",
        "month": "2026-10",
        "period": {"start": "2026-10-01T00:00:00+02:00", "end": "2026-11-01T00:00:00+01:00",
                   "time_zone": "Europe/Berlin"},
        "currency": "EUR",
        "issued_on": "2026-11-02",
        "due_on": "2026-12-02",
        "refers_to": None,
        "reason": None,
        "watermark": 7,
        "seller": {"name": "Forebay Ltd", "address": ["1 Way"], "bank": ["IBAN 1"]},
        "customer": {"account": "acme", "name": "Łukasz Škvorecký Übersetzungs-GmbH",
                     "address": ["Königstraße 1"], "tax_id": "DE1", "email": "a@b.example"},
        "lines": [line(n) for n in range(1, count + 1)],
        "subtotal": "1.86",
        "deductions": "0.00",
        "net": "1.86",
        "taxes": [{"name": "VAT", "rate": "19", "on": "all", "net": "1.86", "amount": "0.35"}],
        "total": "2.21",
        "prices": [],
        "problems": [],
    }  # fmt: skip
    return msgspec.convert({**values, **given}, Document, from_attributes=True)


def pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b(?!s)", pdf))


def test_the_same_document_gives_the_same_bytes() -> None:
    assert to_pdf(document()) == to_pdf(document())
    assert to_pdf(document()) != to_pdf(document(number="INV-000043"))


def test_long_invoices_have_several_pages() -> None:
    assert [pages(to_pdf(document(n))) for n in (0, 3, 60, 200)] == [1, 1, 3, 7]


def test_drafts_credit_notes_and_sellers_that_are_missing_print_too() -> None:
    draft = document(number=None, status="draft", issued_on=None, due_on=None, seller=None,
                     problems=["3 requests of m have no price"])  # fmt: skip
    note = document(
        number="CN-000001", kind="credit_note", due_on=None, refers_to="INV-1", reason="Outage",
        total="-2.21", lines=[line(1, kind="credit", model=None, quantity=None, unit_price=None)],
    )  # fmt: skip
    for found in (draft, note):
        assert to_pdf(found).startswith(b"%PDF-")
        assert "Total" in to_text(found)


def test_names_and_lines_of_any_length_are_wrapped() -> None:
    long = "x" * 200
    found = document(
        seller=msgspec.to_builtins(
            Seller(name=long, address=(long,) * 8, bank=(long,) * 8, footer=long)
        ),
        customer={"account": long, "name": long, "address": [long] * 8, "tax_id": long,
                  "email": f"{long}@x"},
    )  # fmt: skip
    found = msgspec.structs.replace(
        found, lines=[line(1, model=long, description=f"{long} {long}", amount="9" * 20 + ".00")]
    )
    assert pages(to_pdf(found)) >= 1


def test_scripts_of_europe_and_beyond_are_in_the_font() -> None:
    for name in ("Ελληνική", "«Ромашка»", "Đặng Văn", "ÞórÐur", "Łódź", "€ ₽ ₺ ₹"):
        customer = msgspec.to_builtins(document().customer) | {"name": name}
        assert to_pdf(document(customer=customer))


def test_what_no_font_has_is_an_error_that_names_it() -> None:
    customer = msgspec.to_builtins(document().customer) | {"name": "東京 KK"}
    with pytest.raises(MissingGlyph, match=r"'京' \(U\+4EAC\), '東' \(U\+6771\)"):
        to_pdf(document(customer=customer))
    # Another font may have it, here one that does not.
    with pytest.raises(MissingGlyph):
        to_pdf(document(customer=customer), font=FONTS / "DejaVuSansCondensed.ttf")
    with pytest.raises(OSError, match="no font at"):
        to_pdf(document(), font=Path("/nowhere.ttf"))
    with pytest.raises(OSError, match="no TrueType font at"):
        to_pdf(document(), font=Path(__file__))


def test_text_has_every_line() -> None:
    shown = to_text(document(12))
    assert shown.count("Input tokens") == 12
    assert "invoice INV-000042" in shown
    assert "VAT 19 %" in shown


def test_documents_survive_json() -> None:
    found = document(4)
    assert decode(msgspec.json.encode(found)) == found
