"""The speed tables of the README, made from the recorded files under results/."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from timm.models import is_model_in_modules

from benchmarks.models import FUSED_PREFIX, PREFIX
from benchmarks.mwa import FUSED
from benchmarks.wavemix import AGAIN as WAVEMIX_AGAIN
from benchmarks.wavemix import PUBLISHED as WAVEMIX_PUBLISHED
from wsfvit.analysis.flops import markdown_head, markdown_row
from wsfvit.utils.errors import UserError

Record = dict[str, Any]
Groups = Sequence[Sequence[str]]

# Files of one group make one table. The first group must be there; of the others, recorded by `benchmarks.gpu`,
# each file that is there is taken.
MODELS: Groups = (
    ("cpu/models_t_224",),
    ("gpu/models_t_train",),
    ("gpu/models_t_train_compiled",),
    ("gpu/models_t_train_plain",),
    ("gpu/models_t_train_budget",),
    tuple(f"gpu/models_{size}_train" for size in ("p0", "n", "b")),
    tuple(f"gpu/models_{size}_train_compiled" for size in ("p0", "n", "b")),
    ("gpu/models_t_float32",),
    ("gpu/latency_batch_1",),
    ("gpu/latency_batch_1_graphs",),
)
TRANSFORMS: Groups = (
    ("cpu/wavelets_dwt", "cpu/wavelets_dwt_backward", "cpu/wavelets_swt", "cpu/wavelets_swt_backward"),
    *(
        tuple(
            f"gpu/wavelets_{backend}_{dtype}{end}" for backend in ("triton", "reference") for end in ("", "_backward")
        )
        for dtype in ("float32", "bfloat16", "bfloat16_channels_last", "small")
    ),
)
# The files of `wsfvit.models` that hold models: all other names are timm's.
OWN_FAMILIES = ("wsfvit", "wavemix", "wacnn", "mwa")
TRANSFORM_OPTIONS = {"channels_last": "channels-last", "cuda_graph": "replayed CUDA graphs"}
DIRECTIONS = ("forward", "forward + backward")


def read_record(root: Path, name: str) -> Record:
    """The content of results/``name``.json under ``root``, with a Markdown ``link`` to it.

    Raises:
        UserError: the file is missing or not JSON.
    """
    path = f"results/{name}.json"
    try:
        content = json.loads((root / path).read_text())
    except FileNotFoundError as err:
        raise UserError(f"{path} is missing in {root}: record it with its program, see wsfvit/benchmarks/") from err
    except (OSError, ValueError) as err:
        raise UserError(f"{root / path} cannot be read: {err}") from err
    return {**content, "link": f"[{Path(path).name}]({path})"}


def read_groups(root: Path, groups: Groups) -> Iterator[list[Record]]:
    """The records of each group that has any; see ``MODELS``.

    Raises:
        UserError: a file of the first group is missing, or a file is not JSON.
    """
    yield [read_record(root, name) for name in groups[0]]
    for group in groups[1:]:
        present = [name for name in group if (root / f"results/{name}.json").exists()]
        if present:
            yield [read_record(root, name) for name in present]


def models_section(root: Path) -> str:
    """One table per group of ``MODELS`` and mode (inference, training), and a word if there is none of a GPU."""
    tables, groups = [], list(read_groups(root, MODELS))
    for records in groups:
        modes = dict.fromkeys(result["mode"] for record in records for result in record["results"])
        tables += [models_table(records, mode) for mode in modes]
    if len(groups) == 1:
        tables.append("Not measured on a GPU yet.")
    return "\n\n".join(tables)


def models_table(records: Sequence[Record], mode: str) -> str:
    """Milliseconds, images per second and, where recorded, peak memory of the models of runs with equal settings."""
    results = list(merge_models(records, mode).values())
    with_memory = any(result["peak_memory"] is not None for result in results)
    rows = []
    for result in results:
        memory = [_digits(result["peak_memory"] / 2**20)] if with_memory else []
        speed = "" if result["speed"] is None else f"{result['speed']:.2f}x"
        speed = "1" if result["model"].startswith(PREFIX) else speed
        times = [_digits(1e3 * result["median"]), _digits(result["images_per_second"])]
        rows.append([model_label(result["model"]), *times, *memory, speed])
    columns = ["ms", "images/s", *(["peak MiB"] if with_memory else []), "against the baseline"]
    return _table([f"{mode}, {describe_run(records)} ({_links(records)})", *columns], rows)


def merge_models(records: Sequence[Record], mode: str) -> dict[str, Record]:
    """The results of one mode by model; of a model in several runs, the first one's."""
    found: dict[str, Record] = {}
    for record in records:
        for result in record["results"]:
            if result["mode"] == mode:
                found.setdefault(result["model"], result)
    return found


def model_label(name: str) -> str:
    """A name of `benchmarks.models` as the tables show it."""
    if name.startswith(PREFIX):
        return f"published computation of `{name.removeprefix(PREFIX)}`"
    if name.startswith(FUSED_PREFIX):
        return f"`{name.removeprefix(FUSED_PREFIX)}`, `fuse_for_inference`"
    return f"`{name}`" if is_model_in_modules(name, OWN_FAMILIES) else f"timm `{name}`"


def describe_run(records: Sequence[Record]) -> str:
    """Batch, size, precision, compiler and machine of runs of models."""
    settings = records[0]["settings"]
    precision = settings["dtype"] + (" autocast" if settings["amp"] else "")
    if settings.get("compile"):
        precision += f", compiled ({', '.join([settings['compile'], *describe_compiler(settings)])})"
    size = settings["img_size"]
    return f"batch {settings['batch_size']}, {size}x{size}, {precision}, {machine(records)}"


def describe_compiler(settings: Record) -> list[str]:
    """What a run told the compiler."""
    budget = settings.get("memory_budget")
    return [*settings.get("compile_options", []), *([] if budget is None else [f"memory budget {budget:g}"])]


def machine(records: Sequence[Record]) -> str:
    """The card, or the number of CPU threads, of the runs."""
    names = []
    for record in records:
        threads = record["environment"]["threads"]
        on_gpu = record["settings"]["device"].startswith("cuda")
        names.append(record["environment"]["card"] if on_gpu else f"CPU, {threads} thread{'s' * (threads != 1)}")
    return " or ".join(dict.fromkeys(names))


def transforms_section(root: Path) -> str:
    """Per group of ``TRANSFORMS``, a table of the decimated and one of the undecimated transform."""
    tables = []
    for records in read_groups(root, TRANSFORMS):
        for op in ("dwt", "swt"):
            of_op = [record for record in records if any(run["op"] == op for run in record["runs"])]
            tables += [transforms_table(of_op, op)] if of_op else []
    return "\n\n".join(tables)


def transforms_table(records: Sequence[Record], op: str) -> str:
    """Milliseconds of each candidate by shape and direction, and the range of these times over those of the first."""
    times = merge_transforms(records, op)
    candidates = dict.fromkeys(name for by_name in times.values() for name in by_name)
    ours = next(iter(candidates))
    rows = []
    for name in candidates:
        cells = [_digits(1e3 * by_name[name]) if name in by_name else "" for by_name in times.values()]
        ratios = [by_name[name] / by_name[ours] for by_name in times.values() if name in by_name]
        rows.append([name, *cells, "1" if name == ours else _span(ratios)])
    columns = [f"{'x'.join(map(str, shape))}, {DIRECTIONS[backward]}" for shape, backward in times]
    settings = records[0]["settings"]
    said = [settings["dtype"], *(said for key, said in TRANSFORM_OPTIONS.items() if settings.get(key))]
    caption = f"Haar {op.upper()}, ms, {', '.join(said)}, {machine(records)} ({_links(records)})"
    return _table([caption, *columns, "times ours"], rows)


def merge_transforms(records: Sequence[Record], op: str) -> dict[tuple[tuple[int, ...], bool], dict[str, float]]:
    """Median seconds by (shape, whether with backward) and candidate; of one in several runs, the first one's."""
    times: dict[tuple[tuple[int, ...], bool], dict[str, float]] = {}
    for record in records:
        for run in record["runs"]:
            if run["op"] == op:
                by_name = times.setdefault((tuple(run["shape"]), record["settings"]["backward"]), {})
                for result in run["results"]:
                    by_name.setdefault(result["candidate"], result["median"])
    return times


def loader_section(root: Path) -> str:
    """Images per CPU second by source and decoder, one column per size of the photographs."""
    record = read_record(root, "cpu/loader")
    cells: dict[str, dict[int, str]] = {}
    for result in record["results"]:
        if result["transform"] == "recipe":
            of_case = cells.setdefault(f"{result['source']}, {_decoder(result['decoder'])}", {})
            of_case[result["longer_side"]] = f"{result['images_per_cpu_second']:.0f}"
    settings = record["settings"]
    sides = settings["sides"]
    rows = [[name, *(of_case.get(side, "") for side in sides)] for name, of_case in cells.items()]
    for decoder, speed in record["loader_images_per_cpu_second"].items():
        name = f"{settings['sources'][0]}, {_decoder(decoder)}: the loader with {settings['workers']} workers"
        rows.append([name, f"{speed:.0f}", *[""] * (len(sides) - 1)])
    kilobytes = record["kilobytes_per_image"]
    columns = [
        f"{f'longer side {side}' if side else 'as given'}, {kilobytes[str(side)]:.0f} kB a file" for side in sides
    ]
    size = settings["img_size"]
    return _table([f"images per CPU second, ImageNet recipe at {size}x{size} ({record['link']})", *columns], rows)


def _decoder(name: str) -> str:
    return "Pillow" if name == "pillow" else name


def peers_section(root: Path) -> str:
    """The gains over the published computation of the peers: the range over the shapes, by direction."""
    wavemix, wacnn, mwa = (read_record(root, f"cpu/{name}") for name in ("wavemix", "wacnn", "mwa"))
    gains: list[tuple[str, Record, list[tuple[str, float]]]] = [
        (
            "WaveMix: level-3 pyramid, against the published one",
            wavemix,
            list(_wavemix_gains(wavemix, WAVEMIX_PUBLISHED)),
        ),
        (
            "of that by computing it once per block, not once per level",
            wavemix,
            list(_wavemix_gains(wavemix, WAVEMIX_AGAIN)),
        ),
        ("WA-CNN: Haar attention in closed form, not on band matrices", wacnn, list(_wacnn_gains(wacnn))),
        ("AFNO: one block product, not eight einsums", mwa, list(_mwa_gains(mwa, "block product"))),
        ("AFNO: the whole mixer with it", mwa, list(_mwa_gains(mwa, "mixer"))),
    ]
    rows = []
    for label, record, found in gains:
        spans = [_span([gain for direction, gain in found if direction == wanted]) for wanted in DIRECTIONS]
        rows.append([label, *spans, record["link"]])
    return _table([f"what, {machine([wavemix, wacnn, mwa])}", *DIRECTIONS, "file"], rows)


def _wavemix_gains(record: Record, candidate: str, level: int = 3) -> Iterator[tuple[str, float]]:
    for run in record["runs"]:
        for result in run["results"]:
            if run["level"] == level and result["candidate"] == candidate:
                yield DIRECTIONS[run["backward"]], result["times_ours"]


def _wacnn_gains(record: Record) -> Iterator[tuple[str, float]]:
    for run in record["runs"]:
        yield run["mode"], max(result["times_ours"] for result in run["results"])


def _mwa_gains(record: Record, part: str) -> Iterator[tuple[str, float]]:
    for run in record["runs"]:
        for result in run["results"]:
            if result["part"] == part and result["candidate"] == FUSED:
                yield result["direction"], result["speed_over_einsums"]


SECTIONS: dict[str, Callable[[Path], str]] = {
    "models": models_section,
    "wavelets": transforms_section,
    "loader": loader_section,
    "peers": peers_section,
}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([*markdown_head(tuple(header)), *map(markdown_row, rows)])


def _links(records: Sequence[Record]) -> str:
    return ", ".join(record["link"] for record in records)


def _digits(value: float) -> str:
    """Three significant digits, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _span(factors: Sequence[float]) -> str:
    """The range of some factors."""
    low, high = f"{min(factors):.1f}x", f"{max(factors):.1f}x"
    return low if low == high else f"{low} to {high}"
