"""An invoice as a PDF to send to a customer. The same document gives the same bytes."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.resources import as_file, files
from itertools import groupby
from pathlib import Path

from fontTools.ttLib import TTLibError  # type: ignore[import-untyped]
from fpdf import FPDF
from fpdf.enums import XPos, YPos

from forebay.metering.document import DEDUCTIONS, Document, DocumentLine, day

_LEFT, _RIGHT, _TOP, _BOTTOM = 20.0, 20.0, 18.0, 26.0
_WIDTH = 210.0 - _LEFT - _RIGHT
_COLUMNS = (82.0, 28.0, 32.0, 28.0)
"""Description, quantity, unit price, amount: millimetres."""
_FAMILY = "DejaVu"
_INK, _GREY, _RULE, _SHADE = (33, 37, 41), (110, 117, 125), (206, 211, 216), (244, 246, 248)
_ROW, _SMALL = 5.4, 4.3
_PAGES = "\u2007"
"""Stands for the number of pages, as wide as a digit; no text that is stored can have it."""
_MINUS = "\u2212"
_PER = {1_000_000: " / 1M"}


class MissingGlyph(ValueError):
    """A character that no font at hand can print."""


def to_pdf(document: Document, *, font: Path | None = None) -> bytes:
    """A document as PDF, A4.

    font: a TrueType font for characters that the one that comes along lacks (Latin, Greek,
    Cyrillic and more; not Chinese, Japanese or Korean).

    Raises: MissingGlyph for a character that cannot be printed; OSError where `font` cannot be
    read.
    """
    with as_file(files("forebay.metering").joinpath("fonts")) as fonts:
        page = _Page(document)
        try:
            page.add_fonts(fonts, font)
            page.add_page()
            page.draw_head()
            page.draw_table()
            page.draw_totals()
            page.draw_terms()
            page.check_glyphs()
            return bytes(page.output())
        finally:
            page.close_fonts()


class _Page(FPDF):
    def __init__(self, document: Document) -> None:
        super().__init__(format="A4")
        self._document = document
        self.set_margins(_LEFT, _TOP, _RIGHT)
        self.set_auto_page_break(True, margin=_BOTTOM)
        self._printable: set[int] = set()
        self._missing: set[str] = set()
        issued = document.issued_on
        moment = day(issued) if issued is not None else day(f"{document.month}-01")
        self.set_creation_date(datetime(moment.year, moment.month, moment.day, tzinfo=UTC))
        self.set_title(f"{self._kind()} {document.number or ''}".strip())
        self.set_author(document.seller.name if document.seller else "Forebay")
        self.set_creator("Forebay")
        self.set_producer("Forebay")
        self.set_lang("en")
        self.alias_nb_pages(_PAGES)

    def add_fonts(self, fonts: Path, extra: Path | None) -> None:
        """Raises: OSError where `extra` is no font that can be read."""
        self.add_font(_FAMILY, "", fonts / "DejaVuSansCondensed.ttf")
        self.add_font(_FAMILY, "B", fonts / "DejaVuSansCondensed-Bold.ttf")
        if extra is not None:
            if not extra.is_file():
                raise FileNotFoundError(f"no font at {extra}")
            try:
                self.add_font("Extra", "", extra)
            except (TTLibError, ValueError, NotImplementedError) as error:
                raise OSError(f"no TrueType font at {extra}: {error}") from None
            self.set_fallback_fonts(["Extra"], exact_match=False)
        self._printable = {
            code
            for name in self.fonts
            for code in self.fonts[name].cmap  # type: ignore[union-attr]
        }

    def close_fonts(self) -> None:
        """Fonts are read while the document is written."""
        for font in self.fonts.values():
            font.ttfont.close()  # type: ignore[union-attr]

    def _kind(self) -> str:
        if self._document.status == "draft":
            return "Draft invoice"
        return "Credit note" if self._document.kind == "credit_note" else "Invoice"

    def check_glyphs(self) -> None:
        """Raises: MissingGlyph."""
        if self._missing:
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in sorted(self._missing)[:3])
            raise MissingGlyph(
                f"no font has the character {shown}: give one that does with --font FILE"
            )

    def _text(
        self,
        width: float,
        height: float,
        text: str,
        *,
        size: float = 9,
        bold: bool = False,
        grey: bool = False,
        align: str = "L",
        end: bool = False,
    ) -> None:
        self.set_font(_FAMILY, "B" if bold else "", size)
        self.set_text_color(*(_GREY if grey else _INK))
        self._missing |= {c for c in text if ord(c) not in self._printable}
        self.cell(
            width,
            height,
            text,
            align=align,
            new_x=XPos.LMARGIN if end else XPos.RIGHT,
            new_y=YPos.NEXT if end else YPos.TOP,
        )

    def _wrapped(self, text: str, width: float, size: float, bold: bool = False) -> list[str]:
        self.set_font(_FAMILY, "B" if bold else "", size)
        lines = [""]
        for word in text.split(" "):
            grown = f"{lines[-1]} {word}".strip()
            if self._fits(grown, width - 2):
                lines[-1] = grown
                continue
            if lines[-1]:
                lines.append("")
            while not self._fits(word, width - 2):
                fits = max(
                    n for n in range(1, len(word)) if n == 1 or self._fits(word[:n], width - 2)
                )
                lines[-1], word = word[:fits], word[fits:]
                lines.append("")
            lines[-1] = word
        return lines

    def _fits(self, text: str, width: float) -> bool:
        return self.get_string_width(text) <= width

    def _rule(self, colour: tuple[int, int, int] = _RULE, width: float = 0.2) -> None:
        self.set_draw_color(*colour)
        self.set_line_width(width)
        self.line(_LEFT, self.get_y(), _LEFT + _WIDTH, self.get_y())

    def header(self) -> None:
        """Of the pages after the first."""
        if self.page_no() > 1:
            name = self._document.seller.name if self._document.seller else ""
            self._text(_WIDTH / 2, 6, name, size=8, grey=True)
            number = f"{self._kind()} {self._document.number or ''}".strip()
            self._text(_WIDTH / 2, 6, number, size=8, grey=True, align="R", end=True)
            self.ln(3)

    def footer(self) -> None:
        """The seller's line and the page's number."""
        self.set_y(-_BOTTOM + 8)
        self._rule()
        self.ln(1.5)
        seller = self._document.seller
        parts = [] if seller is None else [seller.name, *seller.address]
        if seller is not None and seller.tax_id:
            parts.append(f"Tax ID {seller.tax_id}")
        for text in (" · ".join(parts), (seller.footer or "") if seller else ""):
            for line in self._wrapped(text, _WIDTH - 25, 7)[:1]:
                self._text(_WIDTH - 25, 3.6, line, size=7, grey=True)
            shown = f"Page {self.page_no()} of {_PAGES}" if text == " · ".join(parts) else ""
            self._text(25, 3.6, shown, size=7, grey=True, align="R", end=True)

    def draw_head(self) -> None:
        """Seller, title, customer and dates."""
        document = self._document
        seller = document.seller
        top = self.get_y()
        if seller is not None:
            for line in self._wrapped(seller.name, 95, 13, bold=True):
                self._text(95, 6.4, line, size=13, bold=True, end=True)
            details = [*seller.address]
            details += [f"Tax ID {seller.tax_id}"] if seller.tax_id else []
            details += [seller.email] if seller.email else []
            for detail in details:
                for line in self._wrapped(detail, 95, 8.5):
                    self._text(95, _SMALL, line, size=8.5, grey=True, end=True)
        bottom = self.get_y()
        self.set_xy(_LEFT + 95, top)
        self._text(_WIDTH - 95, 9, self._kind(), size=20, bold=True, align="R", end=True)
        self.set_x(_LEFT + 95)
        self._text(_WIDTH - 95, 6, document.number or "", size=11, grey=True, align="R", end=True)
        self.set_y(max(bottom, self.get_y(), top + 26) + 8)
        self._parties()

    def _parties(self) -> None:
        top = self.get_y()
        customer = self._document.customer
        self._text(95, 5, "BILLED TO", size=7, bold=True, grey=True, end=True)
        for line in self._wrapped(customer.name, 95, 10, bold=True):
            self._text(95, 5.2, line, size=10, bold=True, end=True)
        details = [*customer.address]
        details += [f"Tax ID {customer.tax_id}"] if customer.tax_id else []
        details += [customer.email] if customer.email else []
        for detail in details:
            for line in self._wrapped(detail, 95, 9):
                self._text(95, 4.6, line, end=True)
        bottom = self.get_y()
        self.set_y(top)
        for label, value in self._facts():
            for told in self._wrapped(value, _WIDTH - 128, 9):
                self.set_x(_LEFT + 100)
                self._text(28, 5, label, size=8.5, grey=True)
                self._text(_WIDTH - 128, 5, told, align="R", end=True)
                label = ""
        self.set_y(max(bottom, self.get_y()) + 9)

    def _facts(self) -> list[tuple[str, str]]:
        document = self._document
        first = day(document.period.start[:10])
        last = str(day(document.period.end[:10]) - timedelta(days=1))
        facts = [("Issued", _date(document.issued_on))] if document.issued_on else []
        facts += [("Due", _date(document.due_on))] if document.due_on else []
        facts += [("To invoice", document.refers_to)] if document.refers_to else []
        facts += [("Period", f"{first.day} to {_date(last)}")]
        facts += [("Time zone", document.period.time_zone)]
        facts += [("Account", document.customer.account), ("Currency", document.currency)]
        return facts

    def draw_table(self) -> None:
        """The lines under their models, then allowances and discounts, then fees."""
        self._table_head()
        for title, group in groupby(self._document.lines, key=self._section):
            self._space_for(_ROW * 2 + 2)
            self.ln(1)
            self._title(title)
            for line in group:
                if self._space_for(_ROW + _SMALL * (len(self._described(line)) - 1)):
                    self.ln(1)
                    self._title(f"{title} (continued)")
                self._row(line)
            self.ln(0.8)
            self._rule()
        if not self._document.lines:
            self._text(_WIDTH, _ROW * 2, "Nothing was used in this period.", grey=True, end=True)

    def _table_head(self) -> None:
        self.set_fill_color(*_SHADE)
        self.rect(_LEFT, self.get_y(), _WIDTH, 7, style="F")
        names = ("Description", "Quantity", "Unit price", f"Amount {self._document.currency}")
        for index, (name, width) in enumerate(zip(names, _COLUMNS, strict=True)):
            align = "L" if index == 0 else "R"
            self._text(width, 7, name, size=8, bold=True, align=align, end=index == 3)
        self.ln(0.5)

    def _section(self, line: DocumentLine) -> str:
        """The heading under which a line stands."""
        title = line.model or "Other"
        if line.kind in DEDUCTIONS:
            title = "Allowances and discounts"
        elif line.kind in ("fee", "credit"):
            title = "Fees" if line.kind == "fee" else "Credit"
        return title if line.month == self._document.month else f"{_month(line.month)} · {title}"

    def _title(self, title: str) -> None:
        for line in self._wrapped(title, _WIDTH, 9, bold=True):
            self._text(_WIDTH, _ROW, line, bold=True, end=True)

    def _space_for(self, height: float) -> bool:
        """Whether a new page was needed."""
        if self.get_y() + height <= self.h - _BOTTOM:
            return False
        self.add_page()
        self._table_head()
        return True

    def _described(self, line: DocumentLine) -> list[str]:
        of = f"{line.model}: " if line.model and line.kind in DEDUCTIONS else ""
        width = _COLUMNS[0] if line.quantity else sum(_COLUMNS[:3])
        return self._wrapped(f"{of}{line.description}", width, 9)

    def _row(self, line: DocumentLine) -> None:
        told = self._described(line)
        unit = ""
        if line.unit_price is not None:
            unit = f"{_grouped(line.unit_price)}{_PER.get(line.per or 1, '')}"
        top = self.get_y()
        for text in told:
            self._text(sum(_COLUMNS[:3]), _ROW if text is told[0] else _SMALL, text, end=True)
        bottom = self.get_y()
        self.set_xy(_LEFT + _COLUMNS[0], top)
        self._text(_COLUMNS[1], _ROW, _grouped(line.quantity or ""), align="R")
        self._text(_COLUMNS[2], _ROW, unit, align="R")
        self._text(_COLUMNS[3], _ROW, _grouped(line.amount), align="R", end=True)
        self.set_y(bottom)

    def draw_totals(self) -> None:
        """Subtotal, deductions, taxes and total."""
        document = self._document
        rows = []
        if Decimal(document.deductions) != 0:
            rows.append(("Subtotal", document.subtotal))
            rows.append(("Allowances and discounts", document.deductions))
        rows.append(("Net", document.net))
        for tax in document.taxes:
            of = "" if tax.net == document.net else f" of {_grouped(tax.net)}"
            rows.append((f"{tax.name} {tax.rate} %{of}", tax.amount))
        height = len(rows) * _ROW + 16
        if self.get_y() + height > self.h - _BOTTOM:
            self.add_page()
        self.ln(3)
        for label, value in rows:
            self._total_row(label, value)
        self.ln(1)
        self.set_fill_color(*_SHADE)
        self.rect(_LEFT + 82, self.get_y(), _WIDTH - 82, 9, style="F")
        credit = document.total.startswith("-")
        label = "Total credited" if credit else "Total due" if document.number else "Total"
        value = document.total.removeprefix("-")
        self.set_x(_LEFT + 82)
        self._text(50, 9, label, size=11, bold=True)
        shown = f"{_grouped(value)} {document.currency}"
        self._text(_WIDTH - 132, 9, shown, size=11, bold=True, align="R", end=True)

    def _total_row(self, label: str, value: str) -> None:
        self.set_x(_LEFT + 82)
        self._text(60, _ROW, label, grey=True)
        self._text(_WIDTH - 142, _ROW, _grouped(value), align="R", end=True)

    def draw_terms(self) -> None:
        """When and where to pay, why it is credited, what keeps a draft from being final."""
        document = self._document
        seller = document.seller
        texts: list[tuple[str, list[str]]] = []
        if document.due_on is not None and not document.total.startswith("-"):
            how = [f"Please pay by {_date(document.due_on)}, quoting {document.number}."]
            texts.append(("PAYMENT", how + ([*seller.bank] if seller else [])))
        if document.reason is not None:
            texts.append(("REASON", [f"{document.reason} (invoice {document.refers_to})"]))
        if document.problems:
            texts.append(("NOT FINAL", document.problems))
        for title, lines in texts:
            if self.get_y() + 14 + 4.6 * len(lines) > self.h - _BOTTOM:
                self.add_page()
            self.ln(8)
            self._text(_WIDTH, 5, title, size=7, bold=True, grey=True, end=True)
            for line in lines:
                for part in self._wrapped(line, _WIDTH, 9):
                    self._text(_WIDTH, 4.6, part, end=True)


def _grouped(number: str) -> str:
    """Thousands parted by commas, a true minus sign."""
    if not number:
        return ""
    whole, point, part = number.removeprefix("-").partition(".")
    return f"{_MINUS if number.startswith('-') else ''}{int(whole):,}{point}{part}"


_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August"),
    *("September", "October", "November", "December"),
)


def _month(text: str) -> str:
    return f"{_MONTHS[int(text[5:7]) - 1]} {text[:4]}"


def _date(text: str | None) -> str:
    """``1 December 2026``: read alike everywhere."""
    if text is None:
        return ""
    found = day(text)
    return f"{found.day} {_MONTHS[found.month - 1]} {found.year}"
