"""Report of a study: results.json, a Markdown page of tables, and a figure of accuracy against cost."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.study_plan import Study
from wsfvit.utils.figures import new_panels, save_figure
from wsfvit.utils.files import write_text_atomic
from wsfvit.utils.tables import markdown_table

Record = dict[str, Any]

PANELS = (
    ("MACs per image (M)", lambda record: record["macs"] / 1e6),
    ("training, images/s", lambda record: record["training_images_per_s"]),
    ("peak memory (MiB)", lambda record: None if record["peak_memory"] is None else record["peak_memory"] / 2**20),
)


def write_report(study: Study) -> None:
    """Rewrites results.json, results.md and results.png from the rows recorded so far."""
    records = [json.loads(path.read_text()) for path in sorted(study.results.glob("*/row.json"))]
    order = list(study.systems)
    records = sorted(
        (record for record in records if record["system"] in order),
        key=lambda record: (order.index(record["system"]), record["seed"]),
    )
    if not records:
        return
    finished = [record for record in records if "error" not in record]
    payload = {"study": study.title, "rows_planned": len(order) * len(study.seeds), "rows": records}
    write_text_atomic(study.results / "results.json", json.dumps(payload, indent=2) + "\n")
    write_text_atomic(study.results / "results.md", build_page(study, records))
    if finished:
        save_figure(draw_costs(study, finished), study.results / "results.png")


def build_page(study: Study, records: Sequence[Record]) -> str:
    """Markdown page of the records, ordered by system and seed."""
    finished = [record for record in records if "error" not in record]
    planned = len(study.systems) * len(study.seeds)
    parts = [f"# {study.title}", f"{len(finished)} of {planned} rows are finished (system x seed)."]
    if finished:
        parts += [_systems_table(study, finished), _legend(finished)]
    if study.comparisons:
        parts += ["## Comparisons", _comparisons_table(study, finished)]
        parts.append(
            "Difference of top-1 in points, paired by seed, with its 95 % interval by Student's t; with fewer than two "
            "seeds on both sides there is none, and the difference says nothing about chance."
        )
    if failed := [record for record in records if "error" in record]:
        parts += [
            "## Failed",
            *(f"- {record['system']}, seed {record['seed']}: {record['error']}" for record in failed),
        ]
    return "\n\n".join(parts) + "\n"


def _systems_table(study: Study, finished: Sequence[Record]) -> str:
    rows = []
    for system in study.systems:
        of_system = [record for record in finished if record["system"] == system]
        if not of_system:
            continue
        first = of_system[0]
        memory = _median(of_system, "peak_memory")
        rows.append(
            [
                system,
                f"{first['params'] / 1e6:.2f}",
                f"{first['macs'] / 1e6:.1f}",
                spread([record["top1"] for record in of_system]),
                str(len(of_system)),
                *(f"{_median(of_system, f'{mode}_images_per_s'):.0f}" for mode in ("training", "inference")),
                "not measured" if memory is None else f"{memory / 2**20:.0f}",
                study.systems[system].get("note", ""),
            ]
        )
    header = ["system", "params (M)", "MACs (M)", "top-1 (%)", "seeds", "training images/s", "inference images/s"]
    return markdown_table([*header, "peak MiB", "note"], rows)


def _legend(finished: Sequence[Record]) -> str:
    batches = sorted({record["timed_batch_size"] for record in finished})
    clocks = sorted({record["timed_by"] for record in finished})
    memory = ", ".join(sorted({record["peak_memory_of"] for record in finished}))
    machines = sorted({record["environment"]["card"] or record["environment"]["cpu"] for record in finished})
    threads = sorted({record["environment"]["threads"] for record in finished})
    epochs = sorted({record["epochs"] for record in finished})
    return (
        f"Top-1 of the last epoch (of {_or(epochs)}) on the validation split, mean ± standard deviation over the "
        f"seeds. Images per second ({_or(clocks)}) of bare steps with batch {_or(batches)}, without loading; peak "
        f"memory while training, of: {memory}; medians over the seeds. Machine: {_or(machines)}, CPU threads: "
        f"{_or(threads)}."
    )


def _or(values: Sequence[Any]) -> str:
    return " or ".join(map(str, values))


def _median(records: Sequence[Record], key: str) -> float | None:
    values = [record[key] for record in records if record[key] is not None]
    return statistics.median(values) if values else None


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, or the one value."""
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def paired_difference(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float | None, int] | None:
    """Mean difference of top-1, by seed, over the seeds that both have, with its 95 % interval by Student's t.

    Returns:
        The difference, half the width of the interval (None for one seed) and the number of seeds; None for no seed.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    count = len(differences)
    if not count:
        return None
    half = None
    if count > 1:
        from scipy import stats  # only where there is an interval to give

        half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    return statistics.fmean(differences), half, count


def _comparisons_table(study: Study, finished: Sequence[Record]) -> str:
    top1: dict[str, dict[int, float]] = {}
    for record in finished:
        top1.setdefault(record["system"], {})[record["seed"]] = record["top1"]
    rows = []
    for comparison in study.comparisons:
        ours, theirs = comparison["system"], comparison["against"]
        found = paired_difference(top1.get(ours, {}), top1.get(theirs, {}))
        cells = ["-", "-", "0"]
        if found is not None:
            difference, half, count = found
            interval = "-" if half is None else f"{difference - half:+.2f} to {difference + half:+.2f}"
            cells = [f"{difference:+.2f}", interval, str(count)]
        rows.append([f"{ours} against {theirs}", *cells, comparison.get("published", "")])
    return markdown_table(["comparison", "difference", "95 % interval", "seeds", "published"], rows)


def draw_costs(study: Study, finished: Sequence[Record]) -> Any:
    """A figure of top-1 against MACs, speed and memory, one point per system, bars for the spread over seeds."""
    figure, axes = new_panels(1, len(PANELS), 3.6, 3.4, sharey=True)
    points: dict[str, Any] = {}
    for index, system in enumerate(study.systems):
        of_system = [record for record in finished if record["system"] == system]
        if not of_system:
            continue
        top1 = [record["top1"] for record in of_system]
        bar = statistics.stdev(top1) if len(top1) > 1 else None
        # Ten colours, then the same with another marker.
        style = {"color": f"C{index % 10}", "marker": "os^"[index // 10 % 3], "markersize": 5, "linestyle": "none"}
        for axis, (_, cost) in zip(axes[0], PANELS, strict=True):
            values = [value for record in of_system if (value := cost(record)) is not None]
            if values:
                points[system] = axis.errorbar(statistics.median(values), statistics.fmean(top1), bar, **style)
    for axis, (label, _) in zip(axes[0], PANELS, strict=True):
        axis.set_xlabel(label)
        _plain_log_scale(axis)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("top-1 (%)")
    figure.legend(points.values(), points, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(study.title, fontsize=9)
    return figure


def _plain_log_scale(axis: Any) -> None:
    """Make the x axis logarithmic with labels at 1, 2 and 5 times powers of ten, if the points span a factor of 5."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.dataLim.intervalx
    if high < 5 * low:
        return
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
