"""An invoice as plain text, for a terminal."""

from forebay.metering.document import Document, DocumentLine


def to_text(document: Document) -> str:
    """A document in columns, newline at the end."""
    kind = "credit note" if document.kind == "credit_note" else "invoice"
    title = f"{kind} {document.number}" if document.number else f"draft {kind}"
    head = [
        title,
        f"{document.customer.name} ({document.account}), {document.month}, {document.currency}",
        f"{document.period.start} to before {document.period.end} ({document.period.time_zone})",
    ]
    if document.issued_on:
        head.append(f"issued {document.issued_on}")
    if document.due_on:
        head.append(f"due {document.due_on}")
    if document.refers_to:
        head.append(f"to invoice {document.refers_to}: {document.reason}")
    rows = [_row(line, document.month) for line in document.lines]
    sums = [("", "Net", "", "", document.net)]
    sums += [("", f"{tax.name} {tax.rate} %", "", "", tax.amount) for tax in document.taxes]
    sums.append(("", "Total", "", "", document.total))
    header = ("#", "Description", "Quantity", "Unit price", "Amount")
    widths = [max(len(row[i]) for row in [header, *rows, *sums]) for i in range(len(header))]
    lines = [_set(row, widths) for row in [header, *rows]]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines += [rule, *(_set(row, widths) for row in sums)]
    lines += [f"not final: {problem}" for problem in document.problems]
    return "\n".join([*head, "", *lines]) + "\n"


def _row(line: DocumentLine, month: str) -> tuple[str, str, str, str, str]:
    described = line.description if line.model is None else f"{line.model}: {line.description}"
    if line.month != month:
        described = f"{line.month} {described}"
    unit = line.unit_price or ""
    if line.per is not None and line.per > 1:
        unit = f"{unit}/{line.per // 1_000_000}M"
    return str(line.position), described, line.quantity or "", unit, line.amount


def _set(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.ljust(width) if index == 1 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
