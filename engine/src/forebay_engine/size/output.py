"""Writing the answers where a person or a program reads them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from forebay_engine.size import explain, render
from forebay_engine.size.plan import Answer, Question

REDIRECTED = 160  # columns of what is no terminal: a file is not cut at a terminal's width


def write(question: Question, found: Sequence[Answer], *, as_json: bool, explained: bool) -> None:
    """To standard output. No cell is ever cut: where the table is too wide, there are blocks."""
    if as_json:
        import msgspec

        text = msgspec.json.encode(render.document(question, found))
        sys.stdout.write(msgspec.json.format(text, indent=2).decode() + "\n")
        return
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(
        highlight=False,
        markup=False,  # names are what they are, not styles
        emoji=False,
        soft_wrap=True,
        width=None if terminal else REDIRECTED,
    )
    lines = render.summary(question)
    if explained:
        lines += ["", *explain.parameters(question)]
        for width in sorted({one.tp for one in found}):
            lines += ["", *explain.cache(question, width)]
        for one in found:
            lines += ["", *explain.answer(question, one)]
    console.print("\n".join(lines))
    table = render.table(question, found)
    wide = console.options.update(max_width=10_000)
    width = console.measure(table, options=wide).maximum
    if terminal and width > console.width:
        console.print("\n".join(render.blocks(question, found)))
    else:
        console.width = max(width, console.width)
        console.print(table)
    console.print("\n".join(render.footer(found)))
