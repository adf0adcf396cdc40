"""Rewrite the speed tables of README.md and docs/*.md from the records under results/.

    python -m tools.readme_tables            # after a new record; then commit the pages
    python -m tools.readme_tables --check    # change nothing; exit code 1 if a table differs from its records

A table stands between the lines <!-- table: NAME --> and <!-- end of table -->; NAME is models, wavelets, loader or
peers. Records of a GPU (results/gpu, by python -m benchmarks.gpu) add tables once they exist. Takes seconds.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from timm.models import is_model_in_modules

from benchmarks.common import ROOT, build_parser
from benchmarks.models import FUSED_PREFIX, PREFIX
from benchmarks.timing import DIRECTIONS
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.files import write_text_atomic
from wsfvit.utils.tables import markdown_table

TABLE = re.compile(
    r"^<!-- table: *(.*?) *-->\n(.*?)^(?:<!-- (end of table|table:.*?) -->$|\Z)", re.MULTILINE | re.DOTALL
)
# The files of `wsfvit.models` that hold models: all other names are timm's.
OWN_FAMILIES = ("wsfvit", "wavemix", "wacnn", "mwa")
# Label, record, what the case must have, and how the name of the slower candidate ends.
PEER_GAINS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("WaveMix: level-3 pyramid, against the published one", "wavemix", {"level": 3}, "(published)"),
    ("of that by computing it once per block, not once per level", "wavemix", {"level": 3}, "per level"),
    ("WA-CNN: Haar attention in closed form, not on band matrices", "wacnn", {}, "(published)"),
    ("AFNO: one block product, not eight einsums", "mwa", {"part": "block product"}, "(published)"),
    ("AFNO: the whole mixer with it", "mwa", {"part": "mixer"}, "(published)"),
)
Record = dict[str, Any]


class Results:
    """The records under ``root``, linked from a page in ``folder``."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.base = root / "results", os.path.relpath(root / "results", folder)

    def read(self, name: str) -> Record:
        """The content of results/NAME.json, with a Markdown ``link`` to it.

        Raises:
            UserError: the file is missing or not JSON.
        """
        try:
            content = json.loads((self.root / f"{name}.json").read_text())
        except (OSError, ValueError) as err:
            raise UserError(f"{self.root / name}.json cannot be read: record it with its program ({err})") from err
        return {**content, "link": f"[{Path(name).name}.json]({self.base}/{name}.json)"}

    def find(self, *patterns: str) -> list[str]:
        """Names of records, by patterns such as ``gpu/models_*``."""
        return [
            f"{path.parent.name}/{path.stem}"
            for pattern in patterns
            for path in sorted(self.root.glob(f"{pattern}.json"))
        ]


def models_tables(results: Results) -> Iterator[str]:
    """One table per record and mode (inference, training)."""
    on_gpu = results.find("gpu/models_*", "gpu/latency_*", "gpu/fused_*", "gpu/attention_*", "gpu/without_*")
    for record in map(results.read, [*results.find("cpu/models_t_*", "cpu/models_p*"), *on_gpu]):
        s = record["settings"]
        how = f"batch {s['batch_size']}, {s['img_size']}x{s['img_size']}, {s['dtype']}{' autocast' * s['amp']}"
        how += f", compiled ({s['compile']})" if s.get("compile") else ""
        for mode in dict.fromkeys(result["mode"] for result in record["results"]):
            chosen = [result for result in record["results"] if result["mode"] == mode]
            header = [f"{mode}, {how}, {machine(record)} ({record['link']})", "ms", "images/s", "against the baseline"]
            rows = []
            for result in chosen:
                speed = "" if result["speed"] is None else f"{result['speed']:.2f}x"
                times = digits(1e3 * result["median"]), digits(result["images_per_second"])
                rows.append(
                    [model_label(result["model"]), *times, "1" if result["model"].startswith(PREFIX) else speed]
                )
            if chosen[0]["peak_memory"] is not None:  # of GPUs only
                rows = [[*row, digits(result["peak_memory"] / 2**20)] for row, result in zip(rows, chosen, strict=True)]
                header.append("peak MiB")
            yield markdown_table(header, rows, aligned=False)
    if not on_gpu:
        yield "Not measured on a GPU yet."


def model_label(name: str) -> str:
    """A name of `benchmarks.models` in the tables."""
    if name.startswith(PREFIX):
        return f"published computation of `{name.removeprefix(PREFIX)}`"
    if name.startswith(FUSED_PREFIX):
        return f"`{name.removeprefix(FUSED_PREFIX)}`, `fuse_for_inference`"
    return f"`{name}`" if is_model_in_modules(name, OWN_FAMILIES) else f"timm `{name}`"


def machine(record: Record) -> str:
    """The card, or the CPU and the number of its threads."""
    environment = record["environment"]
    threads, allocator = environment["threads"], "GLIBC_TUNABLES" in environment.get("variables", {})
    if record["settings"]["device"].startswith("cuda"):
        return str(environment["card"])
    name = environment["cpu"].replace("(R)", "").partition(" Processor")[0]
    return f"{name}, {threads} thread{'s' * (threads != 1)}{', allocator set' * allocator}"


def wavelets_tables(results: Results) -> Iterator[str]:
    """A table per transform and record of the forward pass, with the columns of its backward's.

    The last column is the range of a candidate's times over those of the first one, which is ours.
    """
    on_gpu = results.find("gpu/wavelets_*")
    complete = [name for name in on_gpu if f"{name}_backward" in on_gpu]
    for name in ["cpu/wavelets_dwt", "cpu/wavelets_swt", *complete]:
        records = [results.read(each) for each in (name, f"{name}_backward")]
        for op in dict.fromkeys(run["op"] for run in records[0]["runs"]):
            columns = {
                f"{'x'.join(map(str, run['shape']))}, {DIRECTIONS[record['settings']['backward']]}": {
                    result["candidate"]: result["median"] for result in run["results"]
                }
                for record in records
                for run in record["runs"]
                if run["op"] == op
            }
            ours, *others = dict.fromkeys(name for times in columns.values() for name in times)
            rows = [[ours, *(digits(1e3 * times[ours]) for times in columns.values()), "1"]]
            for name in others:
                cells = [digits(1e3 * times[name]) if name in times else "-" for times in columns.values()]
                ratios = [times[name] / times[ours] for times in columns.values() if name in times]
                rows.append([name, *cells, span(ratios)])
            links = ", ".join(record["link"] for record in records)
            caption = f"Haar {op.upper()}, ms, {records[0]['settings']['dtype']}, {machine(records[0])} ({links})"
            yield markdown_table([caption, *columns, "times ours"], rows, aligned=False)


def loader_tables(results: Results) -> Iterator[str]:
    """Images per CPU second by source and decoder, one column per size of the images."""
    record = results.read("cpu/loader")
    settings, kilobytes = record["settings"], record["kilobytes_per_image"]
    cells: dict[str, dict[int, str]] = {}
    for result in record["results"]:
        if result["transform"] == "recipe":
            row = cells.setdefault(f"{result['source']}, {result['decoder']}", {})
            row[result["longer_side"]] = f"{result['images_per_cpu_second']:.0f}"
    for decoder, speed in record["loader_images_per_cpu_second"].items():
        name = f"{settings['sources'][0]}, {decoder}: the loader with {settings['workers']} workers"
        cells[name] = {settings["sides"][0]: f"{speed:.0f}"}
    rows = [[name, *(row.get(side, "-") for side in settings["sides"])] for name, row in cells.items()]
    caption = f"images per CPU second, ImageNet recipe at {settings['img_size']} pixels ({record['link']})"
    columns = [
        f"{f'longer side {side}' if side else 'unchanged'}, {kilobytes[str(side)]:.0f} kB a file"
        for side in settings["sides"]
    ]
    yield markdown_table([caption, *columns], rows, aligned=False)


def peers_tables(results: Results) -> Iterator[str]:
    """The gains over the published computation of the peers: the range over the shapes, by direction."""
    rows = []
    for label, name, where, end in PEER_GAINS:
        record = results.read(f"cpu/{name}")
        gains: dict[str, list[float]] = {direction: [] for direction in DIRECTIONS}
        for (direction, _), seconds in peer_cases(record, where).items():
            other = next(value for candidate, value in seconds.items() if candidate.endswith(end))
            gains[direction].append(other / next(iter(seconds.values())))
        rows.append([label, *map(span, gains.values()), machine(record), record["link"]])
    header = ["speed over the published computation", *DIRECTIONS, "machine", "record"]
    yield markdown_table(header, rows, aligned=False)


def peer_cases(record: Record, where: dict[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Seconds by candidate, ours first, for each direction and shape of the cases that agree with ``where``.

    Older records, of three programs, call the direction mode or backward, and may have it in the results.
    """
    cases: dict[tuple[str, str], dict[str, float]] = {}
    for run in record["runs"]:
        for result in ({**run, **result} for result in run["results"]):
            if where.items() <= result.items():
                direction = result.get("direction") or result.get("mode") or DIRECTIONS[result["backward"]]
                cases.setdefault((direction, str(run["shape"])), {})[result["candidate"]] = result["median"]
    return cases


TABLES: dict[str, Callable[[Results], Iterator[str]]] = {
    "models": models_tables,
    "wavelets": wavelets_tables,
    "loader": loader_tables,
    "peers": peers_tables,
}


def digits(value: float) -> str:
    """Three significant digits, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def span(factors: Sequence[float]) -> str:
    """The range of some factors."""
    low, high = f"{min(factors):.1f}x", f"{max(factors):.1f}x"
    return low if low == high else f"{low} to {high}"


def rewrite_page(page: Path, root: Path) -> tuple[str, list[str]]:
    """The text of a page with its tables built again, and the names of those that differ.

    Raises:
        UserError: a table has no end or an unknown name, or a record is missing or of another kind.
    """
    stale = []

    def build(found: re.Match[str]) -> str:
        name, old, end = found.groups()
        if name not in TABLES or end != "end of table":
            wrong = (
                "has no <!-- end of table -->" if name in TABLES else f"does not exist; there are {', '.join(TABLES)}"
            )
            raise UserError(f"{page}: table {name} {wrong}")
        try:
            table = "\n\n".join(["", *TABLES[name](Results(root, page.parent)), ""])[1:]
        except (KeyError, TypeError) as err:
            raise UserError(f"table {name}: a record under {root / 'results'} is of another kind: {err!r}") from err
        if table != old:
            stale.append(name)
        return f"<!-- table: {name} -->\n{table}<!-- end of table -->"

    return TABLE.sub(build, page.read_text()), stale


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("tools.readme_tables", __doc__)
    parser.add_argument("--check", action="store_true", help="name the tables that differ, write nothing")
    parser.add_argument(
        "--root", type=Path, default=ROOT, metavar="FOLDER", help="holds README.md, docs/, results/ (default: checkout)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    pages = [args.root / "README.md", *sorted((args.root / "docs").glob("*.md"))]
    pages = [page for page in pages if page.is_file() and "<!-- table:" in page.read_text()]
    if not pages:
        raise UserError(f"no page of {args.root} has a line <!-- table: NAME -->: nothing to write")
    differs = False
    for page in pages:
        text, stale = rewrite_page(page, args.root)
        differs |= bool(stale)
        print(f"{page}: {'stale: ' + ', '.join(stale) if stale else 'every table agrees with its records'}")
        if stale and not args.check:
            write_text_atomic(page, text)
    if differs:
        print("run python -m tools.readme_tables to write them" if args.check else "written")
    if differs and args.check:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
