"""Markdown and CSV tables, and files of results."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from wsfvit.utils.files import output_file, to_json, write_text_atomic

# Setting and metrics of one model as primitives; "error" in place of metrics if it failed.
Row = dict[str, Any]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], aligned: bool = True) -> str:
    """A Markdown table; ``aligned`` pads the columns for a terminal, the first to the left and the others to the right.

    A row with another number of cells than ``header`` raises a ``ValueError``.
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


def csv_text(rows: Sequence[Mapping[str, Any]], floats: str = "") -> str:
    """CSV of rows by column, those of the longest row first; ``floats`` formats floats (default: all their digits)."""
    text = io.StringIO()
    columns = dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row)
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: format(cell, floats) if isinstance(cell, float) else cell for key, cell in row.items()})
    return text.getvalue()


class ResultsFile:
    """A CSV or JSON file of results, rewritten atomically at every call of ``write``.

    ``kind`` is for a name that ends in neither .csv nor .json. A missing folder raises a ``UserError`` that names
    ``flag``.
    """

    def __init__(self, name: str, kind: str = "csv", flag: str = "--results-file") -> None:
        self.path = output_file(flag, name)
        suffix = self.path.suffix.lower().removeprefix(".")
        self.kind = suffix if suffix in ("csv", "json") else kind

    def write(self, rows: list[Row], single: bool = False) -> None:
        """Write ``rows``; JSON holds a list of objects, or with ``single`` one object."""
        as_json = self.kind == "json"
        text = to_json(rows[0] if single else rows, indent=2) + "\n" if as_json else csv_text(rows)
        write_text_atomic(self.path, text)
