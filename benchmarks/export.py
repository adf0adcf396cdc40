"""Export models and compare each with PyTorch: format, largest difference, seconds, size.

    python -m benchmarks.export --formats onnx torch --out results/cpu/export.json
    python -m benchmarks.export --models "wsfvit*_p?_224" --formats aoti --fixed-batch

Models have random weights and their own image size; the batch is dynamic by default. A model that cannot be
exported, or differs, is recorded with its error and the others go on; the program then ends with exit code 1.

Prints a table and writes it to --out after every model. Takes seconds to minutes per model and format, aoti longest.
"""

import argparse
import time
from typing import Any

import timm
import torch

from benchmarks.common import add_out, build_parser, write_run
from wsfvit.cli.tools import FORMATS
from wsfvit.inference.export import DYNAMIC_BATCHES, compare_outputs, export_model, load_runner
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.tables import markdown_table

# The smallest of each kind, the quickest first: larger ones repeat the same blocks.
MODELS = (
    *(f"{mixer}_vit_xs_patch4_32" for mixer in ("gfn", "sa", "afno", "mwa")),
    *("wacnn_resnet18", "wavemix_lite_64_6", "wsfvit_p0_224", "wsfvit_dwt_p0_224", "wacnn_vgg16_bn"),
    *("wacnn_mobilenetv2", "wavemix_v1_128_7", "wavemix_v3_144_16", "wavemix_192_16_l3"),
)


def bench_export(name: str, format: str, dynamic_batch: bool) -> dict[str, Any]:
    """Exports one model and compares it; returns its record."""
    torch.manual_seed(0)
    record: dict[str, Any] = {"model": name, "format": format, "batch": "dynamic" if dynamic_batch else 1}
    model = timm.create_model(name).eval()
    input_size = model.default_cfg["input_size"]
    batches = DYNAMIC_BATCHES if dynamic_batch else (1,)
    began, began_cpu = time.perf_counter(), time.process_time()
    try:
        content = export_model(model, torch.randn(batches[-1], *input_size), format, dynamic_batch)
        record |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
        record |= {"megabytes": len(content) / 1e6}
        difference, scale = compare_outputs(model, load_runner(content, format), input_size, batches)
        record |= {"max_difference": difference, "max_output": scale}
    except UserError as err:
        record["error"] = str(err)
    return record


def show(record: dict[str, Any]) -> list[str]:
    """A row of the table."""
    names = [record["model"], record["format"], str(record["batch"])]
    if "error" in record:
        return [*names, record["error"], "", "", "", ""]
    figures = [f"{record[key]:.1e}" for key in ("max_difference", "max_output")]
    return [*names, *figures, *(f"{record[key]:.1f}" for key in ("seconds", "cpu_seconds", "megabytes"))]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("benchmarks.export", __doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="NAME",
        help="models, or patterns of names (default: the smallest of each kind)",
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["onnx"], help="what to write (default: onnx)")
    parser.add_argument("--fixed-batch", action="store_true", help="one image per call")
    add_out(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    records = []
    for name in dict.fromkeys(name for pattern in args.models for name in timm.list_models(pattern)):
        for format in args.formats:
            records.append(bench_export(name, format, not args.fixed_batch))
            print(*show(records[-1]), flush=True)
            write_run(args, results=records)  # an interrupted run keeps its records
    if not records:
        raise UserError(f"no model is called {' or '.join(args.models)}")
    header = ["model", "format", "batch", "difference", "largest output", "s", "CPU s", "MB"]
    print(f"\n{markdown_table(header, [show(record) for record in records])}")
    if any("error" in record for record in records):
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
