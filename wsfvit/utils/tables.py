"""Markdown tables."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], aligned: bool = True) -> str:
    """A Markdown table; ``aligned`` pads the columns for a terminal, the first to the left and the others to the right.

    Raises:
        ValueError: A row has another number of cells than ``header``.
    """
    if not aligned:
        first, *others = (f"| {' | '.join(line)} |" for line in (header, *rows))
        return "\n".join([first, "|" + "---|" * len(header), *others])
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])
