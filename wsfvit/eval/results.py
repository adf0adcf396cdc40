"""Results of evaluations: CSV or JSON files, and the table on the terminal."""

import csv
import io
from typing import Any

from wsfvit.utils.files import output_file, to_json, write_text_atomic

# Setting and metrics of one model as primitives; "error" in place of metrics if it failed.
Row = dict[str, Any]


class ResultsFile:
    """A CSV or JSON file of results, rewritten atomically at every call of ``write``.

    Args:
        name: The file.
        kind: ``csv`` or ``json``, for a name that ends in neither.
        flag: The flag that named it, for errors.

    Raises:
        UserError: Its folder does not exist.
    """

    def __init__(self, name: str, kind: str = "csv", flag: str = "--results-file") -> None:
        self.path = output_file(flag, name)
        suffix = self.path.suffix.lower().removeprefix(".")
        self.kind = suffix if suffix in ("csv", "json") else kind

    def write(self, rows: list[Row], single: bool = False) -> None:
        """Write ``rows``; JSON holds a list of objects, or with ``single`` one object."""
        if self.kind == "json":
            write_text_atomic(self.path, to_json(rows[0] if single else rows, indent=2) + "\n")
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomic(self.path, text.getvalue())


def sort_rows(rows: list[Row]) -> list[Row]:
    """Rows with the highest top-1 first, failures last; the sort is stable."""
    return sorted(rows, key=lambda row: -row.get("top1", -1.0))


def format_table(rows: list[Row]) -> str:
    """Markdown table of results and failures."""
    head = ("model", "checkpoint", "top-1 (%)", "top-5 (%)", "loss", "parameters (M)", "images/s")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        figures = [row.get("error", "").replace("|", "/"), *("-",) * 4]
        if "error" not in row:
            figures = [f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.4f}", f"{row['param_count']:.2f}"]
            figures.append(f"{row['images_per_s']:.0f}")
        lines.append((row["model"] or "-", row["checkpoint"] or "-", *figures))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
