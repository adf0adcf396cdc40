"""Rewrite the README's speed tables from the recorded files under results/, and draw docs/speed.png from them.

    python -m tools.readme_tables            # after a new record; then commit README.md and docs/speed.png
    python -m tools.readme_tables --check    # change nothing; exit code 1 if a table differs from its records

A table stands between the lines <!-- table: NAME --> and <!-- end of table -->; NAME is models, wavelets,
loader or peers. Records of a GPU (results/gpu, by python -m benchmarks.gpu) add tables and panels once they
are there.
"""

import argparse
import re
from pathlib import Path

from benchmarks.common import build_parser
from tools.report_tables import SECTIONS
from tools.speed_picture import draw_speed
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.figures import save_figure
from wsfvit.utils.files import write_text_atomic

ROOT = Path(__file__).parents[2]
BEGIN = re.compile(r"^<!-- table: *(.*?) *-->\n", re.MULTILINE)
END = "<!-- end of table -->"


def rewrite_tables(text: str, root: Path) -> tuple[str, list[str]]:
    """Puts the tables of the records under ``root`` into a Markdown text.

    Returns:
        The new text, and the names of the tables that differ in it.

    Raises:
        UserError: no marker, one without an end, an unknown name, or a record that is missing or of another kind.
    """
    parts, stale, position = [], [], 0
    begins = list(BEGIN.finditer(text))
    if not begins:
        raise UserError("README.md has no line <!-- table: NAME -->: nothing says where the tables go")
    for begin, following in zip(begins, [*(later.start() for later in begins[1:]), len(text)], strict=True):
        name = begin[1]
        end = text.find(END, begin.end(), following)
        if end < 0:
            raise UserError(f"README.md: table {name} has no {END} before the next table")
        table = build_table(name, root)
        if text[begin.end() : end] != table:
            stale.append(name)
        parts += [text[position : begin.end()], table]
        position = end
    return "".join([*parts, text[position:]]), stale


def build_table(name: str, root: Path) -> str:
    """What stands between the markers of table ``name``: Markdown, with an empty line above and below, or one alone."""
    if name not in SECTIONS:
        raise UserError(f"README.md: there is no table {name}; the tables are {', '.join(SECTIONS)}")
    try:
        section = SECTIONS[name](root)
    except (KeyError, TypeError) as err:
        raise UserError(f"table {name}: a record under {root / 'results'} is of another kind: {err!r}") from err
    return f"\n{section}\n\n" if section else "\n"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("report", __doc__)
    parser.add_argument("--check", action="store_true", help="name the tables that are stale, write nothing")
    parser.add_argument(
        "--root", type=Path, default=ROOT, metavar="FOLDER", help="holds README.md, results/, docs/ (default: checkout)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    readme, picture = args.root / "README.md", args.root / "docs" / "speed.png"
    try:
        text = readme.read_text()
    except OSError as err:
        raise UserError(f"{readme} cannot be read: {err.strerror}") from err
    new, stale = rewrite_tables(text, args.root)
    if args.check:
        print("\n".join(f"stale: table {name}" for name in stale) or f"{readme}: every table agrees with its records")
        if stale:
            print("python -m tools.readme_tables writes them anew")
            raise SystemExit(1)
        return
    write_text_atomic(readme, new)
    print(f"{readme}: tables written anew: {', '.join(stale) or 'none, all agree with their records'}")
    picture.parent.mkdir(exist_ok=True)
    save_figure(draw_speed(args.root), picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    run_main(main)
